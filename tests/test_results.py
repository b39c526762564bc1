"""What is read from a study's runs: rows, intervals over seeds and questions, and results.json."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collab.outcomes import write_outcomes
from collab.report import Outcome, summarise, write_evaluation
from experiments import results, statistics
from experiments.runner import Result
from experiments.statistics import Estimate
from experiments.study import Job, Run, plan

BASE = str(Path(__file__).parents[1] / "configs" / "quickstart.py")
REWARDS = {"best_constant": 0.25, "learned": 0.5, "oracle": 0.75}


def outcome(strategy: str, uid: str, reward: float) -> Outcome:
    return Outcome(
        strategy, "world", "mixed", "test", uid, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0, reward=reward
    )


def outcomes(**rewards: list[float]) -> list[Outcome]:
    return [
        outcome(strategy, f"q{at}", reward)
        for strategy, values in rewards.items()
        for at, reward in enumerate(values)
    ]


# --- statistics ----------------------------------------------------------------------------


def test_values_pair_by_question_and_average_repeats() -> None:
    first = outcomes(learned=[1.0, 0.0, 0.5], oracle=[1.0, 1.0, 1.0])
    second = [*reversed(outcomes(learned=[0.0, 0.0, 1.0])), outcome("learned", "q2", 0.0)]
    values_SQ = statistics.values_of([first, second], "learned")
    assert values_SQ.tolist() == [[1.0, 0.0, 0.5], [0.0, 0.0, 0.5]]
    assert statistics.values_of([first], "oracle", "em").tolist() == [[1.0, 1.0, 1.0]]


def test_a_count_that_is_not_known_counts_nothing() -> None:
    first, second = outcomes(learned=[1.0, 1.0])
    rows = [dataclasses.replace(first, drafts_known=3), second]
    assert second.drafts_known is None
    assert statistics.values_of([rows], "learned", "drafts_known").tolist() == [[3.0, 0.0]]


def test_seeds_may_have_questions_of_their_own() -> None:
    first = outcomes(learned=[1.0, 0.0])
    second = [outcome("learned", f"other{place}", value) for place, value in enumerate([0.5, 0.5])]
    assert statistics.values_of([first, second], "learned").tolist() == [[1.0, 0.0], [0.5, 0.5]]
    mixed = [first[0], second[0]]  # half of the first's
    with pytest.raises(ValueError, match=r"answered \[2, 2\], 3 of them distinct"):
        statistics.values_of([first, mixed], "learned")


def test_other_questions_are_refused() -> None:
    both = [outcomes(learned=[1.0, 0.0]), outcomes(learned=[1.0])]
    with pytest.raises(ValueError, match=r"'learned' must have answered .* answered \[2, 1\]"):
        statistics.values_of(both, "learned")
    with pytest.raises(ValueError, match="'oracle' must have answered"):
        statistics.values_of(both, "oracle")


def test_a_metric_that_is_newer_than_a_run_is_named() -> None:
    new = outcomes(learned=[1.0, 0.0])
    old = [dataclasses.replace(outcome, tokens=math.nan) for outcome in new]
    assert statistics.values_of([new], "learned", "tokens").tolist() == [[0.0, 0.0]]
    with pytest.raises(ValueError, match=r"'tokens' of strategy 'learned' .* --mode=evaluate"):
        statistics.values_of([new, old], "learned", "tokens")


def test_an_interval_by_hand() -> None:
    """Two seeds that differ, questions that do not: means of two draws from {0, 1}."""
    estimate = statistics.mean(np.array([[0.0] * 5, [1.0] * 5]))
    assert estimate == Estimate(0.5, (0.0, 1.0))
    assert statistics.mean(np.full((3, 4), 0.25)) == Estimate(0.25, (0.25, 0.25))


def test_seeds_that_answer_alike_are_no_more_evidence_than_one() -> None:
    values_Q = np.random.default_rng(0).normal(size=200)
    one = statistics.mean(values_Q[None])
    five = statistics.mean(np.tile(values_Q, (5, 1)))
    assert one.ci is not None and five.ci is not None
    assert np.ptp(five.ci) == pytest.approx(np.ptp(one.ci), rel=0.1)
    half = 1.96 * values_Q.std() / np.sqrt(200)
    assert np.ptp(one.ci) == pytest.approx(2 * half, rel=0.1)


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    """Effects of seed, question and both; ten seeds, so that few-seed narrowness is small."""
    rng, hits, trials = np.random.default_rng(0), 0, 80
    for _ in range(trials):
        values_SQ = (
            rng.normal(scale=0.3, size=(10, 1))
            + rng.normal(scale=1.0, size=(1, 60))
            + rng.normal(scale=1.0, size=(10, 60))
        )
        low, high = statistics.mean(values_SQ).ci or (0.0, 0.0)
        hits += low <= 0.0 <= high
    assert 0.88 <= hits / trials < 1.0


def test_a_difference_is_paired() -> None:
    noise_SQ = np.random.default_rng(2).normal(scale=10.0, size=(4, 50))
    estimate = statistics.difference(noise_SQ + 0.5, noise_SQ)
    assert estimate.figure == pytest.approx(0.5)
    assert estimate.ci == pytest.approx((0.5, 0.5))
    with pytest.raises(ValueError, match=r"shapes .* must all be \[seeds, questions\]"):
        statistics.difference(noise_SQ, noise_SQ[:2])


@settings(max_examples=30, deadline=None)
@given(
    factor=st.floats(-3, 3),
    values=st.lists(st.lists(st.floats(0.5, 2), min_size=3, max_size=3), min_size=1, max_size=4),
)
def test_a_ratio_of_what_is_proportional_is_the_factor(
    factor: float, values: list[list[float]]
) -> None:
    values_SQ = np.array(values)
    estimate = statistics.ratio(factor * values_SQ, values_SQ)
    assert estimate.figure == pytest.approx(factor)
    assert estimate.ci == pytest.approx((factor, factor))


def test_share_by_hand_and_where_there_is_no_gap() -> None:
    low_SQ, high_SQ = np.zeros((2, 6)), np.ones((2, 6))
    assert statistics.share(low_SQ + 0.75, low_SQ, high_SQ) == Estimate(0.75, (0.75, 0.75))
    assert statistics.share(low_SQ - 0.5, low_SQ, high_SQ).figure == -0.5
    assert statistics.share(high_SQ, low_SQ, low_SQ) == Estimate(None, None)
    unclear_SQ = np.array([[1.0, -0.9, 1.0, -0.9]] * 2)
    unclear = statistics.share(low_SQ[:, :4] + 0.1, low_SQ[:, :4], unclear_SQ)
    assert unclear.figure == pytest.approx(2.0) and unclear.ci is None


def test_a_rate_is_of_sums_and_its_difference_paired() -> None:
    """Asks by drafts, not the mean of each question's rate."""
    asked_SQ, drafts_SQ = np.array([[3.0, 0.0]] * 2), np.array([[3.0, 1.0]] * 2)
    none_SQ, one_SQ = np.zeros((2, 2)), np.ones((2, 2))
    found = statistics.rate_difference(asked_SQ, drafts_SQ, none_SQ, one_SQ)
    assert found.figure == 0.75 and found.ci == (0.0, 1.0)  # of single questions it were 0.5
    same = statistics.rate_difference(asked_SQ, drafts_SQ, asked_SQ, drafts_SQ)
    assert same == Estimate(0.0, (0.0, 0.0))
    each = statistics.rate_difference(2 * one_SQ, 4 * one_SQ, none_SQ, one_SQ)
    assert each == Estimate(0.5, (0.5, 0.5))
    assert statistics.rate_difference(asked_SQ, drafts_SQ, none_SQ, none_SQ) == Estimate(None, None)
    rare = statistics.rate_difference(one_SQ, one_SQ, none_SQ, np.array([[1.0, 0.0]] * 2))
    assert rare == Estimate(1.0, None)  # a draw may hold no draft of that kind


