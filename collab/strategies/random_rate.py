"""Ask at random, as often as the learned policy does."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from collab.strategies import Boundary, LearnedRates, Setting, ask_where, without_requests


class RandomRate:
    """After each draft, request with the probability at which the learned policy asks."""

    mode = "rows"
    is_sampled = True

    def scores(self, boundary: Boundary) -> jax.Array:
        is_open_B = boundary.is_drafted_B & ~boundary.is_draft_local_B
        asking_BA = ask_where(boundary, is_open_B)
        rate_B = jnp.where(is_open_B, jnp.clip(boundary.threshold_B, 0.0, 1.0), 0.0)[:, None]
        best_BA = jnp.where(
            without_requests(boundary) >= without_requests(boundary).max(-1, keepdims=True),
            0,
            -1e30,
        )
        return jnp.logaddexp(jnp.log(rate_B) + asking_BA, jnp.log1p(-rate_B) + best_BA)

    def settings(self, kinds: Sequence[int], learned: LearnedRates) -> Sequence[Setting]:
        return [Setting(learned.kind, learned.asks_per_draft)]
