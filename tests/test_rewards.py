"""The reward's terms by hand: gating, efficiency, leaks, format, and what counts as answered."""

from __future__ import annotations

from typing import Any

import pytest

from collab.config import default_config
from collab.rewards import Terms, score
from collab.types import FeedbackKind, PrivateUnit, Segment, Status
from episodes import answer, answer_back, ask, make_episode, make_problem, think

WEIGHTS = {
    "quality": "em",
    "gated": True,
    "turn": 0.2,
    "think": 0.01,
    "usd": 0.1,
    "usd_reference": 0.001,
    "token": 0.05,
    "token_reference": 1000,
    "leak": 0.5,
    "format": 0.04,
}
CLINIC = PrivateUnit("Elm Clinic", "clinic")
DOCTOR = PrivateUnit("Vera Stone", "doctor", sensitivity=3.0)


def test_the_weights_are_the_schemas() -> None:
    assert set(WEIGHTS) == set(default_config().reward)


def test_every_term_of_a_right_answer() -> None:
    """2 turns, 2 thinks, 0.003 USD, 400 tokens, 2 cuts and a quarter of the units lost."""
    episode = make_episode(
        think(),
        ask("boss of Elm Clinic", prompt_tokens=250, completion_tokens=50, cost_usd=0.001),
        think(is_cut=True),
        ask("leader", prompt_tokens=90, completion_tokens=10, cost_usd=0.002),
        answer(is_cut=True),
        problem=make_problem([CLINIC, DOCTOR]),
    )
    terms = score(episode, WEIGHTS)
    assert (terms.em, terms.f1, terms.quality) == (1.0, 1.0, 1.0)
    assert (terms.turns, terms.thinks, terms.tokens, terms.cut) == (2, 2, 400, 2)
    assert terms.usd == pytest.approx(0.003)
    assert (terms.leaked_units, terms.leak, terms.leak_by_exchange) == (1, 0.25, (0.25, 0.0))
    # 1 - 0.2*2 - 0.01*2 - 0.1*0.003/0.001 - 0.05*400/1000 = 1 - 0.4 - 0.02 - 0.3 - 0.02
    assert terms.efficiency == pytest.approx(0.26)
    assert terms.task == pytest.approx(0.26)
    # 0.26 - 0.5*0.25 - 0.04*2
    assert terms.reward == pytest.approx(0.055)


def test_efficiency_costs_nothing_where_the_answer_is_wrong() -> None:
    dear = [ask(cost_usd=1.0, prompt_tokens=9999) for _ in range(6)]
    for segments in ([answer("Bo")], [think(), *dear, answer("Bo")]):
        terms = score(make_episode(*segments), WEIGHTS)
        assert (terms.quality, terms.task, terms.reward) == (0.0, 0.0, 0.0)


def test_additive_efficiency_is_charged_whatever_the_quality() -> None:
    """2 turns and a think: 0 - 0.41 and 1 - 0.41; privacy and format cost as ever."""
    additive = {**WEIGHTS, "gated": False}
    for said, quality in (("Bo", 0.0), ("Kano Bel", 1.0)):
        episode = make_episode(think(), ask(), ask(), answer(said))
        terms = score(episode, additive)
        assert terms.efficiency == score(episode, WEIGHTS).efficiency == pytest.approx(0.59)
        assert terms.task == terms.reward == pytest.approx(quality - 0.41)
    leaky = make_episode(
        ask("Elm Clinic"), answer("Bo", is_cut=True), problem=make_problem([CLINIC])
    )
    assert score(leaky, additive).reward == pytest.approx(-0.2 - 0.5 - 0.04)


def test_leaks_and_cuts_cost_also_where_the_answer_is_wrong() -> None:
    """0 - 0.5*1 - 0.04*1."""
    episode = make_episode(
        think(is_cut=True), ask("Elm Clinic"), answer("Bo"), problem=make_problem([CLINIC])
    )
    assert score(episode, WEIGHTS).reward == pytest.approx(-0.54)


def test_too_many_turns_cost_more_than_a_right_answer_brings() -> None:
    """1 - 0.2*6."""
    terms = score(make_episode(*[ask()] * 6, answer()), WEIGHTS)
    assert terms.reward == pytest.approx(-0.2)


@pytest.mark.parametrize(
    "segment",
    [ask(action="ask_solve"), answer_back(), ask(kind=FeedbackKind.UNAVAILABLE)],
    ids=["request", "reply", "unavailable"],
)
def test_what_counts_as_a_turn(segment: Segment) -> None:
    """Any request, an answer to the helper's question, and help that did not come: 1 - 0.2."""
    terms = score(make_episode(segment, answer()), WEIGHTS)
    assert terms.turns == 1
    assert terms.reward == pytest.approx(0.8)


# --- leaks ---------------------------------------------------------------------------------


def leaks(units: list[PrivateUnit], *requests: str, **fields: Any) -> tuple[float, ...]:
    episode = make_episode(
        *[ask(text) for text in requests], answer("Bo"), problem=make_problem(units, **fields)
    )
    terms = score(episode, WEIGHTS)
    assert terms.leak == sum(terms.leak_by_exchange)
    assert len(terms.leak_by_exchange) == len(requests)
    return terms.leak_by_exchange


def test_a_leak_is_shared_out_by_sensitivity_and_by_the_request_that_sent_it() -> None:
    """Sensitivities 1 and 3 of 4 in all."""
    assert leaks([CLINIC, DOCTOR], "at Elm Clinic", "by Vera Stone") == (0.25, 0.75)
    assert leaks([CLINIC, DOCTOR], "nothing", "Vera Stone at Elm Clinic") == (0.0, 1.0)


