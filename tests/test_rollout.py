"""The rollout's guard tests: trainer equals sampler, arrival order changes nothing, limits hold."""

from __future__ import annotations

import concurrent.futures
import json
import random
import threading
import time
import zlib
from typing import Any

import jax
import numpy as np
import pytest

from collab import sharding, tokenizers
from collab.llm import Completion
from collab.llm.client import Client
from collab.llm.pool import Pool
from collab.llm.weakening import Weakening
from collab.models.policy import Policy, init_params
from collab.models.presets import transformer_config
from collab.privacy.gate import Screened
from collab.rewards import score
from collab.rl.batch import collate
from collab.rl.update import log_probabilities
from collab.rollout.engine import Engine
from collab.rollout.episodes import Job
from collab.rollout.state import FEATURES, Limits, hash_tokens, legal_actions
from collab.strategies import Setting
from collab.types import (
    ANSWER,
    ANSWER_ID,
    FIRST_REQUEST_ID,
    REPLY,
    REPLY_ID,
    THINK,
    Feedback,
    FeedbackKind,
    HelpRequest,
    PrivateUnit,
    Problem,
    Status,
    Step,
    action_names,
)
from conftest import MESHES
from fake_llm import OK, FakeBackend

pytestmark = pytest.mark.usefixtures("quick")

KINDS = (FeedbackKind.ANSWER, FeedbackKind.HINT, FeedbackKind.CLARIFY, FeedbackKind.UNAVAILABLE)
ACTIONS = ("think", "answer", "reply", "ask_fact", "ask_solve")


class EchoClient:
    """Replies at once, with a kind and a length that depend on the request's text."""

    is_down = is_spent = False
    hear = Client.hear

    def __init__(self) -> None:
        self.requests: list[HelpRequest] = []

    def reply(self, request: HelpRequest) -> Feedback:
        word = zlib.crc32(request.text.encode("utf-8", "replace"))
        text = "abcdefghijklmnop"[: word % 14]
        return Feedback(KINDS[word % 4], text, helper=request.helper)

    def submit(self, screened: Screened) -> concurrent.futures.Future[Feedback]:
        request = screened.request
        self.requests.append(request)
        future: concurrent.futures.Future[Feedback] = concurrent.futures.Future()
        future.set_result(self.reply(request))
        return future


