"""What an evaluation says: intervals, one row per strategy, the table, the JSON file.

Input is one `Outcome` per episode, numbers only; nothing here runs a model or reads an episode's
text. Pictures of the same rows are drawn by `collab.plots`.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import pathlib
import re
import subprocess
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import ml_collections
import numpy as np

LEARNED = "learned"  # the strategy that all others are compared with
METRICS = ("em", "f1", "asks", "turns", "tokens", "leaked_units", "leak", "usd", "reward")

_COLUMNS = 110  # that a terminal may be expected to have
_CHUNK = 1 << 20  # resampled values held at a time


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What one episode came to. `uid` is the problem's; outcomes of two strategies pair by it.

    em, f1: in [0, 1]. asks: help requests. turns: exchanges, REPLY among them. leaked_units:
    private units found in outgoing text. failures: times that the helper failed. tokens: of the
    helper, prompts and replies. leak: share of the private units that left, weighted by
    sensitivity. The last four count drafted steps whose answer the SLM's memory does or doesn't
    hold, and how many of them were asked about; None where the task does not know.
    """

    strategy: str
    task: str
    helper: str
    split: str
    uid: str
    em: float
    f1: float
    asks: float
    turns: float
    leaked_units: float
    usd: float
    reward: float
    failures: float = 0.0
    tokens: float = 0.0
    leak: float = 0.0
    drafts_known: int | None = None
    asked_known: int | None = None
    drafts_unknown: int | None = None
    asked_unknown: int | None = None


# --- intervals ---------------------------------------------------------------------------------


