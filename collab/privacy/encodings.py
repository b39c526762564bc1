"""Encodings that hide letters: base64, hex and their kin, leetspeak, spelling out, rot13.

What a text decodes to is read like the text itself (`collab.privacy.forms`). Rot13 and reversal are
undone on the unit's side, because any text may be turned around but only units are looked for.
"""

from __future__ import annotations

import binascii
import codecs
import dataclasses
import html
import itertools
import re
import urllib.parse
from collections.abc import Iterator, Sequence

# Base64 of text has capitals or digits inside; words of prose, which need no look, mostly don't.
# No pattern here can be matched in many ways, so that none takes long.
_CODE = re.compile(
    r"(?<![A-Za-z0-9])(?=\d|[A-Za-z][a-z+/_-]{0,40}[A-Z0-9])[A-Za-z0-9+/_-]{6,}(?![A-Za-z0-9])"
)
# Base64 of letters only, which few words are by length.
_LETTERS = re.compile(
    r"(?<![A-Za-z0-9])(?:[A-Za-z]{4}){1,9}(?:[A-Za-z]{4}|[A-Za-z]{3}=|[A-Za-z]{2}==)(?![A-Za-z0-9=])"
)
_HEX = re.compile(
    r"(?<![A-Za-z0-9])(?:(?:0x|\\x)?[0-9a-fA-F]{2}(?:[\s:,;-]{1,2}(?![\s:,;-]))?){4,}(?![A-Za-z0-9])"
)
_HEX_NOISE = re.compile(r"0x|\\x|[\s:,;-]")
_BINARY = re.compile(r"(?<!\d)(?:[01]{7,8}(?:[\s,][01]{7,8}){2,}|(?:[01]{8}){3,})(?!\d)")
_CODE_POINTS = re.compile(r"(?<!\d)\d{2,3}(?:[\s,;-]{1,2}\d{2,3}){3,}(?!\d)")
_PERCENT = re.compile(r"%[0-9A-Fa-f]{2}")
_ENTITY = re.compile(r"&#?\w+;")
_ESCAPE = re.compile(r"\\u([0-9a-fA-F]{4})|\\x([0-9a-fA-F]{2})")
_LEAST_BYTES = 4  # shorter findings are chance

_LEET_AT = re.compile(r"[a-z][0-9@$€]|[0-9@$!|+#€][a-z]")
_LEET_TOKEN = re.compile(r"[a-z0-9@$!|+#€]+")
# Both letters and the signs that stand for them become one class.
_CLASSES = {"o": "0", "l": "i1!|", "e": "3€", "a": "4@", "s": "5$", "g": "69", "t": "7+", "b": "8"}
_CLASSES |= {"z": "2", "h": "#"}
_CLASS_OF = str.maketrans({char: to for to, chars in _CLASSES.items() for char in chars})
_AS_LETTERS = str.maketrans("0134567892@$!|+#€", "oieasgtbgzasilthe")
_AS_LETTERS_L = _AS_LETTERS | str.maketrans("1!", "ll")
_LEAST_LEET = 4  # characters: "b0b" is as likely a number
_LEAST_ALIKE = 0.25  # share of a leet word that must stand as it is, or numbers would be words

# Source: ICAO spelling alphabet, with common misspellings.
_CODE_WORDS = {word[0]: word for word in ("bravo", "charlie", "delta", "echo", "foxtrot", "golf")}
_CODE_WORDS |= {word[0]: word for word in ("hotel", "india", "kilo", "lima", "mike", "november")}
_CODE_WORDS |= {word[0]: word for word in ("oscar", "papa", "quebec", "romeo", "sierra", "tango")}
_CODE_WORDS |= {word[0]: word for word in ("uniform", "victor", "yankee", "zulu")}
_LETTER_OF = {word: letter for letter, word in _CODE_WORDS.items()}
_LETTER_OF |= {"alpha": "a", "alfa": "a", "juliet": "j", "juliett": "j", "whiskey": "w"}
_LETTER_OF |= {"whisky": "w", "xray": "x", "ray": ""}  # "x-ray" is an x and nothing
_BETWEEN_LETTERS = frozenset(
    (
        *("space", "then", "next", "and", "dash", "hyphen", "dot", "comma", "capital", "upper"),
        *("lower", "case", "uppercase", "lowercase", "letter", "new", "word", "plus"),
    )
)
_LEAST_SPELLED = 3  # letters in a row


@dataclasses.dataclass(frozen=True)
class Leet:
    """Words with digits and signs among their letters, run together; classes: unified."""

    raw: str
    classes: str
    starts: frozenset[int]
    ends: frozenset[int]

    @classmethod
    def of(cls, plain: str) -> Leet | None:
        """None where no letter touches a digit or sign."""
        return cls.always(plain) if _LEET_AT.search(plain) else None

    @classmethod
    def always(cls, plain: str) -> Leet:
        # Signs at an end are hash tags and exclamation marks.
        stripped = (token.lstrip("#+|").rstrip("!|+#") for token in _LEET_TOKEN.findall(plain))
        tokens = [token for token in stripped if token]
        raw = "".join(tokens)
        borders = list(itertools.accumulate(map(len, tokens), initial=0))
        return cls(raw, raw.translate(_CLASS_OF), frozenset(borders[:-1]), frozenset(borders[1:]))

    def holds(self, other: Leet) -> bool:
        """Whether the other stands here with letters for digits or signs, or the reverse."""
        size = len(other.raw)
        at = self.classes.find(other.classes) if size >= _LEAST_LEET else -1
        while at >= 0:
            if (
                at in self.starts
                and at + size in self.ends
                and _is_leet(self.raw[at : at + size], other.raw)
            ):
                return True
            at = self.classes.find(other.classes, at + 1)
        return False

    def guesses(self) -> Iterator[str]:
        """The words as letters, those of letters only left out."""
        borders = sorted(self.starts | self.ends)
        for start, end in itertools.pairwise(borders):
            word = self.raw[start:end]
            if end - start >= _LEAST_LEET and not word.isalpha() and not word.isdecimal():
                yield word.translate(_AS_LETTERS)
                yield word.translate(_AS_LETTERS_L)


