"""The served protocol through a real socket: same feedback as in process, and its error shapes."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests

from collab.config import default_config, load_config
from collab.llm import errors, make_backend, serve
from collab.llm.client import Client
from collab.llm.openai import OpenAIBackend
from collab.llm.scripted import CONTEXT_TOKENS, ScriptedBackend
from collab.llm.serve import MAX_REQUEST_BYTES, main, serving
from collab.llm.structured import FORMS
from collab.tasks.world import WorldTask
from collab.types import Exchange, Feedback, FeedbackKind, HelpRequest, Resolution, Step
from commands import interrupted, refusal, started
from fake_llm import passed

KINDS = {"ask_fact": "State it.", "ask_solve": "Solve it.", "ask_check": "Check it."}
KEY = "sk-Secret"


class Capitals:
    """One relation, for words of any kind; what is the user's own is missing."""

    def resolve(self, text: str) -> Resolution | None:
        request, *told = (part.strip() for part in text.split(";"))
        if request.startswith("my "):
            if not told:
                return Resolution((), missing=request)
            request = told[-1].rsplit(" = ", 1)[1]
        steps = [Step(f"capital of {word}", word.upper()) for word in request.split()]
        return Resolution(tuple(steps))

    def wrong_answer(self, step: Step, rng: np.random.Generator) -> str:
        return f"{step.answer}-{rng.integers(100)}"


def expert(**changes: object) -> ScriptedBackend:
    llm = default_config().llm
    llm.helpers = {"weak": {"hops": 1, "knowledge_share": 0.6}, "odd": {"error_rate": 0.5}}
    llm.scripted.update(changes)
    return ScriptedBackend.from_config(llm, knowledge=Capitals(), seed=1)


def over_http(
    base_url: str, model: str = "", key: str = "", stream: bool = False, **changes: object
) -> Client:
    llm = default_config().llm
    llm.update({"cache": False, "backoff_s": 0.01, **changes})
    backend = OpenAIBackend(
        base_url=base_url,
        model=model,
        key=key,
        key_env="OUR_KEY",
        temperature=0.0,
        concurrency=llm.concurrency,
        helper_names=("weak", "odd"),
        stream=stream,
    )
    return Client(backend, llm, KINDS)


@pytest.fixture(scope="module")
def base_url() -> Iterator[str]:
    with serving(expert(), key=KEY) as url:
        yield url


def post(base_url: str, key: str = KEY, path: str = "/chat/completions", **json: Any) -> Any:
    headers = {"Authorization": f"Bearer {key}"}
    return requests.post(f"{base_url}{path}", json=json, headers=headers, timeout=20)


TALK = [{"role": "user", "content": "[ask_solve]\nnorway"}]


def without_latency(feedback: Feedback) -> dict[str, object]:
    values = dict(vars(feedback))
    del values["latency_s"]
    return values


def test_http_and_in_process_give_the_same_feedback(base_url: str) -> None:
    asked_back = Exchange("ask_fact", "my land", Feedback(FeedbackKind.CLARIFY, "which land"))
    texts = ["norway", "norway peru", "Østland \U0001f600", "my land", "", "a\nb ] [reply]", "\x00"]
    asked = [
        HelpRequest("e", kind, text, helper=helper)
        for kind in KINDS
        for text in texts
        for helper in ("weak", "odd", "", "nobody")
    ]
    asked.append(HelpRequest("e", "reply", "peru", (asked_back,), helper="odd"))
    near = Client(expert(), default_config().llm, KINDS)
    far = over_http(base_url, key=KEY)
    kinds = set()
    for request in asked:
        if request.helper == "nobody" and far.is_down:
            continue
        here = near.submit(passed(request)).result(timeout=0)
        there = far.submit(passed(request)).result(timeout=20)
        assert without_latency(here) == without_latency(there)
        kinds.add(here.kind)
    far.close()
    assert kinds >= {FeedbackKind.ANSWER, FeedbackKind.CLARIFY, FeedbackKind.REFUSE}
    assert kinds >= {FeedbackKind.HINT, FeedbackKind.UNAVAILABLE}


def test_64_parallel_requests_are_all_answered(base_url: str) -> None:
    with serving(expert(latency_s=0.05)) as slow_url:
        client = over_http(slow_url, concurrency=64)
        futures = [
            client.submit(passed(HelpRequest("e", "ask_fact", f"land{index}", helper="odd")))
            for index in range(64)
        ]
        texts = [future.result(timeout=30).text for future in futures]
        counters = client.counters()
        client.close()
    assert all(f"capital of land{index} = LAND{index}" in text for index, text in enumerate(texts))
    assert (counters["failures"], counters["requests"]) == (0, 64)


def test_a_hurried_client_goes_on_and_so_does_the_server() -> None:
    with serving(expert(latency_s=5.0)) as base_url:
        client = over_http(base_url, deadline_s=0.3)
        started_s = time.monotonic()
        feedback = client.submit(passed(HelpRequest("e", "ask_fact", "norway"))).result(timeout=20)
        assert feedback.failure == "timed_out"
        assert time.monotonic() - started_s < 4.0  # not the server's five seconds
        assert requests.get(f"{base_url}/models", timeout=20).status_code == 200
        client.close()


