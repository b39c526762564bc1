"""One HTTP exchange with a real deadline, a size limit, and failures as types.

urllib3 keeps the connections and speaks HTTP, TLS and to proxies. Alone it bounds each wait, not
the whole: a server that drips would hold it for ever, in the headers too. Here every wait ends at
one clock. Redirects are not followed, there are no cookies, .netrc is not read, and the API key is
seen by nothing but the headers of a request.

Each request carries an id of its own; a reply that echoes the id of another one is refused. Servers
and gateways that echo none (most) can mix up two replies unnoticed.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import ssl
import time
import uuid
from collections.abc import Callable, Iterator, Mapping

import requests
import urllib3

from collab.llm import errors
from collab.llm.clocked import CLOCK, pool_to

MAX_BODY_BYTES = 2**20  # reading stops there
MAX_STREAM_BYTES = 2**23  # of a stream of events: each token comes with a few hundred bytes
ID_HEADER = "X-Request-Id"  # what gateways trace by, and some servers echo
# Tells an echo of one of our ids from an id of the server's own. It is hex, as the whole id has to
# be a UUID: llama.cpp's server refuses any other.
_ID_MARK = "c011ab0"
_CHUNK_BYTES = 2**16

# Its warnings quote what a server sent, with a traceback; the failure is typed without it.
logging.getLogger("urllib3").setLevel(logging.ERROR)

Watch = Callable[[bytes], float]


@dataclasses.dataclass(frozen=True)
class Answer:
    """Status, headers and body of a reply. Names of headers are case-insensitive.

    is_stream: the body is a stream of events; it went to the watcher and is empty here.
    is_late: the deadline came before the stream's end.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    is_stream: bool = False
    is_late: bool = False


class Transport:
    """Pools of kept-alive connections, usable from many threads."""

    def __init__(self, *, connections: int, key: str) -> None:
        """connections: kept at most for each server. key: the API key, "" = none."""
        self._connections = connections
        self._headers = _Headers(key)
        self._pools: dict[tuple[str | None, str | None], urllib3.HTTPConnectionPool] = {}
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
        until_s = CLOCK.until_s = time.monotonic() + deadline_s
        pool, target = self._way(url)
        request_id = f"{_ID_MARK}{uuid.uuid4().hex[len(_ID_MARK) :]}"
        try:
            reply = pool.urlopen(
                method,
                target,
                body=payload,
                headers=self._headers.of(request_id, payload),
                timeout=deadline_s,
                retries=False,
                redirect=False,
                assert_same_host=False,  # it is the proxy that is asked for a whole URL
                preload_content=False,
            )
            try:
                _check_head(reply, request_id)
                return _answer(reply, until_s, watch)
            finally:
                reply.close()  # closes the connection, too, unless all was read and it went back
                reply.release_conn()
        except errors.HelpError as error:
            failure = error
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            failure = _typed(error, deadline_s)
        finally:
            if self._is_closed:
                pool.close()
        # Raised here, so that the cause, whose text may quote headers and URL, stays behind.
        raise failure from None

    def close(self) -> None:
        """Close the idle connections; those in use close when their exchange ends."""
        self._is_closed = True
        pools, self._pools = self._pools, {}
        for pool in pools.values():
            pool.close()

    def _way(self, url: str) -> tuple[urllib3.HTTPConnectionPool, str]:
        """The pool for a URL, and the target to name there. Raises: BadRequest."""
        try:
            parts = _parsed(url)
            pool = self._pools.get((parts.scheme, parts.netloc))
            if pool is None:
                pool = pool_to(parts, connections=self._connections)
                if not self._is_closed:  # of two threads that both make one, the first is kept
                    pool = self._pools.setdefault((parts.scheme, parts.netloc), pool)
            is_forwarded = pool.proxy is not None and parts.scheme == "http"
            return pool, url.partition("#")[0] if is_forwarded else parts.request_uri
        except (requests.RequestException, urllib3.exceptions.HTTPError, ValueError) as error:
            failure = errors.BadRequest(f"the request could not be made ({type(error).__name__})")
        raise failure  # here, so that the cause, whose text may quote a proxy's password, stays


