"""Episodes as arrays: what the update reads. B episodes, S tokens, K decisions, A actions."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from collab.types import Trace

LENGTH_BUCKET = 64  # S is a multiple of this, so that few programs are compiled


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """Right-padded episodes. Host: numpy; on the device: arrays with the rows sharded.

    policy_BS: bool, tokens that the policy wrote and is trained on. choice_BK: bool, decisions with
    more than one legal action. Advantages are zero where there is nothing to learn.
    """

    tokens_BS: jax.Array
    policy_BS: jax.Array
    sampler_logp_BS: jax.Array
    advantage_BS: jax.Array
    decided_at_BK: jax.Array
    action_BK: jax.Array
    sampler_action_logp_BK: jax.Array
    legal_BKA: jax.Array
    features_BKF: jax.Array
    choice_BK: jax.Array
    decision_advantage_BK: jax.Array


def bucket_length(traces: Sequence[Trace], capacity: int) -> int:
    """S for these traces: their longest, rounded up to the bucket, at most the capacity."""
    longest = max((len(trace.tokens_S) for trace in traces), default=1)
    return min(-(-max(longest, 1) // LENGTH_BUCKET) * LENGTH_BUCKET, capacity)


def collate(
    traces: Sequence[Trace], *, rows: int, length: int, decisions: int, actions: int, features: int
) -> Batch:
    """Pad traces to `rows` x `length` with zero advantages; unused rows hold nothing to learn.

    Raises: ValueError if a trace is longer than `length` or there are more traces than rows.
    """
    if len(traces) > rows:
        raise ValueError(f"{len(traces)} traces do not fit {rows} rows")
    batch = Batch(
        tokens_BS=np.zeros((rows, length), np.int32),
        policy_BS=np.zeros((rows, length), bool),
        sampler_logp_BS=np.zeros((rows, length), np.float32),
        advantage_BS=np.zeros((rows, length), np.float32),
        decided_at_BK=np.zeros((rows, decisions), np.int32),
        action_BK=np.zeros((rows, decisions), np.int32),
        sampler_action_logp_BK=np.zeros((rows, decisions), np.float32),
        legal_BKA=np.ones((rows, decisions, actions), bool),
        features_BKF=np.zeros((rows, decisions, features), np.float32),
        choice_BK=np.zeros((rows, decisions), bool),
        decision_advantage_BK=np.zeros((rows, decisions), np.float32),
    )
    for b, trace in enumerate(traces):
        S, K = len(trace.tokens_S), len(trace.action_K)
        if S > length or K > decisions:
            raise ValueError(
                f"a trace of {S} tokens and {K} decisions does not fit {length} and {decisions}"
            )
        batch.tokens_BS[b, :S] = trace.tokens_S
        batch.policy_BS[b, :S] = trace.sampled_S
        batch.sampler_logp_BS[b, :S] = trace.logp_S
        batch.decided_at_BK[b, :K] = trace.decided_at_K
        batch.action_BK[b, :K] = trace.action_K
        batch.sampler_action_logp_BK[b, :K] = trace.action_logp_K
        batch.legal_BKA[b, :K] = trace.legal_KA
        batch.features_BKF[b, :K] = trace.features_KF
        batch.choice_BK[b, :K] = trace.legal_KA.sum(-1) > 1
    return batch
