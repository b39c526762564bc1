"""What a study found: rows of its runs, claims with intervals, and the file that holds both."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any

from collab.outcomes import FILE, read_outcomes
from collab.report import METRICS, Outcome, git_commit, write_whole
from experiments.kept import keep
from experiments.runner import Result
from experiments.statistics import Estimate
from experiments.study import Job

DIGITS = 4
KEPT = ("task", "helper", "split", "episodes", *METRICS, "failures", "ask_rate_known",
        "ask_rate_unknown", "reward_minus_learned")  # fmt: skip


def evaluation(job: Job) -> dict[str, Any]:
    """What a finished run's evaluation.json holds."""
    found: dict[str, Any] = json.loads((job.folder / "evaluation.json").read_text(encoding="utf-8"))
    return found


def outcomes(job: Job) -> list[Outcome]:
    """What every question of a finished run's evaluation came to."""
    return read_outcomes(job.folder / FILE)


def by_name(result: Result) -> dict[str, list[Job]]:
    """Finished jobs of each run name, one a seed, in the order of seeds."""
    groups: dict[str, list[Job]] = {}
    for job in sorted(result.jobs, key=lambda job: job.run.seed):
        groups.setdefault(job.run.name, []).append(job)
    return groups


def rows(result: Result) -> list[dict[str, Any]]:
    """One plain row for each strategy of each finished run: whose it is, and its figures."""
    found = []
    for job in result.jobs:
        content = evaluation(job)
        about = {
            "study": result.study,
            "run": job.run.name,
            "seed": job.run.seed,
            "commit": content["commit"],
            "device": content["device"],
            "wall_s": round(content["wall_s"]),
        }
        found += [
            about
            | {"strategy": row["strategy"]}
            | {name: _short(row[name]) for name in KEPT if name in row}
            for row in content["rows"]
        ]
    return found


def claim(text: str, estimate: Estimate, *, seeds: Sequence[int], holds: bool) -> dict[str, Any]:
    """One claim as results.json has it. ci: the 95 % interval, null where there is none."""
    return {
        "claim": text,
        "figure": _short(estimate.figure),
        "ci": None if estimate.ci is None else [_short(end) for end in estimate.ci],
        "seeds": list(seeds),
        "holds": holds,
    }


def show(claims: Sequence[dict[str, Any]]) -> None:
    """Print a line a claim."""
    for row in claims:
        verdict = "holds" if row["holds"] else "FAILS"
        print(f"{verdict}: {row['claim']}: {row['figure']} {row['ci']}")


def write_results(
    path: str | os.PathLike[str],
    result: Result,
    claims: Sequence[dict[str, Any]],
    **more: Any,
) -> None:
    """Write a study's results.json in one step, and keep its runs with what was measured of them.

    more: what the file holds besides rows. commit: of the runs, all of them where they differ;
    device likewise.
    Raises: ValueError for a number that is not finite.
    """
    if result.kept:
        for job in result.jobs:
            keep(job, result.kept)
    plain = rows(result)
    head = {
        "commit": _joined(plain, "commit") or git_commit(),
        "device": _joined(plain, "device"),
        "claims": list(claims),
        **more,
    }
    opened = json.dumps(head, indent=1, allow_nan=False).removesuffix("\n}")
    lines = ",\n".join(f"  {json.dumps(row, allow_nan=False)}" for row in plain)  # one a row
    write_whole(pathlib.Path(path), f'{opened},\n "rows": [\n{lines}\n ]\n}}\n'.encode())


def _joined(plain: Sequence[dict[str, Any]], key: str) -> str:
    return ", ".join(sorted({row[key] for row in plain if row[key]}))


def _short(value: Any) -> Any:
    return round(value, DIGITS) if isinstance(value, float) else value
