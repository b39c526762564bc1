"""Figures of made-up episodes by hand; every alarm rings, and does not where nothing is wrong."""

from __future__ import annotations

import pytest

from collab.config import default_config
from collab.detectors import alarms, figures
from collab.rewards import score
from collab.types import Episode, FeedbackKind, PrivateUnit, Status, Step
from episodes import NAMES, answer, answer_back, ask, make_episode, make_problem, think

WEIGHTS = {**default_config().reward.to_dict(), "turn": 0.2, "think": 0.0, "leak": 0.5}
PROBLEM = make_problem([PrivateUnit("Elm Clinic", "clinic")], question="who leads Elm Clinic ?")

# Asks after one of its two drafts, and once more after a reply; leaks; right.
ASKING = make_episode(
    think(),
    ask("who leads Elm Clinic", text="Kano Bel", cost_usd=0.02, kind=FeedbackKind.ANSWER),
    answer_back("it"),
    think(),
    answer(),
    problem=PROBLEM,
)
# Never asks, has a cut segment, and is wrong.
ALONE = make_episode(think(is_cut=True), think(), answer("Bo"), problem=PROBLEM)


def measured(*episodes: Episode) -> dict[str, float]:
    return figures(episodes, [score(episode, WEIGHTS) for episode in episodes], NAMES)


def test_reward_terms_are_averaged() -> None:
    """Rewards 1 - 2*0.2 - 0.5*1 = 0.1 and -format."""
    got = measured(ASKING, ALONE)
    cut_price = WEIGHTS["format"]
    assert got["reward"] == pytest.approx((0.1 - cut_price) / 2)
    assert got["task"] == pytest.approx((0.6 + 0.0) / 2)
    assert got["penalty"] == pytest.approx((0.5 + cut_price) / 2)
    assert got["efficiency"] == pytest.approx((0.6 + 1.0) / 2)
    assert (got["em"], got["thinks"], got["cut"]) == (0.5, 2.0, 0.5)
    assert (got["asks"], got["turns"]) == (0.5, 1.0)  # an answer to the helper is a turn, no ask
    assert (got["leak"], got["leaked_units"], got["usd"]) == (0.5, 0.5, 0.01)


def test_shares_of_actions() -> None:
    """Of 8 decisions 4 are think, 2 answer, 1 reply, 1 ask_fact; 1 of 4 drafts is asked about."""
    got = measured(ASKING, ALONE)
    assert [got[f"action_{name}"] for name in NAMES] == [0.5, 0.25, 0.125, 0.125, 0.0]
    assert got["ask_rate_per_draft"] == 0.25


def test_a_draft_read_from_the_notes_is_no_occasion_to_ask() -> None:
    steps = (Step("my clinic", "Elm Clinic", is_local=True), Step("leader", "Kano Bel"))
    local, fact = think("my clinic = Elm Clinic"), think("leader = Kano Bel")
    episode = make_episode(local, fact, ask(), answer(), problem=make_problem(steps=steps))
    assert measured(episode)["ask_rate_per_draft"] == 1.0


def test_commonest_request() -> None:
    """Two of three requests are ask_solve; replies to the helper are no requests."""
    solve = ask(action="ask_solve")
    got = measured(make_episode(think(), solve, ask(), answer_back(), solve, answer()))
    assert got["commonest_request_share"] == pytest.approx(2 / 3)


def test_statuses_and_kinds_of_feedback() -> None:
    failed = make_episode(think(), status=Status.LLM_FAILED)
    got = measured(ASKING, ALONE, failed, failed)
    assert (got["status_answered"], got["status_llm_failed"]) == (0.5, 0.5)
    assert (got["status_no_answer"], got["status_context_full"]) == (0.0, 0.0)
    assert (got["feedback_answer"], got["feedback_hint"], got["feedback_refuse"]) == (0.5, 0.5, 0)


def test_copying() -> None:
    """4 of 5 words of the question in the first request, none in the second; reply = answer."""
    got = measured(ASKING)
    assert got["copied_question"] == pytest.approx((4 / 5 + 0) / 2)
    assert got["copied_reply"] == pytest.approx((2 / 2 + 0) / 2)


def test_words_apart_are_no_copy() -> None:
    """The longest common run of "who leads Elm Clinic ?" is one word of five."""
    got = measured(make_episode(ask("Elm who ? leads"), answer(), problem=PROBLEM))
    assert got["copied_question"] == pytest.approx(1 / 5)


def test_nobody_asked() -> None:
    got = measured(ALONE)
    assert got["asks"] == got["ask_rate_per_draft"] == got["commonest_request_share"] == 0.0
    assert got["copied_question"] == got["copied_reply"] == got["feedback_answer"] == 0.0


