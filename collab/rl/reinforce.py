"""REINFORCE with a leave-one-out baseline."""

from __future__ import annotations

import jax
import numpy as np

from collab.rl import Objective, group_scale


class Reinforce(Objective):
    """On-policy score-function gradient; `clip` is not used. Source: Kool et al. 2019."""

    def advantages(self, reward_PG: np.ndarray, *, standardise: bool) -> np.ndarray:
        samples = reward_PG.shape[1]
        if samples < 2:
            raise ValueError(f"rl.samples={samples} must be at least 2: the baseline is siblings'")
        total_P1 = reward_PG.sum(axis=1, keepdims=True)
        others_PG = (total_P1 - reward_PG) / (samples - 1)
        return (reward_PG - others_PG) * group_scale(reward_PG, standardise=standardise)

    def loss(
        self, logp: jax.Array, sampler_logp: jax.Array, advantage: jax.Array, clip: float
    ) -> jax.Array:
        return -advantage * logp
