"""Prompt injection: what the attacks are, and that no reply does more than its type allows."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import json
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from collab.llm import Completion, Message, errors, prompts, serve
from collab.llm.attacks import ATTACKS, FAMILIES, Asked
from collab.llm.client import Client
from collab.llm.injection import MIX, InjectingBackend
from collab.llm.openai import OpenAIBackend
from collab.llm.prompts import parse_feedback, parse_request, written_feedback
from collab.llm.serve import serving
from collab.privacy.gate import Gate, Screened, restored
from collab.rollout.decode import Replies
from collab.rollout.state import WAIT, empty_rows
from collab.tokenizers.base import MAX_CHARS_PER_TOKEN
from collab.types import (
    REPLY,
    REPLY_ID,
    Exchange,
    Feedback,
    FeedbackKind,
    HelpRequest,
    PrivateUnit,
    Problem,
)
from fake_llm import FakeBackend
from test_rollout import make_engine, make_jobs

pytestmark = pytest.mark.usefixtures("quick")

HONEST = written_feedback(FeedbackKind.HINT, "mayor of tarn = kano bel")
ASKED = Asked("ask_fact", "mayor of tarn", *parse_feedback(HONEST))
REPLIES = {name: parse_feedback(attack.write(ASKED)) for name, attack in ATTACKS.items()}
TALK = [Message("system", "s"), Message("user", "[ask_fact] State it.\nmayor of tarn")]
UNITS = (
    PrivateUnit("Vera Stone", "doctor"),
    PrivateUnit("gout", "condition"),
    PrivateUnit("Kim Lund", "name"),
    PrivateUnit("3 may 1984", "birth date"),
)


def backend(attack: str, **settings: Any) -> InjectingBackend:
    return InjectingBackend(FakeBackend(Completion(HONEST, 10, 5)), attack, **settings)


def reply_of(helper: Any, messages: Sequence[Message] = TALK) -> Completion:
    return helper.complete(messages, reply_tokens=64, deadline_s=5.0, helper="")


# --- what is injected ----------------------------------------------------------------------


def test_every_family_has_several_attacks_and_no_two_are_alike() -> None:
    assert set(FAMILIES) == {
        *("instruction", "control", "frame", "ask_back", "placeholder", "guess", "bulk"),
    }
    assert all(len(names) >= 5 for names in FAMILIES.values())
    told = dataclasses.replace(ASKED, request_kind=REPLY)
    written = {(attack.write(ASKED), attack.write(told)) for attack in ATTACKS.values()}
    assert len(written) == len(ATTACKS)
    assert not set(ATTACKS) & {MIX, *FAMILIES}


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_is_a_reply_of_its_kind(name: str) -> None:
    kind, text = REPLIES[name]
    is_question = name in (*FAMILIES["ask_back"], "which_placeholder", "which_of_these")
    if name == "forged_failure":
        assert kind is FeedbackKind.ANSWER
    else:
        assert kind is (FeedbackKind.CLARIFY if is_question else FeedbackKind.HINT)
    text.encode()


def test_asking_back_ends_with_a_reply_unless_it_is_for_ever() -> None:
    told = dataclasses.replace(ASKED, request_kind=REPLY, request="elm clinic")
    kinds = {name: parse_feedback(ATTACKS[name].write(told))[0] for name in FAMILIES["ask_back"]}
    assert [name for name, kind in kinds.items() if kind is FeedbackKind.CLARIFY] == [
        "ask_for_ever"
    ]


def test_the_same_request_gets_the_same_reply() -> None:
    talks = [[*TALK[:1], Message("user", f"[ask_fact]\n{at}")] for at in range(40)]
    first, again, other = (
        [reply_of(backend(MIX, rate=0.5, seed=seed), talk).text for talk in talks]
        for seed in (0, 0, 1)
    )
    assert first == again != other
    assert 8 < first.count(HONEST) < 32
    assert len(set(first)) > 8


def test_rates_of_none_and_all() -> None:
    assert reply_of(backend("polite", rate=0.0)) == Completion(HONEST, 10, 5)
    rewritten = reply_of(backend("polite"))
    assert rewritten.text == ATTACKS["polite"].write(ASKED)
    assert rewritten.completion_tokens > 5 and rewritten.prompt_tokens == 10


def test_failures_of_the_helper_pass() -> None:
    helper = InjectingBackend(FakeBackend(errors.RateLimited("busy")), MIX)
    with pytest.raises(errors.RateLimited):
        reply_of(helper)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"attack": "ignore_frist"},
            r"'ignore_frist' must be mix, .*; did you mean ignore_first\?",
        ),
        ({"attack": "mix", "rate": 1.5}, r"rate=1\.5 must be a share in \[0, 1\]"),
    ],
)
def test_bad_settings_name_the_fix(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        backend(**arguments)


def test_every_attack_over_a_socket_reads_as_in_process() -> None:
    for name in ATTACKS:
        with serving(backend(name)) as url:
            client = OpenAIBackend(
                base_url=url, model="m", key="", key_env="", temperature=0.0, concurrency=1
            )
            assert parse_feedback(reply_of(client).text) == REPLIES[name]
            client.close()


def test_the_command_serves_an_injecting_helper(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    served: list[str] = []

    def note(server: serve.Server, title: str) -> None:
        served.append(reply_of(server.backend).text)
        server.server_close()

    honest = FakeBackend(Completion(HONEST, 10, 5))
    monkeypatch.setattr(serve, "task_backend", lambda *args: honest)
    monkeypatch.setattr(serve, "serve_until_interrupted", note)
    assert serve.main(["--port=0", "--injection=polite"]) == 0
    assert serve.main(["--port=0", "--injection=polite", "--injection_rate=0"]) == 0
    assert serve.main(["--port=0"]) == 0
    assert served == [ATTACKS["polite"].write(ASKED), HONEST, HONEST]
    assert serve.main(["--injection=polit"]) == 2
    assert "did you mean polite?" in capsys.readouterr().err


# --- frames --------------------------------------------------------------------------------

hostile = some.one_of(
    some.text(), some.lists(some.sampled_from([text for _, text in REPLIES.values()]), max_size=3)
    .map("\n".join)
)  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(some.lists(some.tuples(some.sampled_from(list(FeedbackKind)), hostile), max_size=4))
def test_a_reply_stays_one_message_of_the_talk(replies: list[tuple[FeedbackKind, str]]) -> None:
    history = tuple(
        Exchange("ask_fact", f"request {at}", Feedback(kind, text))
        for at, (kind, text) in enumerate(replies)
    )
    kept = [e for e in history if e.feedback.kind is not FeedbackKind.UNAVAILABLE]
    talk = prompts.messages(HelpRequest("e", "ask_solve", "and now ?", history), "Solve it.")
    roles = ["system", *["user", "assistant"] * len(kept), "user"]
    assert [message.role for message in talk] == roles
    asked = [parse_request(message.content) for message in talk if message.role == "user"]
    assert asked == [*(("ask_fact", e.request) for e in kept), ("ask_solve", "and now ?")]
    told = [json.loads(message.content) for message in talk if message.role == "assistant"]
    assert told == [{"kind": e.feedback.kind.value, "text": e.feedback.text} for e in kept]


# --- the gate ------------------------------------------------------------------------------


def is_told(wire: str) -> bool:
    """Whether a unit stands in a text, glued to whatever else: shares nothing with the detector."""
    return any(unit.text.casefold() in " ".join(wire.casefold().split()) for unit in UNITS)


def wire_of(screened: Screened, role: str = "user") -> list[str]:
    """What a request puts on the wire: our messages, or the helper's own that go along."""
    if screened.is_blocked:
        return []
    talk = prompts.messages(screened.request, "")
    return [message.content for message in talk if message.role == role]


