"""Texts in a comparable form, whatever their case, accents, spacing, punctuation or number format.

`read` turns any text, a request or a private unit, into a `Reading`; `detector` compares readings.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
import unicodedata
from collections.abc import Iterator, Sequence
from functools import lru_cache

_MONTHS = (
    *("january", "february", "march", "april", "may", "june"),
    *("july", "august", "september", "october", "november", "december"),
)
_MONTH_OF = {name[:size]: at + 1 for at, name in enumerate(_MONTHS) for size in (3, len(name))}
_MONTH_OF["sept"] = 9

_BELOW_TWENTY = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen"),
    "nineteen",
)
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_VALUES = {word: value for value, word in enumerate(_BELOW_TWENTY)}
_VALUES |= {word: 10 * (place + 2) for place, word in enumerate(_TENS)}
_ORDINALS = {f"{word}th": value for word, value in _VALUES.items() if value > 3}
_ORDINALS |= {f"{word[:-1]}ieth": _VALUES[word] for word in _TENS}
_ORDINALS |= {"first": 1, "second": 2, "third": 3, "fifth": 5, "eighth": 8, "ninth": 9}
_ORDINALS["twelfth"] = 12
_SCALES = {"hundred": 100, "thousand": 1000, "million": 1_000_000}
_NUMBER_WORDS = _VALUES.keys() | _ORDINALS.keys() | _SCALES.keys()

_TOKEN = re.compile(r"\d+|[^\W\d_]+")
_ORDINAL_SUFFIX = re.compile(r"(?<=\d)(?:st|nd|rd|th)\b")
_ZERO_CENTS = re.compile(r"(?<=\d)\.0+\b")
_NUMERIC_DATE = re.compile(r"(?<!\d)(\d{1,4})\s?[-/.]\s?(\d{1,2})\s?[-/.]\s?(\d{1,4})(?!\d)")
_DATE_FILLERS = frozenset({"of", "the", "in", "on", "s"})

Date = tuple[int, int, int]  # year (below 100 where it was written with two digits), month, day


@dataclasses.dataclass(frozen=True)
class Stream:
    """Tokens, all of them run together, and where in that string tokens start and end."""

    tokens: tuple[str, ...]
    compact: str
    starts: frozenset[int]
    ends: frozenset[int]

    @classmethod
    def of(cls, tokens: Sequence[str]) -> Stream:
        borders = list(itertools.accumulate(map(len, tokens), initial=0))
        return cls(tuple(tokens), "".join(tokens), frozenset(borders[:-1]), frozenset(borders[1:]))

    def holds(self, other: Stream) -> bool:
        """Whether the other's letters and digits stand here in one run of whole tokens.

        Tokens may be cut elsewhere: "kanobel" holds "kano bel", and so does "k a n o b e l".
        """
        size = len(other.compact)
        at = self.compact.find(other.compact) if size else -1
        while at >= 0:
            if at in self.starts and at + size in self.ends:
                return True
            at = self.compact.find(other.compact, at + 1)
        return False

    def holds_shuffled(self, other: Stream) -> bool:
        """Whether the other's tokens stand here side by side in any order: "Bel, Kano"."""
        size = len(other.tokens)
        if size < 2 or any(token not in self.tokens for token in other.tokens):
            return False
        wanted = sorted(other.tokens)
        windows = (self.tokens[at : at + size] for at in range(len(self.tokens) - size + 1))
        return any(sorted(window) == wanted for window in windows)


@dataclasses.dataclass(frozen=True)
class Reading:
    """A text as written, with number words as digits where it has any, and its dates."""

    streams: tuple[Stream, ...]
    words: frozenset[str]
    dates: frozenset[Date]


@lru_cache(maxsize=4096)
def read(text: str) -> Reading:
    """The comparable form of any text. Linear in its length."""
    plain = _plain(text)
    tokens = _TOKEN.findall(plain)
    streams = [Stream.of(tokens)]
    digits = tokens
    if not _NUMBER_WORDS.isdisjoint(tokens):
        digits = list(_as_digits(tokens))
        streams.append(Stream.of(digits))
    words = frozenset(tokens) | frozenset(digits) | {token.lstrip("0") for token in digits}
    return Reading(tuple(streams), words, frozenset(_dates(plain, digits)))