class ShuffledClient(EchoClient):
    """The same replies, each after a random pause, so that they arrive in another order."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.random = random.Random(seed)

    def submit(self, screened: Screened) -> concurrent.futures.Future[Feedback]:
        request = screened.request
        future: concurrent.futures.Future[Feedback] = concurrent.futures.Future()
        pause_s = self.random.uniform(0.0, 0.03)
        threading.Timer(pause_s, lambda: future.set_result(self.reply(request))).start()
        return future


def on_mesh(config: Any, mesh_config: dict[str, int]) -> Any:
    """The config of all tests on that mesh, so that they share an engine."""
    config.mesh.update(mesh_config)
    config.rollout.capacity = 88
    return config


_ENGINES: dict[str, tuple[Engine, Any]] = {}


def make_engine(config: Any, client: Any) -> tuple[Engine, Any]:
    """An engine with random weights, compiled once for configs that differ only in `llm`."""
    key = json.dumps({**json.loads(config.to_json()), "llm": None}, sort_keys=True)
    if key not in _ENGINES:
        _ENGINES[key] = build_engine(config, client)
    engine, params = _ENGINES[key]
    engine.client, engine.config = client, config
    return engine, params


def build_engine(config: Any, client: Any) -> tuple[Engine, Any]:
    """Random weights with a lively head, and layers that count from the start."""
    pool = Pool.from_config(config, HELPERS, strength={"one_hop": 0.25, "two_hops": 0.5})
    tokenizer = tokenizers.make_tokenizer(config, corpus=list)
    mesh = sharding.make_mesh(config.mesh)
    names = action_names(tuple(config.requests))
    control = tuple(tokenizer.control[name] for name in names)
    policy = Policy(
        transformer_config(config.model, tokenizer.size),
        len(names),
        action_tokens=control if config.model.head == "tokens" else (),
    )
    params = init_params(policy, jax.random.key(1), len(FEATURES) + len(pool.features))
    keys = iter(jax.random.split(jax.random.key(2), 8))
    for head in sorted(params.keys() - {"lm"}):
        params[head] = jax.tree.map(
            lambda leaf: 0.3 * jax.random.normal(next(keys), leaf.shape), params[head]
        )
    params["lm"] = jax.tree.map(lambda leaf: leaf * 1.5, params["lm"])
    for name in ("out", "down"):
        kernel = params["lm"]["layers"][name]["kernel"]
        params["lm"]["layers"][name]["kernel"] = kernel * 10.0
    params = jax.device_put(params, sharding.param_shardings(params, mesh))
    return Engine(policy, tokenizer, client, config, mesh, pool=pool), params


def make_jobs(count: int, **kwargs: Any) -> list[Job]:
    return [
        Job(Problem(str(p), "what is it ?"[: 3 + p], ("x",), notes="n"), (0, p, s), **kwargs)
        for p in range(count)
        for s in range(2)
    ]


def gaps(engine: Engine, params: Any, episodes: list[Any]) -> tuple[float, float]:
    """Largest distance of trainer from sampler log-probabilities, over tokens and decisions."""
    limits = engine.limits
    batch = collate(
        [episode.trace for episode in episodes],
        rows=len(episodes),
        capacity=limits.capacity,
        decisions=limits.max_segments,
        actions=limits.actions,
        features=limits.features,
        shards=sharding.row_parts(engine.mesh),
    )
    decoder = engine.decoder
    logp_BN, logp_BKA = jax.jit(
        lambda params, batch: log_probabilities(
            decoder.policy, params, batch, decoder.is_barred_V, 1.0
        )
    )(params, sharding.put_rows(batch, engine.mesh))
    chosen_BK = np.take_along_axis(np.asarray(logp_BKA), batch.action_BK[..., None], -1)[..., 0]
    token_gap_BN = np.where(batch.written_BN, logp_BN - batch.sampler_logp_BN, 0.0)
    head_gap_BK = np.where(batch.choice_BK, chosen_BK - batch.sampler_action_logp_BK, 0.0)
    assert batch.written_BN.sum() > 100
    assert batch.choice_BK.sum() > 20
    return float(np.abs(token_gap_BN).max()), float(np.abs(head_gap_BK).max())


def test_trainer_equals_sampler(tiny_config: Any, mesh_config: dict[str, int]) -> None:
    """Rows with 0, 1 and many replies, with ask-back, and at capacity, on every mesh."""
    engine, params = make_engine(on_mesh(tiny_config, mesh_config), EchoClient())
    episodes = engine.run(params, make_jobs(96), temperature=1.0)
    token_gap, head_gap = gaps(engine, params, episodes)
    assert token_gap < 1e-4
    assert head_gap < 1e-4
    asked = {len(episode.exchanges) for episode in episodes}
    assert {0, 1} <= asked and max(asked) >= 3
    assert any(s.action == REPLY for episode in episodes for s in episode.segments)
    # At capacity: nothing but the answer fitted any more, though segments were left.
    limits = engine.limits
    forced = [
        episode
        for episode in episodes
        if 1 < len(episode.trace.action_K) < limits.max_segments
        and episode.trace.legal_KA[-1].sum() == 1
    ]
    assert forced
    assert all(len(episode.trace.tokens_S) <= limits.capacity for episode in episodes)


@pytest.mark.parametrize("strategy", ["learned", "random_rate"])
def test_the_trace_holds_the_probabilities_of_every_action(tiny_config: Any, strategy: str) -> None:
    """All of them, as they were when the action was drawn, and none of what was illegal."""
    engine, params = make_engine(tiny_config, EchoClient())
    jobs = make_jobs(12, strategy=strategy, setting=Setting(FIRST_REQUEST_ID, 0.4))
    for trace in (episode.trace for episode in engine.run(params, jobs, temperature=1.0)):
        logp_KA = trace.action_logp_KA
        assert logp_KA.dtype == np.float32 and logp_KA.shape == trace.legal_KA.shape
        chosen_K = np.take_along_axis(logp_KA, trace.action_K[:, None], 1)[:, 0]
        np.testing.assert_array_equal(chosen_K, trace.action_logp_K)
        np.testing.assert_allclose(np.exp(logp_KA).sum(-1), 1.0, rtol=1e-5)
        assert not np.exp(logp_KA[~trace.legal_KA]).any()


@pytest.mark.parametrize("shape", ["1x1x1", "2x2x2"])
def test_trainer_equals_sampler_where_control_tokens_decide(tiny_config: Any, shape: str) -> None:
    """Without a head of its own the same holds, and the language model still writes no control."""
    tiny_config.model.head = "tokens"
    engine, params = make_engine(on_mesh(tiny_config, MESHES[shape]), EchoClient())
    assert params.keys() == {"lm"}
    episodes = engine.run(params, make_jobs(48), temperature=1.0)
    token_gap, head_gap = gaps(engine, params, episodes)
    assert token_gap < 1e-4
    assert head_gap < 1e-4
    assert len({len(episode.exchanges) for episode in episodes}) > 1
    for episode in episodes:
        trace = episode.trace
        assert not engine.decoder.is_barred_V[trace.tokens_S[trace.sampled_S]].any()


def test_a_wrong_mask_would_be_seen(tiny_config: Any) -> None:
    """The guard itself: another temperature in the trainer opens the gap."""
    engine, params = make_engine(tiny_config, EchoClient())
    episodes = engine.run(params, make_jobs(24), temperature=0.7)
    token_gap, _ = gaps(engine, params, episodes)
    assert token_gap > 1e-2


def same(first: list[Any], second: list[Any]) -> bool:
    return all(
        np.array_equal(a.trace.tokens_S, b.trace.tokens_S)
        and np.array_equal(a.trace.logp_S, b.trace.logp_S)
        and np.array_equal(a.trace.action_K, b.trace.action_K)
        and a.segments == b.segments
        and a.status == b.status
        for a, b in zip(first, second, strict=True)
    )


def test_arrival_order_changes_nothing(tiny_config: Any, mesh_config: dict[str, int]) -> None:
    engine, params = make_engine(on_mesh(tiny_config, mesh_config), EchoClient())
    jobs = make_jobs(12)
    expected = engine.run(params, jobs, temperature=1.0)
    assert any(episode.exchanges for episode in expected)
    for seed in range(2):
        engine.client = ShuffledClient(seed)
        assert same(expected, engine.run(params, jobs, temperature=1.0))


def test_rows_permute(tiny_config: Any, mesh_config: dict[str, int]) -> None:
    """Which row a job gets, and beside whom, changes nothing."""
    engine, params = make_engine(on_mesh(tiny_config, mesh_config), EchoClient())
    jobs = make_jobs(8)
    forward = engine.run(params, jobs, temperature=1.0)
    backward = engine.run(params, jobs[::-1], temperature=1.0)[::-1]
    for a, b in zip(forward, backward, strict=True):
        assert np.array_equal(a.trace.tokens_S, b.trace.tokens_S)
        np.testing.assert_allclose(a.trace.logp_S, b.trace.logp_S, atol=1e-5)


def test_a_copy_of_the_weights_with_layers_apart_changes_nothing(
    tiny_config: Any, mesh_config: dict[str, int]
) -> None:
    made = []
    for is_apart in (False, True):
        config = on_mesh(tiny_config, mesh_config)
        config.rollout.unstack_layers = is_apart
        engine, params = make_engine(config, EchoClient())
        made.append(engine.run(params, make_jobs(4), temperature=1.0))
    for a, b in zip(*made, strict=True):
        assert np.array_equal(a.trace.tokens_S, b.trace.tokens_S)
        np.testing.assert_allclose(a.trace.logp_S, b.trace.logp_S, rtol=1e-5, atol=1e-5)


def test_where_attention_ends_changes_nothing(tiny_config: Any) -> None:
    made = []
    for lengths in (1, 4):
        config = tiny_config.copy_and_resolve_references()
        config.rollout.capacity = 88
        config.rollout.live_lengths = lengths
        engine, params = make_engine(config, EchoClient())
        made.append(engine.run(params, make_jobs(4), temperature=1.0))
    assert engine.programs()["advance"] > 1
    for a, b in zip(*made, strict=True):
        assert np.array_equal(a.trace.tokens_S, b.trace.tokens_S)
        np.testing.assert_allclose(a.trace.logp_S, b.trace.logp_S, rtol=1e-5, atol=1e-5)
        # Features of surprise magnify last bits, and these programs are not optimised.
        np.testing.assert_allclose(
            a.trace.action_logp_KA, b.trace.action_logp_KA, rtol=1e-4, atol=1e-4
        )


def test_siblings_differ_and_greedy_ones_do_not(tiny_config: Any) -> None:
    engine, params = make_engine(tiny_config, EchoClient())
    sampled = engine.run(params, make_jobs(4), temperature=1.0)
    assert not np.array_equal(sampled[0].trace.tokens_S, sampled[1].trace.tokens_S)
    greedy = engine.run(params, make_jobs(4), temperature=0.0)
    assert np.array_equal(greedy[0].trace.tokens_S, greedy[1].trace.tokens_S)


def test_no_recompilation(tiny_config: Any) -> None:
    """One program each to admit, feed and advance, whatever the strategies and the temperature."""
    engine, params = make_engine(tiny_config, EchoClient())
    for strategy in engine.rules:
        jobs = make_jobs(4, strategy=strategy, setting=Setting(FIRST_REQUEST_ID, 0.5))
        engine.run(params, jobs, temperature=1.0)
        engine.run(params, jobs, temperature=0.0)
    assert engine.programs() == {"admit": 1, "feed": 1, "advance": 1}


def test_no_reprefill(tiny_config: Any) -> None:
    """The samples of a problem share one prefill; a reply is read once, through the cache."""
    engine, params = make_engine(tiny_config, EchoClient())
    jobs = make_jobs(4)
    engine.run(params, jobs, temperature=1.0)
    prompts = [len(engine.tokenizer.prompt(j.problem.question, "n")) for j in jobs[::2]]
    assert engine.counters["tokens_prefilled"] == sum(prompts)


def test_the_language_model_writes_no_control_token(tiny_config: Any) -> None:
    engine, params = make_engine(tiny_config, EchoClient())
    is_barred_V = engine.decoder.is_barred_V
    for episode in engine.run(params, make_jobs(8), temperature=1.0):
        trace = episode.trace
        assert not is_barred_V[trace.tokens_S[trace.sampled_S]].any()
        controls = trace.tokens_S[trace.decided_at_K + 1]
        assert (controls == engine.decoder.action_token_A[trace.action_K]).all()


def test_strategies_decide(tiny_config: Any) -> None:
    engine, params = make_engine(tiny_config, EchoClient())
    never = engine.run(params, make_jobs(4, strategy="slm_cot"), temperature=1.0)
    assert not any(episode.exchanges for episode in never)
    setting = Setting(kind=FIRST_REQUEST_ID + 1)
    for strategy in ("ask_every_hop", "ask_chain", "oracle"):
        jobs = make_jobs(4, strategy=strategy, setting=setting)
        for episode in engine.run(params, jobs, temperature=1.0):
            assert episode.segments[0].action == THINK
            assert episode.segments[1].action in ("ask_solve", ANSWER)
            assert episode.segments[1].action == "ask_solve" or len(episode.segments) == 2


def test_oracle_keeps_a_true_draft(tiny_config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oracle asks unless the draft equals a known statement."""
    engine, params = make_engine(tiny_config, EchoClient())
    setting = Setting(kind=FIRST_REQUEST_ID)
    jobs = make_jobs(2, strategy="oracle", setting=setting)
    before = engine.run(params, jobs, temperature=0.0)[0]
    trace = before.trace
    start = int(trace.decided_at_K[0]) + 2
    draft = trace.tokens_S[start : int(trace.decided_at_K[1])].tolist()
    assert before.segments[1].action == "ask_fact"
    # The draft of random weights is not text that encodes back; its hash is planted instead.
    monkeypatch.setattr(engine.tokenizer, "encode", lambda text: draft if text == "gold" else [])
    problem = Problem("0", jobs[0].problem.question, ("x",), notes="n", steps=(Step("", "gold"),))
    prompt = trace.tokens_S[: start - 1].tolist()
    monkeypatch.setattr(engine.tokenizer, "prompt", lambda question, notes: prompt)
    job = Job(problem, (0, 0, 0), "oracle", setting)
    assert engine.run(params, [job], temperature=0.0)[0].segments[1].action != "ask_fact"
    assert hash_tokens(draft) != 0


