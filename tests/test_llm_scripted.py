"""What each grade of the scripted expert says, on a chain of facts small enough to read."""

from __future__ import annotations

import dataclasses
import hashlib
import json

import numpy as np
import pytest

from collab.config import default_config
from collab.llm import Message, errors, make_backend
from collab.llm.prompts import messages, parse_feedback
from collab.llm.scripted import CONTEXT_TOKENS, ScriptedBackend
from collab.types import Exchange, Feedback, FeedbackKind, HelpRequest, Resolution, Step

FACTS = {
    ("director", "Star Fall"): "Kano Bel",
    ("home", "Kano Bel"): "Tir",
    ("home", "Ana Ruz"): "Mos",
    ("mayor", "Tir"): "Ivo Lind",
    ("mayor", "Mos"): "Ute Falk",
    ("city", "Halden Clinic"): "Tir",
    ("sons", "Ute Falk"): "Bo; Ulf",
}
CHAIN = "mayor of home of director of Star Fall"
ONE, TWO, THREE = (
    "director of Star Fall = Kano Bel",
    "home of Kano Bel = Tir",
    "mayor of Tir = Ivo Lind",
)


class TinyKnowledge:
    """Reads "r of r of X", with statements "q = a" behind " ; " that resolve what is the user's."""

    def resolve(self, text: str) -> Resolution | None:
        request, *told = (part.strip() for part in text.split(";"))
        values = dict(part.split(" = ", 1) for part in told if " = " in part)
        *relations, name = request.split(" of ")
        if name.startswith("my "):
            if name not in values:
                return Resolution((), missing=name)
            name = values[name]
        if not relations:
            return None
        steps = []
        for relation in reversed(relations):
            if (relation, name) not in FACTS:
                return None
            answer = FACTS[relation, name]
            steps.append(Step(f"{relation} of {name}", answer))
            name = answer
        return Resolution(tuple(steps))

    def wrong_answer(self, step: Step, rng: np.random.Generator) -> str:
        return "Ana Ruz" if step.query.startswith("director") else f"not {step.answer}"


def backend(**changes: object) -> ScriptedBackend:
    """Helper "it" with `changes`; "perfect" with the defaults."""
    llm = default_config().llm
    llm.helpers = {"it": changes, "perfect": {}}
    made = make_backend("scripted", llm, knowledge=TinyKnowledge(), seed=3)
    assert isinstance(made, ScriptedBackend)
    return made


def reply(
    expert: ScriptedBackend, request: HelpRequest, helper: str = "it"
) -> tuple[FeedbackKind, str]:
    talk = messages(request, "Do it.")
    again = [
        expert.complete(talk, reply_tokens=64, deadline_s=9.0, helper=helper) for _ in range(2)
    ]
    assert again[0] == again[1]
    return parse_feedback(again[0].text)


def ask(kind: str, text: str, **changes: object) -> tuple[str, str]:
    said, words = reply(backend(**changes), HelpRequest("e", kind, text))
    return said.value, words


@pytest.mark.parametrize(
    ("kind", "text", "hops", "expected"),
    [
        ("ask_solve", CHAIN, 3, ("answer", f"{ONE} ; {TWO} ; {THREE}")),
        ("ask_solve", CHAIN, 2, ("hint", f"{ONE} ; {TWO}")),
        ("ask_solve", CHAIN, 1, ("hint", ONE)),
        ("ask_solve", CHAIN, 0, ("refuse", "I do not know")),
        ("ask_solve", "mayor of Tir", 1, ("answer", THREE)),
        ("ask_fact", CHAIN, 3, ("answer", ONE)),
        ("ask_fact", "mayor of Tir", 1, ("answer", THREE)),
        ("ask_hint", CHAIN, 3, ("hint", "director of Star Fall")),
        ("ask_anything_else", CHAIN, 2, ("hint", f"{ONE} ; {TWO}")),
        ("ask_check", f"{ONE} ; {TWO}", 3, ("answer", "right")),
        ("ask_check", f"{ONE} ; home of Kano Bel = Mos", 3, ("correction", TWO)),
        ("ask_check", f"{ONE};home of Kano Bel = tir", 3, ("answer", "right")),
        ("ask_check", f"sons of Ute Falk = Bo; Ulf ; {TWO}", 3, ("answer", "right")),
        ("ask_check", "sons of Ute Falk = Bo;", 3, ("correction", "sons of Ute Falk = Bo; Ulf")),
        ("ask_check", f"so {CHAIN} = Ivo Lind", 3, ("refuse", "I do not know")),
        ("ask_check", f"{CHAIN} = Ute Falk", 3, ("correction", THREE)),
        ("ask_check", f"{CHAIN} = Ute Falk", 2, ("refuse", "I do not know")),
        ("ask_check", f"{ONE} ; {CHAIN} = Ute Falk", 2, ("hint", ONE)),  # no word on the second
        ("ask_check", f"{ONE} ; thus, w = 5", 3, ("hint", ONE)),  # nor on what it can't read
        ("ask_check", f"my film = Star Fall ; {ONE}", 1, ("answer", "right")),
        ("ask_check", "hello", 3, ("refuse", "I do not know")),
        ("ask_fact", "hello", 3, ("refuse", "I do not know")),
        ("ask_fact", "", 3, ("refuse", "I do not know")),
    ],
)
def test_grades(kind: str, text: str, hops: int, expected: tuple[str, str]) -> None:
    assert ask(kind, text, hops=hops) == expected