# --- over levels ---------------------------------------------------------------------------


def level(*levels: float, seeds: int = 2, questions: int = 30) -> np.ndarray:
    return np.broadcast_to(np.array(levels)[:, None, None], (len(levels), seeds, questions))


def test_rank_correlation_by_hand() -> None:
    """Ranks 1.5 1.5 3.5 3.5 against 2 1 4 3, and back: a monotone change of scale is nothing."""
    x_LSQ, y_LSQ = level(0.1, 0.9), level(0.0, 0.0) + np.array([[[2], [1]], [[4000], [3]]])
    expected = 4.0 / np.sqrt(4.0 * 5.0)
    assert statistics.correlation(x_LSQ, y_LSQ).figure == pytest.approx(expected)
    assert statistics.correlation(x_LSQ, -y_LSQ).figure == pytest.approx(-expected)
    assert statistics.correlation(y_LSQ, y_LSQ).figure == pytest.approx(1.0)
    assert statistics.correlation(x_LSQ, x_LSQ[:, :, ::-1]) == Estimate(1.0, (1.0, 1.0))
    tied_LSQ, other_LSQ = level(1, 2, 2, 3, seeds=1), level(1, 2, 3, 4, seeds=1)
    found = statistics.correlation(tied_LSQ, other_LSQ)  # ranks 1 2.5 2.5 4
    assert found.figure == pytest.approx(4.5 / np.sqrt(4.5 * 5.0))


def test_seeds_that_disagree_leave_a_correlation_open() -> None:
    """Drawn twice, the seed that rises says 1, the one that falls -1."""
    y_LSQ = np.array([1.0, 2.0, 3.0])[:, None, None] * np.array([1.0, -1.0])[:, None]
    found = statistics.correlation(level(1, 2, 3, questions=1), y_LSQ)
    assert found.figure == pytest.approx(0.0) and found.ci == pytest.approx((-1.0, 1.0))


