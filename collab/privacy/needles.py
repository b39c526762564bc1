"""What to look for: all forms in which one private unit counts as sent.

A unit is taken for what it looks like (an e-mail address, a telephone number, a street address, a
dose), and for a person where its kind says so. What counts for each is said at `of`.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence

from collab.privacy.encodings import Leet, rot13
from collab.privacy.forms import (
    ALIKE,
    Reading,
    alike,
    read,
    shortened,
    tokens_in,
    tokens_of,
)
from collab.privacy.names import Name
from collab.privacy.quantities import Date, full_years, month_words

# Too common to count as a piece of a unit that is spread over requests.
_COMMON = frozenset(
    (
        *("a", "an", "and", "are", "as", "at", "be", "by", "dr", "for", "from", "i", "in", "is"),
        *("it", "its", "me", "mr", "mrs", "ms", "my", "of", "on", "or", "s", "that", "the"),
        *("this", "to", "was", "what", "which", "who", "with", "you", "your"),
    )
)
_LEAST_TURNED = 5  # letters: "noel" backwards is a name of its own
_LEAST_IN_PARTS = 8  # characters of a unit that may be sent in such parts

_EMAIL = re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+")
_LONG_NUMBER = re.compile(r"\+?\(?\d[\d\s().\-/]{7,}\d")
# Source: ITU-T E.164 country codes; all that are not listed have three digits.
_COUNTRY = re.compile(
    r"^(?:1|7|2[07]|3[0-469]|4[013-9]|5[1-8]|6[0-6]|8[1246]|9[0-58]|\d{3})",
)
_LONG_NUMBER_DIGITS = 9
_SIGNS = {"_": "underscore", "-": "dash", "+": "plus"}
_NATIONAL_DIGITS = 8

_MONEY_WORDS = frozenset(
    (
        *("usd", "eur", "gbp", "chf", "cad", "aud", "us", "dollar", "dollars", "euro", "euros"),
        *("pound", "pounds", "franc", "francs", "a", "per", "year", "month", "annually", "monthly"),
        *("yearly", "gross", "net"),
    )
)
_DOSES = frozenset({"mg", "mcg", "ug", "g", "ml", "iu", "units", "milligram", "milligrams"})
_DOSE_WORDS = _DOSES | {"tablet", "tablets", "capsule", "capsules", "daily", "once", "twice", "a"}
_DOSE_WORDS |= {"day", "per", "nightly", "weekly", "x"}
_FIRM_WORDS = frozenset(
    (
        *("ltd", "limited", "inc", "incorporated", "llc", "llp", "plc", "gmbh", "ag", "corp"),
        *("corporation", "co", "company", "sa", "bv", "oy", "ab", "se", "kg"),
    )
)
# Short forms, as `shortened` leaves them.
_STREETS = frozenset(
    (
        *("st", "ave", "rd", "dr", "ln", "blvd", "ct", "pl", "sq", "hwy", "ter", "cres", "way"),
        *("close", "gardens", "row", "walk", "mews", "parade", "grove", "hill", "quay", "parkway"),
        *("rue", "via", "calle", "avenida", "piazza", "platz", "weg", "allee", "gasse"),
    )
)
_STREET_ENDS = ("strasse", "str", "weg", "gasse", "platz", "allee", "straat", "gatan")
_UMLAUTS = str.maketrans({"ä": "ae", "ö": "oe", "ü": "ue", "Ä": "Ae", "Ö": "Oe", "Ü": "Ue"})


@dataclasses.dataclass(frozen=True)
class Needles:
    """What to look for of one unit.

    runs: strings that stand between borders of tokens; orders: tokens side by side in any order.
    short_runs, short_orders: the same in a reading's shortened streams. tails: numbers that may
    have dialling codes before them. leet: what to compare with leetspeak. pieces: words, each in
    all its spellings, that leak the unit when spread over requests; parts: strings of which any
    parts do. dates: empty where the unit is no date, two where it does not say which number is the
    month. name: None where the unit is no person.
    """

    runs: tuple[str, ...]
    orders: tuple[tuple[str, ...], ...]
    short_runs: tuple[str, ...]
    short_orders: tuple[tuple[str, ...], ...]
    tails: tuple[str, ...]
    leet: tuple[Leet, ...]
    pieces: tuple[frozenset[str], ...]
    parts: tuple[str, ...]
    dates: frozenset[Date]
    name: Name | None

    @functools.cached_property
    def spread_words(self) -> frozenset[str]:
        """All words that are pieces."""
        return frozenset().union(*self.pieces)


@functools.lru_cache(maxsize=8192)
def needles_of(text: str, kind: str) -> Needles:
    """All that to look for of the unit `text`.

    What leaks a unit besides itself:
    - a full date in it, an e-mail address in it, a number of 9 digits or more in it
    - a person's name without titles; see `Name` for its parts
    - a street with its number, without town and post code
    - a drug or condition without its dose, where 6 letters are left
    - an amount without currency and period, where 3 digits are left
    - a firm without "Ltd" and its like, where two words or 7 letters are left
    """
    reading = read(text)
    plain, written = reading.plains[0], reading.streams[0].tokens
    name = Name.of(plain, kind)
    dates = full_years(reading.dates)
    core = _core(reading, name)
    forms = [*(stream.tokens for stream in reading.streams), core]
    if name is not None:
        forms.append(name.tokens)
    if not text.isascii():
        forms.append(tuple(tokens_of(text.translate(_UMLAUTS))))
    forms = list(dict.fromkeys(filter(None, forms)))
    short = [
        tuple(shortened(tokens))
        for tokens in forms
        if "&" in text or not ALIKE.isdisjoint(tokens)  # "&" for "and"
    ]
    email = _EMAIL.search(text)
    runs = ["".join(tokens) for tokens in forms]
    runs += [*_turned(forms, plain), *(name.compacts if name else ())]
    runs += _spoken(email[0]) if email else ()
    tails = () if dates else tuple(_numbers(text))
    plains = (plain,) if core == written else (plain, " ".join(core))
    return Needles(
        runs=tuple(dict.fromkeys(filter(None, runs))),
        orders=tuple(tokens for tokens in forms if len(tokens) > 1),
        short_runs=tuple(filter(None, map("".join, short))),
        short_orders=tuple(tokens for tokens in short if len(tokens) > 1),
        tails=tails,
        leet=tuple(map(Leet.always, plains)),
        pieces=_date_pieces(dates) if len(dates) == 1 else _pieces(core),
        parts=() if dates else _parts(core, tails),
        dates=frozenset(dates),
        name=name,
    )


def _core(reading: Reading, name: Name | None) -> tuple[str, ...]:
    """The unit's tokens without what adds nothing to it."""
    written, digits = reading.streams[0].tokens, reading.streams[-1].tokens
    if name is not None:
        return (name.first, *name.last)
    rest = tuple(token for token in digits if token not in _MONEY_WORDS)
    if rest != digits and len("".join(rest)) >= 3 and "".join(rest).isdecimal():
        return rest
    if not _DOSES.isdisjoint(digits):
        rest = tuple(t for t in digits if t not in _DOSE_WORDS and not t.isdecimal())
        return rest if sum(map(len, rest)) >= 6 else written
    rest = tuple(token for token in written if token not in _FIRM_WORDS)
    if rest != written and (len(rest) > 1 or sum(map(len, rest)) >= 7):
        return rest
    return _street(reading.plains[0]) or written


