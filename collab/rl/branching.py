"""Paired branching: what help is worth at one boundary, by taking the other turn there.

Of an episode one boundary is drawn at which a request was possible. The same job is run again with
the same chances, and so repeats the episode up to there; then it asks if it had not asked, and the
other way round. The difference of the two rewards is an unbiased sample of what asking is worth at
this boundary under the policy. It takes the place of the episode's own advantage there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from collab.rewards import score
from collab.rl import group_scale
from collab.rl.batch import Batch
from collab.rl.credit import is_trainable
from collab.rollout.episodes import Branch, Job
from collab.types import FIRST_REQUEST_ID, Episode


def boundaries(episode: Episode) -> np.ndarray:
    """Decisions at which it could both ask and go on alone, i64 [number of them]."""
    legal_KA = episode.trace.legal_KA
    can_ask_K = legal_KA[:, FIRST_REQUEST_ID:].any(-1)
    can_go_on_K = legal_KA[:, :FIRST_REQUEST_ID].any(-1)
    return np.flatnonzero(can_ask_K & can_go_on_K)


def branch(job: Job, episode: Episode, at: int) -> Job:
    """The job that repeats `episode` up to decision `at` and takes the other turn there."""
    has_asked = bool(episode.trace.action_K[at] >= FIRST_REQUEST_ID)
    return dataclasses.replace(
        job, branch=Branch(at, not has_asked), episode=f"{job.episode}-branch{at}"
    )


def drawn(
    jobs: Sequence[Job], episodes: Sequence[Episode], rng: np.random.Generator
) -> dict[int, Job]:
    """For each episode with a boundary to branch at its other turn, by the episode's index."""
    found = {}
    for index, (job, episode) in enumerate(zip(jobs, episodes, strict=True)):
        places = boundaries(episode) if is_trainable(episode) else np.zeros(0, int)
        if len(places):
            found[index] = branch(job, episode, int(places[int(rng.integers(len(places)))]))
    return found


def compare(
    batch: Batch[np.ndarray],
    jobs: Sequence[Job],
    episodes: Sequence[Episode],
    rewards: Sequence[float],
    *,
    roll_out: Callable[[Sequence[Job]], Sequence[Episode]],
    weights: Mapping[str, Any],
    standardise: bool,
    rng: np.random.Generator,
) -> dict[str, float]:
    """Roll out the other turn of each episode, and credit one decision of each in `batch`.

    roll_out: as the episodes were. weights: `config.reward`. Returns what help was worth on
    average, in reward.
    """
    branches = drawn(jobs, episodes, rng)
    others = roll_out(list(branches.values()))
    gains = [
        rewards[index] - score(other, weights).reward
        for index, other in zip(branches, others, strict=True)
    ]
    scale = float(group_scale(np.array([rewards]), standardise=standardise)[0, 0])
    return credit(batch, branches, others, gains, scale=scale)


def credit(
    batch: Batch[np.ndarray],
    branches: Mapping[int, Job],
    others: Sequence[Episode],
    gains: Sequence[float],
    *,
    scale: float,
) -> dict[str, float]:
    """Put what the taken turn gained into the decision's advantage, in `batch`.

    others: the episodes of `branches`, in order. gains: reward of the episode less that of its
    other turn. Half of it is the advantage: the baseline, the mean of both turns, does not depend
    on which of them the policy took.
    """
    worth = []
    for (index, job), other, gain in zip(branches.items(), others, gains, strict=True):
        assert job.branch is not None
        if not is_trainable(other):
            continue
        batch.decision_advantage_BK[index, job.branch.at] = 0.5 * scale * gain
        worth.append(-gain if job.branch.is_asking else gain)
    return {"help_worth": float(np.mean(worth)) if worth else 0.0}