def test_identical_requests_of_rows_in_flight_are_sent_once(tiny_config: Any) -> None:
    """Siblings that ask the same: each has a reply, and the helper was asked once a question."""
    tiny_config.llm.deadline_s = 60.0
    jobs = make_jobs(4, strategy="ask_first", setting=Setting(kind=FIRST_REQUEST_ID + 1))

    def reply_once_all_have_asked() -> Completion:
        while client.counters()["requests"] < len(jobs):
            time.sleep(1e-3)
        return OK

    backend = FakeBackend(reply_once_all_have_asked, is_local=False)
    client = Client(backend, tiny_config.llm, tiny_config.requests)
    engine, params = make_engine(tiny_config, client)
    episodes = engine.run(params, jobs, temperature=1.0)
    client.close()
    assert [e.exchanges[0].feedback.text for e in episodes] == ["look"] * len(jobs)
    assert client.counters()["requests"] == 8 and client.counters()["cache_hits"] == 4
    assert backend.calls == 4


def test_opening_request(tiny_config: Any) -> None:
    """ask_first sends the bare question before anything is drafted."""
    client = EchoClient()
    engine, params = make_engine(tiny_config, client)
    jobs = make_jobs(2, strategy="ask_first", setting=Setting(kind=FIRST_REQUEST_ID + 1))
    episodes = engine.run(params, jobs, temperature=1.0)
    for episode in episodes:
        assert episode.segments[0].action == "ask_solve"
        assert episode.outgoing[0] == episode.problem.question
        assert {segment.action for segment in episode.segments[1:]} <= {THINK, ANSWER, REPLY}
        assert episode.segments[0].feedback is not None
        assert episode.status in (Status.ANSWERED, Status.NO_ANSWER)