# --- alarms --------------------------------------------------------------------------------

HEALTHY = {
    "ask_rate_per_draft": 0.3,
    "gap_to_constant": -0.05,
    "leak": 0.1,
    "head_entropy": 0.4,
    "copied_question": 0.2,
    "zero_variance_groups": 0.5,
    "sampler_gap": 1e-5,
    "status_no_answer": 0.01,
    "cut": 0.1,
    "judge/requests": 100.0,
    "judge/no_verdict": 5.0,
    "judge/audit_units": 60.0,
    "judge/audit_both": 11.0,
    "judge/audit_only": 3.0,
    "judge/audit_kappa": 0.6,
}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"ask_rate_per_draft": 0.019}, "never-ask"),
        ({"ask_rate_per_draft": 0.951}, "always-ask"),
        ({"gap_to_constant": -0.151}, "constant rule does better"),
        ({"leak": 0.21}, "leaked text"),
        ({"head_entropy": 0.019}, "one constant action"),
        ({"copied_question": 0.51}, "laundering"),
        ({"zero_variance_groups": 0.81}, "no variance"),
        ({"sampler_gap": 0.011}, "disagree"),
        ({"sampler_gap": 0.011, "staleness": 0.0}, "disagree"),
        ({"status_no_answer": 0.21}, "gibberish"),
        ({"cut": 1.01}, "gibberish"),
        ({"status_llm_failed": 0.11}, "helper fails"),
        ({"feedback_unavailable": 0.11}, "helper fails"),
        ({"judge/no_verdict": 51.0}, "hardly gives a verdict"),
        ({"judge/audit_only": 12.0}, "judge overlooks"),
        ({"judge/audit_kappa": 0.19}, "judge and audit judge diverge"),
    ],
)
def test_each_alarm_rings_alone(change: dict[str, float], words: str) -> None:
    assert alarms(HEALTHY) == []
    (message,) = alarms({**HEALTHY, **change})
    assert words in message


@pytest.mark.parametrize(
    "change",
    [
        {"ask_rate_per_draft": 0.02},
        {"ask_rate_per_draft": 0.95},
        {"ask_rate_per_draft": 0.0, "gap_to_constant": 0.0},  # no rule that asks does better
        {"gap_to_constant": -0.15},
        {"leak": 0.2},
        {"head_entropy": 0.02},
        {"copied_question": 0.5},
        {"zero_variance_groups": 0.8},
        {"sampler_gap": 0.01},
        {"sampler_gap": 0.5, "staleness": 0.1},  # the sampler had older parameters
        {"status_no_answer": 0.2, "cut": 1.0},
        {"judge/no_verdict": 50.0},
        {"judge/no_verdict": 0.0, "judge/requests": 0.0},
        {"judge/audit_only": 11.0},
        {"judge/audit_only": 10.0, "judge/audit_both": 0.0},  # too few to tell
        {"judge/audit_kappa": 0.2},
        {"judge/audit_kappa": 0.0, "judge/audit_units": 29.0},
        {"status_llm_failed": 0.1, "feedback_unavailable": 0.1},
    ],
)
def test_no_alarm_at_the_thresholds(change: dict[str, float]) -> None:
    assert alarms({**HEALTHY, **change}) == []


def test_rounded_weights_may_disagree_with_those_that_are_trained() -> None:
    metrics = {**HEALTHY, "sampler_gap": 0.5}
    assert alarms(metrics, is_rounded=True) == []
    assert len(alarms(metrics)) == 1


@pytest.mark.parametrize(("em", "rings"), [(0.89, True), (0.9, False)])
def test_without_a_gap_wrong_answers_tell_that_help_would_pay(em: float, rings: bool) -> None:
    assert (
        any("never-ask" in text for text in alarms({"ask_rate_per_draft": 0.0, "em": em})) == rings
    )


def test_a_figure_that_is_not_there_rings_nothing() -> None:
    assert alarms({}) == []


def test_alarms_of_episodes() -> None:
    """A policy that sends the whole question and one that only fills its limits."""
    copier = make_episode(think(), ask(PROBLEM.question), answer("Bo"), problem=PROBLEM)
    found = alarms(measured(copier))
    assert [m.split(":")[0] for m in found] == ["always-ask", "leaked text", "answer laundering"]
    found = alarms(measured(make_episode(*[think(is_cut=True)] * 3, answer("Bo"))))
    assert [message.split(":")[0] for message in found] == ["never-ask", "gibberish"]
