"""One HTTP exchange with a real deadline, a size limit, and failures as types.

Every wait, from the first packet on, ends at one clock. The way to the server is in `connections`;
`http1` reads the bytes. Redirects are not followed, there are no cookies, .netrc is not read, and
the API key is seen by nothing but the head of a request.

Each request carries an id of its own; a reply that echoes the id of another one is refused. Servers
and gateways that echo none (most) can mix up two replies unnoticed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import ssl
import time
import urllib.parse
import uuid
from collections.abc import Callable, Mapping

import requests
import urllib3

from collab.llm import errors
from collab.llm.connections import CHUNK_BYTES, Line, Route, connected, route_to
from collab.llm.http1 import Head, ReplyReader

MAX_BODY_BYTES = 2**20  # reading stops there
MAX_STREAM_BYTES = 2**23  # of a stream of events: each token comes with a few hundred bytes
ID_HEADER = "X-Request-Id"  # what gateways trace by, and some servers echo
# Tells an echo of one of our ids from an id of the server's own. It is hex, as the whole id has to
# be a UUID: llama.cpp's server refuses any other.
_ID_MARK = "c011ab0"

Watch = Callable[[bytes], float]


@dataclasses.dataclass(frozen=True)
class Answer:
    """Status, headers (names in lower case) and body of a reply.

    is_stream: the body is a stream of events; it went to the watcher and is empty here.
    is_late: the deadline came before the stream's end.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    is_stream: bool = False
    is_late: bool = False


class Transport:
    """A pool of kept-alive connections, usable from many threads."""

    def __init__(self, *, connections: int, key: str) -> None:
        """connections: kept at most for each server. key: the API key, "" = none."""
        self._connections = connections
        self._authorization = _Authorization(key)
        self._routes: dict[tuple[str, str], Route] = {}
        self._is_closed = False

    def exchange(
        self,
        method: str,
        url: str,
        *,
        deadline_s: float,
        payload: bytes | None = None,
        watch: Watch | None = None,
    ) -> Answer:
        """Send one request and read the whole reply within `deadline_s` seconds.

        watch: gets the pieces of a reply that is a stream of events, and says for how many more
        seconds it would wait for another; at 0 reading stops, whatever may follow. What it raises
        is raised.
        Raises: ConnectionFailed, TimedOut, Malformed, BadRequest (a URL that can't be asked).
        """
        if deadline_s <= 0:
            raise errors.TimedOut("no time was left to send the request")
        until_s = time.monotonic() + deadline_s
        try:
            route, target = self._way(url)
            request_id = f"{_ID_MARK}{uuid.uuid4().hex[len(_ID_MARK) :]}"
            head = _head(method, target, route, self._authorization, request_id, payload)
            with contextlib.ExitStack() as stack:
                line = route.idle_line(until_s) or connected(route, until_s)
                stack.callback(line.close)
                line.send(head if payload is None else head + payload)
                reader = ReplyReader(line.receive)
                reply = reader.head()
                _check_echo(reply.headers, request_id)
                answer = _answer(reply, reader, line, until_s, watch)
                if reader.is_whole and reply.is_kept_alive and self._keeps(route):
                    stack.pop_all()
                    route.idle.append(line)
                if self._is_closed:  # since, or the line above would keep it open
                    route.close()
                return answer
        except errors.HelpError as error:
            failure = error
        except TimeoutError:
            failure = errors.TimedOut(f"no whole reply within {deadline_s:.1f} s")
        except ssl.SSLError:
            failure = errors.ConnectionFailed("TLS failed: certificate or protocol")
        except (requests.RequestException, urllib3.exceptions.HTTPError, ValueError) as error:
            failure = errors.BadRequest(f"the request could not be made ({type(error).__name__})")
        except OSError:
            failure = errors.ConnectionFailed(
                "refused, reset, or closed before the reply was whole"
            )
        # Raised here, so that the cause, whose text may quote headers and URL, stays behind.
        raise failure from None

    def close(self) -> None:
        """Close the idle connections; those in use close when their exchange ends."""
        self._is_closed = True
        for route in list(self._routes.values()):
            route.close()

    def _keeps(self, route: Route) -> bool:
        return not self._is_closed and len(route.idle) < self._connections

    def _way(self, url: str) -> tuple[Route, str]:
        """Where to connect for a URL, and the target to name there. Raises: RequestException."""
        parts = urllib.parse.urlsplit(url)
        route = self._routes.get((parts.scheme, parts.netloc))
        if route is None:  # two threads may both make one; the first that is kept serves both
            made = route_to(url)
            route = self._routes.setdefault((parts.scheme, parts.netloc), made)
        target = urllib.parse.quote(parts.path or "/", safe="/%:@!$&'()*+,;=~")
        return route, f"{route.prefix}{target}{'?' if parts.query else ''}{parts.query}"


