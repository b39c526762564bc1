"""Ask exactly when needed: the bound that no policy without the answers can pass."""

from __future__ import annotations

from collections.abc import Sequence

import jax

from collab.strategies import Boundary, LearnedRates, Setting, ask_where


class Oracle:
    """Request if and only if the drafted step is false; it is told the true statements."""

    mode = "rows"
    is_sampled = False

    def scores(self, boundary: Boundary) -> jax.Array:
        return ask_where(boundary, boundary.is_drafted_B & ~boundary.is_draft_true_B)

    def settings(self, kinds: Sequence[int], learned: LearnedRates) -> Sequence[Setting]:
        return [Setting(kind) for kind in kinds]