def test_a_talk_over_the_context_is_not_retried(base_url: str) -> None:
    client = over_http(base_url, key=KEY)
    text = "x" * 4 * CONTEXT_TOKENS
    feedback = client.submit(passed(HelpRequest("e", "ask_fact", text))).result(timeout=20)
    assert feedback.failure == "context_too_long"
    assert client.counters()["retries"] == 0
    client.close()


def test_models_are_the_helpers(base_url: str) -> None:
    headers = {"Authorization": f"Bearer {KEY}"}
    reply = requests.get(f"{base_url}/models", headers=headers, timeout=20).json()
    assert [row["id"] for row in reply["data"]] == ["scripted", "odd", "weak"]


def test_the_start_up_check_against_the_server(base_url: str) -> None:
    over_http(base_url, "weak", KEY)._backend.check()
    over_http(base_url, "", KEY)._backend.check()
    for model, key, fix in [
        ("weka", KEY, "llm.model 'weka': no such model .* served: weak"),
        ("weak", "wrong", "refuses the key in the variable OUR_KEY"),
        ("weak", "", "asks for a key"),
    ]:
        with pytest.raises(errors.HelperUnusable, match=fix):
            over_http(base_url, model, key)._backend.check()


def test_a_completion_has_the_protocols_shape(base_url: str) -> None:
    reply = post(base_url, model="odd", messages=TALK, max_tokens=9).json()
    assert reply["object"] == "chat.completion"
    assert reply["choices"][0]["finish_reason"] == "stop"
    assert reply["choices"][0]["message"]["role"] == "assistant"
    usage = reply["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"] > 0


@pytest.mark.parametrize(
    ("asked", "status", "code"),
    [
        ({"model": "odd", "messages": "x"}, 400, "invalid_messages"),
        ({"model": "odd", "messages": []}, 400, "invalid_messages"),
        ({"model": "odd", "messages": [{"role": "user"}]}, 400, "invalid_messages"),
        (
            {"model": "odd", "messages": [{"role": "system", "content": "x"}]},
            400,
            "invalid_request",
        ),
        ({"model": "nobody", "messages": TALK}, 404, "model_not_found"),
        ({"model": 7, "messages": TALK}, 400, "invalid_value"),
        ({"model": "odd", "messages": TALK, "max_tokens": 0}, 400, "invalid_value"),
        ({"model": "odd", "messages": TALK, "n": 2}, 400, "unsupported_value"),
        *(
            ({"model": "odd", "messages": TALK, "response_format": form}, 400, "invalid_value")
            for form in (
                7,
                {},
                {"type": "xml"},
                {"type": "json_schema"},
                {"type": "json_schema", "json_schema": {"name": "x"}},
            )
        ),
        ({"model": "odd", "messages": TALK, "path": "/completions"}, 404, "not_found"),
        ({"model": "odd", "messages": TALK, "key": "wrong"}, 401, "invalid_api_key"),
    ],
)
def test_errors_have_the_protocols_shape(
    base_url: str, asked: dict[str, Any], status: int, code: str
) -> None:
    reply = post(base_url, **asked)
    assert (reply.status_code, reply.json()["error"]["code"]) == (status, code)
    assert set(reply.json()["error"]) == {"message", "type", "param", "code"}


def events(base_url: str, **asked: Any) -> list[Any]:
    """What a streamed completion's events say, [DONE] included."""
    reply = post(base_url, model="odd", messages=TALK, stream=True, **asked)
    assert (reply.status_code, reply.headers["Content-Type"]) == (200, "text/event-stream")
    lines = [line for line in reply.content.split(b"\n") if line]
    assert all(line.startswith(b"data: ") for line in lines) and lines.pop() == b"data: [DONE]"
    return [json.loads(line[6:]) for line in lines]


def test_a_stream_says_the_same_as_the_whole_reply(base_url: str) -> None:
    whole = post(base_url, model="odd", messages=TALK).json()
    first, *rest, last = events(base_url)
    assert {event["object"] for event in (first, *rest, last)} == {"chat.completion.chunk"}
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    text = "".join(event["choices"][0]["delta"]["content"] for event in rest)
    assert text == whole["choices"][0]["message"]["content"] and len(rest) > 2
    assert last["choices"] == [{"index": 0, "delta": {}, "finish_reason": "stop"}]
    *_, counted = events(base_url, stream_options={"include_usage": True})
    assert (counted["choices"], counted["usage"]) == ([], whole["usage"])


def test_every_form_of_reply_that_we_ask_for_is_known(base_url: str) -> None:
    for form in (*FORMS, {"type": "text"}, None):
        assert post(base_url, model="odd", messages=TALK, response_format=form).status_code == 200


def test_a_streaming_client_gets_the_same_feedback(base_url: str) -> None:
    request = HelpRequest("e", "ask_solve", "norway peru", helper="odd")
    replies = []
    for stream in (False, True):
        client = over_http(base_url, "", KEY, stream=stream)
        replies.append(client.submit(passed(request)).result(timeout=20))
        client.close()
    assert without_latency(replies[0]) == without_latency(replies[1])


