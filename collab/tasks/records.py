"""Problems as TFDS records and back, and prepared splits as sequences of problems.

A unit or step is one JSON line: nested TFDS features took twice as long to read (0.4 ms a record).
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, overload

import tensorflow_datasets as tfds

from collab.types import PrivateUnit, Problem, Step


def features() -> tfds.features.FeaturesDict:
    """Units and steps are lines of JSON.

    A unit is [text, kind, sensitivity, is_needed], a step [query, answer, is_local, is_known or
    null].
    """
    return tfds.features.FeaturesDict(
        {
            "uid": tfds.features.Text(),
            "question": tfds.features.Text(),
            "answers": tfds.features.Sequence(tfds.features.Text()),
            "notes": tfds.features.Text(),
            "units": tfds.features.Sequence(tfds.features.Text()),
            "steps": tfds.features.Sequence(tfds.features.Text()),
        }
    )


def to_record(problem: Problem) -> dict[str, Any]:
    """A problem as an example for `features`."""
    return {
        "uid": problem.uid,
        "question": problem.question,
        "answers": list(problem.answers),
        "notes": problem.notes,
        "units": [
            json.dumps([unit.text, unit.kind, unit.sensitivity, unit.is_needed], ensure_ascii=False)
            for unit in problem.units
        ],
        "steps": [
            json.dumps([step.query, step.answer, step.is_local, step.is_known], ensure_ascii=False)
            for step in problem.steps
        ],
    }


def from_record(record: Mapping[str, Any]) -> Problem:
    """The problem of a record as a data source gives it; the one place where bytes become text."""
    return Problem(
        uid=record["uid"].decode(),
        question=record["question"].decode(),
        answers=tuple(answer.decode() for answer in record["answers"]),
        notes=record["notes"].decode(),
        units=tuple(PrivateUnit(*json.loads(line)) for line in record["units"]),
        steps=tuple(Step(*json.loads(line)) for line in record["steps"]),
    )


def prepared(builder: tfds.core.DatasetBuilder, splits: Sequence[str]) -> dict[str, Problems]:
    """The splits of a builder that generates problems, written on first use.

    Runs that share a data folder take turns: TFDS fails in the one that is done second.
    """
    tfds.disable_progress_bar()
    place = pathlib.Path(builder.data_path)  # renamed to this once it is whole
    if not place.is_dir():
        with _alone(place.parents[1]), contextlib.redirect_stdout(io.StringIO()):  # it is chatty
            if place.is_dir():  # made meanwhile, unknown to this builder
                builder.info.read_from_directory(place)
            builder.download_and_prepare()
    return {split: Problems(builder.as_data_source(split)) for split in splits}


@contextlib.contextmanager
def _alone(folder: pathlib.Path) -> Iterator[None]:
    """Wait until no other process is here; the lock goes with the process that holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


class Problems(Sequence[Problem]):
    """A prepared split, read on demand; a problem that was read once stays in memory (2 KB)."""

    def __init__(self, source: Sequence[Mapping[str, Any]]) -> None:
        self._source = source
        self._read: dict[int, Problem] = {}

    def __len__(self) -> int:
        return len(self._source)

    @overload
    def __getitem__(self, index: int) -> Problem: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Problem]: ...
    def __getitem__(self, index: int | slice) -> Problem | Sequence[Problem]:
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(len(self)))]
        at = index + len(self) if index < 0 else index
        if not 0 <= at < len(self):
            raise IndexError(f"problem {index} of {len(self)}")
        if at not in self._read:
            self._read[at] = from_record(self._source[at])
        return self._read[at]

    def __iter__(self) -> Iterator[Problem]:
        return (self[index] for index in range(len(self)))
