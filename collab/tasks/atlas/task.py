"""The atlas task: private multi-hop questions over real geography (`types.TeachableTask`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from collab.tasks.atlas import language
from collab.tasks.atlas.generate import Generator
from collab.tasks.atlas.geography import Atlas, Settings
from collab.tasks.mentions import PLACE, Mention
from collab.tasks.splits import SPLITS, problems_of
from collab.tasks.world.chains import ChainSolutions
from collab.tasks.world.language import relation_of
from collab.tasks.world.reading import WorldKnowledge
from collab.types import Knowledge, Problem, Resolution, Step


class AtlasKnowledge(WorldKnowledge):
    """Answers requests from the atlas's facts, however they say where something is."""

    def resolve(self, text: str) -> Resolution | None:
        return super().resolve(language.canonical_request(text))


class AtlasTask(ChainSolutions):
    """Problems over the countries and cities of GeoNames; what the SLM knows, nobody knows."""

    name = "atlas"

    def __init__(self, config: Any, data_dir: str) -> None:
        """Generate every split. data_dir is not used: there is nothing to prepare."""
        del data_dir
        self.atlas = Atlas(Settings.of(config))
        super().__init__(self.atlas, self.atlas.canonical)
        self.knowledge: Knowledge = AtlasKnowledge(self.atlas)
        generator = Generator(self.atlas)
        self._problems = {
            split: [generator.problem(split, index) for index in range(config.task[split])]
            for split in SPLITS
        }

    def problems(self, split: str) -> Sequence[Problem]:
        """Raises: ValueError for an unknown split."""
        return problems_of(self._problems, split)

    def mentions(self, problem: Problem) -> Sequence[Mention]:
        """The city or country that a question begins from by name; none for "my ..."."""
        first = problem.steps[0]
        found = relation_of(first.query, self.atlas.relations)
        return [Mention(found[1], PLACE)] if found and not first.is_local else []

    def corpus(self) -> Sequence[str]:
        """Training notes, questions and steps, for a tokenizer."""
        return [
            text
            for problem in self._problems["train"]
            for text in (
                problem.notes,
                problem.question,
                *(step.statement for step in problem.steps),
            )
        ]

    def recall(self, step: Step, rng: np.random.Generator) -> str:
        """The true answer: nobody knows what a pretrained SLM remembers before it is judged."""
        del rng
        return step.answer
