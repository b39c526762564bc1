"""Problems of the world task: profiles, notes and questions.

What a question may ask for in each split is in `paths`; profiles and wording are new for each.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from collab.tasks.splits import SPLITS
from collab.tasks.world import language
from collab.tasks.world.entities import World
from collab.tasks.world.language import Chain
from collab.tasks.world.paths import Composition, pools
from collab.tasks.world.schema import (
    LOCAL_HOPS,
    PIVOTS,
    PRIVATE_REFERENCES,
    REFERENCES,
    RELATIONS,
)
from collab.types import PrivateUnit, Problem, Step

SENSITIVITY = {"name": 1.0, "birth date": 1.0, "condition": 2.0, "doctor": 1.0, "friend": 0.5}
# Powers of two: so a rising leak weight stops one kind after another, not all at once.
GRADED = {"name": 1.0, "birth date": 4.0, "condition": 8.0, "doctor": 2.0, "friend": 0.5}

_HELD_OUT_QUESTIONS = 0.5  # of validation and test questions
_ATTEMPTS = 200  # draws of a shape until a split has a composition for it
_PIVOTS_SHOWN = 2  # lines about pivots in the notes, which keeps them short
_YEARS = (1940, 2005)


@dataclasses.dataclass(frozen=True)
class Shape:
    """How a question begins: its reference (None = by name), the local hop after it, its length."""

    reference: str | None
    local: str | None
    world_hops: int


class Generator:
    """Makes problem `index` of a split, the same at every call."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._pools = pools(world)
        self._sensitivity = GRADED if world.settings.graded_sensitivity else SENSITIVITY

    def problem(self, split: str, index: int) -> Problem:
        """Raises: ValueError when the world is too small for its settings."""
        settings = self._world.settings
        rng = np.random.default_rng([settings.seed, 2, SPLITS.index(split), index])
        shape, composition = self._drawn(split, rng)
        values, hop = self._profile(shape, composition, rng)
        relations = (*((shape.local,) if shape.local else ()), *composition.relations)
        chain = Chain(shape.reference or composition.head, relations, shape.reference is not None)
        shown = _shown(values, shape, rng)
        needed = shape.reference if shape.local is None else None  # a pivot is no unit
        units = tuple(
            PrivateUnit(values[kind], kind, weight, is_needed=kind == needed)
            for kind, weight in self._sensitivity.items()
            if kind in values
        )
        return Problem(
            uid=f"world-{split}-{index}",
            question=language.question(chain, rng),
            answers=(composition.entities[-1],),
            notes=language.note_lines(shown, hop, rng),
            units=units,
            steps=tuple(self._steps(shape, composition, values, hop)),
        )

    def _drawn(self, split: str, rng: np.random.Generator) -> tuple[Shape, Composition]:
        """A shape and a composition for it."""
        is_leak_needed = rng.random() < self._world.settings.leak_needed_share
        for _ in range(_ATTEMPTS):
            is_held_out = split != "train" and rng.random() < _HELD_OUT_QUESTIONS
            shape = self._shape(is_leak_needed, rng)
            kind = None if shape.reference is None else REFERENCES[shape.reference]
            if shape.local is not None:
                kind = RELATIONS[shape.local].target
            pool = self._pools[split, kind, shape.world_hops, is_held_out]
            if pool:
                return shape, pool[int(rng.integers(len(pool)))]
        raise ValueError(
            f"task.world has too few compositions for split {split!r}; raise task.world.people, "
            "cities or max_world_hops, or lower task.world.held_out_share"
        )

    def _shape(self, is_leak_needed: bool, rng: np.random.Generator) -> Shape:
        settings = self._world.settings
        hops = int(rng.integers(1, settings.max_world_hops + 1))
        if is_leak_needed:
            return Shape(_one_of(PRIVATE_REFERENCES, rng), None, hops)
        local_hops = int(rng.integers(settings.max_local_hops + 1))
        if local_hops == 0:
            return Shape(None, None, hops)
        if local_hops == 1:
            return Shape(_one_of(PIVOTS, rng), None, hops)
        reference = _one_of(PRIVATE_REFERENCES, rng)
        return Shape(reference, LOCAL_HOPS[reference], hops)

    def _profile(
        self, shape: Shape, composition: Composition, rng: np.random.Generator
    ) -> tuple[dict[str, str], tuple[str, str, str]]:
        """All values of a new user, and the second local hop that the notes tell.

        Nothing of it is among the entities of the question unless the question starts from it, so
        that a unit is named only where it must be. Of other persons it knows one, the one asked
        from if the question starts from a person.
        """
        world = self._world
        person = shape.reference
        if person not in PRIVATE_REFERENCES:
            person = _one_of(PRIVATE_REFERENCES, rng)
        used = list(composition.entities)
        values = {"name": _one_of(world.strangers, rng)}
        values["birth date"] = language.date_text(
            int(rng.integers(*_YEARS)), int(rng.integers(1, 13)), int(rng.integers(1, 29))
        )
        values["condition"] = _one_of(language.CONDITIONS, rng)
        for reference in (*PIVOTS, person):
            kind = REFERENCES[reference]
            is_head = shape.reference == reference and shape.local is None
            values[reference] = composition.head if is_head else self._fresh(kind, used, rng)
            used.append(values[reference])
        relation = LOCAL_HOPS[person]
        if shape.local is not None:
            return values, (relation, values[person], composition.head)
        kind = RELATIONS[relation].target
        return values, (relation, values[person], self._fresh(kind, used, rng))

    def _fresh(self, kind: str, used: Sequence[str], rng: np.random.Generator) -> str:
        """An entity of a type that is not used yet; any of the type if all are."""
        free = [name for name in self._world.entities[kind] if name not in used]
        return _one_of(free or self._world.entities[kind], rng)

    def _steps(
        self,
        shape: Shape,
        composition: Composition,
        values: dict[str, str],
        hop: tuple[str, str, str],
    ) -> Iterator[Step]:
        if shape.reference is not None:
            yield Step(f"my {shape.reference}", values[shape.reference], is_local=True)
        if shape.local is not None:
            yield Step(f"{hop[0]} of {hop[1]}", hop[2], is_local=True)
        for relation, subject in zip(composition.relations, composition.entities, strict=False):
            step = self._world.step(relation, subject)
            if step is not None:
                yield step


def _shown(values: dict[str, str], shape: Shape, rng: np.random.Generator) -> dict[str, str]:
    """The values that the notes tell: every unit and some pivots, the one asked from included."""
    pivots = [PIVOTS[index] for index in rng.permutation(len(PIVOTS))]
    pivots.sort(key=lambda pivot: pivot != shape.reference)
    hidden = pivots[_PIVOTS_SHOWN:]
    return {key: value for key, value in values.items() if key not in hidden}


def _one_of(options: Sequence[str], rng: np.random.Generator) -> str:
    return options[int(rng.integers(len(options)))]
