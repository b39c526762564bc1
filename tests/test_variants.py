"""Variants against their base: figures, verdicts, table and picture, on made-up outcomes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import pytest

from collab.report import Outcome
from experiments.statistics import Estimate
from experiments.variants import Columns, Variant, columns, difference, picture, table

QUESTIONS = 40


def outcomes(
    rewards: Mapping[str, float], known: float = 0.1, unknown: float = 0.9, seed: int = 0
) -> list[Outcome]:
    """Each strategy about at its reward; the share of questions whose one draft was asked about."""
    noise_Q = np.random.default_rng(seed).normal(0.0, 0.02, QUESTIONS)
    return [
        Outcome(
            strategy=strategy, task="world", helper="mixed", split="test", uid=f"q{q}",
            em=1.0, f1=1.0, asks=1, turns=1, leaked_units=0, usd=0.0,
            reward=reward + float(noise_Q[q]), drafts_known=1,
            asked_known=int(q < known * QUESTIONS), drafts_unknown=1,
            asked_unknown=int(q < unknown * QUESTIONS),
        )
        for strategy, reward in rewards.items()
        for q in range(QUESTIONS)
    ]  # fmt: skip


REWARDS = {"learned": 0.6, "best_constant": 0.5, "oracle": 0.7}
BASE = {seed: outcomes(REWARDS, seed=seed) for seed in (0, 1, 2)}


def row_of(known: float, unknown: float, learned: float = 0.55) -> Columns:
    ours = {
        seed: outcomes({**REWARDS, "learned": learned}, known, unknown, seed) for seed in (0, 1, 2)
    }
    return columns("without it", ours, BASE)


def test_columns_by_hand() -> None:
    row = row_of(0.1, 0.9)
    assert row.above_base.figure == pytest.approx(-0.05)
    assert row.above_base.ci == pytest.approx((-0.05, -0.05))  # paired: the noise is the same
    assert row.share.figure == pytest.approx(0.25)
    assert row.known.figure == pytest.approx(0.1) and row.unknown.figure == pytest.approx(0.9)
    assert row.telling.figure == pytest.approx(0.8)
    assert row.seeds == (0, 1, 2) and row.constants == ()


@pytest.mark.parametrize(
    ("known", "unknown", "verdict", "seeds"),
    [
        (1.0, 1.0, "yes", (0, 1, 2)),
        (0.0, 0.0, "yes", (0, 1, 2)),
        (0.9, 0.9, "yes", (0, 1, 2)),
        (0.1, 0.9, "no", ()),
        (0.5, 0.725, "unsure", ()),
        (0.5, 0.675, "unsure", (0, 1, 2)),
    ],
)
def test_a_learned_constant_asks_alike_whatever_the_slm_knows(
    known: float, unknown: float, verdict: str, seeds: tuple[int, ...]
) -> None:
    row = row_of(known, unknown)
    assert (row.verdict, row.constants) == (verdict, seeds)


def test_what_cannot_be_told_is_unsure() -> None:
    none = dataclasses.replace(row_of(0.1, 0.9), telling=Estimate(None, None))
    assert none.verdict == "unsure"


def test_only_seeds_that_both_have_are_compared() -> None:
    ours = {seed: outcomes({**REWARDS, "learned": 0.5 + 0.1 * seed}, seed=seed) for seed in (1, 2)}
    assert difference(ours, {1: BASE[1]}).figure == pytest.approx(0.0)
    assert difference(ours, {0: BASE[0]}) == Estimate(None, None)


def test_a_variant_is_a_run_with_what_all_share_and_what_is_its_own() -> None:
    one = Variant("a", "words", {"rl.samples": 2}, "world", "world")
    run = one.run("config", 3, {"rl.samples": 4, "task.test": 9})
    assert (run.label, run.config, run.cold_start) == ("a-seed3", "config", "world")
    assert run.overrides == {"rl.samples": 2, "task.test": 9}


def test_table_picture_and_json_show_every_run() -> None:
    rows = {"world": columns("the default", BASE, BASE), "constant": row_of(1.0, 1.0)}
    rows["odd"] = dataclasses.replace(rows["constant"], share=Estimate(None, None))
    lines = table(rows).splitlines()
    assert len(lines) == 5 and "| 0.000 [0.000 0.000] |" in lines[2]
    assert lines[3].endswith("| 100% / 100% | yes (3 of 3 seeds) |")
    assert "| – |" in lines[4]
    labels = [text.get_text() for text in picture(rows, "the default").axes[0].get_yticklabels()]
    assert labels == ["the default", "without it", "without it"]
    plain = rows["odd"].plain
    assert plain["share"] == [None, None, None] and plain["constant"] == "yes"
    assert plain["above_base"] == [-0.05, -0.05, -0.05] and plain["seeds"] == [0, 1, 2]
