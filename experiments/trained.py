"""A finished run's policy, read back to be looked at: as it was trained, or a few keys otherwise.

What such a look comes to is kept in the run's folder, so that a study that is run again, or another
one, need not look again.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ml_collections

from collab.evaluate import Evaluator
from collab.outcomes import read_outcomes, write_outcomes
from collab.report import Outcome
from collab.restore import Restored, restored
from collab.run import prepare
from experiments.study import Job

SPLIT = "test"


@contextlib.contextmanager
def policy_of(job: Job, changes: Mapping[str, Any] | None = None) -> Iterator[Restored]:
    """The newest checkpoint of a finished run, with all that runs it.

    changes: config keys and values, of what a checkpoint does not depend on.
    """
    config = ml_collections.ConfigDict(job.config.to_dict())
    config.update_from_flattened_dict(dict(changes or {}))
    prepare(config, str(job.folder))
    run = restored(config, str(job.folder), "")
    with contextlib.closing(run.assembly):
        yield run


def dial(
    job: Job,
    biases: Sequence[float] = (0.0,),
    *,
    name: str,
    changes: Mapping[str, Any] | None = None,
) -> list[Outcome]:
    """The learned policy's test questions under each ask bias; `strategy` is "bias B" (`at_bias`).

    name: of the file that keeps them in the run's folder. changes: as in `policy_of`.
    """

    def measure() -> list[Outcome]:
        with policy_of(job, changes) as run:
            found = Evaluator(run.assembly, run.params).sweep(biases, SPLIT)
        return [
            dataclasses.replace(outcome, strategy=at_bias(bias))
            for bias, outcomes in found.items()
            for outcome in outcomes
        ]

    path, wanted = job.folder / f"{name}.npz", {at_bias(bias) for bias in biases}
    kept = read_outcomes(path) if path.is_file() else []
    if {outcome.strategy for outcome in kept} != wanted:
        kept = measure()
        write_outcomes(path, kept)
    return kept


def at_bias(bias: float) -> str:
    """What the outcomes of an ask bias are called."""
    return f"bias {bias:+g}"
