"""Teacher-forced reading of a batch: hidden states, and log-probabilities of what was written.

The network reads a few packed rows at a time, the vocabulary a few written tokens at a time. On a
CPU what a chunk needs stays in the cache (experiments/bench/update_packing.py times the step).
Everywhere the logits of all tokens never exist at once.
Chunks that hold nothing are skipped, so that rounding R and M up to a bucket costs memory alone.
Pure code.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from collab.models.policy import Policy
from collab.models.sampling import token_logp
from collab.models.transformer import by_rows
from collab.rl.batch import Batch
from collab.types import Params

# Of each shard, read at once. A chunk is read again backwards, and has a gradient of its own: where
# each layer is, too, fewer chunks take less memory (experiments/bench/memory.py).
CPU_ROWS, CPU_ROWS_OF_LAYERS, ROWS = 4, 16, 128
# Of all tokens that are projected at once: 1 MB of f32 fits a CPU's cache; half a GB elsewhere.
CPU_LOGITS, LOGITS = 2**18, 2**27
LEAST_TOKENS = 64  # projected at once, however large the vocabulary: fewer waste the matmul


def hidden_states(
    policy: Policy, params: Params, batch: Batch[jax.Array], chunk_rows: int = 0
) -> jax.Array:
    """Final hidden states of the packed contexts, [Q, R*S, D].

    chunk_rows: packed rows of a shard that are read at once; 0 = as suits the device.
    """
    Q, R, S = batch.tokens_QRS.shape

    def read(tokens_QrS: jax.Array, positions_QrS: jax.Array) -> jax.Array:
        flat = (x.reshape(-1, S) for x in (tokens_QrS, positions_QrS))
        hidden, _ = policy.apply({"params": params}, *flat)
        return hidden.reshape(*tokens_QrS.shape, -1)

    hidden_QRSD = _in_chunks(
        read,
        (batch.tokens_QRS, batch.positions_QRS),
        is_real_QX=(batch.positions_QRS >= 0).any(axis=-1),
        size=chunk_rows or _rows_at_once(policy),
    )
    return hidden_QRSD.reshape(Q, R * S, -1)


def at_decisions(hidden_QTD: jax.Array, batch: Batch[jax.Array]) -> jax.Array:
    """The hidden states that decisions read, [B, K, D]."""
    B, K = batch.decided_at_BK.shape
    at_QX = batch.decided_at_BK.reshape(len(hidden_QTD), -1)
    return _take(hidden_QTD, at_QX).reshape(B, K, -1)


def written_logp(
    policy: Policy,
    params: Params,
    hidden_QTD: jax.Array,
    batch: Batch[jax.Array],
    is_barred_V: np.ndarray,
    temperature: float,
) -> jax.Array:
    """Log-probability of each written token given those before it, f32 [B, N]; of others 0."""
    B, N = batch.written_at_BN.shape
    Q = len(hidden_QTD)

    def read(at_QM: jax.Array) -> jax.Array:
        token_QM = _take(batch.tokens_QRS.reshape(Q, -1), at_QM)
        logits_QMV = policy.apply(
            {"params": params}, _take(hidden_QTD, at_QM - 1), method=Policy.token_logits
        )
        logits_QMV = by_rows(logits_QMV, policy.config, last=PartitionSpec.UNCONSTRAINED)
        logp_QMV = token_logp(logits_QMV, jnp.asarray(is_barred_V), jnp.float32(temperature))
        return jnp.take_along_axis(logp_QMV, token_QM[..., None], axis=-1)[..., 0]

    with jax.named_scope("token_logp"):
        logp_QM = _in_chunks(
            read,
            (_take(batch.written_at_BN.reshape(Q, -1), batch.written_QM),),
            is_real_QX=batch.written_QM < B // Q * N,
            size=max((CPU_LOGITS if _is_cpu() else LOGITS) // len(is_barred_V), LEAST_TOKENS),
        )
        zero_QX = jnp.zeros((Q, B // Q * N), jnp.float32)
        logp_QX = jax.vmap(lambda to_X, at_M, logp_M: to_X.at[at_M].set(logp_M, mode="drop"))(
            zero_QX, batch.written_QM, logp_QM
        )
        return jnp.where(batch.written_BN, logp_QX.reshape(B, N), 0.0)


def _rows_at_once(policy: Policy) -> int:
    if not _is_cpu():
        return ROWS
    return CPU_ROWS_OF_LAYERS if policy.config.remat else CPU_ROWS


def _is_cpu() -> bool:
    return jax.default_backend() == "cpu"


def _take(from_QT: jax.Array, at_QX: jax.Array) -> jax.Array:
    """Places of each shard's axis 1, [Q, X, ...]; a place past the end is the last."""
    return jax.vmap(lambda from_T, at_X: from_T.at[at_X].get(mode="clip"))(from_QT, at_QX)


