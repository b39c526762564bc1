"""Episodes as arrays: what the update reads.

B episodes, S tokens of the context, N tokens that the policy wrote, K decisions, A actions. Only
the written tokens need logits, and they are a fifth of a context.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Generic, TypeVar

import jax
import numpy as np

from collab.types import Trace

LENGTH_BUCKET = 64  # S and N are multiples of this, so that few programs are compiled


Array = TypeVar("Array", np.ndarray, jax.Array)  # on the host, on the device


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch(Generic[Array]):
    """Right-padded episodes. Host: numpy; on the device: arrays with the rows sharded.

    written_at_BN: i32, positions of the tokens that the policy wrote (at least 1), padded with 1;
    written_BN: bool, which of them are real. choice_BK: bool, decisions with more than one legal
    action. decided_BK: bool, decisions that were made. reward_BK: what was earned from each of them
    to the next. Advantages and rewards are zero where there is nothing to learn.
    """

    tokens_BS: Array
    written_at_BN: Array
    written_BN: Array
    sampler_logp_BN: Array
    advantage_BN: Array
    decided_at_BK: Array
    action_BK: Array
    sampler_action_logp_BK: Array
    legal_BKA: Array
    features_BKF: Array
    choice_BK: Array
    decision_advantage_BK: Array
    decided_BK: Array
    reward_BK: Array


def bucket(count: int, limit: int) -> int:
    """`count` rounded up to the bucket, at most `limit`."""
    return min(-(-max(count, 1) // LENGTH_BUCKET) * LENGTH_BUCKET, limit)


def collate(
    traces: Sequence[Trace],
    *,
    rows: int,
    capacity: int,
    decisions: int,
    actions: int,
    features: int,
) -> Batch[np.ndarray]:
    """Pad traces to `rows` with zero advantages; unused rows hold nothing to learn.

    Raises: ValueError if a trace is longer than `capacity` or there are more traces than rows.
    """
    if len(traces) > rows:
        raise ValueError(f"{len(traces)} traces do not fit {rows} rows")
    longest = max((len(trace.tokens_S) for trace in traces), default=1)
    most_decisions = max((len(trace.action_K) for trace in traces), default=0)
    if longest > capacity or most_decisions > decisions:
        raise ValueError(
            f"a trace of {longest} tokens or {most_decisions} decisions does not fit "
            f"{capacity} and {decisions}"
        )
    most_written = max((int(trace.sampled_S.sum()) for trace in traces), default=1)
    S, N, K = bucket(longest, capacity), bucket(most_written, capacity), decisions
    batch = Batch(
        tokens_BS=np.zeros((rows, S), np.int32),
        written_at_BN=np.ones((rows, N), np.int32),
        written_BN=np.zeros((rows, N), bool),
        sampler_logp_BN=np.zeros((rows, N), np.float32),
        advantage_BN=np.zeros((rows, N), np.float32),
        decided_at_BK=np.zeros((rows, K), np.int32),
        action_BK=np.zeros((rows, K), np.int32),
        sampler_action_logp_BK=np.zeros((rows, K), np.float32),
        legal_BKA=np.ones((rows, K, actions), bool),
        features_BKF=np.zeros((rows, K, features), np.float32),
        choice_BK=np.zeros((rows, K), bool),
        decision_advantage_BK=np.zeros((rows, K), np.float32),
        decided_BK=np.zeros((rows, K), bool),
        reward_BK=np.zeros((rows, K), np.float32),
    )
    for b, trace in enumerate(traces):
        s, k = len(trace.tokens_S), len(trace.action_K)
        written = np.flatnonzero(trace.sampled_S)
        n = len(written)
        batch.tokens_BS[b, :s] = trace.tokens_S
        batch.written_at_BN[b, :n], batch.written_BN[b, :n] = written, True
        batch.sampler_logp_BN[b, :n] = trace.logp_S[written]
        batch.decided_at_BK[b, :k] = trace.decided_at_K
        batch.action_BK[b, :k] = trace.action_K
        batch.sampler_action_logp_BK[b, :k] = trace.action_logp_K
        batch.legal_BKA[b, :k] = trace.legal_KA
        batch.features_BKF[b, :k] = trace.features_KF
        batch.choice_BK[b, :k] = trace.legal_KA.sum(-1) > 1
        batch.decided_BK[b, :k] = True
    return batch