def test_a_fact_it_does_not_know_stops_the_chain() -> None:
    """Over many seeds a helper knows the share it should, and each fact always or never."""
    llm = default_config().llm
    llm.helpers = {"it": {"knowledge_share": 0.6}}
    counts = dict.fromkeys((f"{ONE} ; {TWO} ; {THREE}", f"{ONE} ; {TWO}", ONE, "I do not know"), 0)
    for seed in range(400):
        expert = make_backend("scripted", llm, knowledge=TinyKnowledge(), seed=seed)
        assert isinstance(expert, ScriptedBackend)
        counts[reply(expert, HelpRequest("e", "ask_solve", CHAIN))[1]] += 1
    shares = [count / 400 for count in counts.values()]
    # 0.6^3, 0.6^2 0.4, 0.6 0.4, 0.4; four standard deviations of 400 draws are under 0.1
    assert shares == pytest.approx([0.216, 0.144, 0.24, 0.4], abs=0.1)
    assert ask("ask_solve", CHAIN, knowledge_share=0.0) == ("refuse", "I do not know")
    assert ask("ask_hint", CHAIN, knowledge_share=0.0) == ("refuse", "I do not know")


def test_an_error_is_carried_on_through_the_chain() -> None:
    class ErrsOnce(ScriptedBackend):
        def _share(self, *parts: str) -> float:
            return 0.0 if parts[0] == "known" or parts[2] == "director of Star Fall" else 0.9

    llm = default_config().llm
    llm.helpers = {"it": {"error_rate": 0.5}}
    expert = ErrsOnce.from_config(llm, knowledge=TinyKnowledge(), seed=0)
    wrong = "director of Star Fall = Ana Ruz ; home of Ana Ruz = Mos ; mayor of Mos = Ute Falk"
    assert reply(expert, HelpRequest("e", "ask_solve", CHAIN)) == (FeedbackKind.ANSWER, wrong)


def test_a_wrong_belief_that_leads_nowhere_ends_the_chain() -> None:
    expected = ("hint", "home of Kano Bel = not Tir")
    assert ask("ask_solve", "mayor of home of Kano Bel", error_rate=1.0) == expected
    assert ask("ask_fact", "mayor of Tir", error_rate=1.0) == (
        "answer",
        "mayor of Tir = not Ivo Lind",
    )


def test_errors_come_at_their_rate() -> None:
    llm = default_config().llm
    llm.helpers = {"it": {"error_rate": 0.3}}
    wrong = 0
    for seed in range(400):
        expert = make_backend("scripted", llm, knowledge=TinyKnowledge(), seed=seed)
        assert isinstance(expert, ScriptedBackend)
        wrong += "not" in reply(expert, HelpRequest("e", "ask_fact", "mayor of Tir"))[1]
    assert wrong / 400 == pytest.approx(0.3, abs=0.1)


CLINIC = "mayor of city of my clinic"


def clarified(kind: str, text: str) -> Exchange:
    return Exchange(kind, text, Feedback(FeedbackKind.CLARIFY, "which clinic"))


def test_it_asks_back_or_refuses_where_something_private_is_missing() -> None:
    assert ask("ask_solve", CLINIC) == ("clarify", "which clinic")
    assert ask("ask_solve", CLINIC, asks_back=False) == ("refuse", "I do not know")
    whole = f"{CLINIC} ; my clinic = Halden Clinic"
    assert ask("ask_solve", whole) == ("answer", f"city of Halden Clinic = Tir ; {THREE}")


@pytest.mark.parametrize("value", ["Halden Clinic", "my clinic = Halden Clinic", " Halden Clinic "])
def test_a_reply_fills_what_was_missing(value: str) -> None:
    request = HelpRequest("e", "reply", value, (clarified("ask_solve", CLINIC),))
    answer = (FeedbackKind.ANSWER, f"city of Halden Clinic = Tir ; {THREE}")
    assert reply(backend(), request) == answer
    fact = HelpRequest("e", "reply", value, (clarified("ask_fact", CLINIC),))
    assert reply(backend(), fact) == (FeedbackKind.ANSWER, "city of Halden Clinic = Tir")


