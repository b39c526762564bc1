"""Reward of an episode: quality, efficiency gated by quality, leakage, format. Every term is named.

    R = Q * (1 - c_turn*turns - c_think*thinks - c_usd*usd/usd_ref - c_token*tokens/token_ref)
        - c_leak*leak - c_format*cut

With `reward.gated` off, the shares of the bracket are taken off whatever the quality: an ablation.
Efficiency is gated by correctness: ungated and standardised per group, the price of asking is the
only variance of an all-wrong group and drives the policy to never ask. Privacy and format are not
gated. Text of the notes leaks only where it is a labelled private unit, whether or not it is the
answer; the answer itself goes to the user and leaks nothing. How rewards become advantages is in
`collab.rl`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from collab.privacy.detector import Detector
from collab.tasks.grading import exact_match, f1
from collab.types import REPLY, THINK, Episode, Status


@dataclasses.dataclass(frozen=True)
class Terms:
    """All parts of one episode's reward.

    asks: help requests. turns: exchanges, answers to the helper's questions among them.
    leak: share of the private units that left, weighted by sensitivity, in [0, 1]; by the detector
    or, where the episode was judged, by the judge.
    leak_by_exchange: the same by request, in order; a unit counts once, at the first request that
    gave it away by either.
    """

    em: float
    f1: float
    quality: float
    asks: int
    turns: int
    thinks: int
    usd: float
    tokens: int
    cut: int
    leaked_units: int
    leak: float
    leak_by_exchange: tuple[float, ...]
    efficiency: float  # share of Q that is left, may be below 0
    task: float  # Q * efficiency; Q - (1 - efficiency) where that is not gated
    reward: float


def score(episode: Episode, weights: Mapping[str, Any]) -> Terms:
    """Grade an episode. weights: `config.reward`."""
    problem = episode.problem
    is_answered = episode.status is Status.ANSWERED
    em = exact_match(episode.answer, problem.answers) if is_answered else 0.0
    overlap = f1(episode.answer, problem.answers) if is_answered else 0.0
    quality = em if weights["quality"] == "em" else overlap
    feedback = [exchange.feedback for exchange in episode.exchanges]
    asks = sum(exchange.kind != REPLY for exchange in episode.exchanges)
    turns = len(feedback)
    thinks = sum(segment.action == THINK for segment in episode.segments)
    usd = sum(reply.cost_usd for reply in feedback)
    tokens = sum(reply.prompt_tokens + reply.completion_tokens for reply in feedback)
    cut = sum(segment.is_cut for segment in episode.segments)
    efficiency = (
        1.0
        - weights["turn"] * turns
        - weights["think"] * thinks
        - weights["usd"] * usd / weights["usd_reference"]
        - weights["token"] * tokens / weights["token_reference"]
    )
    by_exchange, leaked_units = _leaks(episode)
    leak = sum(by_exchange)
    task = quality * efficiency if weights["gated"] else quality - (1.0 - efficiency)
    return Terms(
        em=em,
        f1=overlap,
        quality=quality,
        asks=asks,
        turns=turns,
        thinks=thinks,
        usd=usd,
        tokens=tokens,
        cut=cut,
        leaked_units=leaked_units,
        leak=leak,
        leak_by_exchange=by_exchange,
        efficiency=efficiency,
        task=task,
        reward=task - weights["leak"] * leak - weights["format"] * cut,
    )


def _leaks(episode: Episode) -> tuple[tuple[float, ...], int]:
    """Share leaked by each exchange, and the number of units that left."""
    units = episode.problem.units
    if not units or not episode.outgoing:
        return (0.0,) * len(episode.outgoing), 0
    weight = np.array([unit.sensitivity for unit in units], np.float64)
    weight = weight / weight.sum() if weight.any() else weight  # where nothing weighs, 0 is lost
    found = Detector(units).leaked_by_request(episode.outgoing)
    judged = (None,) * len(found) if episode.judged is None else episode.judged
    left: set[int] = set()
    shares = []
    for by_match, by_judge in zip(found, judged, strict=True):
        new = (by_match | (by_judge or frozenset())) - left
        left |= new
        shares.append(float(sum(weight[unit] for unit in sorted(new))))
    return tuple(shares), len(left)
