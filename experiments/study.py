"""What a study runs: named training runs, each with its config and a folder that it alone fills.

A study lists `Run`s, `experiments.runner` makes those that are not there, `experiments.results`
reads what came of them. A run stands in <root>/runs/TASK-seedK-DIGEST, named by all that its
figures depend on, so that studies share what they have in common; <root>/STUDY/NAME-seedK leads
there.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections

from collab.config import OPEN_TABLES, default_config, flatten, load_config, near_matches
from collab.rules import validate

# What no figure depends on: places, what is written besides, and what is computed twice. A cold
# start counts apart.
PLACES = ("compile_cache", "task.data_dir", "log.", "cold_start.from_run", "model.remat")
# Work in steps of imitation, as the quickstart takes its time on one core; for the ETA only.
ITERATION, EVALUATION = 4, 200


@dataclasses.dataclass(frozen=True)
class Run:
    """One training run and its evaluation.

    config: a file of configs/. overrides: config keys and values; of `llm.helpers` and `requests`
    the whole table. cold_start: the name of the run of the same seed whose imitation this one
    begins with ("" = its own).
    """

    name: str
    config: str
    seed: int = 0
    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    cold_start: str = ""

    @property
    def label(self) -> str:
        return f"{self.name}-seed{self.seed}"


@dataclasses.dataclass(frozen=True)
class Job:
    """A run with its config and folder settled. source: the job whose cold start it begins with."""

    run: Run
    config: ml_collections.ConfigDict
    folder: pathlib.Path
    source: Job | None

    @property
    def work(self) -> int:
        """In steps of imitation."""
        imitated = 0 if self.source else self.config.cold_start.steps
        return imitated + ITERATION * self.config.rl.iterations + EVALUATION


def arguments(
    about: str, *, seeds: int, more: argparse.ArgumentParser | None = None
) -> argparse.Namespace:
    """The command line that all studies share: root, jobs, seeds (a list).

    more: a parser without --help, whose flags come on top.
    """
    parser = argparse.ArgumentParser(
        description=about,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[more] if more else [],
    )
    parser.add_argument("--root", type=pathlib.Path, default=pathlib.Path("runs/studies"))
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side; 1 on a GPU")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(seeds)))
    return parser.parse_args()


# --- what is to be run -------------------------------------------------------------------------


def plan(study: str, runs: Sequence[Run], root: pathlib.Path) -> list[Job]:
    """Every run's config, checked, and its folder. Raises: ValueError that names run and key."""
    root = root.resolve()
    jobs: dict[str, Job] = {}
    labels = [run.label for run in runs]
    for run in sorted(runs, key=lambda run: bool(run.cold_start)):  # sources first
        if labels.count(run.label) > 1 or not re.fullmatch(r"[\w.-]+", f"{study}-{run.name}"):
            raise ValueError(
                f"run {run.label!r} of study {study!r} must have a name of its own in letters, "
                "digits, '.', '-' and '_'"
            )
        source = jobs.get(f"{run.cold_start}-seed{run.seed}")
        if run.cold_start and (source is None or source.source is not None):
            raise ValueError(
                f"run {run.label!r}: cold_start={run.cold_start!r} must name a run of this study "
                f"with seed {run.seed} and a cold start of its own"
            )
        try:
            config = configured(run)
            validate(config)
        except (ValueError, TypeError) as error:
            raise ValueError(f"run {run.label!r}: {error}") from error
        config.compile_cache = config.compile_cache or str(root / "programs")
        config.task.data_dir = config.task.data_dir or str(root / "data")
        if source:
            config.cold_start.from_run = str(source.folder)
        name = f"{config.task.name}-seed{run.seed}-{_digest(config, source)}"
        jobs[run.label] = Job(run, config, root / "runs" / name, source)
    return [jobs[label] for label in labels]


def configured(run: Run) -> ml_collections.ConfigDict:
    """The base config with the run's seed and overrides. Raises: ValueError for an unknown key."""
    plain = load_config(run.config).to_dict()
    known = list(flatten(default_config()))
    for path, value in {**run.overrides, "seed": run.seed}.items():
        if path not in known and f"{path}." not in OPEN_TABLES:
            raise ValueError(f"config key {path!r} is unknown{near_matches(path, known)}")
        *parents, leaf = path.split(".")
        table = plain
        for parent in parents:
            table = table[parent]
        table[leaf] = value
    return ml_collections.ConfigDict(plain)


def _content(config: Mapping[str, Any]) -> dict[str, Any]:
    """Leaves that figures depend on and that differ from the defaults, as JSON has them.

    So a key that is newer than a run, left at its default, changes nothing.
    """
    defaults = _plain(flatten(default_config()))
    return {
        path: value
        for path, value in _plain(flatten(config)).items()
        if not path.startswith(PLACES)
        and (path.startswith(OPEN_TABLES) or value != defaults.get(path))
    }


def _plain(leaves: Mapping[str, Any]) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(json.dumps(leaves))
    return plain


def _digest(config: Mapping[str, Any], source: Job | None) -> str:
    text = json.dumps([_content(config), source and source.folder.name], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


# --- what is there -----------------------------------------------------------------------------


def is_done(job: Job) -> bool:
    """Whether the job's evaluation is there. Raises: ValueError where another config was run."""
    for name in ("config.json", "evaluation.json"):
        path = job.folder / name
        if not path.is_file():
            return False
        saved = json.loads(path.read_text(encoding="utf-8"))
        then, now = _content(saved.get("config", saved)), _content(job.config)
        for key in sorted(then.keys() | now.keys()):
            if then.get(key) != now.get(key):  # a default has changed since
                raise ValueError(
                    f"{path} has {key}={then.get(key, 'the default')!r}, wanted is "
                    f"{now.get(key, 'the default')!r}; move its folder away"
                )
    return True


def work_done(job: Job) -> int:
    """Of the job's `work`, by the last line of its metrics."""
    try:
        with (job.folder / "metrics.jsonl").open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 65536))
            step = json.loads(file.read().splitlines()[-1])["step"]
    except (OSError, ValueError, IndexError, KeyError):  # not begun, or a line half written
        return 0
    cold = job.config.cold_start.steps
    return (0 if job.source else min(step, cold)) + ITERATION * max(0, step - cold - 1)
