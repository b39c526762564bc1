"""The policy's own head."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from collab.strategies import Boundary, LearnedRates, Setting
from collab.types import FIRST_REQUEST_ID


class Learned:
    """Samples from the help-action head; the only strategy that is trained.

    Its threshold is a bias in nats on the logits of requests: 0 = as trained, above 0 it asks more.
    """

    mode = "rows"
    is_sampled = False

    def scores(self, boundary: Boundary) -> jax.Array:
        is_request_A = jnp.arange(boundary.head_logits_BA.shape[-1]) >= FIRST_REQUEST_ID
        bias_BA = jnp.where(is_request_A, boundary.threshold_B[:, None], 0.0)
        return boundary.head_logits_BA + bias_BA

    def settings(self, kinds: Sequence[int], learned: LearnedRates) -> Sequence[Setting]:
        return [Setting(threshold=learned.ask_bias)]
