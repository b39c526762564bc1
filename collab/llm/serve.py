"""Serve a backend over the OpenAI protocol: `python -m collab.llm.serve --backend=scripted`.

For trying the whole path with a real socket and no LLM, and for any other program that speaks the
protocol. Helpers appear as models. Tests use `serving`. Texts are never logged.
"""

from __future__ import annotations

import argparse
import contextlib
import hmac
import json
import logging
import re
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from ml_collections import ConfigDict

from collab.config import default_config, load_config
from collab.llm import BACKENDS, Backend, Message, errors, make_backend
from collab.llm.attacks import FAMILIES
from collab.llm.injection import MIX, InjectingBackend
from collab.llm.keys import key_in_variable
from collab.rules import validate
from collab.sharding import make_mesh

MAX_REQUEST_BYTES = 4 * 2**20
IDLE_S = 60.0  # a kept-alive connection without a request is closed
REPLY_TOKENS = 256  # where a request names no limit
REPLY_S = 600.0  # for a backend that is itself remote
PIECE = re.compile(r"\s*\S+|\s+\Z")  # of a streamed text: a word and the blanks before it
FORMATS = ("text", "json_object", "json_schema")  # of a reply; a backend here may not keep to it
POLL_S = 0.05  # how soon `serving` notices that it should end

# Typed failure -> status and error code of the protocol. Order matters: subclasses first.
_STATUS: tuple[tuple[type[errors.HelpError], int, str], ...] = (
    (errors.ContextTooLong, 400, "context_length_exceeded"),
    (errors.ModelNotFound, 404, "model_not_found"),
    (errors.AuthFailed, 401, "invalid_api_key"),
    (errors.ContentFiltered, 400, "content_filter"),
    (errors.Rejected, 400, "invalid_request"),
    (errors.RateLimited, 429, "rate_limit_exceeded"),
    (errors.HelpError, 502, "bad_gateway"),
)


