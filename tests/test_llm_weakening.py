"""Replies that are lost, cut short or falsified: how often, and what stays of them."""

from __future__ import annotations

import dataclasses

import ml_collections
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from collab.llm.weakening import DROPPED, Weakening, first_half
from collab.types import Feedback, FeedbackKind, Resolution, Step

TOLD = "director of Star Fall = Kano Bel ; home of Kano Bel = Tir"
REPLY = Feedback(FeedbackKind.ANSWER, TOLD, 100, 20, cost_usd=0.01, helper="big")
NEVER = {"drop": 0.0, "shorten": 0.0, "wrong": 0.0}


class Knowledge:
    """Two facts; whatever is wrong is "Ana Ruz"."""

    def resolve(self, text: str) -> Resolution | None:
        known = {"director of Star Fall": "Kano Bel", "home of Kano Bel": "Tir"}
        return Resolution((Step(text, known[text]),)) if text in known else None

    def wrong_answer(self, step: Step, rng: np.random.Generator) -> str:
        return "Ana Ruz"


def weakening(**shares: float) -> Weakening:
    made = Weakening.from_config({**NEVER, **shares}, Knowledge())
    assert made is not None
    return made


def applied(made: Weakening, reply: Feedback = REPLY, seed: int = 0, request: str = "") -> Feedback:
    return made.apply(reply, request, np.random.default_rng(seed))


def test_nothing_is_made_where_nothing_is_weakened(tiny_config: ml_collections.ConfigDict) -> None:
    assert Weakening.from_config(tiny_config.llm.weaken, Knowledge()) is None


def test_a_dropped_reply_is_unavailable_and_still_paid_for() -> None:
    lost = applied(weakening(drop=1.0))
    assert (lost.kind, lost.text, lost.failure) == (FeedbackKind.UNAVAILABLE, "", DROPPED)
    assert (lost.cost_usd, lost.prompt_tokens, lost.completion_tokens) == (0.01, 100, 20)


def test_a_short_reply_keeps_its_first_statements_or_words() -> None:
    assert applied(weakening(shorten=1.0)).text == "director of Star Fall = Kano Bel"
    assert first_half("a = b ; c = d ; e = f") == "a = b ; c = d"
    assert first_half("you should add the two") == "you should add"
    assert first_half("") == ""


def test_a_falsehood_is_plausible_and_carried_on() -> None:
    seen = {applied(weakening(wrong=1.0), seed=seed).text for seed in range(20)}
    assert seen == {
        "director of Star Fall = Ana Ruz ; home of Ana Ruz = Tir",
        "director of Star Fall = Kano Bel ; home of Kano Bel = Ana Ruz",
    }


def test_a_falsehood_in_free_text_is_about_what_was_asked() -> None:
    reply = dataclasses.replace(REPLY, text="It is Tir, a Tirian town.")
    false = applied(weakening(wrong=1.0), reply, request="home of Kano Bel")
    assert false.text == "It is Ana Ruz, a Tirian town."
    assert applied(weakening(wrong=1.0), reply, request="nonsense").text == reply.text


@pytest.mark.parametrize(
    "kind", [FeedbackKind.CLARIFY, FeedbackKind.REFUSE, FeedbackKind.UNAVAILABLE]
)
def test_what_tells_nothing_is_left_alone(kind: FeedbackKind) -> None:
    reply = dataclasses.replace(REPLY, kind=kind, text="which clinic")
    assert applied(weakening(drop=1.0), reply) == reply


def test_shares_hold() -> None:
    made = weakening(drop=0.1, shorten=0.2, wrong=0.3)
    rng = np.random.default_rng(0)
    replies = [made.apply(REPLY, "", rng) for _ in range(4000)]
    dropped = sum(reply.failure == DROPPED for reply in replies)
    short = sum(reply.text == "director of Star Fall = Kano Bel" for reply in replies)
    false = sum("Ana Ruz" in reply.text for reply in replies)
    assert abs(dropped / 4000 - 0.1) < 0.02
    assert abs(short / 4000 - 0.2) < 0.02
    assert abs(false / 4000 - 0.3) < 0.03


@given(st.text(), st.text(), st.integers(0, 2**32 - 1))
def test_any_text_survives(text: str, request: str, seed: int) -> None:
    reply = dataclasses.replace(REPLY, text=text)
    for shares in ({"shorten": 1.0}, {"wrong": 1.0}, {"drop": 0.3, "shorten": 0.3, "wrong": 0.4}):
        weak = applied(weakening(**shares), reply, seed, request)
        assert len(weak.text) <= len(text)  # nothing here is understood, so nothing is made up
