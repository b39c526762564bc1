"""Finished runs of made-up figures, for tests of studies that compare levels of a strength."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from collab.outcomes import FILE, write_outcomes
from collab.report import Outcome

QUESTIONS, SEEDS = 60, (0, 1, 2)
DRAFTS = {"known": 2, "unknown": 1}  # a question

# of one strategy: em, asks, ask rate on known and on unknown drafts; all shares in tenths
Figures = tuple[float, float, float, float]


def job(folder: Path, name: str, seed: int, strategies: Mapping[str, Figures]) -> Any:
    """A finished run whose means are these figures: the first so many of each ten questions."""
    folder.mkdir(parents=True)

    def counted(share: float, q: int, most: int = 1) -> int:
        return most * (q % 10 < round(10 * share))

    rows = [
        Outcome(
            strategy=strategy, task="world", helper="expert", split="test", uid=f"world-test-{q}",
            em=counted(em, q), f1=0.0, asks=counted(asks, q), turns=counted(asks, q),
            leaked_units=0, usd=0.0, reward=0.0, failures=0,
            drafts_known=DRAFTS["known"], asked_known=counted(known, q, DRAFTS["known"]),
            drafts_unknown=DRAFTS["unknown"], asked_unknown=counted(unknown, q),
        )
        for strategy, (em, asks, known, unknown) in strategies.items()
        for q in range(QUESTIONS)
    ]  # fmt: skip
    write_outcomes(folder / FILE, rows)
    return SimpleNamespace(folder=folder, run=SimpleNamespace(seed=seed, name=name))


def groups(root: Path, figures: Mapping[str, Mapping[str, Figures]]) -> dict[str, list[Any]]:
    """Runs by name, one a seed, all seeds alike. figures: by run name and strategy."""
    return {
        name: [job(root / f"{name}-{seed}", name, seed, strategies) for seed in SEEDS]
        for name, strategies in figures.items()
    }
