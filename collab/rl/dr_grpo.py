"""GRPO without its two divisors: the group's deviation and the length."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from collab.rl.grpo import Grpo


class DrGrpo(Grpo):
    """GRPO whose token losses are summed over an episode and divided by a constant.

    So a token weighs the same however long its episode and its batch are. Decisions are averaged as
    ever: the mean over a batch's decisions holds no length of an episode. `rl.standardise` must be
    off, which `collab.rules` sees to. Source: Liu et al. 2025, arXiv 2503.20783.
    """

    def average(
        self, loss_BN: jax.Array, written_BN: jax.Array, weights: Mapping[str, Any]
    ) -> jax.Array:
        """Sum over all tokens / (B * `rl.episode_tokens`); an empty row counts as an episode."""
        total = jnp.sum(jnp.where(written_BN, loss_BN, 0.0))
        return total / (loss_BN.shape[0] * weights["episode_tokens"])