def _in_chunks(
    work: Callable[..., jax.Array],
    arrays: tuple[jax.Array, ...],
    *,
    is_real_QX: jax.Array,
    size: int,
) -> jax.Array:
    """`work` on `size` places of axis 1 at a time; 0 for a chunk that is real on no shard.

    work: takes parts of the arrays, which are of integers, and returns an array with the same first
    two axes. What it closes over may have a gradient.
    """
    Q, X = is_real_QX.shape
    if size >= X:
        return work(*arrays)
    count = -(-X // size)

    def split(array: jax.Array) -> jax.Array:
        """[Q, X, ...] to [count, Q, size, ...]."""
        rest = array.shape[2:]
        padding = [(0, 0), (0, count * size - X), *[(0, 0)] * len(rest)]
        return jnp.pad(array, padding).reshape(Q, count, size, *rest).swapaxes(0, 1)

    chunks = tuple(map(split, arrays))
    explicit, read = jax.closure_convert(work, *(chunk[0] for chunk in chunks))
    done = _one_by_one(explicit, split(is_real_QX).any(axis=(1, 2)), chunks, tuple(read))
    return done.swapaxes(0, 1).reshape(Q, count * size, *done.shape[3:])[:, :X]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _one_by_one(
    work: Callable[..., jax.Array],
    is_needed_C: jax.Array,
    chunks: tuple[jax.Array, ...],
    read: tuple[jax.Array, ...],
) -> jax.Array:
    """`work(*chunk, *read)` of each chunk, stacked as these are; 0 where it isn't needed.

    The backward pass does it again, chunk by chunk: what it would else keep of all of them fits no
    cache, and is what was not to exist at once. Of what is read there is one sum of gradients,
    and beside it a chunk's own.
    """

    def one(chunk: tuple[jax.Array, tuple[jax.Array, ...]]) -> jax.Array:
        is_needed, parts = chunk
        made = jax.eval_shape(work, *parts, *read)
        return jax.lax.cond(
            is_needed, work, lambda *_: jnp.zeros(made.shape, made.dtype), *parts, *read
        )

    return jax.lax.map(one, (is_needed_C, chunks))


def _forward(
    work: Callable[..., jax.Array], is_needed_C: jax.Array, chunks: Any, read: Any
) -> tuple[jax.Array, Any]:
    return _one_by_one(work, is_needed_C, chunks, read), (is_needed_C, chunks, read)


def _backward(work: Callable[..., jax.Array], kept: Any, gradient: jax.Array) -> tuple[Any, ...]:
    is_needed_C, chunks, read = kept

    def add(total: Any, parts: Any, gradient: jax.Array) -> Any:
        _, back = jax.vjp(lambda *read: work(*parts, *read), *read)
        return jax.tree.map(jnp.add, total, back(gradient))

    def step(total: Any, chunk: Any) -> tuple[Any, None]:
        is_needed, *rest = chunk
        return jax.lax.cond(is_needed, add, lambda total, *_: total, total, *rest), None

    start = jax.tree.map(jnp.zeros_like, read)
    total, _ = jax.lax.scan(step, start, (is_needed_C, chunks, gradient), reverse=True)
    return None, None, total


_one_by_one.defvjp(_forward, _backward)
