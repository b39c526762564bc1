"""The failure study: what its claims are made of, by hand; no run is made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from collab.report import Outcome
from experiments.exchange import Found
from experiments.failure import __main__ as study
from experiments.study import plan

QUESTIONS = 40
Figures = dict[str, tuple[float, float]]  # reward and asks by strategy


def found(seed: int, figures: Figures) -> Found:
    noise_Q = np.random.default_rng(seed).normal(0.0, 0.01, QUESTIONS)
    outcomes = [
        Outcome(
            strategy, "world", "h", "test", f"q{q}", em=1.0, f1=1.0, asks=asks, turns=asks,
            leaked_units=0.0, usd=0.0, reward=reward + float(noise_Q[q]),
        )
        for strategy, (reward, asks) in figures.items()
        for q in range(QUESTIONS)
    ]  # fmt: skip
    return Found(outcomes, {})


def made_up(**changes: tuple[float, float]) -> Any:
    """What the study measures. changes: reward and asks by TRAINING_in_HELPERS."""
    measured: dict[str, dict[str, list[Found]]] = {}
    for training in (study.WITHOUT, *study.CONDITIONS):
        measured[training] = {}
        for helpers in study.exchanges(training):
            fails = 0.0 if helpers == study.WELL else int(helpers.rsplit("_", 1)[1]) / 100
            learned = (0.6 - 0.3 * fails, 1.0 - fails)
            if training == study.WITHOUT and fails:
                learned = (0.5 - 0.5 * fails, 1.0)
            figures: Figures = {"learned": changes.get(f"{training}_in_{helpers}", learned)}
            if training == study.WITHOUT:
                figures |= {"slm_cot": (0.3, 0.0), "oracle": (0.7, 1.0)}
            measured[training][helpers] = [found(seed, figures) for seed in range(3)]
    return measured


def claims(**changes: tuple[float, float]) -> dict[str, Any]:
    rows = study.claims_of(made_up(**changes), [0, 1, 2])
    return {row["claim"]: row for row in rows}


def one(rows: dict[str, Any], start: str) -> Any:
    (found,) = (row for claim, row in rows.items() if claim.startswith(start))
    return found


def test_all_claims_hold_where_the_policy_gives_up_on_who_fails() -> None:
    rows = claims()
    assert all(row["holds"] for row in rows.values())
    assert one(rows, "timeout: the more")["figure"] == pytest.approx(1.0)
    assert one(rows, "timeout_50: trained with")["figure"] == pytest.approx(0.2)
    assert one(rows, "timeout_100: at most 0.02 below the SLM")["figure"] == pytest.approx(0.0)
    assert one(rows, "inject_50: with helpers that are well")["figure"] == pytest.approx(0.0)
    assert len(rows) == 4 + 2 * len(study.CONDITIONS)


def test_asks_must_fall_at_every_step() -> None:
    rows = claims(timeout_50_in_timeout_50=(0.5, 1.2), err_50_in_err_50=(0.4, 1.0))
    assert not one(rows, "timeout: the more")["holds"]  # more at half than at none
    assert not one(rows, "err: the more")["holds"]
    assert one(rows, "refuse: the more")["holds"]


def test_each_claim_can_fail() -> None:
    rows = claims(
        timeout_50_in_timeout_50=(0.25, 0.5),
        timeout_100_in_timeout_100=(0.27, 0.0),
        inject_50_in_well=(0.5, 0.4),
    )
    for start in (
        "timeout_50: trained with",
        "timeout_100: at most 0.02 below the SLM",
        "inject_50: with helpers that are well",
    ):
        assert not one(rows, start)["holds"]


def test_a_kind_with_a_missing_condition_is_left_out() -> None:
    measured = made_up()
    del measured["timeout_100"]
    text = " ".join(row["claim"] for row in study.claims_of(measured, [0, 1, 2]))
    assert "timeout" not in text and "refuse_50" in text


def test_the_figure_shows_each_condition_once() -> None:
    rows = study.rows_of(made_up())
    # world under every condition and well, with three strategies; the others with one, twice
    assert len(rows) == 3 * (len(study.CONDITIONS) + 1) + 2 * len(study.CONDITIONS)
    reward, asks = study.draw(rows).axes
    ticks = [label.get_text() for label in reward.get_xticklabels()]
    assert ticks == ["well", *study.CONDITIONS]
    points = [len(drawn.lines[0].get_xdata()) for drawn in reward.containers]
    oracle, trained_with, *others = points  # nobody is trained with helpers that fail in no way
    assert trained_with == len(study.CONDITIONS) and {oracle, *others} == {trained_with + 1}
    assert len(asks.containers) == 4


def test_the_study_can_be_planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[1])
    jobs = plan("failure", study.planned([0, 1]), tmp_path)
    names = ["world", "timeout_50", "timeout_100", "refuse_50", "err_50", "inject_50"]
    assert [job.run.name for job in jobs] == names * 2
    assert all(job.source is jobs[0] for job in jobs[1:6]) and jobs[0].source is None
    assert jobs[1].config.llm.helpers.two_hops.to_dict() == {"hops": 2, "timeout_rate": 0.5}


def test_helpers_of_the_test_fail_at_other_requests_than_those_of_the_training() -> None:
    for name in study.CONDITIONS:
        trained, tested = study.table(study.CONDITIONS[name]), study.exchanges(name)[name].llm
        assert not set(trained) & set(tested["helpers"])
        assert list(trained.values()) == list(tested["helpers"].values())
