"""The main study: what its claims are made of, by hand; no run is made."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from collab.outcomes import FILE, write_outcomes
from collab.report import Outcome
from collab.types import Step
from episodes import answer, ask, make_episode, make_problem, think
from experiments.main import __main__ as study
from experiments.main import boundaries
from experiments.main.boundaries import Turn, auc, calibration_error, reliability, tally
from experiments.study import plan

QUESTIONS = 60


def job(folder: Path, seed: int, rewards: dict[str, float]) -> Any:
    """A finished run in which each strategy gets about its reward, and EM above 0."""
    folder.mkdir()
    rng = np.random.default_rng(seed)
    noise_Q = rng.normal(0.0, 0.05, QUESTIONS)
    rows = [
        Outcome(
            strategy=strategy, task="world", helper="mixed", split="test", uid=str(q),
            em=float(q % 10 < 9 * reward + 1), f1=0.0, asks=1, turns=1, leaked_units=0, usd=0.0,
            reward=reward + float(noise_Q[q]), failures=0, drafts_known=None, asked_known=None,
            drafts_unknown=None, asked_unknown=None,
        )
        for strategy, reward in rewards.items()
        for q in range(QUESTIONS)
    ]  # fmt: skip
    write_outcomes(folder / FILE, rows)
    return SimpleNamespace(folder=folder, run=SimpleNamespace(seed=seed))


def test_claims_are_held_against_the_best_rule_on_test(tmp_path: Path) -> None:
    rewards = {"learned": 0.6, "best_constant": 0.5, "cascade": 0.55, "oracle": 0.62}
    jobs = [job(tmp_path / str(seed), seed, rewards) for seed in range(3)]
    assert study.best_static(jobs) == "cascade"
    ahead, constant, share, em = study.claims_of("world", jobs)
    assert ahead["figure"] == pytest.approx(0.05) and "cascade" in ahead["claim"]
    assert constant["figure"] == pytest.approx(0.1)
    assert share["figure"] == pytest.approx(0.1 / 0.12, abs=1e-3)
    assert [row["holds"] for row in (ahead, constant, share, em)] == [True] * 4
    assert ahead["seeds"] == [0, 1, 2]


def test_claims_fail_where_a_rule_is_as_good(tmp_path: Path) -> None:
    rewards = {"learned": 0.55, "best_constant": 0.5, "cascade": 0.56, "oracle": 0.62}
    jobs = [job(tmp_path / str(seed), seed, rewards) for seed in range(3)]
    assert [row["holds"] for row in study.claims_of("world", jobs)] == [False, True, False, False]


def test_the_area_under_the_curve_counts_ties_half() -> None:
    is_true_N = np.array([False, False, True, True])
    assert auc(np.array([0.1, 0.2, 0.3, 0.4]), is_true_N) == 1.0
    assert auc(np.array([0.4, 0.3, 0.2, 0.1]), is_true_N) == 0.0
    assert auc(np.array([0.5, 0.5, 0.5, 0.5]), is_true_N) == 0.5
    assert auc(np.array([0.1, 0.3, 0.3, 0.4]), is_true_N) == pytest.approx(0.875)
    assert auc(np.array([0.1, 0.2]), np.array([True, True])) is None


def test_calibration_compares_each_bin_with_what_came_true() -> None:
    p_N = np.array([0.05, 0.05, 0.95, 0.95, 1.0])
    is_true_N = np.array([False, False, True, False, True])
    assert reliability(p_N, is_true_N) == [
        (pytest.approx(0.05), 0.0, 2),
        (pytest.approx(2.9 / 3), pytest.approx(2 / 3), 3),
    ]
    assert calibration_error(p_N, is_true_N) == pytest.approx(0.4 * 0.05 + 0.6 * 0.3)


def test_the_other_turn_tells_what_a_request_was_worth() -> None:
    said = [
        Turn(has_asked, em, other).verdict
        for has_asked in (True, False)
        for em, other in ((1.0, 0.0), (1.0, 1.0), (0.0, 1.0), (0.0, 0.0))
    ]
    assert said == ["useful", "useless", "harmful", "useless", "spared", "fine", "missed", "fine"]
    assert tally([Turn(True, 1.0, 0.0)])["useful"] == 1


def test_only_drafts_of_a_world_step_count() -> None:
    problem = make_problem(
        steps=(Step("my clinic", "Elm Clinic", is_local=True), Step("leader", "Kano Bel"))
    )
    episode = make_episode(
        think("my clinic = Elm Clinic"), think("leader = Vin Sor"), ask(), answer(), problem=problem
    )
    drafted = [boundaries._drafted(episode, k) for k in range(4)]
    assert drafted == [None, None, problem.steps[1], None]


def drafts(*rows: tuple[float, bool, bool]) -> list[dict[str, Any]]:
    """p_ask, is_false, is_held_out of each."""
    return [dict(zip(("p_ask", "is_false", "is_held_out"), row, strict=True)) for row in rows]


def of_boundaries(
    monkeypatch: pytest.MonkeyPatch, *by_seed: list[dict[str, Any]]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    found = [{"knowledge": rows, "verdicts": tally([])} for rows in by_seed]
    monkeypatch.setattr(boundaries, "measured", lambda job: found[job.run.seed])
    jobs: Any = [SimpleNamespace(run=SimpleNamespace(seed=seed)) for seed in range(len(found))]
    return study.of_boundaries("gsm", jobs)


def test_knowledge_is_claimed_of_held_out_steps_only(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = (0.9, False, False)  # would spoil both figures
    told = drafts((1.0, True, True), (0.0, False, True), seen)
    (area, error), more = of_boundaries(monkeypatch, told, told)
    assert (area["figure"], error["figure"]) == (1.0, 0.0)
    assert area["holds"] and error["holds"]
    assert more["drafts"] == 4


def test_a_seed_that_shows_nothing_leaves_a_claim_open(monkeypatch: pytest.MonkeyPatch) -> None:
    told = drafts((1.0, True, True), (0.0, False, True))
    (area, error), _ = of_boundaries(monkeypatch, told, drafts((1.0, True, True)))
    assert (area["figure"], area["ci"], area["holds"]) == (None, None, False)
    assert error["figure"] == 0.0
    (area, error), more = of_boundaries(monkeypatch, drafts((1.0, True, False)))
    assert area["figure"] is error["figure"] is None and not error["holds"]
    assert more["reliability"] == []
    assert study.reliability_figure({"gsm": more}).axes[0].get_lines()  # the diagonal alone


def test_the_study_can_be_planned(tmp_path: Path) -> None:
    jobs = plan("main", study.planned([0, 1]), tmp_path)
    assert [job.run.name for job in jobs] == ["world", "world_honest", "privatise", "gsm"] * 2
    assert jobs[1].config.task.world.stale_relations == ()
    assert [job.config.task.name for job in jobs[:4]] == ["world", "world", "privatise", "gsm"]
    assert jobs[3].config.task.gsm.max_steps > 0