@pytest.mark.parametrize("share", ["request", "question", "all"])
def test_an_episode_keeps_all_that_left(tiny_config: Any, share: str) -> None:
    """Also what the config adds to a request, which is what leaks are read off."""
    tiny_config.llm.share = share
    client = EchoClient()
    engine, params = make_engine(tiny_config, client)
    problem = Problem("p", "who is it ?", ("x",), notes="ab cd", units=(PrivateUnit("ab cd", "n"),))
    jobs = [Job(problem, (0, 0, s), episode=str(s)) for s in range(24)]
    jobs += [Job(problem, (0, 0, 99), "ask_first", Setting(FIRST_REQUEST_ID), episode="first")]
    episodes = engine.run(params, jobs, temperature=1.0)
    for job, episode in zip(jobs, episodes, strict=True):
        left = [r.text for r in client.requests if r.episode == job.episode]
        assert list(episode.outgoing) == left
        if share == "all" and left:
            assert score(episode, tiny_config.reward).leak == 1.0
    assert sum(len(episode.outgoing) for episode in episodes) > 5  # more than the opening


def test_an_opening_request_leaves_room_for_reply_and_answer(tiny_config: Any) -> None:
    """A question that is so long that they would not fit does not run."""
    engine, params = make_engine(tiny_config, EchoClient())
    limits, ends = engine.limits, []
    for length in range(limits.capacity):
        problem = Problem(str(length), "x" * length, ("x",))
        ends.append(Job(problem, (0, length, 0), "ask_first", Setting(FIRST_REQUEST_ID)))
    episodes = engine.run(params, ends, temperature=1.0)
    is_run = [episode.status is not Status.CONTEXT_FULL for episode in episodes]
    assert is_run == sorted(is_run, reverse=True) and 0 < sum(is_run) < len(is_run)
    for episode in episodes[: sum(is_run)]:
        before_answer = episode.trace.decided_at_K[-1] + 1
        assert before_answer + limits.answer_room <= limits.capacity


