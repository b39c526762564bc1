"""When a part of a person's name gives the person away."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Sequence

from collab.privacy.forms import tokens_in

TITLES = frozenset(
    (
        *("dr", "doctor", "mr", "mrs", "ms", "miss", "mister", "prof", "professor", "sir", "madam"),
        *("nurse", "dame", "rev", "reverend"),
    )
)
_AFTER_NAMES = frozenset({"md", "phd", "jr", "sr", "rn", "esq", "dds", "iii"})
# A last name begins with the first of these.
_PARTICLES = frozenset(
    ("van", "von", "de", "der", "den", "la", "le", "di", "da", "del", "al", "bin")
)
_PERSONAL = frozenset(
    (
        *("name", "person", "doctor", "physician", "patient", "friend", "spouse", "partner"),
        *("wife", "husband", "mother", "father", "sister", "brother", "son", "daughter", "child"),
        *("colleague", "boss", "manager", "nurse", "dentist", "therapist", "teacher", "relative"),
        *("contact", "neighbour", "neighbor", "employee", "client", "customer"),
    )
)
_IMPERSONAL = frozenset(
    (
        *("company", "firm", "employer", "clinic", "hospital", "school", "place", "street", "city"),
        *("user", "drug", "pet", "file", "number", "email", "phone", "address"),
    )
)
_WORDS_AND_GAPS = re.compile(r"(\d+|[^\W\d_]+)")
_ALSO_WORDS = frozenset("aio")  # an initial that is also a word must have its full stop
_APOSTROPHES = ("'", "’", "`")
_MOST_WORDS = 6
_LEAST_FIRST = 3  # letters of a first name that an initial makes distinctive


@dataclasses.dataclass(frozen=True)
class Name:
    """A person: all tokens without titles, first name, initials of the middle ones, last name.

    Of "Margaret Olivia Thornbury" these count as the whole:
    - the last name with a title or an initial: "Dr Thornbury", "M. Thornbury", "Thornbury, M.",
      "M. O. Thornbury", "MO Thornbury"
    - first and last name, also with middle initials: "Margaret O. Thornbury"
    - the first name and the initial of the last: "Margaret T."
    - initials with full stops, "M.O.T.", for two names "M.T.", unless a name follows or they are a
      common abbreviation such as "U.S."
    The first name alone does not count, nor the last, for many bear it; nor "MOT"; nor an initial
    that is also a word ("a", "i", "o") without its full stop, for "a stone" is no person.
    """

    tokens: tuple[str, ...]
    first: str
    middle: str
    last: tuple[str, ...]

    @classmethod
    def of(cls, plain: str, kind: str) -> Name | None:
        """Read off a folded text; None where the unit is no person, or one word only."""
        is_person = _is_person(kind)
        has_title = plain.split(" ", 1)[0].rstrip(".") in TITLES
        if is_person is False or not (is_person or has_title):
            return None
        if "," in plain:  # "Thornbury, Margaret"
            last, _, first = plain.partition(",")
            plain = f"{first} {last}"
        words = [tuple(tokens) for word in plain.split() if (tokens := tokens_in(word))]
        named = [word for word in words if len(word) > 1 or word[0] not in TITLES | _AFTER_NAMES]
        if not 2 <= len(named) <= _MOST_WORDS or len(named[0][0]) < 2:
            return None
        full = tuple(token for word in named for token in word)
        if any(token.isdecimal() for token in full):
            return None
        split = next((at for at, word in enumerate(named) if at and word[0] in _PARTICLES), -1)
        last_tokens = tuple(token for word in named[split:] for token in word)
        return cls(full, named[0][0], "".join(word[0][0] for word in named[1:split]), last_tokens)

    @property
    def initials(self) -> str:
        return self.first[0] + self.middle + self.last[0][0]

    @property
    def compacts(self) -> tuple[str, str]:
        """First and last name run together, in both orders."""
        first, last = self.first, "".join(self.last)
        return first + last, last + first

    def is_in(self, plain: str) -> bool:
        """Whether a part of the name that counts stands in a folded text."""
        parts = _WORDS_AND_GAPS.split(plain)
        words, gaps = parts[1::2], parts[::2]  # gaps[at] stands before words[at]
        return any(
            (word == self.last[0] and self._is_told_by_last(words, gaps, at))
            or (word == self.first and self._is_told_by_first(words, gaps, at))
            for at, word in enumerate(words)
        )

    def _is_told_by_last(self, words: Sequence[str], gaps: Sequence[str], at: int) -> bool:
        """Whether the last name stands at `at`, with a title, initial or first name beside it."""
        end = at + len(self.last)
        if tuple(words[at:end]) != self.last:
            return False
        if end < len(words) and words[end] == self.first[0]:
            is_dotted = gaps[end + 1].startswith(".")
            is_listed = "," in gaps[end] and words[end] not in _ALSO_WORDS
            if gaps[end].strip() in ("", ",") and (is_dotted or is_listed):
                return True
        if at == 0:
            return False
        if words[at - 1] in TITLES and gaps[at].strip() in ("", "."):
            return True
        if self.middle and words[at - 1] == self.first[0] + self.middle:
            return True
        start = at - 1 - (len(self.middle) if self._has_middle(words, at) else 0)
        if start < 0:
            return False
        if words[start] == self.first:
            return start < at - 1
        return words[start] == self.first[0] and _is_initial(words, gaps, start)

    def _is_told_by_first(self, words: Sequence[str], gaps: Sequence[str], at: int) -> bool:
        """Whether the first name stands at `at` and the initial of the last after it."""
        ends = [at + 1]
        if self._has_middle(words, at + 1 + len(self.middle)):
            ends.append(at + 1 + len(self.middle))
        if len(self.first) < _LEAST_FIRST or gaps[at + 1].strip():
            return False
        return any(
            words[end] == self.last[0][0]
            and not gaps[end + 1].startswith(_APOSTROPHES)
            and (words[end] not in _ALSO_WORDS or gaps[end + 1].startswith("."))
            for end in ends
            if end < len(words)
        )

    def _has_middle(self, words: Sequence[str], end: int) -> bool:
        """Whether the middle initials stand before `end`."""
        size = len(self.middle)
        return 0 < size < end and list(words[end - size : end]) == list(self.middle)


@functools.lru_cache(maxsize=256)
def _is_person(kind: str) -> bool | None:
    """Whether units of a kind are people; None where the kind does not say."""
    words = set(tokens_in(kind.casefold()))
    return False if words & _IMPERSONAL else bool(words & _PERSONAL) or None


def _is_initial(words: Sequence[str], gaps: Sequence[str], at: int) -> bool:
    """Whether a letter before a name is an initial, not the end of "Anna's" or a word."""
    is_dotted = gaps[at + 1].startswith(".")
    if gaps[at].endswith(_APOSTROPHES) or gaps[at + 1].strip(" .-"):
        return False
    return is_dotted or words[at] not in _ALSO_WORDS
