"""urllib3's pools with one clock over all waits, set up as the environment says.

The library bounds each wait of a connection; what is added here is the deadline over all of them:
connecting, tunnel, TLS, sending, headers, body. Which way a request goes is what `requests` would
do: proxies, NO_PROXY and the bundle of certificates. Only `transport` uses this.
"""

from __future__ import annotations

import io
import os
import re
import socket
import ssl
import threading
import time
from http.client import HTTPResponse
from typing import Any

import requests
import urllib3
from requests.utils import (
    DEFAULT_CA_BUNDLE_PATH,
    get_auth_from_url,
    prepend_scheme_if_needed,
    select_proxy,
)
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.util import Url, parse_url
from urllib3.util.connection import create_connection

from collab.llm import errors

CONNECT_S = 5.0  # per address that the host name resolves to; less if the deadline is nearer
_LEAST_S = 1e-3  # 0 would mean not to wait at all
_RECORD_BYTES = 2**14  # TLS writes a record at a time, each with the whole time-out
_REFUSED = re.compile(r"Tunnel connection failed: (\d{3})")


class _Clock(threading.local):
    """When this thread's exchange must be over: an exchange stays in one thread all along."""

    until_s = 0.0

    def left_s(self) -> float:
        return max(_LEAST_S, self.until_s - time.monotonic())

    def bound(self, sock: socket.socket) -> None:
        """Let the next wait of the socket end in time. Raises: TimeoutError."""
        left_s = self.until_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        sock.settimeout(left_s)


CLOCK = _Clock()


def pool_to(place: Url, *, connections: int) -> urllib3.HTTPConnectionPool:
    """What `requests` would use for this URL in this environment.

    Raises: BadRequest for what we do not do; requests.RequestException, urllib3's HTTPError,
    ValueError for what is no URL.
    """
    with requests.Session() as session:
        settings = session.merge_environment_settings(place.url, {}, None, None, None)
    options: dict[str, Any] = {"maxsize": connections}
    options["socket_options"] = HTTPConnection.default_socket_options  # through a proxy as well
    if place.scheme == "https":
        options["ssl_context"] = _tls_context(settings["verify"])
    proxy_url = select_proxy(place.url, settings["proxies"])
    if proxy_url:
        manager = _through(prepend_scheme_if_needed(proxy_url, "http"), options)
    else:
        manager = urllib3.PoolManager(**options)
    manager.pool_classes_by_scheme = {"http": _HTTPPool, "https": _HTTPSPool}
    return manager.connection_from_host(place.host, place.port, place.scheme)


def _through(proxy_url: str, options: dict[str, Any]) -> urllib3.PoolManager:
    proxy = parse_url(proxy_url)
    if proxy.scheme != "http" or not proxy.host:
        raise errors.BadRequest(
            "the proxy that the environment names (HTTP_PROXY, HTTPS_PROXY, ALL_PROXY) must be "
            "http://host:port; add the server to NO_PROXY to go without"
        )
    user, password = get_auth_from_url(proxy_url)
    headers = urllib3.make_headers(proxy_basic_auth=f"{user}:{password}") if user else {}
    return urllib3.ProxyManager(proxy_url, proxy_headers=headers, **options)


def _tls_context(verify: str | bool | None) -> ssl.SSLContext:
    """verify: the bundle or folder that the environment names; else the one of `requests`."""
    bundle = verify if isinstance(verify, str) else DEFAULT_CA_BUNDLE_PATH
    if not os.path.exists(bundle):
        raise errors.BadRequest(
            f"the CA bundle {bundle} does not exist; correct REQUESTS_CA_BUNDLE or CURL_CA_BUNDLE"
        )
    is_folder = os.path.isdir(bundle)
    return ssl.create_default_context(
        cafile=None if is_folder else bundle, capath=bundle if is_folder else None
    )


# --- clocked connections -------------------------------------------------------------------


class _ClockedSource(io.RawIOBase):
    """A socket's byte stream whose waits end at the clock."""

    def __init__(self, raw: io.RawIOBase, sock: socket.socket) -> None:
        self._raw, self._sock = raw, sock

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        CLOCK.bound(self._sock)
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Buffered(io.BufferedReader):
    def read1(self, size: int = -1) -> bytes:
        if size < 0:  # http.client takes a chunk's size as it comes
            raise ValueError("a chunk of less than no bytes")
        return super().read1(size)


class _ClockedResponse(HTTPResponse):
    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self.fp = _Buffered(_ClockedSource(self.fp.detach(), sock))


class _HTTPConnection(HTTPConnection):
    response_class = _ClockedResponse

    def send(self, data: Any) -> None:
        """data: bytes; the library takes more."""
        if self.sock is None:
            self.connect()
        for start in range(0, len(data), _RECORD_BYTES):
            CLOCK.bound(self.sock)
            super().send(data[start : start + _RECORD_BYTES])

    def _new_conn(self) -> socket.socket:
        """Try each address that the name resolves to.

        Raises: the OSError of the last; ConnectionFailed for a reset, which urllib3 would take for
        one after the request, and read a reply from no socket.
        """
        failure: Exception = OSError("the name has no address")
        numeric = socket.NI_NUMERICHOST | socket.NI_NUMERICSERV
        for *_, place in socket.getaddrinfo(self._dns_host, self.port, 0, socket.SOCK_STREAM):
            try:
                host, port = socket.getnameinfo(place, numeric)
                sock = create_connection(
                    (host, int(port)),
                    min(CONNECT_S, CLOCK.left_s()),
                    socket_options=self.socket_options,
                )
            except (BrokenPipeError, ConnectionResetError):
                failure = errors.ConnectionFailed("reset while connecting")
            except OSError as error:
                failure = error
            else:
                sock.settimeout(CLOCK.left_s())
                return sock
        raise failure

    def _tunnel(self) -> None:
        try:
            super()._tunnel()
        except OSError as error:
            refused = _REFUSED.match(str(error))
            if refused is None:
                raise
        else:
            self.sock.settimeout(CLOCK.left_s())
            return
        raise errors.ConnectionFailed(f"the proxy refuses the tunnel: status {refused[1]}")


class _HTTPSConnection(_HTTPConnection, HTTPSConnection):
    @property
    def is_connected(self) -> bool:
        """Not where anything was sent since the last reply, be it decrypted already."""
        is_read = not (isinstance(self.sock, ssl.SSLSocket) and self.sock.pending())
        return is_read and super().is_connected


class _HTTPPool(urllib3.HTTPConnectionPool):
    ConnectionCls = _HTTPConnection


class _HTTPSPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _HTTPSConnection