def _street(plain: str) -> tuple[str, ...]:
    """The tokens of a street with its number, () where there is none."""
    for part in plain.split(",") if "," in plain else ():
        tokens = tokens_in(part)
        if not any(token.isdecimal() for token in tokens):
            continue
        if any(t in _STREETS or t.endswith(_STREET_ENDS) for t in shortened(tokens)):
            return tuple(tokens)
    return ()


def _turned(forms: Iterable[Sequence[str]], plain: str) -> Iterator[str]:
    """Backwards as a whole, backwards word by word, in rot13."""
    by_word = "".join("".join(filter(str.isalnum, word))[::-1] for word in plain.split())
    if len(by_word) >= _LEAST_TURNED:
        yield by_word
    for tokens in forms:
        compact = "".join(tokens)
        if len(compact) >= _LEAST_TURNED:
            yield compact[::-1]
            yield "".join(token[::-1] for token in tokens)
            if not compact.isdecimal():
                yield rot13(compact)


def _spoken(email: str) -> Iterator[str]:
    """The address with "at", "dot" and its like in words, all of them or some."""
    local, domain = email.casefold().split("@")
    for at, dot, domain_dot in itertools.product(("", "at"), ("", "dot"), ("", "dot")):
        spoken = f"{local.replace('.', dot)}{at}{domain.replace('.', domain_dot)}"
        yield spoken.translate({ord(sign): "" for sign in _SIGNS})
        yield spoken.translate({ord(sign): word for sign, word in _SIGNS.items()})


def _numbers(text: str) -> Iterator[str]:
    """Digits of each long number, telephone numbers without dialling codes."""
    for found in _LONG_NUMBER.findall(text.replace("(0)", "")):
        digits = "".join(filter(str.isdecimal, found))
        if len(digits) < _LONG_NUMBER_DIGITS:
            continue
        if found.startswith(("+", "00")):
            digits = _COUNTRY.sub("", digits.lstrip("0"), count=1)
        elif len(digits) == 11 and digits.startswith("1"):  # North America
            digits = digits[1:]
        digits = digits.lstrip("0")
        if len(digits) >= _NATIONAL_DIGITS:
            yield digits


def _pieces(tokens: Sequence[str]) -> tuple[frozenset[str], ...]:
    """Each token in the spellings that count; none where only one is left."""
    kept = [token for token in dict.fromkeys(tokens) if token not in _COMMON]
    return tuple(map(_spellings, kept)) if len(kept) > 1 else ()


def _spellings(token: str) -> frozenset[str]:
    if len(token) < _LEAST_TURNED:
        return alike(token)
    return alike(token) | {token[::-1], rot13(token)}


def _date_pieces(dates: set[Date]) -> tuple[frozenset[str], ...]:
    ((year, month, day),) = dates
    months = month_words(month) | {f"{month:02d}"}
    return frozenset({str(day)}), months, frozenset({str(year)})


def _parts(core: Sequence[str], tails: Sequence[str]) -> tuple[str, ...]:
    return tuple(part for part in {"".join(core), *tails} if len(part) >= _LEAST_IN_PARTS)
