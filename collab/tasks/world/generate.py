"""Problems of the world task: which compositions a split may use, profiles, notes and questions.

A composition is the entity that heads the world part of a question and the path of relations from
it. Every composition belongs to one split only. `held_out_share` of the facts occur in no training
composition; about half of the validation and test questions touch such a fact, the others combine
facts of the training questions in a way that no training question does (the fact of a single-hop
one may be part of longer training compositions). The SLM's memory knows no splits: it may hold a
held-out fact. Profiles and wording are new for each problem.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np

from collab.tasks.world import language
from collab.tasks.world.entities import World
from collab.tasks.world.language import Chain
from collab.tasks.world.schema import (
    LOCAL_HOPS,
    PIVOTS,
    PRIVATE_REFERENCES,
    REFERENCES,
    RELATIONS,
    WORLD_RELATIONS,
)
from collab.types import PrivateUnit, Problem, Step

SPLITS = ("train", "validation", "test")
SENSITIVITY = {"name": 1.0, "birth date": 1.0, "condition": 2.0, "doctor": 1.0, "friend": 0.5}

_CLEAN_SHARES = (0.7, 0.1, 0.2)  # of compositions without a held-out fact, by split
_HELD_OUT_SHARES = (0.0, 1 / 3, 2 / 3)
_HELD_OUT_QUESTIONS = 0.5  # of validation and test questions
_ATTEMPTS = 200  # draws of a shape until a split has a composition for it
_PIVOTS_SHOWN = 2  # lines about pivots in the notes, which keeps them short
_YEARS = (1940, 2005)


@dataclasses.dataclass(frozen=True)
class Composition:
    """The world part of a question. entities: the head, then the object of each relation."""

    relations: tuple[str, ...]
    entities: tuple[str, ...]
    is_held_out: bool

    @property
    def head(self) -> str:
        return self.entities[0]


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
        self._pools = _pools(world)

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
            for kind, weight in SENSITIVITY.items()
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


def compositions(world: World) -> list[Composition]:
    """Every path of 1..max_world_hops relations from every entity that meets no entity twice."""
    relations_from = defaultdict(list)
    for relation in WORLD_RELATIONS:
        relations_from[relation.source].append(relation.name)
    found: list[Composition] = []
    front = [Composition((), (name,), False) for name in world.type_of]
    for _ in range(world.settings.max_world_hops):
        longer = []
        for path in front:
            last = path.entities[-1]
            for name in relations_from[world.type_of[last]]:
                answer = world.facts[name, last]
                if answer not in path.entities:
                    is_held_out = path.is_held_out or (name, last) in world.held_out
                    entities = (*path.entities, answer)
                    longer.append(Composition((*path.relations, name), entities, is_held_out))
        found += longer
        front = longer
    return found


def split_compositions(world: World) -> dict[str, list[Composition]]:
    """Every composition in its one split, drawn within head type, hops and held out or not."""
    groups: dict[tuple[str, int, bool], list[Composition]] = defaultdict(list)
    for item in compositions(world):
        groups[world.type_of[item.head], len(item.relations), item.is_held_out].append(item)
    rng = np.random.default_rng([world.settings.seed, 3])
    splits: dict[str, list[Composition]] = {split: [] for split in SPLITS}
    for (_, _, is_held_out), group in groups.items():
        ends = np.cumsum(_HELD_OUT_SHARES if is_held_out else _CLEAN_SHARES)
        for rank, index in enumerate(rng.permutation(len(group))):
            place = int(np.searchsorted(ends, (rank + 0.5) / len(group)))
            splits[SPLITS[min(place, 2)]].append(group[index])
    return splits


def _pools(world: World) -> dict[tuple[str, str | None, int, bool], list[Composition]]:
    """Compositions by split, type of head (None = any), hops and whether held out."""
    pools: dict[tuple[str, str | None, int, bool], list[Composition]] = defaultdict(list)
    for split, members in split_compositions(world).items():
        for item in members:
            for kind in (world.type_of[item.head], None):
                pools[split, kind, len(item.relations), item.is_held_out].append(item)
    return pools


def _shown(values: dict[str, str], shape: Shape, rng: np.random.Generator) -> dict[str, str]:
    """The values that the notes tell: every unit and some pivots, the one asked from included."""
    pivots = [PIVOTS[index] for index in rng.permutation(len(PIVOTS))]
    pivots.sort(key=lambda pivot: pivot != shape.reference)
    hidden = pivots[_PIVOTS_SHOWN:]
    return {key: value for key, value in values.items() if key not in hidden}


def _one_of(options: Sequence[str], rng: np.random.Generator) -> str:
    return options[int(rng.integers(len(options)))]