def test_what_came_of_a_slow_reply_by_the_deadline_is_kept_and_counted() -> None:
    with serving(expert(latency_s=4.8)) as slow_url:  # for eight words
        client = over_http(slow_url, stream=True, deadline_s=3.9)
        request = HelpRequest("e", "ask_fact", "land", helper="odd")
        reply = client.submit(passed(request)).result(timeout=20)
        counters = client.counters()
        client.close()
    assert (reply.kind, reply.is_part, reply.failure) == (FeedbackKind.ANSWER, True, None)
    assert reply.text.startswith("capital") and "LAND" not in reply.text
    assert reply.completion_tokens > 0
    names = ("replies_cut", "usage_estimated", "tails_cut", "failures", "retries")
    assert [counters[name] for name in names] == [1, 1, 0, 0, 0]


def test_a_client_that_leaves_a_stream_does_not_hold_the_server(base_url: str) -> None:
    with serving(expert(latency_s=30.0)) as slow_url:
        host, port = slow_url.removeprefix("http://").removesuffix("/v1").split(":")
        body = json.dumps({"model": "odd", "messages": TALK, "stream": True}).encode()
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(
                b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(body)
            )
            connection.sendall(body)
            assert connection.recv(12) == b"HTTP/1.1 200"
        assert requests.get(f"{slow_url}/models", timeout=20).status_code == 200


@pytest.mark.parametrize("body", [b"{", b"[]", b"\xff", b"[" * 200_000])
def test_bodies_that_are_no_request(base_url: str, body: bytes) -> None:
    headers = {"Authorization": f"Bearer {KEY}"}
    url = f"{base_url}/chat/completions"
    assert requests.post(url, data=body, headers=headers, timeout=20).status_code == 400


def test_a_body_that_is_too_large_is_not_read(base_url: str) -> None:
    headers = {"Authorization": f"Bearer {KEY}", "Content-Length": str(MAX_REQUEST_BYTES + 1)}
    url = f"{base_url}/chat/completions"
    request = requests.Request("POST", url, headers=headers).prepare()
    request.headers["Content-Length"] = headers["Content-Length"]
    with requests.Session() as session:
        reply = session.send(request, timeout=20)
    assert (reply.status_code, reply.json()["error"]["code"]) == (413, "request_too_large")


def test_leaving_the_context_frees_port_and_thread() -> None:
    threads = set(threading.enumerate())
    with serving(expert()) as base_url:
        port = int(base_url.split(":")[2].split("/")[0])
        requests.get(f"{base_url}/models", timeout=20)
    with serving(expert(), port=port) as again:
        assert requests.get(f"{again}/models", timeout=20).status_code == 200
    assert not [t for t in set(threading.enumerate()) - threads if t.name == "llm-serve"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config=no/such.py"], "error: --config=no/such.py: there is no such file"),
        (["--api_key_env=NOT_SET"], "error: --api_key_env=NOT_SET: the variable is empty"),
        (["--backend=scirpted"], "error: llm.backend='scirpted' must be one of"),
        (["--port=70000"], "error: --host=127.0.0.1 --port=70000: "),
    ],
)
def test_mistakes_at_start_up_end_in_one_line(
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("NOT_SET", raising=False)
    monkeypatch.setattr(serve, "task_backend", lambda name, config, _: build(name, config))
    assert refusal(main, arguments, capsys).startswith(message)


def build(name: str, config: Any) -> Any:
    return make_backend(name, config.llm, knowledge=Capitals())


CONFIG = """from collab.config import default_config, load_config

def get_config():
    config = default_config()
    config.llm.helpers = {"mine": {"hops": 1}}
    config.task.update({"train": 8, "validation": 2, "test": 2})
    return config
"""


def test_a_broken_config_file_ends_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.py"
    for text, message in (
        ("x = 1", "must define get_config()"),
        ("y = x", "line 1: NameError: name 'x' is not defined"),
        (CONFIG.replace('"train": 8', '"train": 0'), "task.train=0 must be at least 1"),
    ):
        path.write_text(text)
        assert message in refusal(main, [f"--config={path}", f"--data_dir={tmp_path}"], capsys)


def test_the_command_serves_the_tasks_expert_until_interrupted(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(CONFIG)
    with started("collab.llm.serve", path, f"--data_dir={tmp_path}") as server:
        assert server.said.startswith("serving scripted at ")
        assert server.said.endswith("models scripted, mine\n")
        models = requests.get(f"{server.base_url}/models", timeout=30).json()["data"]
        assert [model["id"] for model in models] == ["scripted", "mine"]
        fact = WorldTask(load_config(str(path)), str(tmp_path)).drill(np.random.default_rng(0))
        with contextlib.closing(over_http(server.base_url, "mine")) as client:
            reply = client.submit(passed(HelpRequest("e", "ask_fact", fact.query))).result()
        assert reply.kind is FeedbackKind.ANSWER and reply.text.startswith(f"{fact.query} = ")
        interrupted(server.child)
