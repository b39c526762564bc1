"""Episodes as arrays: what the update reads.

B episodes, N tokens that the policy wrote, K decisions, A actions: one row an episode, whatever it
is about. Their contexts are packed, several in a row: Q shards of the batch, R rows of S tokens
each. An episode's context lies in the shard that holds its row, so that no hidden state crosses
from one device to another. `collab.rl.reading` runs the network over the contexts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Generic, TypeVar

import jax
import numpy as np

from collab.rl.packing import pack
from collab.types import Trace

# Few sizes, so that few programs are compiled.
LENGTH_BUCKET = 64  # S is a multiple of this
ROW_SHARES = 8  # R is a number of so many parts of a shard's episodes
WRITTEN_SHARES = 4  # M is a number of so many parts of a shard's tokens


Array = TypeVar("Array", np.ndarray, jax.Array)  # on the host, on the device


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch(Generic[Array]):
    """Right-padded episodes. Host: numpy; on the device: arrays with axis 0 sharded.

    positions_QRS: i32, from 0 on in each episode, -1 where there is none. written_at_BN: i32, where
    the tokens that the policy wrote stand among the R*S of their shard (at least 1), padded with 1;
    written_BN: bool, which of them are real, N = S. written_QM: i32, where the real ones stand
    among the B/Q*N of their shard, padded with that number. decided_at_BK: i32, among the R*S.
    choice_BK: bool, decisions with more than one legal action. decided_BK: bool, decisions that
    were made. reward_BK: what was earned from each of them to the next. Advantages and rewards are
    zero where there is nothing to learn.
    """

    tokens_QRS: Array
    positions_QRS: Array
    written_QM: Array
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


def share(count: int, whole: int, parts: int) -> int:
    """The smallest of `parts` equal parts of `whole`, rounded up, that hold `count`; at least one.

    count: at most `whole`.
    """
    return next(size for p in range(1, parts + 1) if (size := -(-p * whole // parts)) >= count)


def collate(
    traces: Sequence[Trace],
    *,
    rows: int,
    capacity: int,
    decisions: int,
    actions: int,
    features: int,
    shards: int = 1,
) -> Batch[np.ndarray]:
    """Pad traces to `rows` with zero advantages; unused rows hold nothing to learn.

    shards: parts that the rows are split into on the mesh (`sharding.row_parts`).
    Raises: ValueError if a trace is longer than `capacity`, there are more traces than rows, or
    the rows don't divide by the shards.
    """
    if len(traces) > rows:
        raise ValueError(f"{len(traces)} traces do not fit {rows} rows")
    if rows % shards:
        raise ValueError(f"{rows} rows must divide by {shards} shards")
    longest = max((len(trace.tokens_S) for trace in traces), default=1)
    most_decisions = max((len(trace.action_K) for trace in traces), default=0)
    if longest > capacity or most_decisions > decisions:
        raise ValueError(
            f"a trace of {longest} tokens or {most_decisions} decisions does not fit "
            f"{capacity} and {decisions}"
        )
    start_B, (R, S, M) = _arranged(traces, rows // shards, bucket(longest, capacity), shards)
    batch = _empty(
        shards, (R, S, M), rows=rows, decisions=decisions, actions=actions, features=features
    )
    for b, trace in enumerate(traces):
        _write_context(batch, b, trace, int(start_B[b]))
        written, k = np.flatnonzero(trace.sampled_S), len(trace.action_K)
        n = len(written)
        batch.written_at_BN[b, :n] = start_B[b] + written
        batch.written_BN[b, :n] = True
        batch.sampler_logp_BN[b, :n] = trace.logp_S[written]
        batch.decided_at_BK[b, :k] = start_B[b] + trace.decided_at_K
        batch.action_BK[b, :k] = trace.action_K
        batch.sampler_action_logp_BK[b, :k] = trace.action_logp_K
        batch.legal_BKA[b, :k] = trace.legal_KA
        batch.features_BKF[b, :k] = trace.features_KF
        batch.choice_BK[b, :k] = trace.legal_KA.sum(-1) > 1
        batch.decided_BK[b, :k] = True
    for listed_M, written_X in zip(
        batch.written_QM, batch.written_BN.reshape(shards, -1), strict=True
    ):
        places = np.flatnonzero(written_X)
        listed_M[: len(places)] = places
    return batch


def _arranged(
    traces: Sequence[Trace], per_shard: int, row_tokens: int, shards: int
) -> tuple[np.ndarray, tuple[int, int, int]]:
    """Where each trace starts among its shard's tokens, and the sizes R, S, M of all shards."""
    parts = [traces[q * per_shard : (q + 1) * per_shard] for q in range(shards)]
    packed = [pack([len(trace.tokens_S) for trace in part], row_tokens) for part in parts]
    most_rows = max(rows for _, rows in packed)
    most_written = max(sum(int(trace.sampled_S.sum()) for trace in part) for part in parts)
    rows = share(most_rows, per_shard, ROW_SHARES)
    written = share(most_written, rows * row_tokens, WRITTEN_SHARES)
    return np.concatenate([start_E for start_E, _ in packed]), (rows, row_tokens, written)


def _empty(
    shards: int,
    sizes: tuple[int, int, int],
    *,
    rows: int,
    decisions: int,
    actions: int,
    features: int,
) -> Batch[np.ndarray]:
    """A batch of padding. sizes: R, S, M."""
    R, S, M = sizes
    N, K = S, decisions
    return Batch(
        tokens_QRS=np.zeros((shards, R, S), np.int32),
        positions_QRS=np.full((shards, R, S), -1, np.int32),
        written_QM=np.full((shards, M), rows // shards * N, np.int32),
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


def _write_context(batch: Batch[np.ndarray], b: int, trace: Trace, start: int) -> None:
    """The tokens of episode `b` and their positions, from `start` on in its shard."""
    shards = len(batch.tokens_QRS)
    q, s = b * shards // len(batch.written_BN), len(trace.tokens_S)
    batch.tokens_QRS.reshape(shards, -1)[q, start : start + s] = trace.tokens_S
    batch.positions_QRS.reshape(shards, -1)[q, start : start + s] = np.arange(s)
