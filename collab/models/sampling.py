"""Drawing tokens and actions: the sampler's log-probabilities, row keys and the inverse CDF.

One uniform a draw, and it depends on the row's key and the position alone. Pure code; when
something is drawn is decided in `collab.rollout.decode` and `collab.models.generate`.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

CDF_BLOCK = 64  # divides every tokenizer's size


def token_logp(logits_V: jax.Array, is_barred_V: jax.Array, temperature: jax.Array) -> jax.Array:
    """Log-probabilities [..., V] that the sampler draws from, and that the trainer must match.

    temperature: above 0.
    """
    return jax.nn.log_softmax(jnp.where(is_barred_V, -1e30, logits_V / temperature), axis=-1)


def row_key(identity_I: jax.Array) -> jax.Array:
    """Raw key of a row from (seed, problem, sample)."""
    key = jax.random.key(0)
    for index in range(identity_I.shape[0]):
        key = jax.random.fold_in(key, identity_I[index])
    return jax.random.key_data(key)


def two_uniforms(key_U: jax.Array, position: jax.Array) -> jax.Array:
    """Two uniforms in (0, 1] for this position: one to decide, one to write."""
    key = jax.random.fold_in(jax.random.wrap_key_data(key_U), position)
    return 1.0 - jax.random.uniform(key, (2,))


def inverse_cdf(logp_BN: jax.Array, uniform_B: jax.Array) -> jax.Array:
    """Index sampled with one uniform in (0, 1] a row; never one of probability 0.

    In two levels, a block and a place in it: XLA's CPU cumsum over a whole vocabulary costs as
    much as all else that sampling does (measured).
    """
    B, N = logp_BN.shape
    block = math.gcd(N, CDF_BLOCK)
    p_BJI = jnp.exp(logp_BN).reshape(B, N // block, block)
    first_B, left_B = _pick(p_BJI.sum(axis=-1), uniform_B * p_BJI.sum(axis=(1, 2)))
    p_BI = jnp.take_along_axis(p_BJI, first_B[:, None, None], axis=1)[:, 0]
    place_B, _ = _pick(p_BI, left_B)
    return first_B * block + place_B


def _pick(p_BN: jax.Array, target_B: jax.Array) -> tuple[jax.Array, jax.Array]:
    """First index whose running sum reaches the target, and what of it falls to that index.

    Rounding can take a target past the end, or down to where only zeros have gone before: it stays
    within the sums of the indices that are possible, and only those are picked.
    """
    cdf_BN = jnp.cumsum(p_BN, axis=-1)
    possible_BN = jnp.where(p_BN > 0.0, cdf_BN, 0.0)
    target_B = jnp.minimum(target_B, possible_BN.max(axis=-1))
    index_B = jnp.argmax((p_BN > 0.0) & (cdf_BN >= target_B[:, None]), axis=-1).astype(jnp.int32)
    row_B = jnp.arange(p_BN.shape[0])
    return index_B, target_B - (cdf_BN[row_B, index_B] - p_BN[row_B, index_B])