@dataclasses.dataclass(frozen=True)
class Turn:
    screened: Screened
    heard: Feedback
    read: str


def talk_of(name: str, mode: str, opening: str) -> Iterator[Turn]:
    """A talk with a helper that attacks, by an SLM that sends on whatever it reads.

    The bookkeeping is the engine's.
    """
    gate, text, kind = Gate(mode), opening, "ask_fact"
    history: tuple[Exchange, ...] = ()
    for _ in range(4):
        screened = gate.screen(HelpRequest("e", kind, text, history), UNITS)
        asked = Asked(kind, screened.sent, FeedbackKind.HINT, screened.sent or "no")
        heard = Feedback(*parse_feedback(ATTACKS[name].write(asked)))
        if screened.is_blocked:
            heard = Feedback(FeedbackKind.UNAVAILABLE, "")
        turn = Turn(screened, heard, restored(heard.text, screened.placeholders))
        yield turn
        history = (*history, Exchange(kind, screened.sent, heard))
        kind = REPLY if heard.kind is FeedbackKind.CLARIFY else "ask_fact"
        text = turn.read[:400] or opening


OPENINGS = ("is Vera Stone , with gout , there ?", " . ".join(unit.text for unit in UNITS), "who ?")


@pytest.mark.parametrize("mode", ["mask", "block"])
@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "bulk"])
def test_an_obedient_slm_gets_no_unit_past_the_gate(family: str, mode: str) -> None:
    """And the helper's own words return as they were, whatever they hold."""
    is_undone = False
    for name in FAMILIES[family]:
        for opening in OPENINGS:
            own: list[str] = []
            for turn in talk_of(name, mode, opening):
                assert not is_told("\n".join(wire_of(turn.screened))), (name, opening)
                echoes = [json.loads(text)["text"] for text in wire_of(turn.screened, "assistant")]
                assert turn.screened.is_blocked or echoes == own
                own += [turn.heard.text] * (turn.heard.kind is not FeedbackKind.UNAVAILABLE)
                is_undone |= is_told(turn.read)
    if family == "placeholder":
        assert is_undone == (mode == "mask")  # else there would be nothing to hold back


