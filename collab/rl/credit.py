"""Who is credited: from the rewards of a group of episodes to an advantage per token and decision.

The task part of the reward (quality and its efficiency) goes to the whole episode. A leak goes to
the request that completed it: to the tokens of that request against the mean request of the group,
and to the decision that opened it against not asking at all.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from collab.rewards import Terms
from collab.rl import Objective, group_scale
from collab.rl.batch import Batch
from collab.types import REPLY_ID, Episode, Status


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
    """Write the advantages of P*G episodes (group after group) into `batch`, in place.

    Returns the share of groups without any variance, which teach nothing.
    """
    usable = np.array([is_trainable(episode) for episode in episodes]).reshape(-1, samples)
    reward_PG = _fill(np.array([term.reward for term in terms]).reshape(-1, samples), usable)
    leak_PG = _fill(np.array([term.leak for term in terms]).reshape(-1, samples), usable)
    task_PG = reward_PG + leak_weight * leak_PG
    scale_P1 = group_scale(reward_PG, standardise=standardise)
    # One scale for both parts, so that their ratio stays the reward's.
    advantage_PG = objective.advantages(task_PG, standardise=False) * scale_P1
    for index, (episode, term) in enumerate(zip(episodes, terms, strict=True)):
        group, sample = divmod(index, samples)
        if not usable[group, sample]:
            batch.written_BN[index], batch.choice_BK[index] = False, False
            continue
        first = group * samples
        siblings = terms[first : first + samples]
        requests = [share for sibling in siblings for share in sibling.leak_by_exchange]
        _assign_one(
            batch,
            index,
            episode,
            leak_by_exchange=term.leak_by_exchange,
            advantage=float(advantage_PG[group, sample]),
            price=float(leak_weight * scale_P1[group, 0]),
            mean_leak=float(np.mean(requests)) if requests else 0.0,
        )
    flat_P = (task_PG.std(axis=1) < 1e-6) & (leak_PG.max(axis=1) < 1e-6)
    return {"zero_variance_groups": float(flat_P.mean())}


def _fill(value_PG: np.ndarray, usable_PG: np.ndarray) -> np.ndarray:
    """Replace what is not usable by the mean of its usable siblings: advantage zero for it."""
    count_P1 = np.maximum(usable_PG.sum(axis=1, keepdims=True), 1)
    mean_P1 = np.where(usable_PG, value_PG, 0.0).sum(axis=1, keepdims=True) / count_P1
    return np.where(usable_PG, value_PG, mean_P1)


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
    # An opening request was written by no decision of ours.
    asked = np.flatnonzero(trace.action_K >= REPLY_ID)
    leaks = leak_by_exchange[len(leak_by_exchange) - len(asked) :]
    for k, leak in zip(asked, leaks, strict=True):
        start = int(trace.decided_at_K[k]) + 2
        stop = int(trace.decided_at_K[k + 1]) if k + 1 < count else len(trace.tokens_S)
        first, last = np.searchsorted(written, (start, stop))
        batch.advantage_BN[index, first:last] -= price * (leak - mean_leak)
        batch.decision_advantage_BK[index, k] -= price * leak