def test_prompt_longer_than_the_capacity(tiny_config: Any) -> None:
    """It ends as CONTEXT_FULL, unrun; the others are not disturbed."""
    engine, params = make_engine(tiny_config, EchoClient())
    jobs = make_jobs(2)
    long = Job(Problem("long", "x" * 500, ("x",)), (0, 99, 0))
    episodes = engine.run(params, [jobs[0], long, jobs[1]], temperature=1.0)
    assert [e.status is Status.CONTEXT_FULL for e in episodes] == [False, True, False]
    assert episodes[1].segments == () and len(episodes[1].trace.tokens_S) == 0


@pytest.mark.parametrize(("strategy", "opening"), [("learned", 0), ("ask_first", 1)])
def test_empty_question(tiny_config: Any, strategy: str, opening: int) -> None:
    """It runs like any other: the prompt is what the template makes of nothing."""
    engine, params = make_engine(tiny_config, EchoClient())
    job = Job(Problem("e", "", ("x",)), (0, 0, 0), strategy, Setting(FIRST_REQUEST_ID))
    episode = engine.run(params, [job], temperature=1.0)[0]
    assert episode.status in (Status.ANSWERED, Status.NO_ANSWER)
    asks = int((episode.trace.action_K >= REPLY_ID).sum())
    assert len(episode.exchanges) == asks + opening


