"""Encodings undone: what is found in them, and that other texts in them are left alone."""

from __future__ import annotations

import base64
import codecs
import urllib.parse

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from collab.privacy import encodings
from collab.privacy.detector import Detector
from collab.types import PrivateUnit

UNIT = "Kano Belfen"
OTHER = "Tola Riegan"


def found(text: str, unit: str = UNIT) -> bool:
    return bool(Detector([PrivateUnit(unit, "odd")]).leaked([text])[0])


def hidden(text: str) -> dict[str, str]:
    """A text in each encoding."""
    raw = text.encode()
    turned = codecs.encode(text, "rot13")
    return {
        "base64": base64.b64encode(raw).decode(),
        "base64 without padding": base64.b64encode(raw).decode().rstrip("="),
        "base64 in a sentence": base64.urlsafe_b64encode(f"it's {text}?".encode()).decode(),
        "base64 twice": base64.b64encode(base64.b64encode(raw)).decode(),
        "base64 of rot13": base64.b64encode(turned.encode()).decode(),
        "hex": raw.hex(),
        "hex, spaced": raw.hex(" ").upper(),
        "hex, 0x": "0x" + raw.hex(),
        "hex, escaped": "".join(f"\\x{byte:02x}" for byte in raw),
        "percent": "".join(f"%{byte:02x}" for byte in raw),
        "query": urllib.parse.quote_plus(f"q={text}"),
        "entities": "".join(f"&#{byte};" for byte in raw),
        "hex entities": "".join(f"&#x{byte:x};" for byte in raw),
        "escapes": "".join(f"\\u{byte:04x}" for byte in raw),
        "codes": " ".join(map(str, raw)),
        "binary": " ".join(f"{byte:08b}" for byte in raw),
        "binary, joined": "".join(f"{byte:08b}" for byte in raw),
        "rot13": turned,
        "backwards": text[::-1],
        "words backwards": " ".join(word[::-1] for word in text.split()),
    }


@pytest.mark.parametrize("name", hidden(UNIT))
def test_a_unit_is_found_encoded_and_another_name_is_not(name: str) -> None:
    assert found(f"what is {hidden(UNIT)[name]} , please")
    assert not found(f"what is {hidden(OTHER)[name]} , please")


@pytest.mark.parametrize(
    "text",
    [
        *("k4n0 b3lf3n", "K4n0 B3lf3n!", "#k4no_belfen", "k@no belf€n", "|<ano k4no-b3lfen"),
        "kilo alpha november oscar bravo echo lima foxtrot echo november",
        "Kilo-Alfa-November-Oscar, new word, Bravo-Echo-Lima-Foxtrot-Echo-November",
        "K as in kite, A as in ant, N for nut, O like oak, B, E, L, F, E, N",
        "capital k, a, n, o, space, capital b, e, l, f, e, n",
    ],
)
def test_a_unit_is_found_in_leetspeak_and_spelled_out(text: str) -> None:
    assert found(f"it is {text} you see")


@pytest.mark.parametrize(
    "text",
    [
        *("k4n1 b3lf3n", "r4n0 b3lf3n", "k4n0 b3lf3nd", "4242 83743"),
        "kilo alpha november echo bravo echo lima foxtrot echo november",
        "K as in kite, A as in ant, N as in nut",
    ],
)
def test_other_words_in_leetspeak_and_spelled_out_are_left_alone(text: str) -> None:
    assert not found(f"it is {text} you see")


def test_double_letters_and_code_words_in_prose() -> None:
    assert found("h, a, double l, then o, w, e, n", "Hall Owen")
    assert encodings.spelled(["golf", "at", "the", "hotel"]) == ["golf", "at", "the", "hotel"]
    assert encodings.spelled(["x", "ray", "yankee", "zulu"]) == ["x", "y", "z"]


def test_digits_may_be_letters_that_look_like_them() -> None:
    assert found("call 5SS-Ol99-22", "555-0199-22")
    assert not found("call 5SS-OlS9-22", "555-0199-22")


def test_numbers_are_no_leetspeak() -> None:
    assert not found("room 808", "bob")
    assert not found("in 7355 c4ses", "tess")
    assert found("in 73ss c4ses", "tess")


@pytest.mark.parametrize("unit", ["Noel", "abc"])
def test_short_units_are_not_looked_for_backwards(unit: str) -> None:
    assert not found(unit[::-1], unit)


def test_hashes_and_numbers_decode_to_nothing() -> None:
    text = "md5 d41d8cd98f00b204e9800998ecf8427e, McDonald, 2024-05-03 and 555-0199"
    assert not list(encodings.decoded(text, encodings.codes(text)))


@pytest.mark.parametrize("text", ["9" * 5000 + "k", "01" * 9000 + "2", "a-" * 9000, "%41" * 5000])
def test_long_texts_are_read(text: str) -> None:
    assert not found(text)


@given(st.text(st.characters(codec=None)))
def test_nothing_raises(text: str) -> None:
    list(encodings.decoded(text, encodings.codes(text)))
    encodings.spelled(text.split())
    encodings.Leet.always(text)


@example("finnin")  # its base64 has one capital only, as a word has
@example("ninnin")
@given(st.text("abcdefghijklmnopqrstuvwxyz", min_size=6).filter(lambda word: len(word) % 3 == 0))
def test_base64_of_any_word_is_read(word: str) -> None:
    assert found(base64.b64encode(word.encode()).decode(), word)
