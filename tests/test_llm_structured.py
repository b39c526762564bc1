"""Which form of structured output a server takes, through a real socket."""

from __future__ import annotations

import contextlib
import json
import logging
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from collab.config import default_config
from collab.llm import Completion, Message, errors
from collab.llm.client import Client
from collab.llm.openai import OpenAIBackend
from collab.llm.prompts import FEEDBACK_SCHEMA
from collab.llm.structured import FORMS, Structure
from collab.types import FeedbackKind, HelpRequest
from fake_llm import passed

ANSWER = '{"kind": "answer", "text": "Oslo"}'
FAR_S = 20.0
Reply = tuple[int, Any]


class Choosy:
    """A server that replies to a form with `replies[form]`; what is not in there, it accepts."""

    def __init__(self, **replies: Reply) -> None:
        self.replies = replies
        self.seen: list[str] = []
        self.lock = threading.Lock()

    def reply(self, asked: dict[str, Any]) -> Reply:
        form = asked.get("response_format", {}).get("type", "none")
        with self.lock:
            self.seen.append(form)
        choice = {"message": {"content": ANSWER}}
        return self.replies.get(form, (200, {"choices": [choice]}))


@contextlib.contextmanager
def served(choosy: Choosy) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, reply = choosy.reply(asked)
            body = json.dumps(reply).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def backend_at(base_url: str, structured: str) -> OpenAIBackend:
    return OpenAIBackend(
        base_url=base_url,
        model="big",
        key="",
        key_env="",
        temperature=0.0,
        concurrency=8,
        structured=structured,
    )


def ask(backend: OpenAIBackend) -> Completion:
    talk = [Message("user", "[ask_fact]\nprivate words")]
    return backend.complete(talk, reply_tokens=8, deadline_s=FAR_S, helper="")


def named(status: int) -> Reply:
    return status, {"error": {"message": "unknown field response_format", "code": None}}


UNNAMED: Reply = (400, {"error": {"message": "no"}})
PLAIN, FORMED = Completion(ANSWER), Completion(ANSWER, is_structured=True)


@pytest.mark.parametrize(
    ("replies", "tried", "completion"),
    [
        ({}, ["json_schema"], FORMED),
        ({"json_schema": named(500)}, ["json_schema", "json_object"], FORMED),  # llama-cpp-python
        ({"json_schema": named(422), "json_object": named(422)},
         ["json_schema", "json_object", "none"], PLAIN),
        ({"json_schema": UNNAMED, "json_object": UNNAMED},
         ["json_schema", "json_object", "none"], PLAIN),
    ],
)  # fmt: skip
def test_auto_finds_the_form_once_and_keeps_to_it(
    replies: dict[str, Reply],
    tried: list[str],
    completion: Completion,
    caplog: pytest.LogCaptureFixture,
) -> None:
    choosy = Choosy(**replies)
    with served(choosy) as base_url, contextlib.closing(backend_at(base_url, "auto")) as backend:
        assert [ask(backend) for _ in range(3)] == [completion] * 3
    assert choosy.seen == [*tried, tried[-1], tried[-1]]
    warned = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warned) == (tried[-1] == "none")


def test_a_request_that_is_bad_anyway_settles_nothing() -> None:
    choosy = Choosy(json_schema=UNNAMED, json_object=UNNAMED, none=UNNAMED)
    with served(choosy) as base_url, contextlib.closing(backend_at(base_url, "auto")) as backend:
        with pytest.raises(errors.BadRequest):
            ask(backend)
        choosy.replies = {}
        assert ask(backend) == FORMED
        choosy.seen.clear()
        choosy.replies = {"json_schema": UNNAMED}  # it knows the form: this is about the request
        with pytest.raises(errors.BadRequest):
            ask(backend)
    assert choosy.seen == ["json_schema"]


