"""Ask when a drafted step is unsure: the least likely token's surprise against a threshold."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np

from collab.strategies import Boundary, LearnedRates, Setting, ask_where

SURPRISE = 0  # index of max_nll in types.FEATURES
STEPS = 20  # of the grid, each with as many drafts of the validation split


class StepCascade:
    """Request when max_nll of the draft exceeds a threshold, tuned over the quantiles that occur.

    Source: cascades (FrugalGPT, Chen et al. 2023), applied per step.
    """

    mode = "rows"
    is_sampled = False

    def scores(self, boundary: Boundary) -> jax.Array:
        is_unsure_B = boundary.features_BF[:, SURPRISE] > boundary.threshold_B
        is_asked_B = boundary.is_drafted_B & ~boundary.is_draft_local_B & is_unsure_B
        return ask_where(boundary, is_asked_B)

    def settings(self, kinds: Sequence[int], learned: LearnedRates) -> Sequence[Setting]:
        quantiles = np.quantile(learned.surprises or (0.0,), np.linspace(0.0, 1.0, STEPS))
        grid = [-1.0, *np.unique(quantiles)]  # nats; -1 asks always, the last never
        return [Setting(kind, float(threshold)) for kind in kinds for threshold in grid]

    def reach(self, threshold: float, features_KF: np.ndarray) -> tuple[float, float]:
        at = np.float32(threshold)  # as the decode loop compares it
        surprise_K = features_KF[:, SURPRISE]
        low = surprise_K[surprise_K <= at].max(initial=-np.inf)
        high = surprise_K[surprise_K > at].min(initial=np.inf)
        return float(low), float(high)
