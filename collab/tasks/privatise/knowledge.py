"""What a helper can make of requests about wrapped problems (`types.Knowledge`).

The base task's knowledge answers, once every reference to the profile has its value. Some of it
matches texts loosely and would answer around a value that was left out; that is caught here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np

from collab.tasks.matching import tokens
from collab.tasks.privatise import wording
from collab.types import Knowledge, Problem, Resolution, Step


@dataclasses.dataclass(frozen=True)
class _Owner:
    """A problem's solution. reference, value: of the unit that it needs; "" where it needs none."""

    steps: frozenset[Step]
    uses: frozenset[Step]  # steps that ask about the value
    reference: str = ""
    value: str = ""

    @classmethod
    def of(cls, problem: Problem) -> _Owner:
        base = wording.unwrapped(problem)
        steps = base.steps or (Step(base.question, base.answers[0]),)
        found = wording.needed(problem)
        if found is None:
            return cls(frozenset(steps), frozenset())
        reference, unit = found
        uses = frozenset(step for step in steps if is_in(unit.text, step.query))
        return cls(frozenset(steps), uses, reference, unit.text)


class PrivateKnowledge:
    """A base task's knowledge that asks for private values instead of doing without."""

    def __init__(self, base: Knowledge, problems: Iterable[Problem]) -> None:
        """problems: every wrapped one. Never changes afterwards, so threads may share it."""
        self._base = base
        self._owners: dict[Step, list[_Owner]] = {}
        for problem in problems:
            owner = _Owner.of(problem)
            for step in owner.steps:
                self._owners.setdefault(step, []).append(owner)

    def resolve(self, text: str) -> Resolution | None:
        """The base's answer to a text whose references have the values that it tells.

        missing: the first reference without one; else the one whose value the asked steps are
        about while the text does not say it.
        """
        told = wording.read(text)
        asked = wording.references(told.rest)
        for reference in asked:
            if reference not in told.values:
                return Resolution((), missing=reference)
        full = wording.filled(told.rest, told.values)
        resolution = self._answered(full)
        spare = [
            value
            for reference, value in told.values.items()
            if reference in wording.REFERENCES and reference not in asked
        ]
        if spare and (resolution is None or resolution.missing is not None):
            # "In what year is it? ; my passcode = 1998": the value, where nothing refers to it.
            return self._answered(" ; ".join([full, *spare])) or resolution
        return resolution

    def wrong_answer(self, step: Step, rng: np.random.Generator) -> str:
        """The base's: what a helper answers is never private."""
        return self._base.wrong_answer(step, rng)

    def _answered(self, text: str) -> Resolution | None:
        """The base's answer, unless the text lacks a value that it is about."""
        resolution = self._base.resolve(text)
        if resolution is None or not resolution.steps:
            return resolution
        missing = self._left_out(frozenset(resolution.steps), text)
        return Resolution((), missing=missing) if missing else resolution

    def _left_out(self, steps: frozenset[Step], text: str) -> str | None:
        """The reference that an answer of these steps needs and that `text` has no value for."""
        owners = [
            owner
            for owner in self._owners.get(next(iter(steps)), ())
            if steps <= owner.steps and (not owner.reference or not steps.isdisjoint(owner.uses))
        ]
        if any(not owner.reference or is_in(owner.value, text) for owner in owners):
            return None
        return owners[0].reference if owners else None


def is_in(value: str, text: str) -> bool:
    """Whether the words and numbers of a value stand side by side in a text."""
    return f" {' '.join(tokens(value))} " in f" {' '.join(tokens(text))} "
