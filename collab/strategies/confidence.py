"""Ask when a drafted step is unsure: the least likely token's surprise against a threshold."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np

from collab.strategies import Boundary, LearnedRates, Setting, ask_where

SURPRISE = 0  # index of max_nll in rollout.state.FEATURES


class StepCascade:
    """Request when max_nll of the draft exceeds a threshold tuned on a fine grid.

    Source: cascades (FrugalGPT, Chen et al. 2023), applied per step.
    """

    mode = "rows"
    is_sampled = False

    def scores(self, boundary: Boundary) -> jax.Array:
        is_unsure_B = boundary.features_BF[:, SURPRISE] > boundary.threshold_B
        is_asked_B = boundary.is_drafted_B & ~boundary.is_draft_local_B & is_unsure_B
        return ask_where(boundary, is_asked_B)

    def settings(self, kinds: Sequence[int], learned: LearnedRates) -> Sequence[Setting]:
        grid = [-1.0, *np.geomspace(1e-3, 3.9, 13)]  # nats; -1 asks always
        return [Setting(kind, float(threshold)) for kind in kinds for threshold in grid]