def bootstrap_interval(
    values: Sequence[float] | np.ndarray, *, resamples: int, seed: int, confidence: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean; the same seed gives the same interval.

    values: one per independent unit (a question), at least one. Equal values give an interval of
    no width, which for a share of 0 or 1 says too much: with n such values the share may still be
    off by about 3 / n.
    Raises: ValueError for no values, values that are not finite, or parameters out of range.
    Source: Efron & Tibshirani 1993, chapter 13.
    """
    values_N = np.asarray(values, np.float64)
    if values_N.ndim != 1 or not values_N.size or not np.isfinite(values_N).all():
        raise ValueError(
            f"values (shape {values_N.shape}) must be one or more finite numbers in one axis"
        )
    if resamples < 1 or not 0.0 < confidence < 1.0:
        raise ValueError(
            f"resamples={resamples} must be at least 1 and confidence={confidence} inside (0, 1)"
        )
    rng = np.random.default_rng(seed)
    mean_R = np.empty(resamples)
    rows = max(1, _CHUNK // values_N.size)
    for start in range(0, resamples, rows):
        shape = (min(rows, resamples - start), values_N.size)
        mean_R[start : start + rows] = values_N[rng.integers(values_N.size, size=shape)].mean(1)
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(mean_R, [tail, 1.0 - tail])
    return float(low), float(high)


def _by_uid(outcomes: Iterable[Outcome], metric: str) -> dict[str, float]:
    """Mean of a metric for each question: repeats of one question are no independent evidence."""
    values: dict[str, list[float]] = {}
    for outcome in outcomes:
        value = float(getattr(outcome, metric))
        if not math.isfinite(value):
            raise ValueError(
                f"{metric}={value} of strategy {outcome.strategy!r}, question {outcome.uid!r} must "
                "be finite; find the step that made it"
            )
        values.setdefault(outcome.uid, []).append(value)
    return {uid: sum(repeats) / len(repeats) for uid, repeats in values.items()}


def paired_difference(
    a: Sequence[Outcome], b: Sequence[Outcome], *, metric: str, resamples: int, seed: int
) -> tuple[float, tuple[float, float]] | None:
    """Mean of a - b over the questions that both answered, and its interval; None if none is."""
    of_a, of_b = _by_uid(a, metric), _by_uid(b, metric)
    differences = [of_a[uid] - of_b[uid] for uid in of_a if uid in of_b]
    if not differences:
        return None
    interval = bootstrap_interval(differences, resamples=resamples, seed=seed)
    return sum(differences) / len(differences), interval


# --- rows --------------------------------------------------------------------------------------


def _ask_rate(outcomes: Sequence[Outcome], kind: str) -> float | None:
    """Share of drafted steps of one kind that were asked about; None if unknown or none drafted."""
    told = [o for o in outcomes if getattr(o, f"drafts_{kind}") is not None]
    drafts = sum(getattr(outcome, f"drafts_{kind}") for outcome in told)
    asked = sum(getattr(outcome, f"asked_{kind}") for outcome in told)
    return asked / drafts if drafts else None


def summarise(outcomes: Sequence[Outcome], *, resamples: int, seed: int) -> list[dict[str, Any]]:
    """One row per (strategy, task, helper, split), in the order in which they first occur.

    Each metric m of `METRICS` comes with "m_ci": [low, high]. Rows of other strategies than
    `learned` carry "reward_minus_learned" and its interval, paired by question (None where there is
    nothing to pair). Questions are the unit of resampling; repeats of one are averaged first.
    """
    groups: dict[tuple[str, str, str, str], list[Outcome]] = {}
    for outcome in outcomes:
        key = (outcome.strategy, outcome.task, outcome.helper, outcome.split)
        groups.setdefault(key, []).append(outcome)
    rows = []
    for (strategy, *where), group in groups.items():
        row: dict[str, Any] = dict(
            zip(("strategy", "task", "helper", "split"), (strategy, *where), strict=True)
        )
        row["episodes"] = len(group)
        for metric in METRICS:
            values = list(_by_uid(group, metric).values())
            row[metric] = sum(values) / len(values)
            row[f"{metric}_ci"] = list(bootstrap_interval(values, resamples=resamples, seed=seed))
        row["failures"] = sum(_by_uid(group, "failures").values()) / len(values)
        for kind in ("known", "unknown"):
            row[f"ask_rate_{kind}"] = _ask_rate(group, kind)
        if strategy != LEARNED:
            learned = groups.get((LEARNED, where[0], where[1], where[2]), [])
            paired = paired_difference(
                group, learned, metric="reward", resamples=resamples, seed=seed
            )
            row["reward_minus_learned"] = paired[0] if paired else None
            row["reward_minus_learned_ci"] = list(paired[1]) if paired else None
        rows.append(row)
    return rows


# --- file --------------------------------------------------------------------------------------


def _plain(value: Any) -> Any:
    """Config values as JSON has them; a password inside an address is left out."""
    if isinstance(value, ml_collections.ConfigDict):
        value = value.to_dict()
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, str):
        return re.sub(r"(?<=://)[^/@\s]*@", "", value)
    return value


def write_evaluation(
    path: str | os.PathLike[str],
    rows: Sequence[Mapping[str, Any]],
    *,
    chosen: Mapping[str, Any],
    ask_bias: Mapping[str, Any],
    helpers: Mapping[str, Any],
    config: Mapping[str, Any] | ml_collections.ConfigDict,
    seed: int,
    commit: str,
    device: str,
    wall_s: float,
    judge: Mapping[str, float] | None = None,
) -> None:
    """Write rows and how they came about as JSON. The file is whole or not there.

    chosen: what was settled on the validation split for each strategy. ask_bias: of the learned
    policy, and where it is from. helpers: fingerprints, where they were taken, and their changes.
    judge: figures about the verdicts of judges of leaks, in the file only where there are any.
    Raises: ValueError for a number that is not finite, which JSON can't hold.
    """
    content = {
        "rows": _plain(rows),
        "chosen": _plain(chosen),
        "ask_bias": _plain(ask_bias),
        "helpers": _plain(helpers),
        "config": _plain(config),
        "seed": seed,
        "commit": commit,
        "device": device,
        "wall_s": wall_s,
        **({"judge": _plain(judge)} if judge else {}),
    }
    text = json.dumps(content, indent=1, allow_nan=False)
    write_whole(path, f"{text}\n".encode())


def write_whole(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file, and the folders above it, in one step: a reader finds the old one or this."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(
        dir=path.parent, prefix=f".{path.name}.", delete=False
    ) as file:
        try:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            os.chmod(file.name, 0o644)
            os.replace(file.name, path)
        except OSError:
            os.unlink(file.name)
            raise


def git_commit() -> str:
    """Commit of the checkout that this package runs from; "" outside one or without git."""
    folder = pathlib.Path(__file__).parent

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", *arguments], cwd=folder, capture_output=True, text=True, check=False
            )
        except OSError:
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    # Installed into an environment inside some other project's checkout, the hash would be its.
    if git("ls-files", "--error-unmatch", "__init__.py") is None:
        return ""
    return git("rev-parse", "HEAD") or ""


# --- table -------------------------------------------------------------------------------------


def groups_of(rows: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """Rows that compare with each other (same task, split, helper), best reward first."""
    groups: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["task"], row["split"], row["helper"]), []).append(row)
    return [sorted(group, key=lambda row: -row["reward"]) for group in groups.values()]


def title_of(group: Sequence[Mapping[str, Any]]) -> str:
    """What a group's rows have in common: "world, test split, helper one_hop, 384 episodes"."""
    counts = sorted({row["episodes"] for row in group})
    episodes = str(counts[0]) if len(counts) == 1 else f"{counts[0]}-{counts[-1]}"
    helper = f", helper {group[0]['helper']}" if group[0]["helper"] else ""
    return f"{group[0]['task']}, {group[0]['split']} split{helper}, {episodes} episodes"


def _cells(row: Mapping[str, Any], digits: int) -> list[str]:
    def interval(metric: str, digits: int, factor: float = 1.0) -> str:
        value, low, high = (factor * x for x in (row[metric], *row[f"{metric}_ci"]))
        return f"{value:.{digits}f} [{low:.{digits}f} {high:.{digits}f}]"

    def rate(kind: str) -> str:
        share = row[f"ask_rate_{kind}"]
        return "-" if share is None else f"{100 * share:.0f}"

    verdict = ""
    if row.get("reward_minus_learned_ci") is not None:
        low, high = row["reward_minus_learned_ci"]
        verdict = "worse" if high < 0 else "better" if low > 0 else "even"
    return [
        ("> " if row["strategy"] == LEARNED else "  ") + row["strategy"],
        interval("em", 0, 100.0),
        interval("asks", digits),
        f"{rate('known')} / {rate('unknown')}",
        interval("leaked_units", digits),
        interval("reward", digits + 1),
        verdict,
    ]


def _block(group: Sequence[Mapping[str, Any]], digits: int) -> list[str]:
    header = ["  strategy", "EM %", "asks", "known/unk %", "leaked units", "reward", "vs >"]
    lines = [header, *(_cells(row, digits) for row in group)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    text = [
        "  ".join(
            cell.ljust(width) if column in (0, len(header) - 1) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    rule = "-" * max(len(line) for line in text)
    return [title_of(group), rule, text[0], rule, *text[1:], rule]


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as aligned text for a terminal, best reward first, the learned policy marked ">".

    At most 110 columns wide unless strategies have very long names: where numbers are large, fewer
    digits are shown.
    """
    blocks = []
    for group in groups_of(rows):
        candidates = (_block(group, digits=digits) for digits in (2, 1, 0))
        block = next(
            (block for block in candidates if max(map(len, block)) <= _COLUMNS),
            _block(group, digits=0),
        )
        blocks.append("\n".join(block))
    note = (
        "[low high]: 95 % bootstrap interval over questions. known/unk: share of drafted steps\n"
        "that were asked about, of those the SLM knows / doesn't know. vs >: reward against the\n"
        "learned policy, paired by question."
    )
    return "\n\n".join([*blocks, note])
