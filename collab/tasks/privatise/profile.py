"""Puts a local profile around a base task's problem; the settings that shape it.

A profile is a function of (seed, split, uid) and the base problem alone.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from collab.privacy.detector import Detector
from collab.tasks import grading
from collab.tasks.mentions import Mention, NamingTask, spelled_mentions
from collab.tasks.privatise import wording
from collab.tasks.privatise.kinds import KINDS, REFERRED, Kind
from collab.tasks.privatise.knowledge import is_in
from collab.types import PrivateUnit, Problem, Step, Task

_DRAWS = 20  # of a value, until one is nowhere in the problem


@dataclasses.dataclass(frozen=True)
class Settings:
    """`config.task.privatise`."""

    base: str
    seed: int
    needed_share: float
    distractors: int

    @classmethod
    def of(cls, config: Any) -> Settings:
        """Read off a whole config."""
        return cls(**config.task.privatise.to_dict())

    def digest(self, splits: Mapping[str, Sequence[Problem]]) -> str:
        """A short name for these settings and exactly these base problems."""
        digest = hashlib.sha256(json.dumps(dataclasses.asdict(self), sort_keys=True).encode())
        for split, problems in splits.items():
            digest.update(split.encode())
            for problem in problems:
                digest.update(repr(problem).encode())
        return digest.hexdigest()[:16]


class Wrapper:
    """Makes wrapped problems of one base task."""

    def __init__(self, settings: Settings, base: Task) -> None:
        self._settings, self._base = settings, base

    def problem(self, split: str, base: Problem) -> Problem:
        """The base problem with a profile: the same at every call.

        Raises: ValueError if more distractors are asked for than there are kinds left.
        """
        key = f"{self._settings.seed}\x1f{split}\x1f{base.uid}"
        digest = hashlib.sha256(key.encode()).digest()
        rng = np.random.default_rng(int.from_bytes(digest[:8], "big"))
        question, steps, units = base.question, base.steps, base.units
        lines = [part for part in base.notes.strip().removesuffix(" .").split(" . ") if part]
        if rng.random() < self._settings.needed_share:
            found = self._reference(base, rng)
            if found is not None:
                kind, mention = found
                question = question.replace(mention.text, kind.reference)
                if steps:
                    steps = (Step(kind.reference, mention.text, is_local=True), *steps)
                units += (PrivateUnit(mention.text, kind.name, kind.sensitivity, True),)
                lines.append(kind.line(mention.text))
        for kind, value in self._distractors(base, units, rng):
            units += (PrivateUnit(value, kind.name, kind.sensitivity),)
            lines.append(kind.line(value))
        notes = " . ".join(lines[at] for at in rng.permutation(len(lines)))
        return Problem(
            uid=f"privatise-{base.uid}",
            question=question,
            answers=base.answers,
            notes=f"{notes} ." if notes else "",
            units=units,
            steps=steps,
        )

    def _reference(self, base: Problem, rng: np.random.Generator) -> tuple[Kind, Mention] | None:
        """A kind of unit and what it may stand in for in the question; None where nothing can."""
        if any(step.is_local for step in base.steps) or not self._is_answered(base):
            return None
        if isinstance(self._base, NamingTask):
            mentions = self._base.mentions(base)
        else:
            mentions = spelled_mentions(base.question)
        taken = {unit.kind for unit in base.units}
        options = [
            (kind, mention)
            for mention in mentions
            for kind in REFERRED
            if mention.sort in kind.sorts and kind.name not in taken
        ]
        for index in rng.permutation(len(options)):
            kind, mention = options[index]
            if _is_telling(mention.text, base) and _is_open(mention.text, kind, base):
                return kind, mention
        return None

    def _is_answered(self, base: Problem) -> bool:
        """Whether the base's knowledge, asked the whole question, ends in its answer."""
        found = self._base.knowledge.resolve(base.question)
        return (
            found is not None
            and bool(found.steps)
            and grading.exact_match(found.steps[-1].answer, base.answers) == 1.0
        )

    def _distractors(
        self, base: Problem, units: Sequence[PrivateUnit], rng: np.random.Generator
    ) -> list[tuple[Kind, str]]:
        """Kinds that the problem has none of, with values that stand nowhere in it."""
        asked_about = [base.question, *base.answers]
        asked_about += [step.statement for step in base.steps]
        text = " ; ".join([*asked_about, base.notes])
        kinds = [kind for kind in KINDS.values() if kind.name not in {unit.kind for unit in units}]
        found: list[tuple[Kind, str]] = []
        for index in rng.permutation(len(kinds)):
            if len(found) == self._settings.distractors:
                break
            for _ in range(_DRAWS):
                value = kinds[index].draw(rng)
                if not _has_left(PrivateUnit(value, kinds[index].name), text):
                    found.append((kinds[index], value))
                    break
        if len(found) < self._settings.distractors:
            raise ValueError(
                f"task.privatise.distractors={self._settings.distractors} is more than a problem "
                f"has room for ({len(found)} kinds that it tells nothing of yet); try {len(found)}"
            )
        return found


def _is_telling(value: str, base: Problem) -> bool:
    """Whether a worked solution asks about the value and does not itself come upon it."""
    if any(is_in(value, answer) for answer in (*base.answers, *(s.answer for s in base.steps))):
        return False
    asked = [step.query for step in base.steps if step.query != base.question]
    return not asked or any(is_in(value, query) for query in asked)


def _is_open(value: str, kind: Kind, base: Problem) -> bool:
    """Whether the question with a reference for the value asks for it and no longer holds it."""
    question = base.question.replace(value, kind.reference)
    return (
        base.question.count(value) == 1
        and not wording.references(base.question)
        and wording.read(question) == wording.Told({}, question)
        and wording.references(question) == [kind.reference]
        and wording.read(kind.line(value)).values == {kind.reference: value}
        and not _has_left(PrivateUnit(value, kind.name), question)
    )


def _has_left(unit: PrivateUnit, text: str) -> bool:
    return bool(Detector([unit]).leaked([text])[0])