@pytest.mark.parametrize(("text", "is_cut"), [("word " * 200_000, True), ("ok", False)])
def test_replies_that_are_cut_are_counted(tiny_config: Any, text: str, is_cut: bool) -> None:
    class Monotone(EchoClient):
        def reply(self, request: HelpRequest) -> Feedback:
            return Feedback(FeedbackKind.HINT, text)

    engine, params = make_engine(tiny_config, Monotone())
    for _ in range(2):  # by `run`
        episodes = engine.run(params, make_jobs(8), temperature=1.0)
        count = sum(len(episode.exchanges) for episode in episodes)
        assert count > 0
        assert engine.counters["replies_cut"] == count * is_cut


def test_helper_down_for_good(tiny_config: Any) -> None:
    """Episodes that need it end as LLM_FAILED; those that never ask are answered."""
    client = EchoClient()
    client.is_down = True
    engine, params = make_engine(tiny_config, client)
    episodes = engine.run(params, make_jobs(12), temperature=1.0)
    assert {e.status for e in episodes} <= {Status.LLM_FAILED, Status.ANSWERED, Status.NO_ANSWER}
    assert any(e.status is Status.LLM_FAILED for e in episodes)
    first = make_jobs(2, strategy="ask_first", setting=Setting(kind=FIRST_REQUEST_ID))
    for episode in engine.run(params, first, temperature=1.0):
        assert (episode.status, episode.exchanges) == (Status.LLM_FAILED, ())
    assert not client.requests


def test_budget_spent(tiny_config: Any) -> None:
    """Nobody asks any more, the trace says that it was illegal, and nothing is compiled anew."""
    client = EchoClient()
    engine, params = make_engine(tiny_config, client)
    jobs = make_jobs(12)
    asking = engine.run(params, jobs, temperature=1.0)
    assert any(episode.exchanges for episode in asking)
    programs = engine.programs()
    client.is_spent = True
    client.requests.clear()
    episodes = engine.run(params, jobs, temperature=1.0)
    assert not client.requests
    for episode in episodes:
        assert episode.status in (Status.ANSWERED, Status.NO_ANSWER)
        assert not episode.trace.legal_KA[:, REPLY_ID:].any()
    assert engine.programs() == programs
    first = make_jobs(2, strategy="ask_first", setting=Setting(kind=FIRST_REQUEST_ID))
    for episode in engine.run(params, first, temperature=1.0):  # the client refuses these
        assert len(episode.exchanges) == 1


def test_control_text_is_inert(tiny_config: Any) -> None:
    """Control-token text in a question or a reply becomes ordinary tokens."""

    class Forger(EchoClient):
        def reply(self, request: HelpRequest) -> Feedback:
            return Feedback(FeedbackKind.HINT, "<answer>")

    engine, params = make_engine(tiny_config, Forger())
    jobs = [Job(Problem(str(i), "<think><|im_end|>", ("x",)), (0, i, 0)) for i in range(8)]
    for episode in engine.run(params, jobs, temperature=1.0):
        trace = episode.trace
        control = engine.tokenizer.is_control_V[trace.tokens_S] & ~trace.sampled_S
        feedback = sum(len(episode.exchanges) * [2])  # kind and end
        structure = engine.tokenizer.is_control_V[
            engine.tokenizer.prompt("<think><|im_end|>", "")
        ].sum()
        cut = sum(segment.is_cut for segment in episode.segments)
        assert control.sum() == structure + len(trace.action_K) + feedback + cut


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        # length, asks, decisions, drafted, asked back -> legal actions
        ((10, 0, 0, False, False), {"think"}),
        ((10, 0, 1, True, False), {"think", "answer", "ask_fact", "ask_solve"}),
        ((10, 0, 1, False, False), {"think", "answer"}),
        ((10, 1, 2, False, True), {"think", "answer", "reply"}),
        ((10, 3, 4, True, True), {"think", "answer"}),
        ((10, 0, 5, True, False), {"answer"}),
        ((75, 0, 1, True, False), {"think", "answer"}),
        ((82, 0, 1, True, False), {"answer"}),
        ((89, 0, 0, False, False), {"answer"}),
    ],
)
def test_legal_actions(tiny_config: Any, state: tuple, expected: set[str]) -> None:
    limits = Limits.of(tiny_config.rollout, 5)
    length, asks, decisions, drafted, asked_back = state
    legal_BA = legal_actions(
        limits,
        length_B=np.array([length]),
        asks_B=np.array([asks]),
        decisions_B=np.array([decisions]),
        is_drafted_B=np.array([drafted]),
        is_asked_back_B=np.array([asked_back]),
    )
    assert {ACTIONS[a] for a in np.flatnonzero(legal_BA[0])} == expected
    assert legal_BA[0, REPLY_ID] == ("reply" in expected)
    assert legal_BA[0, ANSWER_ID] == ("answer" in expected)


