"""Sentences of the atlas task, in plain English: notes, questions, and requests read back.

Steps and requests have the world task's canonical form ("country of Lyon", "capital of country of
Lyon"), so that its reading serves; `canonical_request` brings natural wording into that form.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np

from collab.tasks.atlas.geography import Atlas

# What a question may start from: how the notes tell its city, and how a question names that.
_WORDINGS = {
    "clinic": ("My clinic stands in {}.", "the city where my clinic stands"),
    "office": ("My office is in {}.", "the city where my office is"),
    "hotel": ("My hotel is in {}.", "the city where my hotel is"),
    "home": ("I live in {}.", "the city where I live"),
    "sister": ("My sister lives in {}.", "the city where my sister lives"),
}
FRIEND = "friend"  # the one reference to a person, whose city is a second local hop
PIVOTS = ("clinic", "office", "hotel")  # references whose city is no private unit
PRIVATE_REFERENCES = ("home", "sister")  # references whose city is one
_ABOUT_USER = {
    "name": "My name is {}.",
    "birth date": "I was born on {}.",
    "condition": "I have {}.",
    FRIEND: "My friend is {}.",
}
_OPENERS = ("What is {}?", "Tell me {}.", "Please name {}.", "I want to know {}.")

_MY_CITY = re.compile(
    r"\b(?:the )?(?:city|town) (?:of|where) (my \w+)(?: stands| lives| is)?\b", re.I
)
_I_LIVE = re.compile(r"\b(?:the )?(?:city|town) where i live\b", re.I)
_LIVES_IN = re.compile(rf"\b(my {FRIEND}|(?!my )\w+ \w+) lives in\b", re.I)
_IS_IN = re.compile(r"\b(?:stands|lives|is) in\b", re.I)
_FRIEND = re.compile(rf"\b(?:the )?(?:city|town) where my {FRIEND} lives\b", re.I)


def note_lines(values: Mapping[str, str], friends_city: str, rng: np.random.Generator) -> str:
    """The private notes in any order. values: by what is told, a city for a reference."""
    said = [
        (_ABOUT_USER.get(key) or _WORDINGS[key][0]).format(value) for key, value in values.items()
    ]
    said.append(f"{values[FRIEND]} lives in {friends_city}.")
    return " ".join(said[index] for index in rng.permutation(len(said)))


def local_query(reference: str) -> str:
    """The canonical query for the city of a reference: "city of my clinic"."""
    return f"city of my {reference}"


def question(
    atlas: Atlas,
    start: str,
    reference: str | None,
    relations: Sequence[str],
    rng: np.random.Generator,
) -> str:
    """A natural question for the end of a path. relations: innermost first.

    start: the entity that heads the path, told by name unless a reference stands for it.
    """
    phrase = start
    if reference == FRIEND:
        phrase = f"the city where my {FRIEND} lives"
    elif reference is not None:
        phrase = _WORDINGS[reference][1]
    for depth, name in enumerate(relations):
        relation = atlas.relations[name]
        word = relation.name if rng.random() < 0.5 else relation.other
        is_possessive = depth == 0 and reference is None and rng.random() < 0.5
        phrase = f"{phrase}'s {word}" if is_possessive else f"the {word} of {phrase}"
    return _OPENERS[int(rng.integers(len(_OPENERS)))].format(phrase)


def canonical_request(text: str) -> str:
    """A request with its natural wordings of places replaced by the canonical ones."""
    text = _FRIEND.sub(f"home of my {FRIEND}", text.replace("\u2019", "'"))
    text = _MY_CITY.sub(r"\1", _I_LIVE.sub("my home", text))
    return _IS_IN.sub("is", _LIVES_IN.sub(r"home of \1 is", text))
