"""What a finished run's policy does when other helpers than its own answer.

The policy is restored once and asks each helper in turn; what came of it is kept in the run's
folder, so that a study that was cut goes on with the next helper.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import pathlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from collab.assembly import Assembly
from collab.evaluate import Evaluator
from collab.llm import make_backend
from collab.llm.client import Client
from collab.llm.pool import Pool
from collab.outcomes import read_outcomes, write_outcomes
from collab.report import Outcome, write_whole
from collab.restore import Restored
from experiments.study import Job
from experiments.trained import policy_of

About = dict[str, Any]  # plain numbers and words beside the outcomes


@dataclasses.dataclass(frozen=True)
class Exchange:
    """Other helpers, and what to look at under them.

    llm: keys of `config.llm` with their values, dotted where they are deeper; of helpers the whole
    table. measure: outcomes on the test split, and what stands beside them. numbers: what it
    depends on besides.
    """

    llm: Mapping[str, Any]
    measure: Callable[[Evaluator], tuple[list[Outcome], About]]
    numbers: tuple[float, ...] = ()

    def file(self, title: str) -> str:
        """The name that its outcomes are kept by."""
        what = [self.llm, self.measure.__name__, self.numbers]
        text = json.dumps(what, sort_keys=True)
        return f"{title}-{hashlib.sha256(text.encode()).hexdigest()[:10]}.npz"


@dataclasses.dataclass(frozen=True)
class Found:
    """What came of one exchange."""

    outcomes: list[Outcome]
    about: About


def of_seeds(
    study: str, jobs: Sequence[Job], exchanges: Mapping[str, Exchange]
) -> dict[str, list[Found]]:
    """What came of each exchange, in the order of the jobs, which are one run's seeds."""
    found = [exchanged(study, job, exchanges) for job in jobs]
    return {title: [one[title] for one in found] for title in exchanges}


def exchanged(study: str, job: Job, exchanges: Mapping[str, Exchange]) -> dict[str, Found]:
    """What the job's policy comes to under each of the exchanges; only missing ones are made."""
    paths = {title: job.folder / study / each.file(title) for title, each in exchanges.items()}
    missing = [title for title, path in paths.items() if not path.is_file()]
    if missing:
        with policy_of(job) as run:
            for count, title in enumerate(missing, 1):
                print(f"{study}: {job.run.label} with {title}, {count} of {len(missing)}",
                      file=sys.stderr)  # fmt: skip
                _make(run, exchanges[title], paths[title])
    return {title: Found(read_outcomes(path), _about(path)) for title, path in paths.items()}


@contextlib.contextmanager
def other_helpers(assembly: Assembly, changes: Mapping[str, Any]) -> Iterator[Assembly]:
    """The same parts, its compiled programs among them, asking others meanwhile.

    changes: of `config.llm`, as `Exchange` has them.
    """
    config = changed(assembly.config, changes)
    backend = make_backend(
        config.llm.backend,
        config.llm,
        knowledge=assembly.task.knowledge,
        seed=config.task.world.seed,
        mesh=assembly.mesh,
    )
    engine = assembly.engine
    before = engine.client, engine.pool
    client = Client(backend, config.llm, config.requests)
    pool = Pool.from_config(config, backend.helper_names)
    engine.client, engine.pool = client, pool
    try:
        yield dataclasses.replace(
            assembly, config=config, backend=backend, client=client, pool=pool
        )
    finally:
        client.close()
        engine.client, engine.pool = before


def changed(config: Any, changes: Mapping[str, Any]) -> ConfigDict:
    """A copy of a config with keys of its `llm` changed."""
    copy: ConfigDict = config.copy_and_resolve_references()
    for path, value in changes.items():
        *parents, leaf = path.split(".")
        table = copy.llm
        for parent in parents:
            table = table[parent]
        with table.unlocked():
            table[leaf] = ConfigDict(value) if isinstance(value, Mapping) else value
    return copy


def renamed(outcomes: Sequence[Outcome], strategy: str) -> list[Outcome]:
    """The outcomes as those of a strategy of another name."""
    return [dataclasses.replace(outcome, strategy=strategy) for outcome in outcomes]


def _make(run: Restored, exchange: Exchange, path: pathlib.Path) -> None:
    with other_helpers(run.assembly, exchange.llm) as assembly:
        outcomes, about = exchange.measure(Evaluator(assembly, run.params))
    path.parent.mkdir(exist_ok=True)
    write_whole(path.with_suffix(".json"), json.dumps(about, allow_nan=False).encode())
    write_outcomes(path, outcomes)  # last: with it the exchange is done


def _about(path: pathlib.Path) -> About:
    about: About = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    return about