def test_the_correlation_of_noise_is_not_told_from_zero() -> None:
    noise_LSQ = np.random.default_rng(3).normal(size=(5, 3, 60))
    low, high = statistics.correlation(level(1, 2, 3, 4, 5, seeds=3, questions=60), noise_LSQ).ci
    assert low < 0 < high
    clear_LSQ = noise_LSQ - 2 * level(1, 2, 3, 4, 5, seeds=3, questions=60)
    found = statistics.correlation(level(1, 2, 3, 4, 5, seeds=3, questions=60), clear_LSQ)
    assert found.ci is not None and found.ci[1] < -0.9


def test_the_correlation_of_a_rate_is_not_that_of_its_numerator() -> None:
    x_LSQ, gained_LSQ, per_LSQ = level(1, 2, 3), level(1, 2, 3), level(1, 4, 9)
    assert statistics.correlation(x_LSQ, gained_LSQ).figure == pytest.approx(1.0)
    assert statistics.correlation(x_LSQ, gained_LSQ, per_LSQ).figure == pytest.approx(-1.0)
    assert statistics.correlation(x_LSQ, gained_LSQ, level(0, 1, 1)) == Estimate(None, None)
    assert statistics.correlation(x_LSQ, level(5, 5, 5)) == Estimate(None, None)
    with pytest.raises(ValueError, match=r"must all be \[levels, seeds, questions\]"):
        statistics.correlation(x_LSQ, gained_LSQ[:2])


def test_the_largest_rise_is_that_of_neighbours() -> None:
    noise_SQ = np.random.default_rng(4).normal(size=(2, 30))
    found = statistics.largest_rise(level(0.9, 0.5, 0.6, 0.1) + noise_SQ)
    assert found.figure == pytest.approx(0.1) and found.ci == pytest.approx((0.1, 0.1))
    assert statistics.largest_rise(level(0.9, 0.5, 0.2)).figure == pytest.approx(-0.3)


# --- rows and the file ---------------------------------------------------------------------


def finished(root: Path, seeds: tuple[int, ...] = (1, 0)) -> Result:
    jobs = plan("study", [Run("main", BASE, seed) for seed in seeds], root)
    for job in jobs:
        made = outcomes(**{name: [value] * 3 for name, value in REWARDS.items()})
        write_outcomes(job.folder / "outcomes.npz", made)
        write(job, summarise(made, resamples=10, seed=0))
    return Result("study", tuple(jobs), {}, is_stopped=False)


def write(job: Job, rows: list[dict[str, Any]]) -> None:
    write_evaluation(
        job.folder / "evaluation.json", rows, chosen={}, ask_bias={}, helpers={},
        config=job.config, seed=job.run.seed, commit=f"c{job.run.seed}", device="cpu", wall_s=9.7,
    )  # fmt: skip


def test_rows_say_whose_they_are(tmp_path: Path) -> None:
    rows = results.rows(finished(tmp_path))
    assert len(rows) == 6
    assert rows[0]["study"] == "study" and rows[0]["run"] == "main" and rows[0]["seed"] == 1
    assert {row["strategy"]: row["reward"] for row in rows} == REWARDS
    assert rows[0]["reward_minus_learned"] == -0.25 and rows[0]["wall_s"] == 10


def test_the_file_holds_claims_and_rows(tmp_path: Path) -> None:
    result = finished(tmp_path)
    (jobs,) = results.by_name(result).values()
    assert [job.run.seed for job in jobs] == [0, 1]
    made = [results.outcomes(job) for job in jobs]
    estimate = statistics.share(
        *(statistics.values_of(made, name) for name in ("learned", "best_constant", "oracle"))
    )
    claim = results.claim("half of the gap", estimate, seeds=[0, 1], holds=True)
    path = tmp_path / "results.json"
    results.write_results(path, result, [claim], wall_s=3)
    found = json.loads(path.read_text())
    assert list(found) == ["commit", "device", "claims", "wall_s", "rows"]
    assert found["commit"] == "c0, c1" and found["device"] == "cpu"
    assert found["claims"] == [
        {"claim": "half of the gap", "figure": 0.5, "ci": [0.5, 0.5], "seeds": [0, 1],
         "holds": True}
    ]  # fmt: skip
    assert found["rows"] == results.rows(result)
    assert len(path.read_text().splitlines()) < 40  # one line a row


def test_a_claim_whose_figure_cannot_be_told_says_so() -> None:
    claim = results.claim("x", Estimate(None, None), seeds=[0], holds=False)
    assert claim["figure"] is None and claim["ci"] is None


def test_an_unfinished_study_writes_what_there_is(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    results.write_results(path, Result("study", (), {"a-seed0": "why"}, is_stopped=True), [])
    assert json.loads(path.read_text())["rows"] == []
