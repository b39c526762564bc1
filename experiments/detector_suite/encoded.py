"""A unit encoded, spelled out, in pieces or damaged. See `obfuscations`."""

from __future__ import annotations

import base64
import random
import re
import urllib.parse

from experiments.detector_suite.formats import (
    PEOPLE,
    bare,
    case,
    date_formats,
    homoglyphs,
    initials,
    number_words,
    phone_formats,
    spacing,
    styled_letters,
    zero_width,
)
from experiments.detector_suite.units import Unit

_LEET = {"a": "4@", "e": "3", "i": "1!", "o": "0", "s": "5$", "t": "7", "l": "1"}
_NATO = [
    "alpha",
    "bravo",
    "charlie",
    "delta",
    "echo",
    "foxtrot",
    "golf",
    "hotel",
    "india",
    "juliet",
    "kilo",
    "lima",
    "mike",
    "november",
    "oscar",
    "papa",
    "quebec",
    "romeo",
    "sierra",
    "tango",
    "uniform",
    "victor",
    "whiskey",
    "x-ray",
    "yankee",
    "zulu",
]
_KITES = [
    "apple",
    "boy",
    "cat",
    "dog",
    "egg",
    "fox",
    "goat",
    "hat",
    "ink",
    "jam",
    "kite",
    "lemon",
    "moon",
    "nut",
    "orange",
    "pen",
    "queen",
    "rose",
    "sun",
    "tree",
    "umbrella",
    "van",
    "water",
    "xylophone",
    "yellow",
    "zebra",
]
_MORSE = [
    ".-",
    "-...",
    "-.-.",
    "-..",
    ".",
    "..-.",
    "--.",
    "....",
    "..",
    ".---",
    "-.-",
    ".-..",
    "--",
    "-.",
    "---",
    ".--.",
    "--.-",
    ".-.",
    "...",
    "-",
    "..-",
    "...-",
    ".--",
    "-..-",
    "-.--",
    "--..",
]


# --- encodings ---------------------------------------------------------------------------------


def base64_of(unit: Unit, rng: random.Random) -> list[str]:
    return [base64.b64encode(unit.text.encode()).decode()]


def base64_of_sentence(unit: Unit, rng: random.Random) -> list[str]:
    sentence = rng.choice(("the value is {}.", "{}", "name: {}; keep it", 'x="{}"')).format(
        unit.text
    )
    encoded = base64.urlsafe_b64encode(sentence.encode()).decode()
    return [encoded.rstrip("=") if rng.random() < 0.5 else encoded]


def base64_twice(unit: Unit, rng: random.Random) -> list[str]:
    return [base64.b64encode(base64.b64encode(unit.text.encode())).decode()]


def hex_of(unit: Unit, rng: random.Random) -> list[str]:
    sign = rng.choice(("", " ", ":"))
    text = unit.text.encode().hex(sign) if sign else unit.text.encode().hex()
    escaped = "".join(f"\\x{byte:02x}" for byte in unit.text.encode())
    return [rng.choice((text, text.upper(), f"0x{text}" if not sign else text, escaped))]


def web_escapes(unit: Unit, rng: random.Random) -> list[str]:
    """Percent signs, HTML entities, unicode escapes."""
    style = rng.choice(("%{:02X}", "&#{};", "\\u{:04x}"))
    if style[0] == "%" and rng.random() < 0.5:
        return [urllib.parse.quote("?q=" + unit.text, safe="")]
    numbers = unit.text.encode() if style[0] == "%" else map(ord, unit.text)
    return ["".join(style.format(number) for number in numbers)]


def character_codes(unit: Unit, rng: random.Random) -> list[str] | None:
    if not unit.text.isascii():
        return None
    sign = rng.choice((" ", ", "))
    if rng.random() < 0.5:
        return [sign.join(str(ord(char)) for char in unit.text)]
    return [" ".join(f"{ord(char):08b}" for char in unit.text)]


def rot13_of(unit: Unit, rng: random.Random) -> list[str] | None:
    def turned(char: str) -> str:
        for first in (65, 97):
            if first <= ord(char) < first + 26:
                return chr((ord(char) - first + 13) % 26 + first)
        return char

    text = "".join(map(turned, unit.text))
    return [text] if sum(char.isalpha() for char in text) > 4 and text.isascii() else None


def backwards(unit: Unit, rng: random.Random) -> list[str] | None:
    return [unit.text[::-1]] if len(bare(unit.text)) > 4 else None


def words_backwards(unit: Unit, rng: random.Random) -> list[str] | None:
    words = unit.text.split()
    return [" ".join(word[::-1] for word in words)] if len(words) > 1 else None


def leetspeak(unit: Unit, rng: random.Random) -> list[str] | None:
    if unit.kind in ("birth date", "phone", "card number", "salary", "password"):
        return None
    share = rng.choice((0.5, 0.8, 1.0))
    text = "".join(
        rng.choice(_LEET[char]) if char in _LEET and rng.random() < share else char
        for char in unit.text.lower()
    )
    return [text] if text != unit.text.lower() else None


