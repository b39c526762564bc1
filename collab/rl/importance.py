"""Truncated importance weights, for what other weights sampled than those that are trained.

    weight = min(pi_newest / pi_sampler, limit), a constant;  loss = weight * loss at ratio 1

Those were older (`rollout.max_staleness`) or rounded (`rollout.weights`).
pi_newest is the policy at the start of the update, so that the gradient is that of the newest
policy as long as the limit does not bind; beyond it the weight has less variance and some bias. The
sampler's log-probabilities were recorded as each token and decision was drawn. Pure code.

Source: Espeholt et al. 2018 (IMPALA), whose weights of the policy gradient are truncated step by
step; the limit of 2 is our choice, and common.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from collab.metrics import masked_mean
from collab.rl import Objective


def corrected(
    objective: Objective,
    logp: jax.Array,
    sampler_logp: jax.Array,
    advantage: jax.Array,
    *,
    clip: float,
    limit: float,
) -> jax.Array:
    """The objective's loss of each token or decision, weighted. limit: 0 = no correction."""
    if not limit:
        return objective.loss(logp, sampler_logp, advantage, clip)
    newest = jax.lax.stop_gradient(logp)
    weight = jnp.minimum(jnp.exp(newest - sampler_logp), limit)
    return weight * objective.loss(logp, newest, advantage, clip)


def figures(
    name: str, logp: jax.Array, sampler_logp: jax.Array, mask: jax.Array, *, limit: float
) -> dict[str, jax.Array]:
    """Mean and largest ratio of newest to sampler where `mask` holds, and the share above `limit`.

    Nothing where limit is 0.
    """
    if not limit:
        return {}
    ratio = jnp.where(mask, jnp.exp(logp - sampler_logp), 0.0)
    return {
        f"importance/{name}_mean": masked_mean(ratio, mask),
        f"importance/{name}_max": jnp.max(ratio),
        f"importance/{name}_truncated": masked_mean(ratio > limit, mask),
    }