@contextlib.contextmanager
def serving(
    backend: Backend, *, host: str = "127.0.0.1", port: int = 0, key: str = ""
) -> Iterator[str]:
    """Serve `backend` from a thread; yields the base URL. key: demanded of clients, "" = none."""
    server = Server(backend, host=host, port=port, key=key)
    thread = threading.Thread(
        target=server.serve_forever, args=(POLL_S,), name="llm-serve", daemon=True
    )
    thread.start()
    try:
        yield server.base_url
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Server(ThreadingHTTPServer):
    """One thread per connection, each reply after the latency that the backend names."""

    daemon_threads = True
    request_queue_size = 256  # a whole rollout may connect at once

    def __init__(self, backend: Backend, *, host: str, port: int, key: str) -> None:
        """Port 0: any free one. Raises: OSError where the address can't be had."""
        super().__init__((host, port), Handler)
        self.backend, self.key = backend, key
        self.base_url = f"http://{host}:{self.server_address[1]}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that is gone is no news; anything else is a bug, and is shown."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class _ProblemError(Exception):
    """Ends a request with an error body."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code = status, code


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: Server
    protocol_version = "HTTP/1.1"
    timeout = IDLE_S
    _pace_s = 0.0  # the latency of the reply under way, where it is streamed
    _stream_options: dict[str, Any] | None = None  # None: it is not
    disable_nagle_algorithm = True  # header and body are two writes: 40 ms on a kept connection

    def do_GET(self) -> None:
        self._answer(self._models)

    def do_POST(self) -> None:
        self._answer(self._chat)

    def log_message(self, format: str, *args: Any) -> None:
        """Request lines hold no text of the talk, but are noise above debug."""
        logging.debug("serve: " + format, *args)

    def _answer(self, make: Any) -> None:
        status, self._pace_s, self._stream_options = 200, 0.0, None
        try:
            self._check_key()
            reply = make()
            if self._stream_options is not None:
                self._send_stream(reply, self._stream_options)
                return
        except _ProblemError as problem:
            status, reply = problem.status, _error_body(problem)
            self.close_connection = True  # the request's body may be unread
        body = json.dumps(reply).encode()
        try:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            if self.close_connection:
                self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(body)
        except OSError:
            self.close_connection = True  # the client did not wait

    def _send_stream(self, reply: dict[str, Any], options: dict[str, Any]) -> None:
        """The reply as server-sent events, a word at a time over the backend's latency."""
        (choice,) = reply["choices"]
        pieces = PIECE.findall(choice["message"]["content"])
        deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
        deltas += [{"content": piece} for piece in pieces]
        choices = [{"index": 0, "delta": delta, "finish_reason": None} for delta in deltas]
        choices.append({"index": 0, "delta": {}, "finish_reason": choice["finish_reason"]})
        events: list[dict[str, Any]] = [{"choices": [choice]} for choice in choices]
        if options.get("include_usage"):
            events.append({"choices": [], "usage": reply.get("usage")})
        shared = {**reply, "object": "chat.completion.chunk"}
        shared.pop("usage", None)
        try:
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for event in events:
                if event["choices"] and event["choices"][0]["delta"].get("content"):
                    time.sleep(self._pace_s / len(pieces))
                self._send_chunk(f"data: {json.dumps(shared | event)}\n\n".encode())
            self._send_chunk(b"data: [DONE]\n\n")
            self._send_chunk(b"")
        except OSError:
            self.close_connection = True  # the client has read enough

    def _send_chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))

    def _check_key(self) -> None:
        given = self.headers.get("Authorization", "")
        expected = f"Bearer {self.server.key}"
        if self.server.key and not hmac.compare_digest(given.encode(), expected.encode()):
            raise _ProblemError(401, "invalid_api_key", "Incorrect API key provided.")

    def _models(self) -> dict[str, Any]:
        if self.path.rstrip("/") != "/v1/models":
            raise _ProblemError(404, "not_found", "Try /v1/models or /v1/chat/completions.")
        names = self.server.backend.helper_names
        rows = [{"id": name, "object": "model", "owned_by": "collab"} for name in names]
        return {"object": "list", "data": rows}

    def _chat(self) -> dict[str, Any]:
        if self.path.rstrip("/") != "/v1/chat/completions":
            raise _ProblemError(404, "not_found", "Try /v1/models or /v1/chat/completions.")
        asked = self._body()
        messages = _messages(asked.get("messages"))
        reply_tokens = asked.get("max_tokens", REPLY_TOKENS)
        if not isinstance(reply_tokens, int) or reply_tokens < 1:
            raise _ProblemError(400, "invalid_value", "max_tokens must be a positive integer.")
        if asked.get("n", 1) != 1:
            raise _ProblemError(400, "unsupported_value", "n > 1 is not served here.")
        _check_format(asked.get("response_format"))
        model = asked.get("model")
        if not isinstance(model, str):
            raise _ProblemError(400, "invalid_value", "model must be a string.")
        try:
            completion = self.server.backend.complete(
                messages, reply_tokens=reply_tokens, deadline_s=REPLY_S, helper=model
            )
        except errors.HelpError as error:
            status, code = next((s, c) for kind, s, c in _STATUS if isinstance(error, kind))
            raise _ProblemError(status, code, str(error)) from None
        self._pace_s = completion.latency_s or 0.0
        if asked.get("stream"):
            options = asked.get("stream_options")
            self._stream_options = options if isinstance(options, dict) else {}
        else:
            time.sleep(self._pace_s)
        message = {"role": "assistant", "content": completion.text}
        finish = "length" if completion.is_part else "stop"
        reply: dict[str, Any] = {
            "id": "chatcmpl-collab",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": model,
            "choices": [{"index": 0, "message": message, "finish_reason": finish}],
        }
        sent, received = completion.prompt_tokens, completion.completion_tokens
        if sent is not None and received is not None:
            reply["usage"] = {
                "prompt_tokens": sent,
                "completion_tokens": received,
                "total_tokens": sent + received,
            }
        return reply

    def _body(self) -> dict[str, Any]:
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit()) or int(length) > MAX_REQUEST_BYTES:
            limit = f"Content-Length must be a number up to {MAX_REQUEST_BYTES}."
            raise _ProblemError(413, "request_too_large", limit)
        try:
            asked = json.loads(self.rfile.read(int(length)))
        except (ValueError, RecursionError):
            raise _ProblemError(400, "invalid_json", "The body is not JSON.") from None
        if not isinstance(asked, dict):
            raise _ProblemError(400, "invalid_json", "The body is not a JSON object.")
        return asked


