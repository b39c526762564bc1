"""The privatise task: any other task with a local profile in its private notes.

What the base task offers decides what the wrapped one does: problems alone, worked solutions
(`types.TeachableTask`), or drills besides (`types.DrilledTask`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from collab import naming
from collab.tasks import TASKS, make_task
from collab.tasks.privatise import wording
from collab.tasks.privatise.knowledge import PrivateKnowledge
from collab.tasks.privatise.privatise_dataset_builder import prepared
from collab.tasks.privatise.profile import Settings, Wrapper
from collab.tasks.splits import SPLITS, problems_of
from collab.types import DrilledTask, Knowledge, Problem, Step, Task, TeachableTask

NAME = "privatise"
_CORPUS_PROBLEMS = 512  # training problems whose texts teach the tokenizer


def privatise_task(config: Any, data_dir: str) -> Task:
    """The task `config.task.privatise.base`, wrapped.

    Raises: ValueError for a base that is no other task, too many distractors, and what the base
    finds wrong with its own settings.
    """
    settings = Settings.of(config)
    bases = [name for name in TASKS if name != NAME]
    naming.check("task.privatise.base=", settings.base, bases)
    of_base = config.copy_and_resolve_references()
    of_base.task.name = settings.base
    base = make_task(of_base, data_dir)
    if isinstance(base, DrilledTask):
        return PrivateDrilledTask(settings, base, data_dir)
    if isinstance(base, TeachableTask):
        return PrivateTeachableTask(settings, base, data_dir)
    return PrivateTask(settings, base, data_dir)


class PrivateTask:
    """Problems of a base task, each with a profile of its own."""

    name = NAME

    def __init__(self, settings: Settings, base: Task, data_dir: str) -> None:
        self.base = base
        splits = {split: base.problems(split) for split in SPLITS}
        self._splits = prepared(
            Wrapper(settings, base), splits, digest=settings.digest(splits), data_dir=data_dir
        )
        every = (problem for problems in self._splits.values() for problem in problems)
        self.knowledge: Knowledge = PrivateKnowledge(base.knowledge, every)

    def problems(self, split: str) -> Sequence[Problem]:
        """Raises: ValueError for an unknown split."""
        return problems_of(self._splits, split)

    def corpus(self) -> Sequence[str]:
        """The base's texts, what the helper asks back, and profiles of training problems."""
        texts = [*self.base.corpus()]
        texts += [f"which {kind.label}" for kind in wording.REFERENCES.values()] * 8
        for problem in self.problems("train")[:_CORPUS_PROBLEMS]:
            texts += [problem.notes, problem.question]
            texts += [step.statement for step in problem.steps[:1] if step.is_local]
        return texts


class PrivateTeachableTask(PrivateTask):
    """The base's worked solutions, after a step that reads the needed value from the notes."""

    base: TeachableTask

    def next_step(self, problem: Problem, index: int, belief: str) -> Step | None:
        """The base's step; where the needed value was read wrong, the one that this leads to."""
        found = wording.needed(problem)
        base = wording.unwrapped(problem)
        if found is None:
            return self.base.next_step(base, index, belief)
        if index == 0:
            return problem.steps[0]
        if index > 1:
            return self.base.next_step(base, index - 1, belief)
        step = self.base.next_step(base, 0, "")
        value = found[1].text
        if step is None or value == belief or value not in step.query:
            return step
        resolution = self.base.knowledge.resolve(step.query.replace(value, belief))
        if resolution is None or len(resolution.steps) != 1:
            return None
        return resolution.steps[0]

    def chain_request(self, problem: Problem, index: int, belief: str) -> str:
        """The base's request, with the needed value as it is believed; "my ..." before step 1."""
        found = wording.needed(problem)
        base = wording.unwrapped(problem)
        if found is None:
            return self.base.chain_request(base, index, belief)
        if index > 1:
            return self.base.chain_request(base, index - 1, belief)
        reference, unit = found
        whole = self.base.chain_request(base, 0, "")
        return whole.replace(unit.text, belief if index else reference)

    def recall(self, step: Step, rng: np.random.Generator) -> str:
        """The base's; what a local step asks for stands in the notes."""
        return step.answer if step.is_local else self.base.recall(step, rng)


class PrivateDrilledTask(PrivateTeachableTask):
    """A wrapped task for an SLM from scratch."""

    base: DrilledTask

    def readings(self, problem: Problem) -> Sequence[Step]:
        """The base's, and every value of the profile that a question may refer to."""
        told = wording.read(problem.notes).values
        return [
            *self.base.readings(problem),
            *(
                Step(reference, value, is_local=True)
                for reference, value in told.items()
                if reference in wording.REFERENCES
            ),
        ]

    def drill(self, rng: np.random.Generator) -> Step:
        return self.base.drill(rng)
