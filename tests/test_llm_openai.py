"""Every fault a server can show, through a real socket: the right typed failure, in time."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import time
import traceback
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from collab.config import default_config
from collab.llm import Completion, Message, errors, make_backend
from collab.llm.openai import OpenAIBackend, read_completion, retry_after_s
from collab.llm.transport import MAX_BODY_BYTES
from servers import Talk, listening, read_request

KEY = "sk-Secret.0123456789"
TALK = [Message("user", "[ask_fact]\nprivate words")]
DEADLINE_S = 0.4
FAR_TOO_LATE_S = 3.0  # tells "held by the server" (seconds) from "cut at the deadline"


@contextlib.contextmanager
def faulty(behave: Talk) -> Iterator[str]:
    """A server that reads each request whole and then does `behave`; yields its base URL."""

    def talk(connection: socket.socket) -> None:
        read_request(connection)
        behave(connection)

    with listening(talk) as place:
        yield f"http://{place}/v1"


def raw(*pieces: bytes) -> Talk:
    return lambda connection: connection.sendall(b"".join(pieces))


def http(status: int, body: bytes, *headers: str) -> Talk:
    head = [f"HTTP/1.1 {status} Said", f"Content-Length: {len(body)}", *headers, "", ""]
    return raw("\r\n".join(head).encode() + body)


def error(status: int, *headers: str, code: str = "", message: str = "") -> Talk:
    body = {"error": {"message": message, "type": "some_error", "code": code}}
    return http(status, json.dumps(body).encode(), *headers)


def chat(content: object = "Oslo", **more: object) -> bytes:
    choice = {"message": {"role": "assistant", "content": content}}
    usage = {"prompt_tokens": 9, "completion_tokens": 2}
    return json.dumps({"choices": [choice], "usage": usage, **more}).encode()


def reset(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def hang_after(prefix: bytes) -> Talk:
    def behave(connection: socket.socket) -> None:
        connection.sendall(prefix)
        connection.recv(1)  # until the client gives up

    return behave


def drip(prefix: bytes) -> Talk:
    """A byte now and then for ten seconds: no single wait is long."""

    def behave(connection: socket.socket) -> None:
        connection.sendall(prefix)
        for _ in range(200):
            time.sleep(0.05)
            connection.sendall(b"x")

    return behave


OK_HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"
QUOTES_KEY = f"Incorrect API key provided: {KEY}"

FAULTS: dict[str, tuple[Talk, type[errors.HelpError]]] = {
    "reset": (reset, errors.ConnectionFailed),
    "closed without a byte": (raw(), errors.ConnectionFailed),
    "not HTTP": (raw(b"garbage\r\n\r\n"), errors.ConnectionFailed),
    "body cut": (raw(OK_HEAD, b'{"choices'), errors.ConnectionFailed),
    "chunk cut": (
        raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nff\r\n{}"),
        errors.ConnectionFailed,
    ),
    "hang": (hang_after(b""), errors.TimedOut),
    "hang in the body": (hang_after(OK_HEAD), errors.TimedOut),
    "drip in the status": (drip(b"HTTP/1.1 200 "), errors.TimedOut),
    "drip in the headers": (drip(b"HTTP/1.1 200 OK\r\nX-Long: "), errors.TimedOut),
    "drip in the body": (drip(OK_HEAD), errors.TimedOut),
    "half headers": (raw(b"HTTP/1.1 200 OK\r\nContent-Ty"), errors.Malformed),
    "bad JSON": (http(200, b'{"choices": [}'), errors.Malformed),
    "deep JSON": (http(200, b"[" * 500_000), errors.Malformed),
    "HTML": (http(200, b"<html>busy</html>", "Content-Type: text/html"), errors.Malformed),
    "empty 200": (http(200, b""), errors.Malformed),
    "a list": (http(200, b"[]"), errors.Malformed),
    "no choices": (http(200, b"{}"), errors.Malformed),
    "empty choices": (http(200, b'{"choices": []}'), errors.Malformed),
    "choices of null": (http(200, b'{"choices": [null]}'), errors.Malformed),
    "no message": (http(200, b'{"choices": [{}]}'), errors.Malformed),
    "null content": (http(200, chat(None)), errors.Malformed),
    "content in parts": (http(200, chat([{"type": "text"}])), errors.Malformed),
    "half a surrogate": (http(200, chat("\ud83d")), errors.Malformed),
    "bad UTF-8": (http(200, chat("x").replace(b'"x"', b'"\xff"')), errors.Malformed),
    "NaN": (http(200, chat(usage={"prompt_tokens": float("nan")})), errors.Malformed),
    "bad gzip": (http(200, chat(), "Content-Encoding: gzip"), errors.Malformed),
    "over a megabyte": (http(200, chat("x" * MAX_BODY_BYTES)), errors.Malformed),
    "redirect": (http(302, b"", "Location: http://127.0.0.1:9/v1"), errors.BadRequest),
    "filtered": (
        http(200, json.dumps({"choices": [{"finish_reason": "content_filter"}]}).encode()),
        errors.ContentFiltered,
    ),
    "filtered prompt": (error(400, code="content_filter"), errors.ContentFiltered),
    "400": (error(400, code="invalid_value"), errors.BadRequest),
    "400 without a body": (http(400, b""), errors.BadRequest),
    "400 context": (error(400, code="context_length_exceeded"), errors.ContextTooLong),
    "400 context in words": (
        error(400, message="This model's maximum context length is 2048 tokens"),
        errors.ContextTooLong,
    ),
    "401": (error(401, code="invalid_api_key", message=QUOTES_KEY), errors.AuthFailed),
    "401 with the key as code": (error(401, code=KEY), errors.AuthFailed),
    "402": (error(402), errors.QuotaSpent),
    "403": (error(403), errors.AuthFailed),
    "404": (error(404, code="model_not_found"), errors.ModelNotFound),
    "408": (error(408), errors.TimedOut),
    "409": (error(409), errors.ServerFailed),
    "413": (error(413), errors.BadRequest),
    "418": (error(418), errors.BadRequest),
    "422": (error(422), errors.BadRequest),
    "429": (error(429, "Retry-After: 7"), errors.RateLimited),
    "429 quota": (error(429, code="insufficient_quota"), errors.QuotaSpent),
    "500": (http(500, b"oops"), errors.ServerFailed),
    "503": (error(503, "Retry-After: 7"), errors.ServerFailed),
    "529": (error(529), errors.ServerFailed),
}


def backend_at(base_url: str, model: str = "big", key: str = KEY, **settings: Any) -> OpenAIBackend:
    return OpenAIBackend(
        base_url=base_url,
        model=model,
        key=key,
        key_env="OUR_KEY",
        temperature=0.0,
        concurrency=4,
        helper_names=("one", "two"),
        **settings,
    )


def ask(backend: OpenAIBackend, deadline_s: float = DEADLINE_S) -> Completion:
    return backend.complete(TALK, reply_tokens=8, deadline_s=deadline_s, helper="one")


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_is_a_typed_failure_within_the_deadline(name: str) -> None:
    behave, expected = FAULTS[name]
    is_timed = expected is errors.TimedOut and name != "408"
    with faulty(behave) as base_url:
        backend = backend_at(base_url)
        started_s = time.monotonic()
        with pytest.raises(errors.HelpError) as caught:
            # Only what must time out gets a short deadline: a busy machine is slow elsewhere.
            ask(backend, DEADLINE_S if is_timed else 20.0)
        taken_s = time.monotonic() - started_s
        backend.close()
    assert type(caught.value) is expected
    assert not is_timed or taken_s < FAR_TOO_LATE_S
    told = "".join(traceback.format_exception(caught.value)) + repr(vars(backend._transport))
    assert KEY not in told + str(caught.value) + repr(backend)
    assert "private words" not in told
    assert not hasattr(caught.value.__context__, "request")  # whose headers hold the key


def test_a_refused_connection_is_transient_and_no_time_left_a_time_out() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(errors.ConnectionFailed):
        ask(backend_at(f"http://127.0.0.1:{port}/v1"), 5.0)
    with pytest.raises(errors.TimedOut, match="no time was left"):
        ask(backend_at("http://127.0.0.1:9/v1"), -1.0)


@pytest.mark.parametrize("status", [429, 408, 503])
def test_the_pause_that_the_server_asks_for_is_passed_on(status: int) -> None:
    with (
        faulty(error(status, "Retry-After: 7")) as base_url,
        pytest.raises(errors.Transient) as caught,
    ):
        ask(backend_at(base_url), 20.0)
    assert caught.value.retry_after_s == 7.0


def test_the_request_on_the_wire() -> None:
    seen: list[bytes] = []

    def behave(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        http(200, chat('{"kind": "answer", "text": "Østby"}'), "Set-Cookie: a=b")(connection)
        seen.append(read_request(connection))  # a second request on the same connection
        http(200, chat())(connection)

    with faulty(behave) as base_url:
        backend = backend_at(f"{base_url}/", model="")
        first, second = ask(backend, 20.0), ask(backend, 20.0)
        backend.close()
    assert first == Completion('{"kind": "answer", "text": "Østby"}', 9, 2)
    assert second == Completion("Oslo", 9, 2)
    head, body = seen[0].split(b"\r\n\r\n")
    assert head.startswith(b"POST /v1/chat/completions HTTP/1.1\r\n")
    assert f"Authorization: Bearer {KEY}".encode() in head
    assert b"Cookie" not in head
    assert json.loads(body) == {
        "model": "one",
        "messages": [{"role": "user", "content": "[ask_fact]\nprivate words"}],
        "max_tokens": 8,
        "temperature": 0.0,
    }


@pytest.mark.parametrize(
    "usage",
    [
        *(None, {}, [], {"prompt_tokens": -1}, {"prompt_tokens": True}, {"prompt_tokens": "9"}),
        *({"completion_tokens": 10**9}, {"prompt_tokens": 10**400}),
    ],
)
def test_odd_usage_reads_as_unknown(usage: object) -> None:
    assert read_completion(chat(usage=usage)) == Completion("Oslo", None, None)


@pytest.mark.parametrize(
    ("details", "cached"),
    [({"cached_tokens": 6}, 6), ({"cached_tokens": 0}, 0), ({"cached_tokens": -1}, None)]
    + [(odd, None) for odd in ({}, None, [], "6", {"cached_tokens": "6"})],
)
def test_prompt_tokens_from_the_servers_cache(details: object, cached: int | None) -> None:
    usage = {"prompt_tokens": 9, "completion_tokens": 2, "prompt_tokens_details": details}
    assert read_completion(chat(usage=usage)) == Completion("Oslo", 9, 2, None, cached)


def test_a_refusal_field_is_a_typed_refusal() -> None:
    body = {"choices": [{"message": {"content": None, "refusal": "I can't."}}]}
    assert (
        read_completion(json.dumps(body).encode()).text == '{"kind": "refuse", "text": "I can\'t."}'
    )


NOW_S = 1_800_000_000.0


@pytest.mark.parametrize(
    ("headers", "pause_s"),
    [
        ({}, None),
        ({"retry-after": ""}, None),
        ({"retry-after": "0"}, 0.0),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": " 7.5 "}, 7.5),
        ({"retry-after": "120"}, 120.0),
        ({"retry-after": "121"}, 121.0),
        ({"retry-after": "-10"}, None),
        ({"retry-after": "-inf"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "1e35"}, 1e35),
        ({"retry-after": "1e999"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "7 s"}, None),
        ({"retry-after": formatdate(NOW_S + 20, usegmt=True)}, 20.0),
        ({"retry-after": formatdate(NOW_S - 20, usegmt=True)}, 0.0),
        ({"retry-after": formatdate(NOW_S + 20).replace("-0000", "")}, 20.0),
        ({"retry-after": formatdate(NOW_S + 20).replace("-0000", "+0100")}, 0.0),
        ({"retry-after": "Fri, 31 Feb 2027 08:00:00 GMT"}, None),
        ({"retry-after": "Fri, 15 Jan 100000 08:00:00 GMT"}, None),
        ({"retry-after": "Fri, 99 Jan"}, None),
        ({"retry-after": formatdate(NOW_S + 3600, usegmt=True)}, 3600.0),
        # The server's clock is an hour ahead, an hour behind, or its Date is no date.
        (
            {
                "retry-after": formatdate(NOW_S + 3607, usegmt=True),
                "date": formatdate(NOW_S + 3600, usegmt=True),
            },
            7.0,
        ),
        (
            {
                "retry-after": formatdate(NOW_S - 3593, usegmt=True),
                "date": formatdate(NOW_S - 3600, usegmt=True),
            },
            7.0,
        ),
        ({"retry-after": formatdate(NOW_S + 7, usegmt=True), "date": "today"}, 7.0),
        ({"retry-after": "7", "date": formatdate(NOW_S + 3600, usegmt=True)}, 7.0),
        ({"date": formatdate(NOW_S, usegmt=True)}, None),
        ({"retry-after-ms": "250"}, 0.25),
        ({"retry-after-ms": "250", "retry-after": "7"}, 0.25),
        ({"retry-after-ms": "soon", "retry-after": "7"}, 7.0),
        ({"retry-after-ms": "-1", "retry-after": "-1"}, None),
    ],
)
def test_retry_after(
    headers: dict[str, str], pause_s: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "EST5")  # a date without a zone is UTC, not the machine's
        time.tzset()
        assert retry_after_s(headers, NOW_S) == pause_s
    time.tzset()


def models(*names: str) -> Talk:
    return http(200, json.dumps({"data": [{"id": name} for name in names]}).encode())


def by_path(listing: Talk, completion: Talk) -> Talk:
    """The fault server drops what it read, so the two paths are told apart by their order."""
    turns = iter([listing, completion, completion])
    return lambda connection: next(turns)(connection)


@pytest.mark.parametrize(
    "behave",
    [
        models("small", "big"),
        models("big:latest"),
        models(),
        by_path(http(404, b"", "Connection: close"), http(200, chat())),
        by_path(http(405, b"", "Connection: close"), http(200, chat(None))),
    ],
)
def test_a_usable_server_passes_the_check(behave: Talk) -> None:
    with faulty(behave) as base_url:
        backend_at(base_url).check()


@pytest.mark.parametrize(
    ("behave", "fix"),
    [
        (models("bigger", "tiny"), "set llm.model to one that is served: bigger"),
        (models(KEY), "set llm.model"),
        (error(401, message=QUOTES_KEY), "refuses the key in the variable OUR_KEY"),
        (by_path(http(404, b"", "Connection: close"), error(404)), "correct llm.model"),
        (by_path(http(404, b"", "Connection: close"), error(401)), "variable OUR_KEY"),
        (http(200, b"<html>"), "not UTF-8 JSON"),
        (reset, "start the server"),
        (http(302, b"", "Location: /"), "correct llm.base_url"),
    ],
)
def test_an_unusable_server_is_named_with_its_fix(behave: Talk, fix: str) -> None:
    with faulty(behave) as base_url, pytest.raises(errors.HelperUnusable, match=fix) as caught:
        backend_at(base_url).check()
    assert KEY not in str(caught.value)


def test_a_pool_of_helpers_is_checked_name_by_name() -> None:
    with (
        faulty(models("one")) as base_url,
        pytest.raises(errors.HelperUnusable, match=r"llm\.helpers row 'two'"),
    ):
        backend_at(base_url, model="").check()


def test_a_missing_key_is_named_by_its_variable() -> None:
    with (
        faulty(error(401)) as base_url,
        pytest.raises(errors.AuthFailed, match=r"asks for a key; put it into .* OUR_KEY"),
    ):
        ask(backend_at(base_url, key=""), 20.0)


@pytest.mark.parametrize("key", ["two\nlines-Secret", "blank Secret", "Sécret"])
def test_a_key_that_no_header_can_hold_is_named_but_not_quoted(key: str) -> None:
    with pytest.raises(ValueError, match="OUR_KEY") as caught:
        backend_at("http://127.0.0.1:9/v1", key=key)
    assert "cret" not in str(caught.value)


def test_a_base_url_must_be_whole_and_hold_no_password() -> None:
    for url in ("127.0.0.1:8000/v1", "ftp://host/v1", "", "http://"):
        with pytest.raises(ValueError, match=r"llm\.base_url=.* must be a whole URL"):
            backend_at(url)
    with pytest.raises(ValueError, match=r"llm\.base_url must hold no user") as caught:
        backend_at("http://user:hunter2@host/v1")
    assert "hunter2" not in str(caught.value)


def test_a_reply_that_says_the_key_does_not_carry_it_on() -> None:
    with faulty(http(200, chat(f"your key is {KEY}, is it not?"))) as base_url:
        assert ask(backend_at(base_url), 20.0).text == "your key is ***, is it not?"


def test_a_stand_in_for_a_key_spoils_no_reply() -> None:
    with faulty(http(200, chat("The box is EMPTY."))) as base_url:
        assert ask(backend_at(base_url, key="EMPTY"), 20.0).text == "The box is EMPTY."


def test_the_backend_is_made_from_the_config(monkeypatch: pytest.MonkeyPatch) -> None:
    config = default_config()
    config.llm.api_key_env = "OUR_KEY"
    monkeypatch.setenv("OUR_KEY", f"{KEY}\n")
    backend = make_backend("openai", config.llm)
    assert backend.helper_names == tuple(config.llm.helpers)
    config.llm.model = "big"
    assert make_backend("openai", config.llm).helper_names == ("big",)
    with pytest.raises(ValueError, match="did you mean openai"):
        make_backend("openia", config.llm)


def test_a_key_from_a_file_is_sent_and_its_place_named(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text(f"{KEY}\n")
    llm = default_config().llm
    llm.update({"model": "big", "api_key_env": "", "api_key_file": str(path)})
    with faulty(error(401)) as base_url:
        llm.base_url = base_url
        backend = make_backend("openai", llm)
        with pytest.raises(errors.AuthFailed, match="refuses the key in the file ") as caught:
            backend.complete(TALK, reply_tokens=8, deadline_s=20.0, helper="")
    assert f"{path} (llm.api_key_file)" in str(caught.value)
    assert KEY not in llm.to_json()


# --- streams -------------------------------------------------------------------------------

HINT = '{"kind": "hint", "text": "look at the mayor"}'
STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
DONE = b"data: [DONE]\n\n"


def said(content: object, finish: object = None) -> bytes:
    choice = {"index": 0, "delta": {"content": content}, "finish_reason": finish}
    return b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n"


def words(*pieces: bytes, every_s: float = 0.0) -> Talk:
    def behave(connection: socket.socket) -> None:
        connection.sendall(STREAM)
        for piece in pieces:
            time.sleep(every_s)
            connection.sendall(piece)

    return behave


BROKEN_STREAMS: dict[str, tuple[Talk, type[errors.HelpError]]] = {
    "ended early": (words(said("Oslo")), errors.ConnectionFailed),
    "reset": (lambda c: (words(said("Oslo"))(c), reset(c)), errors.ConnectionFailed),
    "no event": (words(b"data: {\n\n"), errors.Malformed),
    "10 MB": (words(*[said("x" * 10_000)] * 1000), errors.Malformed),
    "10 MB line": (words(b"data: ", b"x" * 10_000_000), errors.Malformed),
    "error": (words(said("Oslo"), b'data: {"error": {"code": 429}}\n\n'), errors.RateLimited),
    "hang": (hang_after(STREAM), errors.TimedOut),
    "drip": (drip(STREAM), errors.TimedOut),
    "drip of comments": (words(*[b": wait\n\n"] * 500, every_s=0.02), errors.TimedOut),
    "drip of nothing": (words(*[said("")] * 500, every_s=0.02), errors.TimedOut),
    "drip of an object": (words(*[said("{ ")] * 500, every_s=0.02), errors.TimedOut),
}


@pytest.mark.parametrize("name", BROKEN_STREAMS)
def test_each_broken_stream_is_a_typed_failure_within_the_deadline(name: str) -> None:
    behave, expected = BROKEN_STREAMS[name]
    is_timed = expected is errors.TimedOut
    with faulty(behave) as base_url, contextlib.closing(backend_at(base_url, stream=True)) as far:
        started_s = time.monotonic()
        with pytest.raises(errors.HelpError) as caught:
            ask(far, DEADLINE_S if is_timed else 20.0)
        taken_s = time.monotonic() - started_s
    assert type(caught.value) is expected
    assert not is_timed or taken_s < FAR_TOO_LATE_S


def test_a_stream_is_asked_for_with_its_usage() -> None:
    seen: list[bytes] = []

    def behave(connection: socket.socket) -> None:
        http(200, chat())(connection)
        seen.append(read_request(connection))
        words(said("Oslo", "stop"), DONE)(connection)

    with faulty(behave) as base_url, contextlib.closing(backend_at(base_url, stream=True)) as far:
        assert ask(far, 20.0) == Completion("Oslo", 9, 2)  # a server that doesn't stream
        assert ask(far, 20.0) == Completion("Oslo")
    asked = json.loads(seen[0].split(b"\r\n\r\n")[1])
    assert (asked["stream"], asked["stream_options"]) == (True, {"include_usage": True})


def test_a_model_that_rambles_on_does_not_hold_the_reply() -> None:
    behave = words(said(HINT), *[said(" and besides")] * 500, every_s=0.02)
    with faulty(behave) as base_url, contextlib.closing(backend_at(base_url, stream=True)) as far:
        started_s = time.monotonic()
        completion = ask(far, 20.0)
        assert time.monotonic() - started_s < 5.0  # not the ten seconds of the rest
    assert completion.cut == "tail" and completion.text.startswith(HINT)


def test_the_deadline_keeps_what_has_arrived() -> None:
    behave = words(said('{"kind": "hint", "text": "look'), *[said(" at")] * 500, every_s=0.02)
    with faulty(behave) as base_url, contextlib.closing(backend_at(base_url, stream=True)) as far:
        started_s = time.monotonic()
        completion = ask(far, DEADLINE_S)
        assert time.monotonic() - started_s < FAR_TOO_LATE_S
    assert (completion.cut, completion.is_part) == ("deadline", True)
    assert completion.text.startswith('{"kind": "hint", "text": "look at')


def test_a_reply_that_the_token_limit_cut_is_marked() -> None:
    choice = {"message": {"content": "Os"}, "finish_reason": "length"}
    body = json.dumps({"choices": [choice]}).encode()
    assert read_completion(body) == Completion("Os", cut="length")
