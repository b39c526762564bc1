"""The world's types, relations and wording of relations; the settings that shape one world.

Facts and entities are drawn in `entities`; sentences are made in `language` and read in `reading`.
`FactGraph` is as much of a world as `paths`, `reading` and `chains` need; `atlas` has another.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from collab import naming
from collab.tasks.splits import SPLITS
from collab.types import Step

PERSON, CITY, COUNTRY = "person", "city", "country"
ORGANISATION, FILM = "organisation", "film"
TYPES = (PERSON, CITY, COUNTRY, ORGANISATION, FILM)

_MOST_LOCAL_HOPS = 2


@dataclasses.dataclass(frozen=True)
class Relation:
    """A function from entities of type `source` to entities of type `target`.

    name: the one canonical word, used in steps and requests. other: a second wording that questions
    use as well. is_local: only the private notes state it.
    """

    name: str
    source: str
    target: str
    other: str
    is_local: bool = False


Fact = tuple[str, str]  # relation, subject


@dataclasses.dataclass(frozen=True)
class PathSettings:
    """What questions about a graph depend on besides its facts."""

    seed: int
    max_local_hops: int
    max_world_hops: int
    held_out_share: float
    leak_needed_share: float

    def check_paths(self, section: str) -> None:
        """Raises: ValueError for the first rule that is broken. section: of the config."""
        hops, leak_needed = self.max_local_hops, self.leak_needed_share
        demand("max_local_hops", hops, least=0, most=_MOST_LOCAL_HOPS, prefix=section)
        demand("max_world_hops", self.max_world_hops, least=1, most=4, prefix=section)
        demand("held_out_share", self.held_out_share, least=0, most=0.8, prefix=section)
        demand("leak_needed_share", leak_needed, least=0, most=1, prefix=section)
        if leak_needed > 0 and hops == 0:
            raise ValueError(
                f"{section}.leak_needed_share={leak_needed} needs max_local_hops >= 1 "
                "(a private unit heads the question); set it to 0 or allow a local hop"
            )


class FactGraph(Protocol):
    """Entities of some types, and relations that are functions between them."""

    @property
    def settings(self) -> PathSettings: ...
    @property
    def relations(self) -> Mapping[str, Relation]: ...
    @property
    def entities(self) -> Mapping[str, Sequence[str]]: ...
    @property
    def type_of(self) -> Mapping[str, str]: ...
    @property
    def facts(self) -> Mapping[Fact, str]: ...
    @property
    def held_out(self) -> frozenset[Fact]: ...

    def step(self, relation: str, subject: str) -> Step | None:
        """The true step, or None where the relation does not apply to the subject."""
        ...


_ALL_RELATIONS = (
    Relation("director", FILM, PERSON, "maker"),
    Relation("birthplace", PERSON, CITY, "place of birth"),
    Relation("employer", PERSON, ORGANISATION, "workplace"),
    Relation("headquarters", ORGANISATION, CITY, "main office"),
    Relation("founder", ORGANISATION, PERSON, "creator"),
    Relation("mayor", CITY, PERSON, "city chief"),
    Relation("country", CITY, COUNTRY, "nation"),
    Relation("capital", COUNTRY, CITY, "capital city"),
    Relation("leader", COUNTRY, PERSON, "president"),
    Relation("home", PERSON, CITY, "town", is_local=True),
    Relation("hospital", PERSON, ORGANISATION, "practice", is_local=True),
)
RELATIONS = {relation.name: relation for relation in _ALL_RELATIONS}
WORLD_RELATIONS = tuple(r for r in _ALL_RELATIONS if not r.is_local)

# What "my ..." may refer to in a question, with the type of the entity.
REFERENCES = {
    "clinic": ORGANISATION,
    "film": FILM,
    "home": CITY,
    "doctor": PERSON,
    "friend": PERSON,
}
PIVOTS = ("clinic", "film", "home")  # references that are no private unit
PRIVATE_REFERENCES = ("doctor", "friend")  # references that are private units themselves
LOCAL_HOPS = {"friend": "home", "doctor": "hospital"}  # second hops inside the notes

_FEWEST = {PERSON: 6, CITY: 3, COUNTRY: 2, ORGANISATION: 3, FILM: 2}
_COUNT_KEYS = {
    PERSON: "people",
    CITY: "cities",
    COUNTRY: "countries",
    ORGANISATION: "organisations",
    FILM: "films",
}


@dataclasses.dataclass(frozen=True)
class Settings(PathSettings):
    """`config.task.world` and the split sizes: everything that a prepared data set depends on."""

    people: int
    cities: int
    countries: int
    organisations: int
    films: int
    known_share: float
    faint_share: float
    stale_relations: tuple[str, ...]
    graded_sensitivity: bool
    train: int
    validation: int
    test: int

    @classmethod
    def of(cls, config: Any) -> Settings:
        """Read and check a whole config. Raises: ValueError with key, value, rule and fix."""
        world = config.task.world.to_dict()
        world["stale_relations"] = tuple(world["stale_relations"])
        sizes = {split: config.task[split] for split in SPLITS}
        settings = cls(**world, **sizes)
        settings.check()
        return settings

    def check(self) -> None:
        """Raises: ValueError for the first rule that is broken."""
        for kind, key in _COUNT_KEYS.items():
            demand(key, getattr(self, key), least=_FEWEST[kind])
        for split in SPLITS:
            demand(split, getattr(self, split), least=1, prefix="task")
        self.check_paths("task.world")
        for key in ("known_share", "faint_share"):
            demand(key, getattr(self, key), least=0, most=1)
        if self.known_share + self.faint_share > 1:
            raise ValueError(
                f"task.world.known_share={self.known_share} and faint_share={self.faint_share} "
                "must sum to at most 1; lower one of them"
            )
        names = [relation.name for relation in WORLD_RELATIONS]
        for name in self.stale_relations:
            if name not in names:
                raise ValueError(
                    f"task.world.stale_relations holds {name!r}, must be among "
                    f"{', '.join(names)}{naming.hint(name, names)}"
                )

    def count(self, kind: str) -> int:
        """Number of entities of one type."""
        number: int = getattr(self, _COUNT_KEYS[kind])
        return number

    @property
    def digest(self) -> str:
        """A short name for exactly these settings; what a newer key leaves as it was keeps it."""
        settings = dataclasses.asdict(self)
        if not self.graded_sensitivity:
            del settings["graded_sensitivity"]
        text = json.dumps(settings, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def demand(
    key: str,
    value: float,
    *,
    least: float,
    most: float | None = None,
    prefix: str = "task.world",
) -> None:
    """Raises: ValueError with key, value, rule and fix for a value outside [least, most]."""
    if value < least or (most is not None and value > most):
        rule = f"at least {least}" if most is None else f"in [{least}, {most}]"
        nearest = least if value < least else most
        raise ValueError(f"{prefix}.{key}={value} must be {rule}; try {nearest}")
