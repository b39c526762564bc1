"""Problems of the atlas task: a path through the graph of facts, and a user's profile around it.

Which paths a split may use is in `world.paths`; profiles and wording are new for each problem.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from collab.tasks.atlas import language
from collab.tasks.atlas.geography import CITY, PERSON, Atlas
from collab.tasks.atlas.language import FRIEND, PIVOTS, PRIVATE_REFERENCES
from collab.tasks.splits import SPLITS
from collab.tasks.world.language import CONDITIONS, date_text
from collab.tasks.world.paths import Composition, pools
from collab.types import PrivateUnit, Problem, Step

SENSITIVITY = {
    "name": 1.0, "birth date": 1.0, "condition": 2.0, "home": 1.0, "sister": 0.5, FRIEND: 0.5,
}  # fmt: skip

_HELD_OUT_QUESTIONS = 0.5  # of validation and test questions
_ATTEMPTS = 200  # draws until a split has a path of the kind
_PIVOTS_SHOWN = 2  # lines about pivots in the notes
_YEARS = (1940, 2005)


class Generator:
    """Makes problem `index` of a split, the same at every call."""

    def __init__(self, atlas: Atlas) -> None:
        self._atlas = atlas
        self._pools = pools(atlas)

    def problem(self, split: str, index: int) -> Problem:
        """Raises: ValueError when the atlas has too few cities for its settings."""
        rng = np.random.default_rng([self._atlas.settings.seed, 2, SPLITS.index(split), index])
        reference, path = self._drawn(split, rng)
        values, friends_city = self._profile(reference, path, rng)
        needed = reference if reference in PRIVATE_REFERENCES else None  # else no unit is sent
        return Problem(
            uid=f"atlas-{split}-{index}",
            question=language.question(self._atlas, path.head, reference, path.relations, rng),
            answers=self._atlas.spellings(path.entities[-1]),
            notes=language.note_lines(values, friends_city, rng),
            units=tuple(
                PrivateUnit(values[kind], kind, weight, is_needed=kind == needed)
                for kind, weight in SENSITIVITY.items()
            ),
            steps=tuple(self._steps(reference, path, values)),
        )

    def _drawn(self, split: str, rng: np.random.Generator) -> tuple[str | None, Composition]:
        """What the question starts from (None = an entity by name) and the path from there."""
        settings = self._atlas.settings
        is_leak_needed = rng.random() < settings.leak_needed_share
        for _ in range(_ATTEMPTS):
            is_held_out = split != "train" and rng.random() < _HELD_OUT_QUESTIONS
            hops = int(rng.integers(1, settings.max_world_hops + 1))
            local_hops = int(rng.integers(settings.max_local_hops + 1))
            reference = (None, _one_of(PIVOTS, rng), FRIEND)[local_hops]
            if is_leak_needed:
                reference = _one_of(PRIVATE_REFERENCES, rng)
            pool = self._pools[split, CITY if reference else None, hops, is_held_out]
            if pool:
                return reference, pool[int(rng.integers(len(pool)))]
        raise ValueError(
            f"task.atlas has too few paths for split {split!r}; lower task.atlas.min_population or "
            "held_out_share, or raise max_world_hops"
        )

    def _profile(
        self, reference: str | None, path: Composition, rng: np.random.Generator
    ) -> tuple[dict[str, str], str]:
        """All values of a new user, and the city of the friend.

        No city of it is on the path unless the question starts from it, so that a unit is named
        only where it must be.
        """
        name, friend = (self._atlas.entities[PERSON][i] for i in self._two_people(rng))
        year, month, day = (int(rng.integers(*span)) for span in (_YEARS, (1, 13), (1, 29)))
        values = {
            "name": name,
            "birth date": date_text(year, month, day).title(),
            "condition": _one_of(CONDITIONS, rng),
            FRIEND: friend,
        }
        pivots = sorted(
            (PIVOTS[i] for i in rng.permutation(len(PIVOTS))), key=lambda key: key != reference
        )
        used: set[str] = set()
        places = (*PRIVATE_REFERENCES, *pivots[:_PIVOTS_SHOWN], FRIEND)
        cities = {
            key: path.head if key == reference else self._fresh_city(path, used, rng)
            for key in places
        }
        friends_city = cities.pop(FRIEND)
        return values | cities, friends_city

    def _two_people(self, rng: np.random.Generator) -> list[int]:
        count = len(self._atlas.entities[PERSON])
        return [int(index) for index in rng.choice(count, size=2, replace=False)]

    def _fresh_city(self, path: Composition, used: set[str], rng: np.random.Generator) -> str:
        """A city that is not used yet, and is from now on; no part of a name on the path either.

        So "Tokyo" is none where "Asia/Tokyo" is. Any city where hardly any is free.
        """
        for _ in range(_ATTEMPTS):
            name = _one_of(self._atlas.entities[CITY], rng)
            if name not in used and not any(name in entity for entity in path.entities):
                break
        used.add(name)
        return name

    def _steps(
        self, reference: str | None, path: Composition, values: dict[str, str]
    ) -> Iterator[Step]:
        if reference == FRIEND:
            yield Step(f"my {FRIEND}", values[FRIEND], is_local=True)
            yield Step(f"home of {values[FRIEND]}", path.head, is_local=True)
        elif reference is not None:
            yield Step(language.local_query(reference), path.head, is_local=True)
        for relation, subject in zip(path.relations, path.entities, strict=False):
            step = self._atlas.step(relation, subject)
            if step is not None:
                yield step


def _one_of(options: Sequence[str], rng: np.random.Generator) -> str:
    return options[int(rng.integers(len(options)))]