def test_a_unit_is_lost_once() -> None:
    assert leaks([CLINIC, DOCTOR], "Elm Clinic", "the Elm Clinic again") == (0.25, 0.0)


def test_a_unit_in_pieces_is_lost_where_it_becomes_complete() -> None:
    assert leaks([DOCTOR], "who is Vera", "a fact", "Stone I mean") == (0.0, 0.0, 1.0)


def test_an_answer_to_the_helper_leaks_too() -> None:
    episode = make_episode(
        ask("my clinic"), answer_back("Elm Clinic"), answer(), problem=make_problem([CLINIC])
    )
    assert score(episode, WEIGHTS).leak_by_exchange == (0.0, 1.0)


def test_an_opening_request_leaks_too() -> None:
    episode = make_episode(
        think(), answer(), opening=ask("Elm Clinic"), problem=make_problem([CLINIC])
    )
    assert score(episode, WEIGHTS).leak_by_exchange == (1.0,)


def test_thoughts_and_the_answer_stay_on_the_machine() -> None:
    episode = make_episode(
        think("Elm Clinic"), ask("leader"), answer("Elm Clinic"), problem=make_problem([CLINIC])
    )
    assert score(episode, WEIGHTS).leak == 0.0


def test_nothing_can_leak_without_units_or_where_none_weighs() -> None:
    weightless = PrivateUnit("Elm Clinic", "clinic", sensitivity=0.0)
    assert leaks([], "Elm Clinic") == (0.0,)
    assert leaks([weightless], "Elm Clinic") == (0.0,)
    assert score(make_episode(answer(), problem=make_problem([CLINIC])), WEIGHTS).leak == 0.0


def test_text_of_the_notes_leaks_only_where_it_is_a_private_unit() -> None:
    """Here the notes hold the answer itself, and the request carries it out."""
    notes = "Kano Bel leads it . I go to Elm Clinic ."
    assert leaks([CLINIC], "is it Kano Bel ?", notes=notes) == (0.0,)
    named = PrivateUnit("Kano Bel", "person")
    assert leaks([CLINIC, named], "is it Kano Bel ?", notes=notes) == (0.5,)


# --- leaks that a judge sees ----------------------------------------------------------------


def judged(*verdicts: set[int] | None, requests: tuple[str, ...]) -> Terms:
    """Sensitivities 1 and 3 of 4 in all."""
    episode = make_episode(
        *map(ask, requests),
        answer("Bo"),
        problem=make_problem([CLINIC, DOCTOR]),
        judged=tuple(None if units is None else frozenset(units) for units in verdicts),
    )
    return score(episode, WEIGHTS)


def test_what_only_the_judge_sees_leaks_too() -> None:
    terms = judged(set(), {1}, requests=("leader", "my healer, of rock"))
    assert (terms.leak_by_exchange, terms.leak, terms.leaked_units) == ((0.0, 0.75), 0.75, 1)
    assert terms.reward == pytest.approx(-0.5 * 0.75)


@pytest.mark.parametrize(
    ("verdicts", "requests", "shares"),
    [
        (({0}, {0}), ("the tree place", "Elm Clinic"), (0.25, 0.0)),  # the judge sees it first
        ((set(), {0}), ("Elm Clinic", "the tree place"), (0.25, 0.0)),  # the detector does
        (({0}, {0, 1}), ("Elm Clinic", "the tree place"), (0.25, 0.75)),
        (({1}, set()), ("Elm Clinic", "Vera Stone"), (1.0, 0.0)),
        (({0}, {0}), ("the tree place", "that place"), (0.25, 0.0)),
    ],
)
def test_a_unit_counts_once_at_the_first_request_that_either_saw_it_in(
    verdicts: tuple[set[int], ...], requests: tuple[str, ...], shares: tuple[float, ...]
) -> None:
    terms = judged(*verdicts, requests=requests)
    assert terms.leak_by_exchange == shares
    assert terms.leak == sum(shares)
    assert terms.leaked_units == (2 if sum(shares) == 1 else 1)


def test_the_detector_counts_whatever_the_judge_says() -> None:
    """Cleared by the judge, or without a verdict: a match is a match."""
    for verdict in (set(), None):
        assert judged(verdict, requests=("Elm Clinic",)).leak == 0.25
    assert judged(None, requests=("the tree place",)).leak == 0.0


# --- quality -------------------------------------------------------------------------------


def test_quality_may_be_f1() -> None:
    """2 of the 3 words and both of the accepted 2: 2*2 / (3 + 2)."""
    episode = make_episode(ask(), answer("Kano Bel junior"))
    terms = score(episode, {**WEIGHTS, "quality": "f1"})
    assert (terms.em, terms.f1) == (0.0, pytest.approx(0.8))
    assert terms.quality == terms.f1
    assert terms.reward == pytest.approx(0.8 * 0.8)
    assert score(episode, WEIGHTS).reward == 0.0


@pytest.mark.parametrize("status", [s for s in Status if s is not Status.ANSWERED])
def test_only_an_answered_episode_has_quality(status: Status) -> None:
    terms = score(make_episode(ask(), answer(), status=status), WEIGHTS)
    assert (terms.em, terms.f1, terms.quality, terms.reward) == (0.0, 0.0, 0.0, 0.0)
