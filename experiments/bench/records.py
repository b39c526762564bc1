"""Rows of a benchmark: what repeats of paired measurements come to, as table and JSON have them."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any


def rows_of(
    repeats: Sequence[Mapping[str, Mapping[str, float]]], *, ours: str, batch: int, of: str = ""
) -> list[dict[str, Any]]:
    """A row for each system and metric: median, least, most, and the median ratio to ours.

    repeats: by system and metric; ratios are taken within a repeat. of: added to the metric.
    """
    found = []
    for system in repeats[0]:
        for metric in repeats[0][system]:
            taken = [repeat[system][metric] for repeat in repeats]
            ratios = [repeat[system][metric] / repeat[ours][metric] for repeat in repeats]
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
