"""Numbers and dates in text, whatever format they are written in.

Works on folded text and its tokens (`collab.privacy.forms`); knows English number words and months.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence

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
_SCALES = {"hundred": 100, "thousand": 1000, "million": 1_000_000, "billion": 1_000_000_000}
_REPEATS = {"double": 2, "triple": 3}  # of a telephone number
NUMBER_WORDS = frozenset(_VALUES.keys() | _ORDINALS.keys() | _SCALES.keys())

_SCALED = re.compile(
    r"(?<!\d)(\d{1,12}(?:\.\d{1,6})?)\s?(k|grand|thousand|m|mn|mio|million|bn|billion)\b"
)
_SCALE_OF = {"k": 1000, "grand": 1000, "m": 10**6, "mn": 10**6, "mio": 10**6, "bn": 10**9}
_SCALE_OF |= _SCALES
_SEPARATOR = r"(?:\s?[-/.,\\_]\s?|\s)"
_NUMERIC_DATE = re.compile(
    rf"(?<!\d)(\d{{1,4}}){_SEPARATOR}(\d{{1,2}}){_SEPARATOR}(\d{{1,4}})(?!\d)"
)
_DATE_FILLERS = frozenset({"of", "the", "in", "on", "s", "day", "month", "year"})

Date = tuple[int, int, int]  # year (below 100 where it was written with two digits), month, day


def month_words(month: int) -> frozenset[str]:
    """How a month may be named: "may", "september", "sep", "sept"."""
    return frozenset(name for name, number in _MONTH_OF.items() if number == month)


def scaled_up(plain: str) -> str:
    """Abbreviated amounts in full: "52k" and "52 thousand" become "52000"."""
    return _SCALED.sub(lambda found: str(round(float(found[1]) * _SCALE_OF[found[2]])) + " ", plain)


def is_scaled(plain: str) -> bool:
    """Whether `scaled_up` would change the text."""
    return _SCALED.search(plain) is not None


def as_digits(tokens: Sequence[str]) -> Iterator[str]:
    """Runs of number words become digits: "two hundred and five" -> "205"."""
    run: list[str] = []
    times = 1
    for token, following in itertools.zip_longest(tokens, tokens[1:], fillvalue=""):
        if token in NUMBER_WORDS or (run and token == "and" and following in NUMBER_WORDS):
            run.extend([token] * times)
            times = 1
            continue
        if token in _REPEATS and _VALUES.get(following, 10) < 10:
            times = _REPEATS[token]
            continue
        if token in ("oh", "o") and run and _VALUES.get(following, 10) < 10:
            run.append("zero")
            continue
        yield from _run_values(run)
        run = []
        yield token
    yield from _run_values(run)


def full_years(dates: Iterable[Date]) -> set[Date]:
    """The dates, years of two digits in both centuries that people live in."""
    full: set[Date] = set()
    for year, month, day in dates:
        centuries = (1900, 2000) if year < 100 else (0,)
        full.update((century + year, month, day) for century in centuries)
    return full


def dates_in(plain: str, digits: Sequence[str]) -> Iterator[Date]:
    """Every date that the text may mean; "05/03/1984" may mean two.

    digits: the tokens of `plain`, number words as digits.
    """
    for first, second, third in _NUMERIC_DATE.findall(plain):
        if len(first) != 3 and len(third) != 3:
            yield from _orders(first, second, third)
    for token in digits:
        if len(token) == 8 and token.isdecimal():
            yield from _orders(token[:4], token[4:6], token[6:])
            yield from _orders(token[:2], token[2:4], token[4:])
        elif len(token) == 6 and token.isdecimal():
            yield from _orders(token[:2], token[2:4], token[4:])
            yield from _valid((int(token[:2]), int(token[2:4]), int(token[4:])))
    if not _MONTH_OF.keys().isdisjoint(digits):
        yield from _named_dates([token for token in digits if token not in _DATE_FILLERS])


def _named_dates(parts: Sequence[str]) -> Iterator[Date]:
    """Dates of a month's name and two numbers side by side, in any order."""
    for at, token in enumerate(parts):
        month = _MONTH_OF.get(token)
        if month is None:
            continue
        for pair in (parts[max(0, at - 2) : at], parts[at + 1 : at + 3], _around(parts, at)):
            if len(pair) == 2 and all(part.isdecimal() and len(part) < 5 for part in pair):
                first, last = map(int, pair)
                yield from _valid((last, month, first))
                yield from _valid((first, month, last))


def _around(parts: Sequence[str], at: int) -> Sequence[str]:
    return (parts[at - 1], parts[at + 1]) if 0 < at < len(parts) - 1 else ()


def _orders(first: str, second: str, third: str) -> Iterator[Date]:
    """The dates that three numbers may mean: year, month, day, or the year last."""
    a, b, c = int(first), int(second), int(third)
    if len(first) == 4:
        yield from _valid((a, b, c))
    else:
        yield from _valid((c, b, a))
        yield from _valid((c, a, b))


def _valid(date: Date) -> Iterator[Date]:
    year, month, day = date
    if (year < 100 or 1000 <= year < 3000) and 1 <= month <= 12 and 1 <= day <= 31:
        yield date


def _run_values(run: Sequence[str]) -> Iterator[str]:
    """Numbers that a run of number words spells; "nineteen eighty four" is read as a year."""
    numbers: list[int] = []
    total, part = 0, -1  # thousands and more so far; what stands below them, -1 at the start
    is_ended = False  # by an ordinal
    for word in run:
        if word in _SCALES:
            part = max(part, 1) * _SCALES[word]
            if part >= 1000:
                total, part = total + part, 0
            continue
        value = _VALUES.get(word, _ORDINALS.get(word))
        if value is None:  # "and"
            continue
        if part >= 0 and (is_ended or not _goes_on(total + part, value)):
            numbers.append(total + part)
            total, part = 0, 0
        part = max(part, 0) + value
        is_ended = word in _ORDINALS
    if part >= 0:
        numbers.append(total + part)
    if len(numbers) > 2 and 10 <= numbers[-3] <= 20 and numbers[-2] == 0 and numbers[-1] < 10:
        numbers[-3:] = [numbers[-3] * 100 + numbers[-1]]  # "nineteen oh five"
    elif len(numbers) > 1 and 10 <= numbers[-2] <= 20 and 10 <= numbers[-1] <= 99:
        numbers[-2:] = [numbers[-2] * 100 + numbers[-1]]
    yield from map(str, numbers)


def _goes_on(number: int, value: int) -> bool:
    """Whether `value` belongs to the number so far: "two hundred" + "five", "eighty" + "four"."""
    tens = number % 100
    return number > 0 and (tens == 0 or (tens >= 20 and tens % 10 == 0 and 0 < value < 10))
