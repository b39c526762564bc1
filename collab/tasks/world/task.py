"""The world task: private multi-hop questions over a generated world (`types.TeachableTask`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from collab.tasks import mentions
from collab.tasks.mentions import Mention
from collab.tasks.splits import problems_of
from collab.tasks.world import language
from collab.tasks.world.chains import ChainSolutions
from collab.tasks.world.entities import World
from collab.tasks.world.reading import WorldKnowledge
from collab.tasks.world.schema import CITY, COUNTRY, ORGANISATION, PERSON, Settings
from collab.tasks.world.world_dataset_builder import prepared
from collab.types import Problem, Step

_CORPUS_PROBLEMS = 512  # training problems whose texts teach the tokenizer
_SORTS = {
    PERSON: mentions.PERSON,
    CITY: mentions.PLACE,
    COUNTRY: mentions.PLACE,
    ORGANISATION: mentions.ORGANISATION,
}


class WorldTask(ChainSolutions):
    """Problems of one world, what is true in it, and what the SLM remembers of it."""

    name = "world"

    def __init__(self, config: Any, data_dir: str) -> None:
        settings = Settings.of(config)
        self.world = World(settings)
        super().__init__(self.world, _canonical)
        self.knowledge = WorldKnowledge(self.world)
        self._splits = prepared(settings, data_dir)

    def problems(self, split: str) -> Sequence[Problem]:
        """Raises: ValueError for an unknown split."""
        return problems_of(self._splits, split)

    def mentions(self, problem: Problem) -> Sequence[Mention]:
        """The entity that a question begins from by name; none for a film, or for "my ..."."""
        found = language.relation_of(problem.steps[0].query)
        sort = _SORTS.get(self.world.type_of[found[1]]) if found else None
        return [Mention(found[1], sort)] if found and sort else []

    def corpus(self) -> Sequence[str]:
        statements = [
            f"{relation} of {subject} = {value}"
            for (relation, subject), value in self.world.facts.items()
        ]
        return language.corpus(
            people=self.world.entities[PERSON],
            statements=statements,
            problems=self.problems("train")[:_CORPUS_PROBLEMS],
        )

    # --- the SLM's memory ------------------------------------------------------------------

    def recall(self, step: Step, rng: np.random.Generator) -> str:
        """What the memory holds for a world step; what a local step asks for stands in the notes.

        Raises: ValueError for a step of no fact of this world.
        """
        if step.is_local:
            return step.answer
        fact = language.relation_of(step.query)
        if fact is None or fact not in self.world.memory:
            raise ValueError(f"step.query={step.query!r} is no fact of this world")
        return self.world.recall(fact, rng)

    def readings(self, problem: Problem) -> Sequence[Step]:
        return [
            Step(query, value, is_local=True) for query, value in language.read_notes(problem.notes)
        ]

    def drill(self, rng: np.random.Generator) -> Step:
        return self.world.drill(rng)


def _canonical(belief: str) -> str:
    return " ".join(belief.casefold().split())
