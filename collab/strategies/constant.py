"""Fixed action rules: never ask, ask about every hop, hand over the chain; and the best of them.

A draft that was read from the private notes is never asked about: no helper could know.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax

from collab.strategies import Boundary, LearnedRates, Setting, ask_where, without_requests


class Never:
    """The SLM alone: chain of thought."""

    mode = "rows"
    is_sampled = False

    def scores(self, boundary: Boundary) -> jax.Array:
        return without_requests(boundary)

    def settings(self, kinds: Sequence[int], learned: LearnedRates) -> Sequence[Setting]:
        return [Setting()]


class EveryHop:
    """Ask about every drafted step, with the best of the request kinds that are about one step."""

    mode = "rows"
    is_sampled = False

    def scores(self, boundary: Boundary) -> jax.Array:
        return ask_where(boundary, boundary.is_drafted_B & ~boundary.is_draft_local_B)

    def settings(self, kinds: Sequence[int], learned: LearnedRates) -> Sequence[Setting]:
        return [Setting(kind=kind) for kind in kinds[:-1] or kinds]


class Chain(EveryHop):
    """Hand over all that remains at every drafted step, with the last request kind."""

    def settings(self, kinds: Sequence[int], learned: LearnedRates) -> Sequence[Setting]:
        return [Setting(kind=kinds[-1])]


def constant_rules(kinds: Sequence[int]) -> list[Setting]:
    """Settings of `BestConstant`: never to ask, and to ask about every draft with each kind."""
    return [Setting(threshold=1.0), *(Setting(kind=kind) for kind in kinds)]


class BestConstant(EveryHop):
    """The fixed rule with the highest reward on the validation split.

    threshold > 0 stands for never asking; otherwise every draft is asked about with `kind`.
    """

    def scores(self, boundary: Boundary) -> jax.Array:
        is_asking_B = boundary.is_drafted_B & ~boundary.is_draft_local_B
        return ask_where(boundary, is_asking_B & (boundary.threshold_B <= 0.0))

    def settings(self, kinds: Sequence[int], learned: LearnedRates) -> Sequence[Setting]:
        return constant_rules(kinds)
