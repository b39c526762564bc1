"""Questions that come from a file with their answers and, where it has them, human decompositions.

Here is what such tasks share: the split of a question, the knowledge that answers requests about
one, the task object with or without worked solutions. Readers of files are the tasks' own modules
(`fanout`, `multihop`).
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

from collab.tasks import grading, matching
from collab.tasks.splits import problems_of
from collab.types import Knowledge, Problem, Resolution, Step

_TEST_PERCENT, _VALIDATION_PERCENT = 30, 15
# Chosen on FanOutQA's sub-questions, see its tests: one with its subject exchanged stays below.
_MIN_OVERLAP = 0.7  # Dice, of a request and a known question
_MIN_COVERED = 0.9  # of a known question's weight inside a longer request


def split_of(question_id: str) -> str:
    """The split that a question belongs to, whatever else is in the data.

    SHA-256 of the id modulo 100: below 30 test, below 45 validation, the rest train.
    Source: our choice, for data of which one published split has answers and may be used.
    """
    digest = hashlib.sha256(question_id.encode()).digest()[:8]
    percent = int.from_bytes(digest, "big") % 100
    if percent < _TEST_PERCENT:
        return "test"
    return "validation" if percent < _TEST_PERCENT + _VALIDATION_PERCENT else "train"


@dataclasses.dataclass(frozen=True)
class Node:
    """A question or sub-question with the steps that answer it, the one that does last."""

    question: str
    steps: tuple[Step, ...]


def _kind(answer: str) -> str:
    """What sort of thing an answer is, as far as its text tells."""
    if answer in ("yes", "no"):
        return "boolean"
    if grading.PART in answer:
        return "list"
    if grading.as_number(answer) is not None:
        return "number"
    return "quantity" if any(char.isdigit() for char in answer) else "name"


class NodeKnowledge:
    """Answers requests that state a known question or sub-question, in much the same words."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        """Index the nodes. Never changes afterwards, so threads may share it."""
        by_text: dict[str, Node] = {}
        for node in nodes:
            text = " ".join(matching.tokens(node.question))
            # Of two with the same words, a question and its own first part, the one with more.
            if text not in by_text or len(node.steps) > len(by_text[text].steps):
                by_text[text] = node
        self._nodes = list(by_text.values())
        self._index = matching.TextIndex([node.question for node in self._nodes])
        self._alike: dict[tuple[str, ...], dict[str, None]] = {}  # answers in order, each once
        for node in self._nodes:
            step = node.steps[-1]
            for group in self._groups(step):
                self._alike.setdefault(group, {})[step.answer] = None

    @staticmethod
    def _groups(step: Step) -> list[tuple[str, ...]]:
        """Groups of like answers, the most alike first: same question words, same kind."""
        kind, words = _kind(step.answer), matching.tokens(step.query)
        return [(kind, *words[:size]) for size in (4, 2, 0)]

    def resolve(self, text: str) -> Resolution | None:
        """The steps below the nearest known question, its own last; None if none is near.

        Steps that the request tells behind "So far:" are left out.
        """
        asked, _, told = text.partition(matching.SO_FAR)
        for match in self._index.nearest(asked, limit=1):
            is_near = match.overlap >= _MIN_OVERLAP or match.covered >= _MIN_COVERED
            if is_near and not self._index.is_exchanged(asked, match.index):
                return Resolution(matching.rest_of(self._nodes[match.index].steps, told))
        return None

    def wrong_answer(self, step: Step, rng: np.random.Generator) -> str:
        """The answer of another question that starts alike and has an answer of the same kind."""
        if _kind(step.answer) == "boolean":
            return "no" if step.answer == "yes" else "yes"
        for group in self._groups(step):
            others = [answer for answer in self._alike.get(group, ()) if answer != step.answer]
            if others:
                return others[int(rng.integers(len(others)))]
        return "unknown"


class QuestionTask:
    """Questions by split and what is known about them (`types.Task`): no worked solutions."""

    def __init__(
        self, name: str, problems: Mapping[str, Sequence[Problem]], knowledge: Knowledge
    ) -> None:
        """problems: by split, all three of them."""
        self.name = name
        self._problems = problems
        self.knowledge = knowledge

    def problems(self, split: str) -> Sequence[Problem]:
        """The split's questions in the file's order; notes are empty and nothing is private."""
        return problems_of(self._problems, split)

    def corpus(self) -> Sequence[str]:
        """Training questions and their steps, else answers, for a tokenizer."""
        return [
            text
            for problem in self._problems["train"]
            for text in (
                problem.question,
                *([step.statement for step in problem.steps] or problem.answers),
            )
        ]


class DecomposedTask(QuestionTask):
    """Questions whose steps are known (`types.TeachableTask`)."""

    def next_step(self, problem: Problem, index: int, belief: str) -> Step | None:
        """The decomposition's step as it is: a false belief is not carried on."""
        del belief
        return problem.steps[index] if index < len(problem.steps) else None

    def chain_request(self, problem: Problem, index: int, belief: str) -> str:
        """The question itself, from the second step on with the last step done."""
        return matching.rest_request(problem, index, belief)

    def recall(self, step: Step, rng: np.random.Generator) -> str:
        """The true answer: nobody knows what a pretrained SLM remembers before it is judged."""
        del rng
        return step.answer
