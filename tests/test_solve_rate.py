"""The rollouts of the cold start's judgement, and what is read off them."""

from __future__ import annotations

from pathlib import Path

import ml_collections
import numpy as np
import pytest

import runs
from collab.assembly import Assembly, assemble
from collab.rewards import score
from collab.rollout.episodes import Job
from collab.solve_rate import constant_jobs, constant_rewards, label_jobs
from collab.types import FIRST_REQUEST_ID
from conftest import TINY
from episodes import answer, ask, make_episode, think


@pytest.fixture
def assembly(tiny_config: ml_collections.ConfigDict, tmp_path: Path) -> Assembly:
    return assemble(runs.trainable(tiny_config), str(tmp_path))


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def labels(assembly: Assembly, seed: int = 0) -> list[Job]:
    return label_jobs(assembly, assembly.task.problems("train"), rng=rng(seed))


def test_each_problem_is_labelled_by_samples_that_ask_at_random(assembly: Assembly) -> None:
    jobs = labels(assembly)
    assert [job.identity for job in jobs] == [job.identity for job in labels(assembly)]
    assert len({job.identity for job in jobs}) == len({job.episode for job in jobs}) == len(jobs)
    assert len({job.problem.uid for job in jobs}) == TINY["cold_start.label_problems"]
    assert len(jobs) == TINY["cold_start.label_problems"] * TINY["cold_start.label_samples"]
    assert {job.identity for job in jobs} != {job.identity for job in labels(assembly, 1)}
    assert {(job.strategy, job.setting.threshold) for job in jobs} == {("random_rate", 0.5)}
    asked = {job.setting.kind for job in jobs}
    assert asked == set(range(FIRST_REQUEST_ID, len(assembly.engine.names)))
    for job in jobs:
        assert job.problem is assembly.task.problems("train")[job.identity[1]]


def test_nothing_is_asked_where_the_answer_alone_is_judged(assembly: Assembly) -> None:
    assembly.config.cold_start.judge = "answer"
    assert {(job.strategy, job.setting.threshold) for job in labels(assembly)} == {("slm_cot", 0.0)}


def test_more_problems_than_there_are_means_all(assembly: Assembly) -> None:
    assembly.config.cold_start.label_problems = 10**6
    problems = assembly.task.problems("train")
    assert {job.problem.uid for job in labels(assembly)} == {one.uid for one in problems}


def test_every_constant_rule_gets_the_same_problems_and_helpers(assembly: Assembly) -> None:
    jobs = constant_jobs(assembly, assembly.task.problems("train"), rng=rng())
    by_rule: dict[object, list[object]] = {}
    for job in jobs:
        by_rule.setdefault(job.setting, []).append((job.problem.uid, job.helpers, job.identity))
    assert len(by_rule) == 1 + len(assembly.engine.names) - FIRST_REQUEST_ID
    first, *others = by_rule.values()
    assert len(first) == TINY["rl.constant_problems"]
    assert all(other == first for other in others)
    assert len({job.episode for job in jobs}) == len(jobs)


def test_the_best_rule_is_the_one_of_the_highest_mean_reward(assembly: Assembly) -> None:
    jobs = constant_jobs(assembly, assembly.task.problems("train"), rng=rng())
    right = make_episode(think(), answer())
    wrong = make_episode(think(), answer("nobody"))
    costly = make_episode(think(), ask(), answer())
    count = TINY["rl.constant_problems"]
    episodes = [right, wrong, *[right] * (count - 2), *[costly] * count]
    episodes += [wrong] * (len(jobs) - len(episodes))
    best, by_rule = constant_rewards(assembly, jobs=jobs, episodes=episodes)
    good, bad, asked = (score(one, assembly.config.reward).reward for one in (right, wrong, costly))
    names = assembly.engine.names[FIRST_REQUEST_ID:]
    never = ((count - 1) * good + bad) / count
    expected = {"constant_never": never, f"constant_{names[0]}": asked}
    expected |= {f"constant_{name}": bad for name in names[1:]}
    assert by_rule == pytest.approx(expected)
    assert bad < never < asked < good
    assert best == pytest.approx(asked)


def test_without_jobs_no_rule_is_best(assembly: Assembly) -> None:
    assert constant_rewards(assembly, jobs=[], episodes=[]) == (None, {})