def month_words(month: int) -> frozenset[str]:
    """How a month may be named: "may", "september", "sep", "sept"."""
    return frozenset(name for name, number in _MONTH_OF.items() if number == month)


def _plain(text: str) -> str:
    """Compatibility forms unified, no accents or invisible characters, lower case."""
    if not text.isascii():
        text = "".join(
            char
            for char in unicodedata.normalize("NFKD", text)
            if unicodedata.category(char) not in ("Mn", "Cf")
        )
        text = unicodedata.normalize("NFKC", text)
    text = _ZERO_CENTS.sub("", text.casefold())
    return _ORDINAL_SUFFIX.sub("", text)


def _as_digits(tokens: Sequence[str]) -> Iterator[str]:
    """Runs of number words become digits: "two hundred and five" -> "205"."""
    run: list[str] = []
    for token, following in itertools.zip_longest(tokens, tokens[1:], fillvalue=""):
        if token in _NUMBER_WORDS or (run and token == "and" and following in _NUMBER_WORDS):
            run.append(token)
            continue
        yield from _run_values(run)
        run = []
        yield token
    yield from _run_values(run)


def _run_values(run: Sequence[str]) -> Iterator[str]:
    """Numbers that a run of number words spells; "nineteen eighty four" is read as a year."""
    numbers: list[int] = []
    total, part = 0, -1  # thousands and millions so far; what stands below them, -1 at the start
    for word in run:
        if word in _SCALES:
            part = max(part, 1) * _SCALES[word]
            if part >= 1000:
                total, part = total + part, 0
            continue
        value = _VALUES.get(word, _ORDINALS.get(word))
        if value is None:  # "and"
            continue
        if part >= 0 and not _goes_on(total + part, value):
            numbers.append(total + part)
            total, part = 0, 0
        part = max(part, 0) + value
    if part >= 0:
        numbers.append(total + part)
    if len(numbers) == 2 and 10 <= numbers[0] <= 20 and 10 <= numbers[1] <= 99:
        numbers = [numbers[0] * 100 + numbers[1]]
    yield from map(str, numbers)


def _goes_on(number: int, value: int) -> bool:
    """Whether `value` belongs to the number so far: "two hundred" + "five", "eighty" + "four"."""
    tens = number % 100
    return number > 0 and (tens == 0 or (tens >= 20 and tens % 10 == 0 and 0 < value < 10))


def _dates(plain: str, digits: Sequence[str]) -> Iterator[Date]:
    """Every date that the text may mean; "05/03/1984" may mean two."""
    for first, second, third in _NUMERIC_DATE.findall(plain):
        a, b, c = int(first), int(second), int(third)
        candidates = ((a, b, c),) if len(first) == 4 else ((c, b, a), (c, a, b))
        yield from (date for date in candidates if _is_date(date))
    for token in digits:
        if len(token) == 8 and token.isdecimal():
            date = int(token[:4]), int(token[4:6]), int(token[6:])
            if _is_date(date):
                yield date
    if _MONTH_OF.keys().isdisjoint(digits):
        return
    parts = [token for token in digits if token not in _DATE_FILLERS]
    for window in zip(parts, parts[1:], parts[2:], strict=False):
        named = [at for at in range(3) if window[at] in _MONTH_OF]
        others = [token for token in window if token not in _MONTH_OF]
        if len(named) == 1 and all(token.isdecimal() and len(token) < 5 for token in others):
            month = _MONTH_OF[window[named[0]]]
            first, last = int(others[0]), int(others[1])
            for date in ((last, month, first), (first, month, last)):
                if _is_date(date):
                    yield date


def _is_date(date: Date) -> bool:
    year, month, day = date
    return (year < 100 or 1000 <= year < 3000) and 1 <= month <= 12 and 1 <= day <= 31