def _messages(value: Any) -> list[Message]:
    is_list = isinstance(value, list) and value and all(isinstance(row, dict) for row in value)
    if not is_list or not all(
        isinstance(row.get("role"), str) and isinstance(row.get("content"), str) for row in value
    ):
        raise _ProblemError(
            400, "invalid_messages", "messages must be a list of {role, content} objects of text."
        )
    return [Message(row["role"], row["content"]) for row in value]


def _check_format(value: Any) -> None:
    """Refuse a `response_format` that makes no sense. Raises: _ProblemError."""
    if value is None:
        return
    kind = value.get("type") if isinstance(value, dict) else None
    if kind not in FORMATS:
        said = f"response_format.type must be one of {', '.join(FORMATS)}."
        raise _ProblemError(400, "invalid_value", said)
    schema = value.get("json_schema")
    is_named = isinstance(schema, dict) and isinstance(schema.get("name"), str)
    if kind == "json_schema" and not (is_named and isinstance(schema.get("schema"), dict)):
        said = "response_format.json_schema must hold a name and a schema."
        raise _ProblemError(400, "invalid_value", said)


def _error_body(problem: _ProblemError) -> dict[str, Any]:
    kind = "server_error" if problem.status >= 500 else "invalid_request_error"
    return {"error": {"message": str(problem), "type": kind, "param": None, "code": problem.code}}


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until interrupted. Returns the exit status; a mistake ends in one clear line."""
    parser = argparse.ArgumentParser(prog="python -m collab.llm.serve", description=__doc__)
    parser.add_argument("--backend", default="scripted", help=f"one of {', '.join(BACKENDS)}")
    parser.add_argument("--config", default="", help="a file of configs/; default: every default")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--data_dir", default="", help="where the task's data stands or is made")
    parser.add_argument("--api_key_env", default="", help="variable with the key to demand")
    parser.add_argument(
        "--injection",
        default="",
        help=f"rewrite replies by prompt injection: {MIX}, {', '.join(FAMILIES)}, or one attack",
    )
    parser.add_argument("--injection_rate", type=float, default=1.0, help="share of the replies")
    parser.add_argument("--injection_seed", type=int, default=0, help="of what is drawn")
    flags = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        key = _key_of(flags.api_key_env)
        config = load_config(flags.config) if flags.config else default_config()
        config.llm.backend = flags.backend
        validate(config)
        backend = task_backend(flags.backend, config, flags.data_dir)
        if flags.injection:
            backend = InjectingBackend(
                backend, flags.injection, rate=flags.injection_rate, seed=flags.injection_seed
            )
        server = _open(backend, host=flags.host, port=flags.port, key=key)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    with contextlib.closing(backend):
        serve_until_interrupted(server, flags.backend)
    return 0


def serve_until_interrupted(server: Server, title: str) -> None:
    """Say what is served and where, then serve until Ctrl-C."""
    names = ", ".join(server.backend.helper_names)
    logging.info("serving %s at %s: models %s", title, server.base_url, names)
    with contextlib.suppress(KeyboardInterrupt):
        server.serve_forever()
    server.server_close()


def _open(backend: Backend, *, host: str, port: int, key: str) -> Server:
    try:
        return Server(backend, host=host, port=port, key=key)
    except (OSError, OverflowError) as error:
        raise ValueError(f"--host={host} --port={port}: {error}; try another --port") from None


def task_backend(name: str, config: ConfigDict, data_dir: str) -> Backend:
    """A backend that knows the config's task, as one in process would; or one with a model."""
    if name == "local":  # it knows what its weights know
        return make_backend(name, config.llm, seed=config.seed, mesh=make_mesh(config.mesh))
    # Serving is an application: the one place below main that needs a task, and only when run.
    from collab.tasks import make_task

    task = make_task(config, data_dir or config.task.data_dir or "runs/data")
    # The seed that a run in process uses: the same helper knows the same facts either way.
    return make_backend(name, config.llm, knowledge=task.knowledge, seed=config.task.world.seed)


def _key_of(variable: str) -> str:
    key = key_in_variable(variable)
    if variable and not key:
        raise ValueError(
            f"--api_key_env={variable}: the variable is empty; set it or drop the flag"
        )
    return key


if __name__ == "__main__":
    sys.exit(main())
