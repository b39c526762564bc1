"""The policy's own head."""

from __future__ import annotations

from collections.abc import Sequence

import jax

from collab.strategies import Boundary, LearnedRates, Setting


class Learned:
    """Samples from the help-action head; the only strategy that is trained."""

    mode = "rows"
    is_sampled = False

    def scores(self, boundary: Boundary) -> jax.Array:
        return boundary.head_logits_BA

    def settings(self, kinds: Sequence[int], learned: LearnedRates) -> Sequence[Setting]:
        return [Setting()]
