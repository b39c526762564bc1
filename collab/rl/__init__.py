"""Learning: `imitation` (cold start), `update` (the one policy-gradient step), objectives.

An objective is one file with a class and one line of the table below.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, Protocol

import jax
import numpy as np

from collab.metrics import masked_mean

OBJECTIVES = {
    "reinforce": "collab.rl.reinforce:Reinforce",
    "grpo": "collab.rl.grpo:Grpo",
    "dr_grpo": "collab.rl.dr_grpo:DrGrpo",
    "dapo": "collab.rl.dapo:Dapo",
    "ppo": "collab.rl.ppo:Ppo",
}


LEAST_DEVIATION = 0.05  # reward; what advantages are divided by is no smaller


class Objective(Protocol):
    """How rewards become advantages, and log-probabilities a loss.

    has_critic: the value head credits tokens, too, and siblings credit nothing.
    """

    has_critic: bool = False

    def advantages(self, reward_PG: np.ndarray, *, standardise: bool) -> np.ndarray:
        """f32 [P, G]: each sample's reward against its siblings'. G >= 2."""
        ...

    def loss(
        self, logp: jax.Array, sampler_logp: jax.Array, advantage: jax.Array, clip: float
    ) -> jax.Array:
        """Loss of each token or decision, same shape as `logp`, to be averaged under a mask."""
        ...

    def average(
        self, loss_BN: jax.Array, written_BN: jax.Array, weights: Mapping[str, Any]
    ) -> jax.Array:
        """The tokens' loss as one f32 scalar; over all tokens of the batch, unless overridden.

        weights: `config.rl`.
        """
        return masked_mean(loss_BN, written_BN)


def load_objective(name: str) -> Any:
    """The objective of that name. Raises: ValueError with the known names."""
    if name not in OBJECTIVES:
        raise ValueError(f"rl.objective={name!r} is unknown; the table has {', '.join(OBJECTIVES)}")
    module, _, attribute = OBJECTIVES[name].partition(":")
    return getattr(importlib.import_module(module), attribute)()


def group_scale(reward_PG: np.ndarray, *, standardise: bool) -> np.ndarray:
    """1 / deviation of each group, f32 [P, 1]; 1 without standardisation.

    The deviation is floored at 0.05 reward: below it a group's differences are step prices, which
    must not be blown up to the size of right against wrong. Source: our choice.
    """
    if not standardise:
        return np.ones((reward_PG.shape[0], 1), np.float32)
    deviation_P1 = reward_PG.std(axis=1, keepdims=True)
    return (1.0 / np.maximum(deviation_P1, LEAST_DEVIATION)).astype(np.float32)
