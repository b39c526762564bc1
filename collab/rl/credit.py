"""Who is credited: from the rewards of a group of episodes to an advantage per token and decision.

The task part of the reward (quality and its efficiency) goes to the whole episode. A leak goes to
the request that completed it: to the tokens of that request against the mean request of the group,
and to the decision that opened it against not asking at all.

With a value head (`collab.rl.value`) decisions are credited anew, from what each step earned.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from collab.rewards import Terms
from collab.rl import Objective, group_scale
from collab.rl.batch import Batch
from collab.types import REPLY_ID, Episode, Status, Trace


def is_trainable(episode: Episode) -> bool:
    """False for episodes that say nothing of the policy: the helper was down, or nothing ran."""
    return episode.status not in (Status.LLM_FAILED, Status.CONTEXT_FULL)


def assign(
    batch: Batch[np.ndarray],
    episodes: Sequence[Episode],
    terms: Sequence[Terms],
    *,
    samples: int,
    objective: Objective,
    leak_weight: float,
    standardise: bool,
) -> dict[str, float]:
    """Write advantages and rewards of P*G episodes (group after group) into `batch`, in place.

    An episode that is not trainable is masked out, and its siblings are credited as if it had not
    been there. Returns the share of groups without any variance, which teach nothing.
    """
    flat, starts = 0, range(0, len(episodes), samples)
    for first in starts:
        members = []
        for index in range(first, first + samples):
            if is_trainable(episodes[index]):
                members.append(index)
            else:
                batch.written_BN[index], batch.choice_BK[index] = False, False
                batch.decided_BK[index] = False
        if not members:
            flat += 1
            continue
        reward_1G = np.array([[terms[index].reward for index in members]])
        leak_1G = np.array([[terms[index].leak for index in members]])
        task_1G = reward_1G + leak_weight * leak_1G
        flat += bool(task_1G.std() < 1e-6 and leak_1G.max() < 1e-6)
        # One scale for both parts, so that their ratio stays the reward's.
        scale = group_scale(reward_1G, standardise=standardise)[0, 0]
        advantage_G = np.zeros(1)  # of an episode without siblings
        if len(members) > 1:
            advantage_G = objective.advantages(task_1G, standardise=False)[0] * scale
        requests = [share for index in members for share in terms[index].leak_by_exchange]
        for index, advantage in zip(members, advantage_G, strict=True):
            _assign_one(
                batch,
                index,
                episodes[index],
                leak_by_exchange=terms[index].leak_by_exchange,
                advantage=float(advantage),
                price=float(leak_weight * scale),
                mean_leak=float(np.mean(requests)) if requests else 0.0,
            )
            earned_K = earned_by_step(episodes[index], terms[index], leak_weight=leak_weight)
            batch.reward_BK[index, : len(earned_K)] = earned_K
    return {"zero_variance_groups": flat / len(starts)}


def earned_by_step(episode: Episode, terms: Terms, *, leak_weight: float) -> np.ndarray:
    """The reward by the decision that earned it, f32 [K]: leaks and cuts, at the last one the task.

    Efficiency is due at the end, with the quality that gates it. The sum is the episode's reward,
    but for what an opening request leaked, which no decision of ours could have kept.
    """
    trace = episode.trace
    earned_K = np.zeros(len(trace.action_K), np.float32)
    if not len(earned_K):
        return earned_K
    earned_K[-1] = terms.task
    asked, leaks = _leaks_by_decision(trace, terms.leak_by_exchange)
    earned_K[asked] -= leak_weight * np.array(leaks)
    if terms.cut:
        format_penalty = (terms.task - leak_weight * terms.leak - terms.reward) / terms.cut
        segments = episode.segments[len(episode.segments) - len(earned_K) :]
        earned_K[[segment.is_cut for segment in segments]] -= format_penalty
    return earned_K


def _leaks_by_decision(
    trace: Trace, leak_by_exchange: Sequence[float]
) -> tuple[np.ndarray, Sequence[float]]:
    """Which decisions asked, and what each of their requests leaked."""
    asked = np.flatnonzero(trace.action_K >= REPLY_ID)
    # An opening request was written by no decision of ours.
    return asked, leak_by_exchange[len(leak_by_exchange) - len(asked) :]


def _assign_one(
    batch: Batch[np.ndarray],
    index: int,
    episode: Episode,
    *,
    leak_by_exchange: Sequence[float],
    advantage: float,
    price: float,
    mean_leak: float,
) -> None:
    trace = episode.trace
    written, count = np.flatnonzero(trace.sampled_S), len(trace.action_K)
    batch.advantage_BN[index, : len(written)] = advantage
    batch.decision_advantage_BK[index, :count] = advantage
    asked, leaks = _leaks_by_decision(trace, leak_by_exchange)
    for k, leak in zip(asked, leaks, strict=True):
        start = int(trace.decided_at_K[k]) + 2
        stop = int(trace.decided_at_K[k + 1]) if k + 1 < count else len(trace.tokens_S)
        first, last = np.searchsorted(written, (start, stop))
        batch.advantage_BN[index, first:last] -= price * (leak - mean_leak)
        batch.decision_advantage_BK[index, k] -= price * leak