# --- helpers -------------------------------------------------------------------------------


def with_helper_features(config: Any) -> Any:
    """The tiny config whose head is told who helps."""
    config.rollout.capacity = 88
    config.llm.draw = "request"
    config.model.helper_features = ("id:one_hop", "strength")
    return config


HELPERS = ("one_hop", "two_hops", "three_hops")
TOLD = {"one_hop": (1.0, 0.25), "two_hops": (0.0, 0.5), "three_hops": (0.0, 0.0)}


def test_requests_go_round_the_helpers_and_the_head_knows_whose_turn_it_is(
    tiny_config: Any,
) -> None:
    config = with_helper_features(on_mesh(tiny_config, MESHES["2x2x2"]))
    engine, params = make_engine(config, EchoClient())
    episodes = engine.run(params, make_jobs(24, helpers=HELPERS), temperature=1.0)
    turns = set()
    for episode in episodes:
        asked, back = 0, ""
        for segment, features in zip(episode.segments, episode.trace.features_KF, strict=True):
            expected = back or HELPERS[asked % 3]
            assert tuple(features[-2:].tolist()) == TOLD[expected]
            if segment.feedback is not None:
                assert segment.feedback.helper == expected
                turns.add((segment.action == REPLY, expected))
                asked += segment.action != REPLY
                back = expected if segment.feedback.kind is FeedbackKind.CLARIFY else ""
    assert {(False, "one_hop"), (False, "two_hops"), (True, "one_hop")} <= turns
    token_gap, head_gap = gaps(engine, params, episodes)
    assert max(token_gap, head_gap) < 1e-4
    assert engine.programs() == {"admit": 1, "feed": 1, "advance": 1}


def test_the_head_can_prefer_a_helper(tiny_config: Any) -> None:
    """A weight on the identity feature alone moves the choice where that helper's turn is."""
    engine, params = make_engine(with_helper_features(tiny_config), EchoClient())
    kernel = params["feature_head"]["kernel"].at[-2, FIRST_REQUEST_ID:].set(50.0)
    liked = {**params, "feature_head": {"kernel": kernel}}
    for helper, is_asked in (("one_hop", True), ("three_hops", False)):
        jobs = make_jobs(6, helpers=(helper,))
        plain = engine.run(params, jobs, temperature=0.0)
        now = engine.run(liked, jobs, temperature=0.0)
        assert is_asked == all(episode.exchanges for episode in now)
        assert is_asked or same(plain, now)


class Nothing:
    """A task's knowledge that understands nothing."""

    def resolve(self, text: str) -> None:
        return None

    def wrong_answer(self, step: Step, rng: np.random.Generator) -> str:
        raise AssertionError


def test_weakened_replies_do_not_depend_on_arrival_and_are_counted(tiny_config: Any) -> None:
    engine, params = make_engine(on_mesh(tiny_config, {"data": 1}), EchoClient())
    jobs, weakening = make_jobs(12), Weakening(Nothing(), drop=0.5, shorten=0.5, wrong=0.0)
    plain = engine.run(params, jobs, temperature=1.0)
    assert engine.counters["replies_weakened"] == 0
    weak = engine.run(params, jobs, temperature=1.0, weakening=weakening)
    assert engine.counters["replies_weakened"] > 0
    assert not same(plain, weak)
    engine.client = ShuffledClient(0)
    assert same(weak, engine.run(params, jobs, temperature=1.0, weakening=weakening))
    failures = {e.feedback.failure for episode in weak for e in episode.exchanges}
    assert failures == {None, "dropped"}
