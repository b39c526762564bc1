"""The wrapper's language: "my firm" in a question, "my firm is alder foods" where it is told.

Read back from notes and from requests alike. Linear in the text's length.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping

from collab.tasks.privatise.kinds import KINDS, REFERRED
from collab.types import PrivateUnit, Problem

_BY_LABEL = {kind.label: kind for kind in KINDS.values()}
REFERENCES = {kind.reference: kind for kind in REFERRED}
_MY = r"\bmy (?:own )?"
_REFERENCE = re.compile(
    rf"{_MY}({'|'.join(kind.label for kind in REFERRED)})\b(?!-)", re.IGNORECASE
)
# A value ends with its sentence or line; the dot of "ada.abbott@mail.example" ends nothing.
_STATEMENT = re.compile(
    rf"{_MY}({'|'.join(map(re.escape, _BY_LABEL))}) ?(?:=|:|\bis\b) ?"
    r"([^\s;?!].*?) ?(?:[;?!]|\.(?=\s|$)|(?=\n)|$)",
    re.IGNORECASE,
)
_BLANKS = re.compile(r"[^\S\n]+")


@dataclasses.dataclass(frozen=True)
class Told:
    """What a text tells of the profile, by reference ("my firm"), and the rest of the text."""

    values: Mapping[str, str]
    rest: str


def read(text: str) -> Told:
    """Take the statements about the profile out of a text; the last one about a reference counts.

    Blanks become single spaces.
    """
    text = _BLANKS.sub(" ", text)
    values = {
        _BY_LABEL[match[1].casefold()].reference: match[2] for match in _STATEMENT.finditer(text)
    }
    return Told(values, _STATEMENT.sub("", text).strip(" ;\n"))


def references(text: str) -> list[str]:
    """What a text refers to, in order: "my firm"."""
    return [f"my {match[1].casefold()}" for match in _REFERENCE.finditer(text)]


def filled(text: str, values: Mapping[str, str]) -> str:
    """A text with what it refers to in the place of references whose value is known."""
    return _REFERENCE.sub(lambda match: values.get(f"my {match[1].casefold()}", match[0]), text)


def needed(problem: Problem) -> tuple[str, PrivateUnit] | None:
    """The reference in a wrapped problem's question and the unit that it means; None without."""
    for reference in references(problem.question):
        kind = REFERENCES[reference].name
        for unit in problem.units:
            if unit.is_needed and unit.kind == kind:
                return reference, unit
    return None


def unwrapped(problem: Problem) -> Problem:
    """The base task's problem, as far as its solution goes: question and steps are its own."""
    found = needed(problem)
    if found is None:
        return problem
    reference, unit = found
    steps = tuple(step for step in problem.steps if step.query != reference)
    question = filled(problem.question, {reference: unit.text})
    return dataclasses.replace(problem, question=question, steps=steps)
