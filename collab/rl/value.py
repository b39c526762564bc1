"""Credit by the value head: what was earned from a decision on, less what was expected there.

A decision and the segment that it opens are one step of the episode. Nothing is discounted: an
episode has at most `rollout.max_segments` steps. Pure code; the rewards of the steps come from
`collab.rl.credit`, the values from the policy's head.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from collab.metrics import masked_mean
from collab.rl import LEAST_DEVIATION
from collab.rl.batch import Batch


def estimate(
    reward_BK: jax.Array, value_BK: jax.Array, decided_BK: jax.Array, gae_lambda: float
) -> jax.Array:
    """Generalised advantage estimates f32 [B, K], 0 where nothing was decided.

    gae_lambda: 1 = all that was earned from the decision on, less its value; 0 = one step, then the
    next decision's value. Source: Schulman et al. 2016, equation 16, without discount.
    """
    value_BK = jnp.where(decided_BK, value_BK, 0.0)
    next_BK = jnp.pad(value_BK[:, 1:], ((0, 0), (0, 1)))
    error_BK = jnp.where(decided_BK, reward_BK + next_BK - value_BK, 0.0)
    steps_KK = jnp.arange(reward_BK.shape[1]) - jnp.arange(reward_BK.shape[1])[:, None]
    weight_KK = jnp.where(steps_KK >= 0, gae_lambda ** jnp.maximum(steps_KK, 0), 0.0)
    return jnp.where(decided_BK, jnp.einsum("bj,kj->bk", error_BK, weight_KK), 0.0)


def credited(
    batch: Batch[jax.Array], value_BK: jax.Array, weights: Mapping[str, Any]
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Advantages of all decisions [B, K], as constants; the value head's loss and its figures.

    The advantages are centred on the batch's mean: the head starts at zero, and a constant takes
    nothing from the gradient. With `rl.standardise` they are divided by the batch's deviation, not
    the group's: that may be 0 where a decision earned far from what was expected. Source: our
    choice. weights: `config.rl`. With several updates a batch, each reads the head anew.
    """
    decided_BK = batch.decided_BK
    advantage_BK = estimate(batch.reward_BK, value_BK, decided_BK, weights["gae_lambda"])
    advantage_BK, target_BK = jax.lax.stop_gradient((advantage_BK, advantage_BK + value_BK))
    spread, left = (_variance(x_BK, decided_BK) for x_BK in (target_BK, advantage_BK))
    deviation = jnp.maximum(jnp.sqrt(left), LEAST_DEVIATION)
    scale = jnp.where(weights["standardise"], 1.0 / deviation, 1.0)
    centred_BK = scale * (advantage_BK - masked_mean(advantage_BK, decided_BK))
    return jnp.where(decided_BK, centred_BK, 0.0), {
        "value_loss": masked_mean((value_BK - target_BK) ** 2, decided_BK),
        "value_explained": jnp.where(spread > 1e-6, 1.0 - left / jnp.maximum(spread, 1e-6), 0.0),
    }


def of_tokens(advantage_BK: jax.Array, batch: Batch[jax.Array]) -> jax.Array:
    """For each written token the advantage of the decision that its segment follows, [B, N]."""
    is_earlier_BNK = batch.decided_at_BK[:, None, :] < batch.written_at_BN[:, :, None]
    is_earlier_BNK &= batch.decided_BK[:, None, :]
    latest_BN = jnp.maximum(is_earlier_BNK.sum(axis=-1) - 1, 0)
    return jnp.take_along_axis(advantage_BK, latest_BN, axis=1)


def _variance(x_BK: jax.Array, mask_BK: jax.Array) -> jax.Array:
    return masked_mean((x_BK - masked_mean(x_BK, mask_BK)) ** 2, mask_BK)
