"""Rows of a benchmark: what repeats of paired measurements come to, as table, JSON and bars."""

from __future__ import annotations

import importlib.metadata
import json
import os
import pathlib
import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from collab.report import git_commit

Taken = Mapping[str, Mapping[str, float]]  # by system and metric, of one repeat


def repeated(measure: Callable[[], Taken], repeats: int) -> list[Taken]:
    """What `measure` returns in each of so many rounds, after a first one that compiles."""
    return [measure() for _ in range(repeats + 1)][1:]


def rows_of(
    repeats: Sequence[Taken], *, ours: str, batch: int, of: str = ""
) -> list[dict[str, Any]]:
    """A row for each system and metric: median, least, most, and the median ratio to ours.

    Ratios are taken within a repeat. of: added to the metric.
    """
    found = []
    for system in repeats[0]:
        for metric in repeats[0][system]:
            taken = [repeat[system][metric] for repeat in repeats]
            pairs = [(repeat[system][metric], repeat[ours][metric]) for repeat in repeats]
            ratios = [1.0 if value == our else value / our for value, our in pairs]  # 0 to 0 is 1
            found.append(
                {
                    "system": system,
                    "batch": batch,
                    "metric": f"{metric}{of}",
                    "value": statistics.median(taken),
                    "min": min(taken),
                    "max": max(taken),
                    "ratio_to_ours": statistics.median(ratios),
                }
            )
    return found


def show(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print a line a row."""
    print(f"{'system':40} {'metric':40} {'median':>9} {'lowest':>9} {'highest':>9} {'x ours':>7}")
    for row in rows:
        numbers = f"{row['value']:9.3f} {row['min']:9.3f} {row['max']:9.3f}"
        print(f"{row['system']:40} {row['metric']:40} {numbers} {row['ratio_to_ours']:7.2f}")


def write(path: pathlib.Path, rows: Sequence[Mapping[str, Any]], **more: Any) -> None:
    """The file of a benchmark: rows, the machine they are of, and the commit."""
    content = {"rows": rows, **more, **origin()}
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def origin() -> dict[str, str]:
    """What a benchmark ran on."""
    cores = len(os.sched_getaffinity(0))
    return {
        "jax": importlib.metadata.version("jax"),
        "device": f"{platform.machine()}, {cores} of {os.cpu_count()} cores",
        "commit": git_commit(),
    }


def bars(path: pathlib.Path, rows: Sequence[Mapping[str, Any]], metrics: Sequence[str]) -> None:
    """A panel a metric, a group of bars a batch; whiskers are the least and the most.

    A batch of 0 is none: the axis says nothing of rows.
    """
    systems = list(dict.fromkeys(row["system"] for row in rows))
    batches = list(dict.fromkeys(row["batch"] for row in rows))
    width = 0.8 / len(systems)
    figure = Figure(figsize=(5.5 * len(metrics), 3.8), layout="constrained")
    panels = figure.subplots(1, len(metrics), squeeze=False)[0]
    for axes, metric in zip(panels, metrics, strict=True):
        for number, system in enumerate(systems):
            of = {r["batch"]: r for r in rows if (r["system"], r["metric"]) == (system, metric)}
            at = [place + number * width for place, batch in enumerate(batches) if batch in of]
            found = [of[batch] for batch in batches if batch in of]
            value = [row["value"] for row in found]
            spread = [
                [row["value"] - row["min"] for row in found],
                [row["max"] - row["value"] for row in found],
            ]
            axes.bar(at, value, width, yerr=spread, label=system, capsize=2)
        if any(batches):
            axes.set_xticks([place + 0.4 for place in range(len(batches))], batches)
            axes.set_xlabel("rows")
        else:
            axes.set_xticks([])
        axes.set_ylabel(metric)
        axes.grid(axis="y", alpha=0.3)
    panels[0].legend(fontsize="small")
    figure.savefig(path, dpi=100)