@pytest.mark.parametrize("status", [302, 401, 404, 413, 429, 500, 503])
def test_other_failures_are_not_about_the_form(status: int) -> None:
    choosy = Choosy(json_schema=(status, {"error": {"message": "busy"}}))
    with (
        served(choosy) as base_url,
        contextlib.closing(backend_at(base_url, "auto")) as backend,
        pytest.raises(errors.HelpError),
    ):
        ask(backend)
    assert choosy.seen == ["json_schema"]


def test_a_server_in_trouble_that_quotes_the_request_keeps_a_form_that_it_knows() -> None:
    choosy = Choosy()
    with served(choosy) as base_url, contextlib.closing(backend_at(base_url, "auto")) as backend:
        ask(backend)
        choosy.replies = {"json_schema": named(500)}
        with pytest.raises(errors.ServerFailed):
            ask(backend)
    assert choosy.seen == ["json_schema"] * 2


def test_off_sends_no_form_and_on_nothing_else() -> None:
    choosy = Choosy(json_schema=named(400), json_object=named(400))
    with served(choosy) as base_url:
        with contextlib.closing(backend_at(base_url, "off")) as backend:
            assert ask(backend) == PLAIN
        with (
            contextlib.closing(backend_at(base_url, "on")) as backend,
            pytest.raises(errors.BadRequest, match=r"set llm\.structured=off"),
        ):
            ask(backend)
    assert choosy.seen == ["none", "json_schema", "json_object"]


def test_many_at_once_lose_nothing_and_count_no_failure() -> None:
    choosy = Choosy(json_schema=named(400), json_object=named(400))
    llm = default_config().llm
    llm.update({"cache": False, "concurrency": 8, "model": "big"})
    llm.budget.run.requests = 16
    with served(choosy) as base_url:
        client = Client(backend_at(base_url, "auto"), llm, {"ask_fact": "State it."})
        words = [passed(HelpRequest(f"e{index}", "ask_fact", f"{index}")) for index in range(16)]
        replies = [future.result(FAR_S) for future in map(client.submit, words)]
        counters = client.counters()
        client.close()
    assert {reply.kind for reply in replies} == {FeedbackKind.ANSWER}
    assert (counters["failures"], counters["retries"], counters["sent"]) == (0, 0, 16)
    assert choosy.seen.count("none") == 16
    assert choosy.seen.count("json_schema") <= 8  # those in flight when the first reply came


def test_the_state_moves_one_way() -> None:
    structure = Structure("auto")
    refused, named = errors.BadRequest("no"), b"response_format?"
    assert structure.next_after(0, refused, status=302, body=named) is None  # a redirect
    assert structure.next_after(0, refused, status=400, body=b"") == 1
    structure.note_reply(1)
    structure.note_reply(0)  # of a request that was sent before
    assert structure.at == 1
    assert structure.next_after(0, refused, status=400, body=b"") == 1  # such another one
    assert structure.next_after(1, refused, status=400, body=b"") is None
    assert structure.next_after(1, refused, status=422, body=named) == 2
    assert structure.next_after(2, refused, status=400, body=named) is None
    too_long = errors.ContextTooLong("long")
    assert structure.next_after(0, too_long, status=400, body=named) is None
    with pytest.raises(ValueError, match=r"llm\.structured='yes' must be one of auto, on, off"):
        Structure("yes")


def test_the_forms_hold_the_schema_that_servers_expect() -> None:
    assert FORMS[0]["json_schema"]["schema"] is FORMS[1]["schema"] is FEEDBACK_SCHEMA
    kinds = FEEDBACK_SCHEMA["properties"]["kind"]["enum"]
    assert kinds == [kind.value for kind in FeedbackKind if kind is not FeedbackKind.UNAVAILABLE]
    # OpenAI's strict mode wants every property required, and no others.
    assert set(FEEDBACK_SCHEMA["required"]) == set(FEEDBACK_SCHEMA["properties"])
    assert FEEDBACK_SCHEMA["additionalProperties"] is False


def test_sixteen_threads_agree_on_one_state() -> None:
    structure = Structure("auto")
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(structure.note_reply, [0, 1, 2] * 50))
    assert structure.at == 2
