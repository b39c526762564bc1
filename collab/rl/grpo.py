"""Group-relative policy optimisation."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from collab.rl import Objective, group_scale


class Grpo(Objective):
    """Rewards centred on their group, clipped ratio to the sampler.

    Source: Shao et al. 2024, who average the tokens of each episode first; here all tokens of a
    batch weigh alike.
    """

    def advantages(self, reward_PG: np.ndarray, *, standardise: bool) -> np.ndarray:
        samples = reward_PG.shape[1]
        if samples < 2:
            raise ValueError(f"rl.samples={samples} must be at least 2: a group is compared")
        centred_PG = reward_PG - reward_PG.mean(axis=1, keepdims=True)
        return centred_PG * group_scale(reward_PG, standardise=standardise)

    def loss(
        self, logp: jax.Array, sampler_logp: jax.Array, advantage: jax.Array, clip: float
    ) -> jax.Array:
        ratio = jnp.exp(logp - sampler_logp)
        clipped = jnp.clip(ratio, 1.0 - clip, 1.0 + clip)
        return -jnp.minimum(ratio * advantage, clipped * advantage)