class _Headers:
    """Holds the key, and shows it nowhere else."""

    def __init__(self, key: str) -> None:
        self._fixed = {
            "User-Agent": "collab",
            "Accept": "application/json, text/event-stream",
            "Accept-Encoding": "identity",
        }
        if key:
            self._fixed["Authorization"] = f"Bearer {key}"

    def of(self, request_id: str, payload: bytes | None) -> dict[str, str]:
        named = self._fixed | {ID_HEADER: request_id}
        return named if payload is None else named | {"Content-Type": "application/json"}


_parsed = functools.lru_cache(maxsize=64)(urllib3.util.parse_url)  # a run asks two URLs, or so


def _check_head(reply: urllib3.BaseHTTPResponse, request_id: str) -> None:
    """Raises: Malformed where the reply is another request's, or another follows it."""
    echoed = reply.headers.get(ID_HEADER, "")
    if _ID_MARK in echoed and request_id not in echoed:
        raise errors.Malformed("the reply carries the id of another request")
    if reply.status < 200:
        raise errors.Malformed(f"status {reply.status}: an interim reply that nobody asked for")


def _answer(reply: urllib3.BaseHTTPResponse, until_s: float, watch: Watch | None) -> Answer:
    """The body read whole, or handed to `watch`. Raises: HelpError, HTTPError, ValueError."""
    kind = reply.headers.get("content-type", "").partition(";")[0].strip().lower()
    if watch is None or reply.status != 200 or kind != "text/event-stream":
        body = b"".join(_pieces(reply, MAX_BODY_BYTES, "reply"))
        return Answer(reply.status, reply.headers, body)
    if reply.headers.get("content-encoding", "identity").lower() != "identity":
        raise errors.Malformed("the stream has a Content-Encoding that nobody asked for")
    is_late = False
    try:
        for piece in _pieces(reply, MAX_STREAM_BYTES, "stream"):
            patience_s = watch(piece)
            if patience_s <= 0:
                break
            CLOCK.until_s = min(until_s, time.monotonic() + patience_s)
    except urllib3.exceptions.ReadTimeoutError:
        is_late = CLOCK.until_s >= until_s
    return Answer(reply.status, reply.headers, b"", is_stream=True, is_late=is_late)


def _pieces(reply: urllib3.BaseHTTPResponse, limit_bytes: int, what: str) -> Iterator[bytes]:
    """The body as it arrives, decoded: a server may encode although we ask it not to."""
    size = 0
    while piece := reply.read1(_CHUNK_BYTES):
        size += len(piece)
        if size > limit_bytes:
            raise errors.Malformed(f"the {what} exceeds {limit_bytes} bytes")
        yield piece


def _typed(error: Exception, deadline_s: float) -> errors.HelpError:
    """Our class for what urllib3 raised. Its text is dropped: it can quote headers and URL."""
    causes = (error, *error.args)  # it wraps what a socket or a proxy raised
    if any(isinstance(cause, TimeoutError | urllib3.exceptions.TimeoutError) for cause in causes):
        return errors.TimedOut(f"no whole reply within {deadline_s:.1f} s")
    if any(isinstance(cause, ssl.SSLError | urllib3.exceptions.SSLError) for cause in causes):
        return errors.ConnectionFailed("TLS failed: certificate or protocol")
    if isinstance(error, urllib3.exceptions.DecodeError):
        return errors.Malformed("the reply's Content-Encoding is broken")
    if isinstance(error, urllib3.exceptions.InvalidHeader):
        return errors.Malformed("the reply's Content-Length is ambiguous")
    if isinstance(error, ValueError):  # a chunk of -1 bytes, for one
        return errors.Malformed("the reply breaks HTTP")
    return errors.ConnectionFailed("refused, reset, or closed before the reply was whole")
