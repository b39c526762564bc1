"""Fingerprints of a run's helpers: taken when a mode starts, kept by training, compared ever after.

Training leaves them in `helpers.json`; whoever uses its checkpoints, and training when it goes on,
probes again and says what changed. What is measured is in `collab.llm.probe`.
"""

from __future__ import annotations

import logging
import pathlib
from collections.abc import Mapping
from typing import Any

from collab import sharding
from collab.assembly import Assembly
from collab.llm.fingerprint import Fingerprint, load, pool_changes, save, shown

FILE = "helpers.json"

_log = logging.getLogger(__name__)


def probed(
    assembly: Assembly, trained: pathlib.Path, *, requests: int, keeps: bool = False
) -> tuple[Assembly, dict[str, Any]]:
    """Probe the helpers, and warn where they are not those of the training.

    trained: the folder of the training. requests: to each helper; 0 probes nothing. keeps: whether
    the fingerprints become FILE where there is none. Returns the assembly with fingerprints, and
    what an evaluation records: "fingerprints" by helper, "changes" in words by helper (None:
    nothing to compare with); {} where nothing is probed.
    """
    if not requests:
        return assembly, {}
    assembly = assembly.probed(requests)
    found, path = assembly.fingerprints, trained / FILE
    strengths = ", ".join(f"{shown(name)} {one.strength:.2f}" for name, one in found.items())
    _log.info("probed: %s (share of requests answered right)", strengths)
    if assembly.config.llm.replay in ("replay", "replay_or_call"):
        _log.warning("llm.replay=%s: what is in the file is not asked anew, so the probe can't "
                     "tell whether the helper changed", assembly.config.llm.replay)  # fmt: skip
    changes = None
    if path.is_file():
        changes = pool_changes(load(path), found)
        warn(changes, "the training")
    elif keeps:
        if sharding.is_first_process():
            save(path, found)
        _log.info("fingerprints are kept in %s; later ones are compared with them", path)
    else:
        _log.warning("%s is missing: the training didn't probe its helpers, so nothing is known of "
                     "a change", path)  # fmt: skip
    summaries = {name: one.summary() for name, one in found.items()}
    return assembly, {"fingerprints": summaries, "changes": changes}


def warn(changes: Mapping[str, list[str]], before: str) -> None:
    """A line of the log for every helper that changed. before: what it is compared with."""
    for name, words in changes.items():
        _log.warning("%s, compared with %s: %s", shown(name), before, "; ".join(words))


def table(fingerprints: Mapping[str, Fingerprint]) -> str:
    """Fingerprints side by side, one column a helper."""
    summaries = [fingerprint.summary() for fingerprint in fingerprints.values()]
    rows = [["", *(name or "(the helper)" for name in fingerprints)]]
    rows.append(["strength", *(f"{summary['strength']:.2f}" for summary in summaries)])
    for key, title in (("right_by_hops", "right, hops "), ("right_by_relation", "right, ")):
        for part in dict.fromkeys(part for summary in summaries for part in summary[key]):
            rows.append([title + part, *(_of(summary[key].get(part)) for summary in summaries)])
    for key, title in (
        ("asks_back", "asks back"),
        ("refuses", "refuses"),
        ("states", 'writes "query = answer"'),
    ):
        rows.append([title, *(_of(summary[key]) for summary in summaries)])
    for key, title in (
        ("tokens_median", "tokens, median"),
        ("latency_median_s", "seconds, median"),
        ("latency_p90_s", "seconds, 90 %"),
        ("usd_per_request", "dollars a request"),
        ("failed", "failed"),
    ):
        cells = (summary[key] for summary in summaries)
        rows.append([title, *("-" if cell is None else f"{cell:.3g}" for cell in cells)])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def _of(tally: list[int] | None) -> str:
    return f"{tally[0]}/{tally[1]}" if tally and tally[1] else "-"
