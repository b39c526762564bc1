"""What a question names that a private value could stand in for: numbers, people, places, firms.

A task whose texts tell more than their spelling does has a method of its own (`NamingTask`).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from collab.types import Problem

NUMBER, PERSON, PLACE, ORGANISATION = "number", "person", "place", "organisation"
NAME = "name"  # of a person, a place or anything else

# Whole numbers of two digits or more: a single digit says too little to be a private value.
_NUMBER = re.compile(r"(?<![\w.,/$£€¥%:-])\d{2,9}(?![\w/%:-]|[.,]\d)")
_WORD = r"(?:[A-Z]['’])?[A-Z][^\W\d_]+(?:-[A-Z][^\W\d_]+)?"
# Not half of a longer name, nor "Destiny" of "Destiny's Child".
_NAME = re.compile(rf"(?<![\w'’.-]){_WORD}(?: {_WORD}){{0,4}}(?![\w-]|['’]s [A-Z]| [A-Z])")
_BEFORE_SENTENCE = re.compile(r"(?:^|[.?!:\"”]\s*)$")
_BEFORE_NOUN = re.compile(
    r"(?:\b(?:a|an|the|his|her|their|its|my|our|your)|['’]s?)\s+$", re.IGNORECASE
)


@dataclasses.dataclass(frozen=True)
class Mention:
    """Text that stands in a question once, and what sort of thing it names."""

    text: str
    sort: str


@runtime_checkable
class NamingTask(Protocol):
    """A task that knows what its questions name."""

    def mentions(self, problem: Problem) -> Sequence[Mention]:
        """What the question names, none of it twice."""
        ...


def spelled_mentions(question: str) -> list[Mention]:
    """Whole numbers, and names by their capitals; none at the start of a sentence.

    Left out is what stands there twice, or behind an article or possessive, as "my firm" can't.
    """
    found = [(match, NUMBER) for match in _NUMBER.finditer(question)]
    found += [(match, NAME) for match in _NAME.finditer(question)]
    return [
        Mention(match[0], sort)
        for match, sort in found
        if question.count(match[0]) == 1
        and not _BEFORE_SENTENCE.search(question[: match.start()])
        and not _BEFORE_NOUN.search(question[: match.start()])
    ]
