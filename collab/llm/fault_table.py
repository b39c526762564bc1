"""Every way in which `collab.llm.faults` answers wrongly: its name, the client's error, the bytes.

A new fault is one row of FAULTS.
"""

from __future__ import annotations

import dataclasses
import functools
import gzip
import json
import socket
import struct
import threading
import time
from collections.abc import Callable
from email.utils import formatdate
from typing import Any, Protocol

from collab.llm import errors
from collab.llm.transport import ID_HEADER

LARGE_BYTES = 10_000_000
BOMB_BYTES = 2**25  # what a gzip of a few KB unpacks to
OUTAGE_S = 0.2  # for which the port is closed
DRIP_EVERY_S = 0.05
STRAY_AFTER_S = 0.05  # the client has its reply by then, and reuses the connection
HOUR_S = 3600.0


class Surroundings(Protocol):
    """What a fault needs of the server."""

    is_ending: threading.Event

    def close_port(self) -> None:
        """Refuse connections for OUTAGE_S."""
        ...

    def other_than(self, request_id: str) -> tuple[str, bytes]:
        """Id and reply of another request."""
        ...


class Wire:
    """One request that is answered wrongly: its connection, and the reply it should have had.

    is_framed: what was sent is a whole HTTP reply, so that the connection can be used again.
    """

    def __init__(
        self,
        connection: socket.socket,
        server: Surroundings,
        *,
        request_id: str,
        reply: dict[str, Any],
    ) -> None:
        self.socket, self.server = connection, server
        self.request_id, self.reply = request_id, reply
        self.is_framed = False

    @property
    def body(self) -> bytes:
        return json.dumps(self.reply).encode()

    def changed(self, **fields: Any) -> bytes:
        """The right body with some fields replaced."""
        return json.dumps({**self.reply, **fields}).encode()

    def send(self, *pieces: bytes) -> None:
        self.socket.sendall(b"".join(pieces))

    def answer(
        self, body: bytes, *headers: str, status: int = 200, request_id: str | None = None
    ) -> None:
        """A reply that is whole, as HTTP goes. request_id: echoed; default this request's own."""
        echo = self.request_id if request_id is None else request_id
        head = [f"HTTP/1.1 {status} Said", f"Content-Length: {len(body)}", *headers]
        head += [f"{ID_HEADER}: {echo}"] if echo else []
        self.send("\r\n".join([*head, "", ""]).encode(), body)
        self.is_framed = True

    def hang(self, *pieces: bytes) -> None:
        """Send a beginning, then nothing until the client gives up."""
        self.send(*pieces)
        self.socket.recv(1)

    def drip(self, *pieces: bytes) -> None:
        """Send a beginning, then a byte now and then until the client gives up."""
        self.send(*pieces)
        while not self.server.is_ending.wait(DRIP_EVERY_S):
            self.send(b"x")

    def flood(self, *pieces: bytes, wave: bytes) -> None:
        """Send a beginning, then the same over and over until the client gives up."""
        self.send(*pieces)
        while not self.server.is_ending.is_set():
            self.send(wave)

    def reset(self, *pieces: bytes) -> None:
        """Send a beginning, then RST instead of FIN."""
        self.send(*pieces)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


@dataclasses.dataclass(frozen=True)
class Fault:
    """One way to answer wrongly. expected: the client's error; None: it gets the right reply."""

    does: str
    expected: type[errors.HelpError] | None
    inject: Callable[[Wire], None]


def _refuse(wire: Wire) -> None:
    wire.server.close_port()
    wire.reset()


def _content(wire: Wire, content: Any) -> bytes:
    return wire.changed(choices=[{"index": 0, "message": {"content": content}}])


def _twice(wire: Wire) -> bytes:
    return wire.body.replace(b'"content": ', b'"content": "one of two", "content": ', 1)


def _busy(wire: Wire, status: int, *headers: str) -> None:
    wire.answer(b'{"error": {"message": "not now", "code": "busy"}}', *headers, status=status)


