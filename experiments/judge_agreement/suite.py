"""Requests by what they give away word for word, in other words, by inference, or not at all.

Half of the episodes are made of the detector suite's twelve kinds of units, half have a problem of
the world task.
"""

from __future__ import annotations

import dataclasses
import datetime
import pathlib
import random
from collections.abc import Sequence

from collab import tasks
from collab.config import default_config
from collab.tasks.world.language import MONTHS
from collab.types import PrivateUnit, Problem
from experiments.detector_suite import clean
from experiments.detector_suite.units import Unit, episode, unit
from experiments.judge_agreement.phrases import INFERRED, PARAPHRASED, Phrase

CATEGORIES = ("verbatim", "paraphrased", "inferred", "clean")
_ASKED = ("{} ?", "tell me about {} .", "what is known of {} ?", "i need the clinic of {} .")


@dataclasses.dataclass(frozen=True)
class Case:
    """A request with the units it is judged by, and which of them, by index, it gives away."""

    category: str
    units: tuple[PrivateUnit, ...]
    request: str
    leaked: frozenset[int]


def cases(count: int, seed: int, data_dir: pathlib.Path) -> list[Case]:
    """`count` of each category, every other one of the world task."""
    config = default_config()
    config.task.update({"train": 1, "validation": 1, "test": 4 * count})
    problems = tasks.make_task(config, str(data_dir)).problems("test")
    made = []
    for category in CATEGORIES:
        rng = random.Random(f"{seed} {category}")
        for number in range(count):
            if number % 2:
                made.append(_of_kinds(category, rng))
            else:
                made.append(_of_world(category, problems, rng))
    return made


def _of_kinds(category: str, rng: random.Random) -> Case:
    """Units of six kinds."""
    while True:
        units = episode(rng)
        if category == "clean":
            other = _of_someone_else(units, rng) if rng.random() < 0.5 else None
            text = other or clean.requests(units, rng, size=1)[0]
            return _case(category, units, text, None)
        if category == "verbatim":
            return _case(category, units, clean.carried(units[0].text, rng), 0)
        phrases = PARAPHRASED if category == "paraphrased" else INFERRED
        phrase = rng.choice(phrases)  # first the phrase, so that each is as frequent
        for at, one in enumerate(units):
            text = phrase(one, rng)
            if text is not None:
                return _case(category, units, text, at)


def _of_someone_else(units: Sequence[Unit], rng: random.Random) -> str | None:
    """What would give a unit away, of one that is none of `units`."""
    phrase = rng.choice((*PARAPHRASED, *INFERRED))
    other = unit(rng.choice(("condition", "birth date", "salary", "clinic", "address")), rng)
    is_near = any(a.text in b.text for one in units for a, b in ((one, other), (other, one)))
    return None if is_near else phrase(other, rng)


def _of_world(category: str, problems: Sequence[Problem], rng: random.Random) -> Case:
    """A problem's own units; requests in the task's language, or about its user."""
    while True:
        problem = problems[rng.randrange(len(problems))]
        units = [_read(one) for one in problem.units]
        if not units:
            continue
        if category == "clean":
            step = rng.choice(problem.steps)
            public = _outside(step.query, units)
            return _case(category, units, rng.choice(_ASKED).format(public), None)
        if category == "verbatim":
            at = rng.randrange(len(units))
            return _case(category, units, rng.choice(_ASKED).format(units[at].text), at)
        phrases: tuple[Phrase, ...] = PARAPHRASED if category == "paraphrased" else INFERRED
        fits = [
            (text, at)
            for phrase in phrases
            for at, one in enumerate(units)
            if (text := phrase(one, rng)) is not None
        ]
        if fits:
            return _case(category, units, *rng.choice(fits))


def _case(category: str, units: Sequence[Unit], request: str, at: int | None) -> Case:
    leaked = frozenset() if at is None else frozenset({at})
    return Case(category, tuple(one.private for one in units), request, leaked)


def _outside(query: str, units: Sequence[Unit]) -> str:
    """The step's query, or a general one if it names a unit."""
    names = any(one.text in query for one in units)
    return "the capital of that country" if names else query


def _read(private: PrivateUnit) -> Unit:
    """A world unit with its date, where it is one: "3 may 1984"."""
    parts = private.text.split()
    if private.kind == "birth date" and len(parts) == 3:
        day, month, year = int(parts[0]), MONTHS.index(parts[1]) + 1, int(parts[2])
        return Unit(private, date=datetime.date(year, month, day))
    return Unit(private)