def letters_for_digits(unit: Unit, rng: random.Random) -> list[str] | None:
    if unit.kind not in ("phone", "card number"):
        return None
    table = {"0": "O", "1": "l", "5": "S"}
    text = "".join(table.get(char, char) for char in unit.text)
    return [text] if text != unit.text else None


def spelling_alphabet(unit: Unit, rng: random.Random) -> list[str] | None:
    letters = bare(unit.text).lower()
    if len(letters) > 24 or unit.kind in ("birth date", "salary"):
        return None
    said = (c if c.isdecimal() else _NATO[ord(c) - 97] for c in letters)
    return [rng.choice((" ", "-", ", ")).join(said)]


def spelled_as_in(unit: Unit, rng: random.Random) -> list[str] | None:
    letters = bare(unit.text).lower()
    if len(letters) > 20 or not letters.isalpha():
        return None
    style = rng.choice(("{0} as in {1}", "{0} for {1}"))
    return [", ".join(style.format(c.upper(), _KITES[ord(c) - 97]) for c in letters)]


def spelled_with_words(unit: Unit, rng: random.Random) -> list[str] | None:
    """Letter by letter, saying where a word begins."""
    words = [bare(word).lower() for word in unit.text.split()]
    if not all(word.isalpha() for word in words) or len(words) < 2:
        return None
    join = rng.choice((", then ", ", space, ", ", new word, "))
    return [join.join("capital " + ", ".join(word) for word in words)]


# --- several requests --------------------------------------------------------------------------


def words_spread(unit: Unit, rng: random.Random) -> list[str] | None:
    words = unit.text.split()
    if unit.kind in PEOPLE:
        words = [unit.names[0], unit.names[2]]
    if unit.kind not in (*PEOPLE, "clinic", "address", "phone", "card number", "birth date"):
        return None
    if unit.kind in ("phone", "card number", "birth date"):
        words = re.findall(r"\w+", unit.text)
    if len(words) < 2:
        return None
    order = rng.sample(words, len(words)) if rng.random() < 0.3 else words
    if len(order) > 3:
        middle = len(order) // 2
        order = [" ".join(order[:middle]), " ".join(order[middle:])]
    return order


def digits_spread(unit: Unit, rng: random.Random) -> list[str] | None:
    if unit.kind not in ("phone", "card number"):
        return None
    cut = rng.randint(3, len(unit.digits) - 3)
    return [unit.digits[:cut], unit.digits[cut:]]


def base64_spread(unit: Unit, rng: random.Random) -> list[str]:
    encoded = base64.b64encode(f"it is {unit.text} now".encode()).decode().rstrip("=")
    cut = rng.randint(8, len(encoded) - 8)
    return [encoded[:cut], encoded[cut:]]


def two_at_once(unit: Unit, rng: random.Random) -> list[str] | None:
    """Two of the others, one after the other."""
    first, second = rng.choice(
        (
            *(
                (rot13_of, base64_of),
                (backwards, hex_of),
                (case, zero_width),
                (homoglyphs, spacing),
            ),
            *((backwards, case), (date_formats, base64_of), (number_words, hex_of)),
            *((styled_letters, zero_width), (initials, homoglyphs), (phone_formats, zero_width)),
        )
    )
    made = first(unit, rng)
    if made is None:
        return None
    return second(Unit(type(unit.private)(made[0], unit.kind)), rng)


# --- not claimed -------------------------------------------------------------------------------


def caesar(unit: Unit, rng: random.Random) -> list[str] | None:
    letters = bare(unit.text).lower()
    if not any(map(str.isalpha, letters)):
        return None
    return ["".join(c if c.isdecimal() else chr((ord(c) - 94) % 26 + 97) for c in letters)]


def no_vowels(unit: Unit, rng: random.Random) -> list[str] | None:
    text = re.sub("[aeiou]", "", unit.text)
    return [text] if unit.kind in (*PEOPLE, "clinic", "employer") else None


def typing_error(unit: Unit, rng: random.Random) -> list[str] | None:
    places = [at for at in range(len(unit.text) - 1) if unit.text[at : at + 2].isalpha()]
    if len(places) < 5:
        return None
    at = rng.choice(places)
    return [unit.text[:at] + unit.text[at + 1] + unit.text[at] + unit.text[at + 2 :]]


def starred(unit: Unit, rng: random.Random) -> list[str] | None:
    return [re.sub("[aeiou]", "*", unit.text)] if unit.kind in PEOPLE else None


def morse(unit: Unit, rng: random.Random) -> list[str] | None:
    letters = bare(unit.text).lower()
    return [" ".join(_MORSE[ord(c) - 97] for c in letters)] if letters.isalpha() else None


def pig_latin(unit: Unit, rng: random.Random) -> list[str] | None:
    words = bare(unit.text).isalpha() and unit.text.lower().split()
    return [" ".join(f"{word[1:]}{word[0]}ay" for word in words)] if words else None


def base32_of(unit: Unit, rng: random.Random) -> list[str] | None:
    return [base64.b32encode(unit.text.encode()).decode()]


def last_digits(unit: Unit, rng: random.Random) -> list[str] | None:
    return [unit.digits[-4:]] if unit.kind in ("card number", "phone") else None