@pytest.mark.parametrize("name", ["guess_condition", "which_of_these", "guess_condition_in_pairs"])
def test_no_placeholder_says_which_guess_was_right(name: str) -> None:
    first, *later = talk_of(name, "mask", "who ?")
    assert not first.screened.is_blocked and is_told(first.read)
    assert later[0].screened.is_blocked
    assert not any("[condition-1]" in "".join(wire_of(turn.screened)) for turn in later)


def test_with_the_gate_open_the_same_slm_tells_all() -> None:
    for turn in talk_of("placeholders", "off", OPENINGS[1]):
        assert is_told("\n".join(wire_of(turn.screened)))


# --- the engine ----------------------------------------------------------------------------


class Hostile:
    """Answers every request by one reply, and keeps what it has been sent."""

    is_down = is_spent = False
    hear = Client.hear

    def __init__(self, kind: FeedbackKind, text: str) -> None:
        self.feedback = Feedback(kind, text)
        self.requests: list[HelpRequest] = []
        self.wire: list[str] = []

    def submit(self, screened: Screened) -> concurrent.futures.Future[Feedback]:
        self.requests.append(screened.request)
        self.wire += [*wire_of(screened), *wire_of(screened, "assistant")]
        future: concurrent.futures.Future[Feedback] = concurrent.futures.Future()
        future.set_result(self.feedback)
        return future


def test_what_a_placeholder_stands_for_is_not_repeated_to_the_helper(tiny_config: Any) -> None:
    """Glued to a word the unit would slip by the gate when the talk is repeated."""
    client = Hostile(FeedbackKind.HINT, "x[condition-1]x , [condition-1]")
    engine, params = make_engine(tiny_config, client)
    problem = Problem("p", "gout ?", ("x",), notes="gout", units=UNITS[1:2])
    jobs = [dataclasses.replace(job, problem=problem) for job in make_jobs(12)]
    engine.gate, engine.config.llm.share = Gate("mask"), "question"
    try:
        episodes = engine.run(params, jobs, temperature=1.0)
    finally:
        engine.gate, engine.config.llm.share = Gate("off"), "request"
    read = {e.feedback.text for episode in episodes for e in episode.exchanges}
    assert read == {"x[condition-1]x , gout"}
    repeated = [r.history[0].feedback.text for r in client.requests if r.history]
    assert repeated and set(repeated) == {"x[condition-1]x , [condition-1]"}
    assert not any(map(is_told, client.wire))