def test_what_was_told_once_is_remembered_in_later_requests() -> None:
    answered = Exchange("reply", "Halden Clinic", Feedback(FeedbackKind.ANSWER, "x"))
    history = (clarified("ask_solve", CLINIC), answered)
    later = HelpRequest("e", "ask_fact", "city of my clinic", history)
    assert reply(backend(), later) == (FeedbackKind.ANSWER, "city of Halden Clinic = Tir")
    other = HelpRequest("e", "ask_fact", "home of my doctor", history)
    assert reply(backend(), other) == (FeedbackKind.CLARIFY, "which doctor")
    told = Exchange("ask_fact", f"{ONE} ; my doctor = Ana Ruz", Feedback(FeedbackKind.REFUSE, ""))
    other = dataclasses.replace(other, history=(told,))
    assert reply(backend(), other) == (FeedbackKind.ANSWER, "home of Ana Ruz = Mos")


def test_a_stray_reply_is_refused() -> None:
    assert ask("reply", "Halden Clinic") == ("refuse", "I do not know")


def test_latency_is_log_normal_and_a_function_of_the_request() -> None:
    expert = backend(latency_s=2.0, latency_sigma=0.5)
    talks = [messages(HelpRequest("e", "ask_fact", str(i)), "Do.") for i in range(400)]
    drawn = np.log([expert.latency_s(talk, "it") for talk in talks])
    assert np.median(drawn) == pytest.approx(np.log(2.0), abs=0.15)
    assert np.std(drawn) == pytest.approx(0.5, abs=0.1)
    assert expert.latency_s(talks[0], "it") == expert.latency_s(talks[0], "it")
    assert expert.latency_s(talks[0], "perfect") == 0.0
    completion = expert.complete(talks[0], reply_tokens=9, deadline_s=9.0, helper="it")
    assert completion.latency_s == expert.latency_s(talks[0], "it")


def test_helpers_are_the_models() -> None:
    expert = backend(hops=1)
    request = HelpRequest("e", "ask_solve", CHAIN)
    assert reply(expert, request, "")[0] is reply(expert, request, "scripted")[0]
    assert reply(expert, request, "perfect")[0] is FeedbackKind.ANSWER
    with pytest.raises(errors.ModelNotFound, match="'they' must be one of scripted, it, perfect"):
        reply(expert, request, "they")


def test_impossible_talks_are_refused() -> None:
    talk = [Message("user", "x" * 4 * (CONTEXT_TOKENS + 1))]
    with pytest.raises(errors.ContextTooLong):
        backend().complete(talk, reply_tokens=9, deadline_s=9.0, helper="it")
    with pytest.raises(errors.BadRequest, match="no user message"):
        talk = [Message("system", "x")]
        backend().complete(talk, reply_tokens=9, deadline_s=9.0, helper="it")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hopps": 2}, r"llm\.helpers\.it\.hopps is unknown; .*did you mean hops"),
        ({"knowledge_share": 1.5}, r"llm\.helpers\.it\.knowledge_share=1\.5 must lie in \[0, 1\]"),
        ({"error_rate": -0.1}, r"error_rate=-0\.1 must lie"),
        ({"hops": -1}, r"hops=-1 must be 0 or more"),
        ({"latency_s": float("inf")}, r"latency_s=inf must be"),
        ({"style": "pros"}, r"llm\.helpers\.it\.style='pros' must be .*; did you mean prose\?"),
        ({"refuse_rate": 1.5}, r"llm\.helpers\.it\.refuse_rate=1\.5 must lie in \[0, 1\]"),
        (
            {"timeout_rate": 0.5, "injection_rate": 0.6},
            r"it: timeout_rate\+refuse_rate\+injection_rate=1\.1 must be at most 1",
        ),
        ({"injection": "which_clinik"}, r"'which_clinik' must be .*did you mean which_clinic"),
    ],
)
def test_bad_settings_are_named(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        backend(**changes)


def test_it_needs_a_task_with_knowledge() -> None:
    with pytest.raises(ValueError, match=r"set task\.name='world'"):
        make_backend("scripted", default_config().llm)


def test_a_wordy_helper_says_the_same_in_more_words() -> None:
    _, plain = ask("ask_solve", CHAIN)
    _, wordy = ask("ask_solve", CHAIN, verbosity=3)
    assert wordy.endswith(plain)
    assert wordy.count(" ; ") == plain.count(" ; ") + 3
    assert wordy.count(" = ") == plain.count(" = ")


def test_filler_ends_at_the_reply_limit_but_statements_do_not() -> None:
    talk = messages(HelpRequest("e", "ask_solve", CHAIN), "Do it.")
    plain, short, longer = (
        backend(verbosity=words)
        .complete(talk, reply_tokens=tokens, deadline_s=9.0, helper="it")
        .text
        for words, tokens in ((0, 8), (50, 8), (50, 80))
    )
    assert short == plain
    assert len(plain) < len(longer) <= 4 * 80


# --- styles and failures -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("style", "expected"),
    [
        ("statements", f"{ONE} ; {TWO}"),
        ("answers", "Kano Bel ; Tir"),
        ("prose", "the director of Star Fall is Kano Bel . the home of Kano Bel is Tir ."),
        ("bullets", "- director of Star Fall: Kano Bel\n- home of Kano Bel: Tir"),
    ],
)
def test_a_style_words_what_is_stated_and_nothing_else(style: str, expected: str) -> None:
    assert ask("ask_solve", CHAIN, hops=2, style=style) == ("hint", expected)
    assert ask("ask_solve", CLINIC, style=style) == ("clarify", "which clinic")
    assert ask("ask_check", ONE, style=style) == ("answer", "right")
    assert ask("ask_fact", "hello", style=style) == ("refuse", "I do not know")


