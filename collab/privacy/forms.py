"""Texts in a comparable form, whatever their case, accents, spacing, punctuation or number format.

`read` turns any text, a request or a private unit, into a `Reading`; `detector` compares readings.
Numbers and dates are in `quantities`, encodings that hide letters in `encodings`.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import re
import unicodedata
from collections.abc import Iterable, Sequence

from collab.privacy import encodings
from collab.privacy.quantities import (
    NUMBER_WORDS,
    Date,
    as_digits,
    dates_in,
    is_scaled,
    scaled_up,
)

_DEPTH = 2  # a text encoded twice is still read

# Letters of other scripts that look like Latin ones, by the Latin letter.
# Source: Unicode 16 security/confusables.txt, single letters and small capitals.
_LOOKALIKES = (
    "a=аαɑᴀ b=вƅʙ c=сϲᴄ d=ԁđɖᴅð e=еεҽᴇє f=ꜰƒ g=ɡցɢ h=һհнħʜ i=іιıɩɪ j=јϳᴊ k=кκᴋ l=ӏłʟ m=мᴍ "
    "n=ոηпɴ o=оοօσøᴏ p=рρᴘ q=ԛզ r=гᴦʀ s=ѕꜱ t=тτᴛ u=υսᴜ v=ѵνᴠ w=ԝωᴡ x=хχ y=уүγʏ z=ᴢ ae=æ oe=œ "
    "th=þ A=АΑᎪ B=ВΒᏴ C=СϹᏟ D=ĐᎠ E=ЕΕᎬ G=ԌᏀ H=НΗᎻ I=ІΙӀ J=ЈͿᎫ K=КΚᏦ L=ŁᏞ M=МΜᎷ N=Ν O=ОΟՕØ "
    "P=РΡᏢ Q=Ԛ S=ЅᏚ T=ТΤᎢ U=Ս V=ѴᏙ W=ԜᎳ X=ХΧ Y=УΥҮ Z=ΖᏃ AE=Æ OE=Œ TH=Þ"
)
# Letters in boxes and circles that have no compatibility form: first of each alphabet.
_BOXED_FROM = (0x1F150, 0x1F170, 0x1F1E6)
_DROPPED = frozenset({"Mn", "Me", "Cf"})  # accents, enclosing marks, invisible characters
_INVISIBLE = frozenset("\u115f\u1160\u3164\uffa0\u2800")  # fillers that count as letters or symbols

_TOKEN = re.compile(r"\d+|[^\W\d_]+")
_ORDINAL = re.compile(r"\b(\d+)(?:st|nd|rd|th)\b")
# No cents in "4.1.0", which is a number with its digits apart.
_ZERO_CENTS = re.compile(r"(?:(?<=\d)[.,]00|(?<=\d\d)\.0)(?!\w)(?![.,]\d)")
_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?!\d)")
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")
_INITIALS = re.compile(r"(?<![\w.])[A-Z](?:\.[ ]?[A-Z]){1,3}(?:\.(?!\w)|(?![\w.]))(?! ?[A-Z][a-z])")
_NO_NUMBERS = frozenset({"one", "first", "second"})  # too common to be a piece of a date
# Two letters with dots that are no one's initials.
_NO_INITIALS = frozenset(
    (
        *("us", "uk", "eu", "un", "ad", "bc", "am", "pm", "ie", "eg", "ps", "la", "ny", "dc", "nj"),
        *("nc", "nd", "sd", "nm", "nh", "ri", "ai", "tv", "id", "it", "dj", "pc", "pr", "hr", "vp"),
    )
)

# Words that stand for each other in addresses and names of places and firms, after the short form.
_ALIKE = (
    "st=street,str,saint,sankt ave=avenue,av rd=road dr=drive,doctor ln=lane blvd=boulevard "
    "ct=court pl=place sq=square hwy=highway ter=terrace cres=crescent apt=apartment ste=suite "
    "n=north s=south e=east w=west mt=mount ft=fort hosp=hospital univ=university,uni "
    "dept=department ctr=center,centre mr=mister prof=professor mg=milligrams,milligram =and,the"
)
_SHORT_OF = {
    long: short
    for short, longs in (entry.split("=") for entry in _ALIKE.split())
    for long in longs.split(",")
}
ALIKE = _SHORT_OF.keys() | set(_SHORT_OF.values())
_ALL_ALIKE = {
    short: frozenset({short, *(long for long, other in _SHORT_OF.items() if other == short)})
    for short in filter(None, _SHORT_OF.values())
}


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

    def holds(self, compact: str) -> bool:
        """Whether letters and digits stand here in one run of whole tokens.

        Tokens may be cut elsewhere: "kanobel" is held by "kano bel" and by "k a n o b e l".
        """
        return any(at in self.starts for at in self._ending(compact))

    def holds_tail(self, digits: str, *, prefix: int) -> bool:
        """Whether digits stand here with at most `prefix` more before them in the same token."""
        if digits not in self.compact:
            return False
        return any(
            at - size in self.starts and (not size or self.compact[at - size : at].isdecimal())
            for at in self._ending(digits)
            for size in range(min(prefix, at) + 1)
        )

    def holds_shuffled(self, tokens: Sequence[str]) -> bool:
        """Whether the tokens stand here side by side in any order: "Bel, Kano"."""
        if not self.token_set.issuperset(tokens):
            return False
        size = len(tokens)
        wanted = sorted(tokens)
        windows = (self.tokens[at : at + size] for at in range(len(self.tokens) - size + 1))
        return any(sorted(window) == wanted for window in windows)

    @functools.cached_property
    def token_set(self) -> frozenset[str]:
        return frozenset(self.tokens)

    def _ending(self, compact: str) -> Iterable[int]:
        """Where `compact` occurs and ends with a token."""
        at = self.compact.find(compact) if compact else -1
        while at >= 0:
            if at + len(compact) in self.ends:
                yield at
            at = self.compact.find(compact, at + 1)


@dataclasses.dataclass(frozen=True)
class Reading:
    """All ways to read a text.

    streams: as written, and where they differ with number words as digits, with "52k" in full.
    hidden: streams of what is decoded, spelled out or told apart by capitals only.
    plains: the folded text and the decoded ones. leet: letters written with digits and signs.
    words: what may be a piece of a unit. initials: of a person, "jrt" where "J. R. T." stands.
    codes: parts that look encoded, as written.
    """

    streams: tuple[Stream, ...]
    hidden: tuple[Stream, ...]
    plains: tuple[str, ...]
    leet: encodings.Leet | None
    words: frozenset[str]
    dates: frozenset[Date]
    initials: frozenset[str]
    codes: tuple[str, ...]

    @functools.cached_property
    def shortened(self) -> tuple[Stream, ...]:
        """The streams with words that stand for each other made one: "Elm Street", "Elm St."."""
        return tuple(
            Stream.of(shortened(stream.tokens))
            for stream in (*self.streams, *self.hidden)
            if not ALIKE.isdisjoint(stream.token_set)
        )


@functools.lru_cache(maxsize=4096)
def read(text: str) -> Reading:
    """The comparable form of any text. Linear in its length."""
    return _read(text, _DEPTH)


def shortened(tokens: Iterable[str]) -> list[str]:
    """Words that stand for each other in their short form, without "and" and "the"."""
    return [short for token in tokens if (short := _SHORT_OF.get(token, token))]


def alike(token: str) -> frozenset[str]:
    """The words that stand for a token, itself among them."""
    return _ALL_ALIKE.get(_SHORT_OF.get(token, token), frozenset()) | {token}


def tokens_of(text: str) -> list[str]:
    """The tokens of a text as it is written."""
    return _TOKEN.findall(plain_of(folded(text)))


def tokens_in(plain: str) -> list[str]:
    """The tokens of a text that is plain already."""
    return _TOKEN.findall(plain)


def folded(text: str) -> str:
    """Compatibility forms and look-alikes unified, no accents or invisible characters."""
    return text if text.isascii() else text.translate(_FOLDING)


def plain_of(text: str) -> str:
    """A folded text in lower case, without thousands commas, zero cents and "th" of "4th"."""
    text = _ORDINAL.sub(r"\1", text.casefold())
    if "," in text or "." in text:
        text = _ZERO_CENTS.sub("", text)
        text = _THOUSANDS.sub(lambda found: found[0].replace(",", ""), text)
    return text


def _read(text: str, depth: int) -> Reading:
    cased = folded(text)
    plain = plain_of(cased)
    tokens = _TOKEN.findall(plain)
    streams = [Stream.of(tokens)]
    token_set = streams[0].token_set
    digits = _TOKEN.findall(scaled_up(plain)) if is_scaled(plain) else tokens
    if not NUMBER_WORDS.isdisjoint(token_set):
        digits = list(as_digits(digits))
    if digits is not tokens:
        streams.append(Stream.of(digits))
    words = {*token_set, *digits, *(token.lstrip("0") for token in digits if token[0] == "0")}
    if not _NO_NUMBERS.isdisjoint(token_set):
        words -= {"1", "2"} - token_set
    hidden: list[Stream] = []
    if encodings.is_spelled(digits, token_set):
        letters = encodings.spelled(digits)
        hidden.append(Stream.of(letters))
        words.update(encodings.joined_letters(letters))
    if _CAMEL.search(cased):
        hidden.append(Stream.of(_TOKEN.findall(plain_of(_CAMEL.sub(" ", cased)))))
    leet = encodings.Leet.of(plain)
    if leet is not None:
        words.update(leet.guesses())
    initials = {_letters(found) for found in _INITIALS.findall(cased)}
    plains, dates = [plain], set(dates_in(plain, digits))
    codes = encodings.codes(cased)
    for decoded in encodings.decoded(cased, codes) if depth else ():
        inner = _read(decoded, depth - 1)
        hidden += [*inner.streams, *inner.hidden]
        plains += inner.plains
        words |= inner.words
        dates |= inner.dates
        initials |= inner.initials
    return Reading(
        tuple(streams),
        tuple(hidden),
        tuple(plains),
        leet,
        frozenset(words),
        frozenset(dates),
        frozenset(initials),
        codes,
    )


def _letters(found: str) -> str:
    letters = "".join(filter(str.isalpha, found)).lower()
    return "" if letters in _NO_INITIALS else letters


class _Folding(dict[int, str]):
    """What each character becomes; filled as characters are met."""

    def __missing__(self, code: int) -> str:
        parts = unicodedata.normalize("NFKD", chr(code))
        self[code] = "".join(
            _LATIN.get(char) or _digit(char)
            for char in parts
            if unicodedata.category(char) not in _DROPPED and char not in _INVISIBLE
        )
        return self[code]


def _digit(char: str) -> str:
    value = unicodedata.decimal(char, None)
    return char if value is None else str(value)


_LATIN = {
    char: latin
    for latin, chars in (entry.split("=") for entry in _LOOKALIKES.split())
    for char in chars
}
_LATIN |= {chr(first + at): chr(65 + at) for first in _BOXED_FROM for at in range(26)}
_FOLDING = _Folding()