def _answer(
    reply: Head, reader: ReplyReader, line: Line, until_s: float, watch: Watch | None
) -> Answer:
    """The body read whole, or handed to `watch`. Raises: HelpError, OSError."""
    kind = reply.headers.get("content-type", "").partition(";")[0].strip().lower()
    encoding = reply.headers.get("content-encoding", "identity").lower()
    if watch is None or reply.status != 200 or kind != "text/event-stream":
        body = _collected(reader, reply)
        return Answer(reply.status, reply.headers, _decoded(body, encoding))
    if encoding != "identity":
        raise errors.Malformed("the stream has a Content-Encoding that nobody asked for")
    size = 0
    is_late = False
    try:
        for piece in reader.body(reply):
            size += len(piece)
            if size > MAX_STREAM_BYTES:
                raise errors.Malformed(f"the stream exceeds {MAX_STREAM_BYTES} bytes")
            patience_s = watch(piece)
            if patience_s <= 0:
                break
            line.until_s = min(until_s, time.monotonic() + patience_s)
    except TimeoutError:
        is_late = line.until_s >= until_s
    return Answer(reply.status, reply.headers, b"", is_stream=True, is_late=is_late)


def _collected(reader: ReplyReader, reply: Head) -> bytes:
    body = bytearray()
    for piece in reader.body(reply):
        body += piece
        _check_size(body)
    return bytes(body)


def _decoded(body: bytes, encoding: str) -> bytes:
    """A server may encode although we ask it not to; an empty body needs no decoding."""
    if encoding == "identity" or not body:
        return body
    coded = urllib3.HTTPResponse(
        io.BytesIO(body), headers={"content-encoding": encoding}, preload_content=False
    )
    text = bytearray()
    try:
        for piece in coded.stream(CHUNK_BYTES):
            text += piece
            _check_size(text)
    except urllib3.exceptions.DecodeError:
        raise errors.Malformed("the reply's Content-Encoding is broken") from None
    return bytes(text)


def _check_size(body: bytearray) -> None:
    if len(body) > MAX_BODY_BYTES:
        raise errors.Malformed(f"the reply exceeds {MAX_BODY_BYTES} bytes")


def _check_echo(headers: Mapping[str, str], request_id: str) -> None:
    """Raises: Malformed where the reply is another request's; leaving closes its connection."""
    echoed = headers.get(ID_HEADER.lower(), "")
    if _ID_MARK in echoed and request_id not in echoed:
        raise errors.Malformed("the reply carries the id of another request")


# --- what is sent --------------------------------------------------------------------------


class _Authorization:
    """Holds the key, and shows it nowhere else."""

    def __init__(self, key: str) -> None:
        self.line = f"Authorization: Bearer {key}\r\n" if key else ""


def _head(
    method: str,
    target: str,
    route: Route,
    authorization: _Authorization,
    request_id: str,
    payload: bytes | None,
) -> bytes:
    body = ""
    if payload is not None:
        body = f"Content-Type: application/json\r\nContent-Length: {len(payload)}\r\n"
    return (
        f"{method} {target} HTTP/1.1\r\n"
        f"Host: {route.host_header}\r\n"
        "User-Agent: collab\r\n"
        "Accept: application/json, text/event-stream\r\n"
        "Accept-Encoding: identity\r\n"
        f"{authorization.line}{route.proxy_line}"
        f"{ID_HEADER}: {request_id}\r\n"
        f"{body}\r\n"
    ).encode("ascii")
