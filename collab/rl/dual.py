"""A target ask rate by dual ascent: what a turn costs is moved until help is asked for so often.

"The best quality at so many asks an episode" has a Lagrange multiplier: a surcharge on the price of
a turn, raised after each batch that asked more than the target and lowered after one that asked
less. It may be negative, for the rate is to be met and not only kept below, but never makes a turn
cheaper than free: paid for asking, a policy would ask about what it knows. What is learned from is
priced so; metrics, the best checkpoint and the evaluation stay at `reward.turn`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from collab.rewards import Terms
from collab.rl.credit import is_trainable
from collab.types import Episode


def priced(weights: Mapping[str, Any], multiplier: float) -> dict[str, Any]:
    """`config.reward` with the multiplier added to the price of a turn."""
    return {**weights, "turn": weights["turn"] + multiplier}


def next_multiplier(
    multiplier: float,
    episodes: Sequence[Episode],
    terms: Sequence[Terms],
    *,
    target: float,
    rate: float,
    turn_price: float,
) -> float:
    """The multiplier after a batch, at least -turn_price; the same after one that teaches nothing.

    multiplier, turn_price: share of Q a turn. target: asks an episode. rate: what an ask too many
    adds to the multiplier.
    Source: Arrow, Hurwicz & Uzawa 1958; one gradient step on the dual a batch.
    """
    asks = [
        term.asks for episode, term in zip(episodes, terms, strict=True) if is_trainable(episode)
    ]
    if not asks:
        return multiplier
    return max(-turn_price, multiplier + rate * (sum(asks) / len(asks) - target))