def _from_clock(wire: Wire, ahead_s: float) -> None:
    """A 429 that asks for a second, by a clock that is off."""
    now_s = time.time() + ahead_s
    date, until = (formatdate(at_s, usegmt=True) for at_s in (now_s, now_s + 1.0))
    _busy(wire, 429, f"Date: {date}", f"Retry-After: {until}")


def _other(wire: Wire, *, is_marked: bool) -> None:
    request_id, body = wire.server.other_than(wire.request_id)
    wire.answer(body, request_id=request_id if is_marked else "")


def _stray(wire: Wire) -> None:
    wire.answer(wire.body)
    wire.server.is_ending.wait(STRAY_AFTER_S)
    wire.answer(wire.body)


def _close_after(wire: Wire) -> None:
    wire.answer(wire.body)
    wire.is_framed = False


@functools.cache
def _bomb() -> bytes:
    return gzip.compress(b"x" * BOMB_BYTES)


_OK = b"HTTP/1.1 200 OK\r\n"
_CHUNKED = _OK + b"Transfer-Encoding: chunked\r\n\r\n"
_LONG = _OK + b"Content-Length: 1000\r\n\r\n"
_USAGE_NAN = {"prompt_tokens": float("nan"), "completion_tokens": 1}
_USAGE_WRONG = {"prompt_tokens": -1, "completion_tokens": "many", "total_tokens": True}

