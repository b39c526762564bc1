"""FanOutQA: questions that fan out over many documents, with human decompositions.

The data is the development set (310 questions) that the package `fanoutqa` ships; only its file is
read, the package is never imported (importing it creates folders and loads a Wikipedia client), so
nothing touches the network. The published test set has no answers and is not used.

Splits: by the question's id (`decomposed.split_of`): 86 test, 40 validation, 184 train. A split
holds at most `task.<split>` questions.

Source: Zhu et al. 2024. The splits are our choice, because the published ones leave nothing to
train on.
"""

from __future__ import annotations

import importlib.util
import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import ml_collections

from collab.tasks import grading
from collab.tasks.decomposed import DecomposedTask, Node, NodeKnowledge, split_of
from collab.tasks.splits import SPLITS
from collab.types import Problem, Step

_DATA_FILE = pathlib.Path("data", "fanout-final-dev.json")


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


def _nodes(record: dict[str, Any]) -> Iterator[Node]:
    """The node of a record after those below it, depth first; unanswered ones are left out."""
    below: list[Step] = []
    for child in record["decomposition"]:
        nodes = list(_nodes(child))
        yield from nodes
        below += _last_steps(nodes)
    question, answer = record["question"].strip(), canonical(record["answer"])
    if question and answer:
        own = Step(question, answer)
        yield Node(question, (*below, own))


def _last_steps(nodes: Sequence[Node]) -> tuple[Step, ...]:
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


class FanoutTask(DecomposedTask):
    """FanOutQA's development questions (`types.TeachableTask`); splits: see the head."""

    def __init__(self, config: ml_collections.ConfigDict, data_dir: str) -> None:
        """Read the shipped file. data_dir is not used: there is nothing to prepare."""
        del data_dir
        records = json.loads(_data_path().read_text(encoding="utf-8"))
        problems: dict[str, list[Problem]] = {split: [] for split in SPLITS}
        nodes: list[Node] = []
        for record in records:
            found = list(_nodes(record))
            nodes += found
            problem = Problem(
                f"fanout-{record['id']}",
                record["question"].strip(),
                (canonical(record["answer"]),),
                steps=found[-1].steps,
            )
            problems[split_of(record["id"])].append(problem)
        for split, members in problems.items():
            del members[config.task[split] :]
        super().__init__("fanout", problems, NodeKnowledge(nodes))
