"""Decoupled clip: more room to make likely what was unlikely."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from collab.rl.grpo import Grpo

RAISE = 1.4  # upper over lower clip: 0.28 / 0.2 in the paper


class Dapo(Grpo):
    """GRPO whose ratio is clipped at 1 - clip and 1 + 1.4 * clip; tokens of a batch weigh alike.

    Two parts of the paper's algorithm are not here. Groups whose rewards agree are not replaced by
    new ones (dynamic sampling): they teach nothing, as in GRPO. Long episodes are not priced anew:
    `reward.format` charges each cut segment. It has no KL either; here `rl.kl_weight` says.
    Source: Yu et al. 2025, arXiv 2503.14476.
    """

    def loss(
        self, logp: jax.Array, sampler_logp: jax.Array, advantage: jax.Array, clip: float
    ) -> jax.Array:
        ratio = jnp.exp(logp - sampler_logp)
        clipped = jnp.clip(ratio, 1.0 - clip, 1.0 + RAISE * clip)
        return -jnp.minimum(ratio * advantage, clipped * advantage)