_LOST, _LATE, _BAD = errors.ConnectionFailed, errors.TimedOut, errors.Malformed
FAULTS: dict[str, Fault] = {
    # connections
    "refused": Fault(f"reset, and the port closed for {OUTAGE_S} s", _LOST, _refuse),
    "reset": Fault("reset before a byte", _LOST, lambda w: w.reset()),
    "reset_in_body": Fault("reset in the body", _LOST, lambda w: w.reset(_LONG, w.body[:9])),
    "closed": Fault("closed before a byte", _LOST, lambda w: None),
    "body_cut": Fault("closed in the body", _LOST, lambda w: w.send(_LONG, w.body[:9])),
    "chunk_cut": Fault("closed in a chunk", _LOST, lambda w: w.send(_CHUNKED, b"ff\r\n{}")),
    "closed_after": Fault("closed after the reply, unannounced", None, _close_after),
    # slowness
    "hang": Fault("nothing, for ever", _LATE, lambda w: w.hang()),
    "hang_in_head": Fault("half the headers, then nothing", _LATE, lambda w: w.hang(_OK)),
    "hang_in_body": Fault("half the body, then nothing", _LATE, lambda w: w.hang(_LONG, b"{")),
    "slow_loris": Fault("headers byte by byte", _LATE, lambda w: w.drip(_OK, b"X-Long: ")),
    "drip": Fault("a body byte by byte", _LATE, lambda w: w.drip(_LONG)),
    # not HTTP
    "garbage": Fault("no HTTP", _LOST, lambda w: w.send(b"garbage\r\n\r\n")),
    "half_head": Fault("closed in the headers", _BAD, lambda w: w.send(_OK, b"Content-Ty")),
    "two_lengths": Fault(
        "two lengths in a header", _BAD, lambda w: w.send(_OK, b"Content-Length: 5, 6\r\n\r\n{}")
    ),
    "minus_chunk": Fault("a chunk of -5 bytes", _BAD, lambda w: w.send(_CHUNKED, b"-5\r\n{}")),
    "endless_head": Fault(
        "headers without end", _LOST, lambda w: w.flood(_OK, wave=b"X-More: more\r\n" * 99)
    ),
    "endless_body": Fault(
        "a body without end", _BAD, lambda w: w.flood(_OK, b"\r\n", wave=b" " * 2**16)
    ),
    # statuses
    "status_204": Fault("204, no body", _BAD, lambda w: w.answer(b"", status=204)),
    "redirect": Fault(
        "302", errors.BadRequest, lambda w: w.answer(b"", "Location: /v1/models", status=302)
    ),
    "redirect_nowhere": Fault(
        "302 to no URL", errors.BadRequest, lambda w: w.answer(b"", "Location: //[", status=302)
    ),
    "redirect_flood": Fault(
        "302 with a body without end",
        _BAD,
        lambda w: w.flood(b"HTTP/1.1 302 Found\r\nLocation: /\r\n\r\n", wave=b" " * 2**16),
    ),
    "status_401": Fault("401, mid-run", errors.AuthFailed, lambda w: _busy(w, 401)),
    "status_408": Fault("408", errors.TimedOut, lambda w: _busy(w, 408)),
    "status_429": Fault("429", errors.RateLimited, lambda w: _busy(w, 429)),
    "retry_after": Fault(
        "429, Retry-After: 1", errors.RateLimited, lambda w: _busy(w, 429, "Retry-After: 1")
    ),
    "retry_late": Fault(
        "429, Retry-After: 3600", errors.RateLimited, lambda w: _busy(w, 429, "Retry-After: 3600")
    ),
    "clock_ahead": Fault(
        "429, dates an hour ahead", errors.RateLimited, lambda w: _from_clock(w, HOUR_S)
    ),
    "clock_behind": Fault(
        "429, dates an hour behind", errors.RateLimited, lambda w: _from_clock(w, -HOUR_S)
    ),
    "status_500": Fault("500", errors.ServerFailed, lambda w: _busy(w, 500)),
    "status_502": Fault(
        "502, HTML", errors.ServerFailed, lambda w: w.answer(b"<html>", status=502)
    ),
    "status_503": Fault("503", errors.ServerFailed, lambda w: _busy(w, 503, "Retry-After: 0")),
    "status_529": Fault("529, overloaded", errors.ServerFailed, lambda w: _busy(w, 529)),
    # bodies
    "wrong_type": Fault(
        "the reply called HTML", None, lambda w: w.answer(w.body, "Content-Type: text/html")
    ),
    "html": Fault(
        "a page", _BAD, lambda w: w.answer(b"<html>busy</html>", "Content-Type: text/html")
    ),
    "empty": Fault("200, no body", _BAD, lambda w: w.answer(b"")),
    "cut_json": Fault("half the JSON", _BAD, lambda w: w.answer(w.body[: len(w.body) // 2])),
    "twice": Fault("content as a key twice", _BAD, lambda w: w.answer(_twice(w))),
    "large": Fault("10 MB of JSON", _BAD, lambda w: w.answer(w.changed(padding="x" * LARGE_BYTES))),
    "bad_gzip": Fault(
        "no gzip, but called so", _BAD, lambda w: w.answer(w.body, "Content-Encoding: gzip")
    ),
    "gzip_bomb": Fault(
        "gzip that unpacks to 32 MB", _BAD, lambda w: w.answer(_bomb(), "Content-Encoding: gzip")
    ),
    "bad_utf8": Fault(
        "a byte that is no UTF-8",
        _BAD,
        lambda w: w.answer(w.body.replace(b'"content": "', b'"content": "\xff', 1)),
    ),
    "no_choices": Fault("empty choices", _BAD, lambda w: w.answer(w.changed(choices=[]))),
    "null_content": Fault("content of null", _BAD, lambda w: w.answer(_content(w, None))),
    "nan_usage": Fault("usage of NaN", _BAD, lambda w: w.answer(w.changed(usage=_USAGE_NAN))),
    "wrong_usage": Fault(
        "usage of -1 and words", None, lambda w: w.answer(w.changed(usage=_USAGE_WRONG))
    ),
    # other requests' replies
    "other_reply": Fault("another request's, marked", _BAD, lambda w: _other(w, is_marked=True)),
    "stray_reply": Fault("the reply, and once more a moment later", None, _stray),
    "other_unmarked": Fault(
        "another request's, unmarked: accepted", None, lambda w: _other(w, is_marked=False)
    ),
}
UNDETECTABLE = ("other_unmarked",)