def rot13(text: str) -> str:
    """Letters moved by half the alphabet; its own inverse."""
    return codecs.encode(text, "rot13")


def codes(text: str) -> tuple[str, ...]:
    """Parts that look encoded: capitals or digits among letters, as few words have them."""
    return tuple(found for found in _CODE.findall(text) if not found.isdecimal())


def decoded(text: str, codes: Sequence[str]) -> Iterator[str]:
    """Every text that stands encoded in `text`, the `codes` of which are given."""
    for found in (*codes, *_LETTERS.findall(text)):
        yield from _from_base64(found.rstrip("="))
    for found in _HEX.findall(text):
        digits = _HEX_NOISE.sub("", found)
        if len(digits) % 2 == 0:
            yield from _readable(bytes.fromhex(digits))
    for found in _BINARY.findall(text):
        groups = re.findall("[01]+", found)
        if len(groups) == 1:
            groups = [found[at : at + 8] for at in range(0, len(found) - 7, 8)]
        yield from _readable(bytes(int(group, 2) for group in groups))
    for found in _CODE_POINTS.findall(text):
        numbers = [int(number) for number in re.findall(r"\d+", found)]
        if max(numbers) < 127:
            yield from _readable(bytes(numbers))
    if "%" in text and _PERCENT.search(text):
        yield urllib.parse.unquote_plus(text)
    if "&" in text and _ENTITY.search(text):
        yield html.unescape(text)
    if "\\" in text and _ESCAPE.search(text):
        yield _ESCAPE.sub(lambda match: chr(int(match[1] or match[2], 16)), text)


def is_spelled(tokens: Sequence[str], token_set: frozenset[str]) -> bool:
    """Whether the text may spell something letter by letter."""
    letters = sum(len(token) == 1 for token in tokens)
    return letters >= _LEAST_SPELLED or len(_LETTER_OF.keys() & token_set) >= _LEAST_SPELLED


def spelled(tokens: Sequence[str]) -> list[str]:
    """The tokens, with "kilo" as "k", "a as in apple" as "a", "double l" as "l", "l".

    Code words count where at least three letters are in a row.
    """
    out: list[str] = []
    run: list[str] = []
    run_from = at = 0
    for at, letters, size in _letters(tokens):
        if letters is None:
            out += run if len(run) >= _LEAST_SPELLED else tokens[run_from:at]
            out.append(tokens[at])
            run, run_from = [], at + 1
        else:
            run += letters
        at += size
    out += run if len(run) >= _LEAST_SPELLED else tokens[run_from:]
    return out


def joined_letters(tokens: Sequence[str]) -> Iterator[str]:
    """The words that single letters and digits in a row make up."""
    for is_single, group in itertools.groupby(tokens, lambda token: len(token) == 1):
        if is_single:
            yield "".join(group)


def _letters(tokens: Sequence[str]) -> Iterator[tuple[int, list[str] | None, int]]:
    """Where, which letters a token spells (None: it spells nothing), how many tokens that takes."""
    at = 0
    in_run = False
    while at < len(tokens):
        token = tokens[at]
        letters: list[str] | None = None
        size = 1
        if len(token) == 1 or (in_run and token.isdecimal()):
            letters = [token]
            size += _explained(tokens, at)
        elif token in _LETTER_OF:
            letters = list(_LETTER_OF[token])
        elif token == "double" and at + 1 < len(tokens) and len(tokens[at + 1]) == 1:
            letters = [tokens[at + 1]] * 2
            size = 2 + _explained(tokens, at + 1)
        elif in_run and token in _BETWEEN_LETTERS:
            letters = []
        yield at, letters, size
        in_run = letters is not None
        at += size


def _explained(tokens: Sequence[str], at: int) -> int:
    """How many tokens after a letter say which letter it is: "as in apple", "for apple"."""
    for said, size in ((("as", "in"), 3), (("for",), 2), (("like",), 2)):
        words = tokens[at + 1 : at + 1 + size]
        if len(words) == size and tuple(words[:-1]) == said and words[-1].startswith(tokens[at]):
            return size
    return 0


def _is_leet(raw: str, other: str) -> bool:
    """Whether each place is the same or a letter against a sign or digit, enough being the same."""
    same = 0
    for mine, theirs in zip(raw, other, strict=True):
        if mine == theirs:
            same += 1
        elif mine.isalpha() == theirs.isalpha():
            return False
    return same >= _LEAST_ALIKE * len(raw)


def _from_base64(found: str) -> Iterator[str]:
    text = found.replace("-", "+").replace("_", "/")
    try:
        raw = binascii.a2b_base64(text + "=" * (-len(text) % 4))
    except binascii.Error:
        return
    yield from _readable(raw)


def _readable(raw: bytes) -> Iterator[str]:
    """The bytes as text, where they are one."""
    if len(raw) < _LEAST_BYTES:
        return
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        return
    if all(char.isprintable() or char.isspace() for char in text):
        yield text
