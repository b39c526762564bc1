"""Paired branching: the other turn repeats the episode up to its boundary; what it is credited."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from collab.rl import branching
from collab.rl.batch import collate
from collab.rollout.episodes import Branch, Job
from collab.rollout.state import FEATURES
from collab.types import FIRST_REQUEST_ID, Episode, Problem, Status
from episodes import NAMES, answer, ask, make_episode, think
from test_rollout import EchoClient, build_engine, on_mesh

pytestmark = pytest.mark.usefixtures("quick")


def job(**fields: Any) -> Job:
    return Job(Problem("p", "who leads it ?", ("x",)), (0, 0, 0), episode="e", **fields)


@pytest.fixture
def rolled(tiny_config: Any) -> tuple[Any, Any, list[Job], list[Episode]]:
    engine, params = build_engine(
        on_mesh(tiny_config, {"data": 1, "fsdp": 1, "model": 1}), EchoClient()
    )
    jobs = [
        Job(Problem(str(p), "what is it ?"[: 3 + p], ("x",), notes="n"), (0, p, s))
        for p in range(4)
        for s in range(2)
    ]
    return engine, params, jobs, engine.run(params, jobs, temperature=1.0)


def test_the_other_turn_repeats_the_episode_up_to_its_boundary(rolled: Any) -> None:
    engine, params, jobs, episodes = rolled
    turns = [
        (episode, branching.branch(job, episode, int(at)))
        for job, episode in zip(jobs, episodes, strict=True)
        for at in branching.boundaries(episode)
    ]
    others = engine.run(params, [job for _, job in turns], temperature=1.0)
    assert len(turns) > len(jobs)
    for (episode, job), other in zip(turns, others, strict=True):
        at = job.branch.at
        before, after = episode.trace, other.trace
        stop = int(before.decided_at_K[at]) + 1
        np.testing.assert_array_equal(before.tokens_S[:stop], after.tokens_S[:stop])
        np.testing.assert_array_equal(before.logp_S[:stop], after.logp_S[:stop])
        np.testing.assert_array_equal(before.action_K[:at], after.action_K[:at])
        has_asked, asks = (bool(t.action_K[at] >= FIRST_REQUEST_ID) for t in (before, after))
        assert asks == job.branch.is_asking != has_asked


def test_an_episode_is_drawn_once_where_it_had_a_choice() -> None:
    episodes = [
        make_episode(think(), ask(), think(), answer()),
        make_episode(think(), answer(), status=Status.LLM_FAILED),
    ]
    for episode in episodes:
        episode.trace.legal_KA[0, FIRST_REQUEST_ID:] = False
    found = branching.drawn([job(), job()], episodes, np.random.default_rng(0))
    assert list(found) == [0]
    assert 1 <= found[0].branch.at < 4
    assert found[0].episode != "e"


def test_half_of_what_a_turn_gained_is_its_advantage() -> None:
    episodes = [make_episode(think(), ask(), think(), answer()), make_episode(think(), answer())]
    batch = collate(
        [episode.trace for episode in episodes],
        rows=2,
        capacity=128,
        decisions=8,
        actions=len(NAMES),
        features=len(FEATURES),
    )
    batch.decision_advantage_BK[:] = 9.0
    branches = {0: job(branch=Branch(1, False)), 1: job(branch=Branch(1, True))}
    others = [make_episode(think(), answer()), make_episode(think(), ask(), answer())]
    metrics = branching.credit(batch, branches, others, [0.8, 0.5], scale=3.0)
    assert batch.decision_advantage_BK[0, 1] == pytest.approx(1.2)
    assert batch.decision_advantage_BK[1, 1] == pytest.approx(0.75)
    assert (np.delete(batch.decision_advantage_BK, 1, axis=1) == 9.0).all()
    # Asking gained 0.8 in the first, and cost 0.5 in the second.
    assert metrics["help_worth"] == pytest.approx(0.15)