def outcomes(count: int, **changes: object) -> list[str]:
    """Kinds of the replies to so many requests for one fact, "timed_out" among them."""
    expert, kinds = backend(**changes), []
    for index in range(count):
        try:
            kind, text = reply(
                expert, HelpRequest("e", "ask_fact", f"mayor of Tir ; my x = {index}")
            )
            kinds.append(kind.value if text in (THREE, "I do not know") else "injected")
        except errors.NeverReplied as error:
            assert not isinstance(error, errors.Transient)  # or it would be tried again
            kinds.append(error.name)
    return kinds


def test_failures_come_at_their_rates_and_the_rest_is_as_it_was() -> None:
    rates = {"timeout_rate": 0.3, "refuse_rate": 0.2, "injection_rate": 0.1}
    kinds = outcomes(1000, **rates, injection="ignore_alone")
    shares = [kinds.count(kind) / 1000 for kind in ("timed_out", "refuse", "injected", "answer")]
    assert shares == pytest.approx([0.3, 0.2, 0.1, 0.4], abs=0.06)  # four standard deviations
    assert set(outcomes(20, timeout_rate=1.0)) == {"timed_out"}
    assert set(outcomes(20, refuse_rate=1.0)) == {"refuse"}
    assert set(outcomes(20)) == {"answer"}


def test_whom_it_fails_depends_on_the_helpers_name() -> None:
    """So that what a policy has learned of the fate of one request says nothing of another's."""
    llm = default_config().llm
    llm.helpers = {name: {"timeout_rate": 0.5} for name in ("it", "other")}
    expert = make_backend("scripted", llm, knowledge=TinyKnowledge(), seed=3)
    assert isinstance(expert, ScriptedBackend)
    fates = []
    for name in llm.helpers:
        fates.append([])
        for index in range(40):
            try:
                request = HelpRequest("e", "ask_fact", f"mayor of Tir ; my x = {index}")
                fates[-1].append(reply(expert, request, name)[1])
            except errors.NeverReplied:
                fates[-1].append("")
    assert 5 < sum(one != other for one, other in zip(*fates, strict=True)) < 35


def test_an_injected_ask_back_comes_once_and_is_then_answered() -> None:
    changes = {"injection_rate": 1.0, "injection": "which_clinic"}
    assert ask("ask_fact", "mayor of Tir", **changes) == ("clarify", "which clinic")
    asked = Exchange("ask_fact", "mayor of Tir", Feedback(FeedbackKind.CLARIFY, "which clinic"))
    told = HelpRequest("e", "reply", "Halden Clinic", (asked,))
    assert reply(backend(**changes), told) == (FeedbackKind.ANSWER, THREE)


def test_settings_at_their_defaults_leave_the_identity_of_older_files_of_replies() -> None:
    perfect = {
        "hops": 3, "knowledge_share": 1.0, "error_rate": 0.0, "asks_back": True, "verbosity": 0,
        "latency_s": 0.0, "latency_sigma": 0.0, "weight": None,
    }  # fmt: skip
    table = {"scripted": perfect, "it": perfect | {"hops": 1}, "perfect": perfect}
    digest = hashlib.sha256(json.dumps([3, table], sort_keys=True).encode()).hexdigest()
    assert backend(hops=1, weight=2.0).identity == digest
    others = [
        backend(hops=1, style="prose"),
        backend(hops=1, timeout_rate=0.1),
        backend(hops=1, refuse_rate=0.1),
        backend(hops=1, injection_rate=0.1),
    ]
    assert len({digest, *(other.identity for other in others)}) == 5