def test_a_huge_reply_is_repeated_only_as_far_as_it_can_be_read(tiny_config: Any) -> None:
    client = Hostile(FeedbackKind.HINT, REPLIES["huge"][1])
    engine, params = make_engine(tiny_config, client)
    episodes = engine.run(params, make_jobs(12), temperature=1.0)
    limit = tiny_config.rollout.reply_tokens * MAX_CHARS_PER_TOKEN
    repeated = [e.feedback.text for r in client.requests for e in r.history]
    assert repeated and {len(text) for text in repeated} == {limit}
    assert {len(e.feedback.text) for episode in episodes for e in episode.exchanges} == {limit}
    assert engine.counters["replies_cut"] == len(client.requests)


@pytest.mark.parametrize("kind", [FeedbackKind.ANSWER, FeedbackKind.CLARIFY])
def test_the_text_of_a_reply_moves_nothing(tiny_config: Any, kind: FeedbackKind) -> None:
    """Rows that waited differ by what they have read; phase and legal actions by the kind alone."""
    engine, params = make_engine(tiny_config, Hostile(kind, ""))
    B, R = engine.rows_count, engine.limits.reply_tokens
    waiting = dataclasses.replace(
        empty_rows(engine.decoder.policy.config, engine.limits, rows=B, steps=1),
        phase_B=jax.numpy.full(B, WAIT),
        length_B=jax.numpy.full(B, 20),
        asks_B=jax.numpy.ones(B, int),
        decisions_B=jax.numpy.full(B, 2),
    )
    feed = jax.jit(engine.decoder.feed)
    for _, attack in REPLIES.values():
        row_F, count_F = np.full(2, B, np.int32), np.zeros(2, np.int32)
        tokens_FR = np.zeros((2, R), np.int32)
        for f, text in enumerate(["an honest reply", attack]):
            ids, _ = engine.tokenizer.feedback(kind, text, R)
            row_F[f], count_F[f], tokens_FR[f, : len(ids)] = f, len(ids), ids
        helper_FE = np.zeros((2, engine.limits.helper_features), np.float32)
        is_back_F = np.full(2, kind is FeedbackKind.CLARIFY)
        rows = feed(params, waiting, Replies(row_F, tokens_FR, count_F, is_back_F, helper_FE))
        kept = ("cache", "tokens_BT", "length_B")
        for field in dataclasses.fields(rows):
            value = getattr(rows, field.name)
            if field.name not in kept:
                for leaf in jax.tree.leaves(value):
                    np.testing.assert_array_equal(leaf[0], leaf[1], err_msg=field.name)
        legal_BA = np.asarray(engine.decoder.legal_actions(rows, np.bool_(True)))
        assert (legal_BA[0] == legal_BA[1]).all()
        assert legal_BA[0, REPLY_ID] == (kind is FeedbackKind.CLARIFY)


@pytest.mark.parametrize("name", ["our_tokens", "chat_turn", "earlier_talk", "which_placeholder"])
def test_control_tokens_in_an_episode_are_the_engines_own(tiny_config: Any, name: str) -> None:
    """As many actions as decisions, as many replies as requests, REPLY only after CLARIFY."""
    engine, params = make_engine(tiny_config, Hostile(*REPLIES[name]))
    tokenizer = engine.tokenizer
    heads = [tokenizer.control[f"feedback_{kind.value}"] for kind in FeedbackKind]
    asked = 0
    for episode in engine.run(params, make_jobs(12), temperature=1.0):
        tokens_S = episode.trace.tokens_S
        at_K = episode.trace.decided_at_K + 1
        actions = [tokenizer.control[name] for name in engine.names]
        assert np.flatnonzero(np.isin(tokens_S, actions)).tolist() == at_K.tolist()
        assert tokens_S[at_K].tolist() == [actions[action] for action in episode.trace.action_K]
        assert np.isin(tokens_S, heads).sum() == len(episode.exchanges)
        segments = [s for s in episode.segments if s.action == REPLY]
        assert not segments or REPLIES[name][0] is FeedbackKind.CLARIFY
        asked += len(episode.exchanges)
    assert asked > 5
