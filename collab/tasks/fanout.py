"""FanOutQA: questions that fan out over many documents, with human decompositions.

The data is the development set (310 questions) that the package `fanoutqa` ships; only its file is
read, the package is never imported (importing it creates folders and loads a Wikipedia client), so
nothing touches the network. The published test set has no answers and is not used.

Splits: SHA-256 of the question's id modulo 100; below 30 test (86 questions), below 45 validation
(40), the rest train (184). A split holds at most `task.<split>` questions.

Source: Zhu et al. 2024. The splits are our choice, because the published ones leave nothing to
train on.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import ml_collections
import numpy as np

from collab.tasks import grading, matching
from collab.types import Problem, Resolution, Step

SPLITS = ("train", "validation", "test")

_DATA_FILE = pathlib.Path("data", "fanout-final-dev.json")
_TEST_PERCENT, _VALIDATION_PERCENT = 30, 15
# Chosen on the data set's own sub-questions, see tests: one with its subject exchanged stays below.
_MIN_OVERLAP = 0.7  # Dice, of a request and a known question
_MIN_COVERED = 0.9  # of a known question's weight inside a longer request


def canonical(answer: Any) -> str:
    """One string for an answer: "yes", "12", "a; b", "name: value; name: value".

    A name without a value, of which the data has one, stands alone. Separators inside parts are
    replaced, so that `grading.answer_parts` reads it back.
    """

    def part(value: Any) -> str:
        return primitive(value).replace(";", ",").replace(grading.PAIR, " - ")

    def primitive(value: Any) -> str:
        if isinstance(value, bool):
            return "yes" if value else "no"
        return str(value).strip()

    if isinstance(answer, dict):
        pairs = ((primitive(name).replace(";", ","), part(value)) for name, value in answer.items())
        return grading.PART.join(
            f"{name}{grading.PAIR}{value}" if value else name for name, value in pairs
        )
    if isinstance(answer, list):
        return grading.PART.join(part(value) for value in answer)
    return primitive(answer)


@dataclasses.dataclass(frozen=True)
class _Node:
    """A question or sub-question with the steps that answer it, its own last."""

    question: str
    steps: tuple[Step, ...]


def _nodes(record: dict[str, Any]) -> Iterator[_Node]:
    """The node of a record after those below it, depth first; unanswered ones are left out."""
    below: list[Step] = []
    for child in record["decomposition"]:
        nodes = list(_nodes(child))
        yield from nodes
        below += _last_steps(nodes)
    question, answer = record["question"].strip(), canonical(record["answer"])
    if question and answer:
        own = Step(question, answer)
        yield _Node(question, (*below, own))


def _last_steps(nodes: Sequence[_Node]) -> tuple[Step, ...]:
    return nodes[-1].steps if nodes else ()


def _data_path() -> pathlib.Path:
    spec = importlib.util.find_spec("fanoutqa")
    folders = spec.submodule_search_locations if spec else None
    if not folders:
        raise ModuleNotFoundError("the data is in the package fanoutqa", name="fanoutqa")
    path = pathlib.Path(next(iter(folders))) / _DATA_FILE
    if not path.is_file():
        raise ValueError(
            f"task.name='fanout' needs {_DATA_FILE} inside the package fanoutqa, but this version "
            "has none; install fanoutqa 1.1 or later"
        )
    return path


def split_of(question_id: str) -> str:
    """The split that a question belongs to, whatever else is in the data."""
    digest = hashlib.sha256(question_id.encode()).digest()[:8]
    percent = int.from_bytes(digest, "big") % 100
    if percent < _TEST_PERCENT:
        return "test"
    return "validation" if percent < _TEST_PERCENT + _VALIDATION_PERCENT else "train"


def _kind(answer: str) -> str:
    """What sort of thing an answer is, as far as its text tells."""
    if answer in ("yes", "no"):
        return "boolean"
    if grading.PART in answer:
        return "list"
    if grading.as_number(answer) is not None:
        return "number"
    return "quantity" if any(char.isdigit() for char in answer) else "name"


class FanoutKnowledge:
    """Answers requests that state a known question or sub-question, in much the same words."""

    def __init__(self, nodes: Sequence[_Node]) -> None:
        """Index the nodes. Never changes afterwards, so threads may share it."""
        by_text: dict[str, _Node] = {}
        for node in nodes:
            text = " ".join(matching.tokens(node.question))
            # Of two with the same words, a question and its own first part, the one with more.
            if text not in by_text or len(node.steps) > len(by_text[text].steps):
                by_text[text] = node
        self._nodes = list(by_text.values())
        self._index = matching.TextIndex([node.question for node in self._nodes])
        self._alike: dict[tuple[str, ...], list[str]] = {}
        for node in self._nodes:
            step = node.steps[-1]
            for group in self._groups(step):
                answers = self._alike.setdefault(group, [])
                if step.answer not in answers:
                    answers.append(step.answer)

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


class FanoutTask:
    """FanOutQA's development questions (`types.TeachableTask`); splits: see the head."""

    name = "fanout"

    def __init__(self, config: ml_collections.ConfigDict, data_dir: str) -> None:
        """Read the shipped file. data_dir is not used: there is nothing to prepare."""
        del data_dir
        records = json.loads(_data_path().read_text(encoding="utf-8"))
        self._problems: dict[str, list[Problem]] = {split: [] for split in SPLITS}
        nodes: list[_Node] = []
        for record in records:
            found = list(_nodes(record))
            nodes += found
            problem = Problem(
                f"fanout-{record['id']}",
                record["question"].strip(),
                (canonical(record["answer"]),),
                steps=found[-1].steps,
            )
            self._problems[split_of(record["id"])].append(problem)
        for split, problems in self._problems.items():
            del problems[config.task[split] :]
        self.knowledge = FanoutKnowledge(nodes)

    def problems(self, split: str) -> Sequence[Problem]:
        """The split's questions in the file's order; notes are empty and nothing is private."""
        if split not in self._problems:
            raise ValueError(f"split={split!r} must be one of {', '.join(SPLITS)}")
        return self._problems[split]

    def corpus(self) -> Sequence[str]:
        """Training questions and their steps, for a tokenizer."""
        return [
            text
            for problem in self._problems["train"]
            for text in (problem.question, *(step.statement for step in problem.steps))
        ]

    # --- worked solutions ------------------------------------------------------------------

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
