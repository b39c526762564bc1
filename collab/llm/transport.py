"""One HTTP exchange with a real deadline, a size limit, and failures as types.

`requests` alone bounds each wait for bytes, not the whole: a server that drips holds it for ever,
in the headers too. Here the response reads its socket against one clock. Redirects are not
followed, cookies and .netrc are ignored, and the API key is seen by nothing but the header.

Each request carries an id of its own; a reply that echoes the id of another one is refused. Servers
and gateways that echo none (most) can mix up two replies unnoticed.
"""

from __future__ import annotations

import dataclasses
import http.client
import http.cookiejar
import io
import logging
import socket
import time
import uuid
from collections.abc import Mapping
from typing import Any

import requests
import requests.adapters
import urllib3
from requests.auth import AuthBase

from collab.llm import errors

MAX_BODY_BYTES = 2**20  # reading stops there
CONNECT_S = 5.0  # per address that the host name resolves to; less if the deadline is nearer
_CHUNK_BYTES = 2**16
ID_HEADER = "X-Request-Id"  # what gateways trace by, and some servers echo
_ID_MARK = "collab-"  # tells an echo of one of our ids from an id of the server's own

# Its warnings quote what a server sent, with a traceback; the failure is typed without it.
logging.getLogger("urllib3.connection").setLevel(logging.ERROR)


@dataclasses.dataclass(frozen=True)
class Answer:
    """Status, headers and whole body of a reply. Header names are case-insensitive."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Transport:
    """A pool of kept-alive connections to one server, usable from many threads."""

    def __init__(self, *, connections: int, key: str) -> None:
        self._session = _Session()
        adapter = _Adapter(pool_connections=1, pool_maxsize=connections)
        self._session.mount("http://", adapter)
        self._session.mount("https://", adapter)
        self._session.auth = _Bearer(key)
        self._session.cookies.set_policy(_NoCookies())

    def exchange(
        self, method: str, url: str, *, deadline_s: float, payload: bytes | None = None
    ) -> Answer:
        """Send one request and read the whole reply within `deadline_s` seconds.

        Raises: ConnectionFailed, TimedOut, Malformed, BadRequest (a URL that can't be asked).
        """
        if deadline_s <= 0:
            raise errors.TimedOut("no time was left to send the request")
        # The type stubs know numbers only; requests passes a urllib3 Timeout through.
        timeout: Any = urllib3.Timeout(connect=min(CONNECT_S, deadline_s), total=deadline_s)
        request_id = f"{_ID_MARK}{uuid.uuid4().hex}"
        headers = {
            "Accept": "application/json",
            "Accept-Encoding": "identity",
            ID_HEADER: request_id,
        }
        if payload is not None:
            headers["Content-Type"] = "application/json"
        try:
            with self._session.request(
                method,
                url,
                data=payload,
                headers=headers,
                timeout=timeout,
                stream=True,
                allow_redirects=False,
            ) as response:
                _check_echo(response.headers, request_id)
                return Answer(response.status_code, response.headers, _body(response))
        except requests.RequestException as error:
            failure = _typed(error, deadline_s)
        except (urllib3.exceptions.HTTPError, ValueError):  # a chunk of -1 bytes, for one
            failure = errors.Malformed("the reply breaks HTTP")
        # Raised here, so that the cause, whose request carries the key, does not travel along.
        raise failure

    def close(self) -> None:
        """Close the idle connections; those in use close when their exchange ends."""
        self._session.close()


def _check_echo(headers: Mapping[str, str], request_id: str) -> None:
    """Raises: Malformed where the reply is another request's; leaving closes its connection."""
    echoed = headers.get(ID_HEADER, "")
    if _ID_MARK in echoed and request_id not in echoed:
        raise errors.Malformed("the reply carries the id of another request")


def _body(response: requests.Response) -> bytes:
    body = bytearray()
    for chunk in response.iter_content(_CHUNK_BYTES):
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise errors.Malformed(f"the reply exceeds {MAX_BODY_BYTES} bytes")
    return bytes(body)


def _typed(error: requests.RequestException, deadline_s: float) -> errors.HelpError:
    """Our class for what requests raised. Its text is dropped: it can quote headers and URL."""
    cause = error.args[0] if error.args else None
    # In the body, and while the request was being sent.
    is_late = isinstance(cause, urllib3.exceptions.ReadTimeoutError) or any(
        isinstance(part, TimeoutError) for part in getattr(cause, "args", ())
    )
    if isinstance(error, requests.Timeout) or is_late:
        return errors.TimedOut(f"no whole reply within {deadline_s:.1f} s")
    if isinstance(error, requests.exceptions.ContentDecodingError):
        return errors.Malformed("the reply's Content-Encoding is broken")
    if isinstance(error, requests.exceptions.InvalidHeader):
        return errors.Malformed("the reply's Content-Length is ambiguous")
    if isinstance(error, requests.exceptions.SSLError):
        return errors.ConnectionFailed("TLS failed: certificate or protocol")
    if isinstance(error, requests.ConnectionError | requests.exceptions.ChunkedEncodingError):
        return errors.ConnectionFailed("refused, reset, or closed before the reply was whole")
    return errors.BadRequest(f"the request could not be made ({type(error).__name__})")


class _Session(requests.Session):
    """Never looks where a redirect leads: that would read its whole body, and trip over the URL."""

    def get_redirect_target(self, resp: requests.Response) -> str | None:
        return None


class _Bearer(AuthBase):
    """Sets the header. Being there at all keeps requests from reading ~/.netrc."""

    def __init__(self, key: str) -> None:
        self._key = key

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._key:
            request.headers["Authorization"] = f"Bearer {self._key}"
        return request


class _NoCookies(http.cookiejar.DefaultCookiePolicy):
    """A shared cookie jar would carry state from one request to another."""

    def set_ok(self, cookie: http.cookiejar.Cookie, request: Any) -> bool:
        return False


class _ClockedReader(io.RawIOBase):
    """A socket's byte stream whose waits all end at one deadline."""

    def __init__(self, raw: io.RawIOBase, sock: socket.socket, deadline_s: float) -> None:
        self._raw, self._sock, self._deadline_s = raw, sock, deadline_s

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        left_s = self._deadline_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError("timed out")
        self._sock.settimeout(left_s)
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


class _ClockedResponse(http.client.HTTPResponse):
    """Turns the time-out that stands on the socket when the reply begins into a deadline."""

    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        timeout_s = sock.gettimeout()
        if timeout_s is not None:
            deadline_s = time.monotonic() + timeout_s
            self.fp = io.BufferedReader(_ClockedReader(self.fp.detach(), sock, deadline_s))


class _HTTPConnection(urllib3.connection.HTTPConnection):
    response_class = _ClockedResponse


class _HTTPSConnection(urllib3.connection.HTTPSConnection):
    response_class = _ClockedResponse


class _HTTPPool(urllib3.HTTPConnectionPool):
    ConnectionCls = _HTTPConnection


class _HTTPSPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _HTTPSConnection


class _Adapter(requests.adapters.HTTPAdapter):
    """The stock adapter over pools of clocked connections, through a proxy as well."""

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = {"http": _HTTPPool, "https": _HTTPSPool}

    def proxy_manager_for(self, *args: Any, **kwargs: Any) -> Any:
        manager = super().proxy_manager_for(*args, **kwargs)
        manager.pool_classes_by_scheme = {"http": _HTTPPool, "https": _HTTPSPool}
        return manager
