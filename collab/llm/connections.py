"""The way to a server: name, proxy, tunnel and TLS, with every wait ended by one clock.

Which way a request goes is what `requests` would do: proxies, NO_PROXY and the bundle of
certificates come from the environment. Only `transport` uses this; what is said on a connection is
its business.
"""

from __future__ import annotations

import collections
import contextlib
import os
import socket
import ssl
import time
import urllib.parse

import requests
import urllib3
from requests.utils import (
    DEFAULT_CA_BUNDLE_PATH,
    get_auth_from_url,
    prepend_scheme_if_needed,
    select_proxy,
)
from urllib3.util import wait_for_read

from collab.llm import errors
from collab.llm.http1 import ReplyReader

CONNECT_S = 5.0  # per address that the host name resolves to; less if the deadline is nearer
CHUNK_BYTES = 2**16


class Line:
    """A connected socket whose waits all end at `until_s` by the monotonic clock."""

    def __init__(self, sock: socket.socket, until_s: float) -> None:
        self.sock, self.until_s = sock, until_s

    def send(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            self._set_timeout()
            rest = rest[self.sock.send(rest[:CHUNK_BYTES]) :]

    def receive(self) -> bytes:
        self._set_timeout()
        return self.sock.recv(CHUNK_BYTES)

    def secure(self, context: ssl.SSLContext, host: str) -> None:
        """Speak TLS from here on, with `host` or nobody."""
        self._set_timeout()
        self.sock = context.wrap_socket(self.sock, server_hostname=host)

    def is_quiet(self) -> bool:
        """Whether the other side has neither closed nor sent anything since the last reply."""
        is_read = not (isinstance(self.sock, ssl.SSLSocket) and self.sock.pending())
        return is_read and not wait_for_read(self.sock, timeout=0.0)

    def close(self) -> None:
        self.sock.close()

    def _set_timeout(self) -> None:
        left_s = self.until_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        self.sock.settimeout(left_s)


class Route:
    """The way to one server, and the idle connections on it.

    address: to connect to, the proxy's if there is one. tunnel: host and port to ask a proxy for,
    None = no tunnel. prefix: of the target, which a proxy without tunnel wants whole.
    """

    def __init__(
        self,
        *,
        address: tuple[str, int],
        host_header: str,
        context: ssl.SSLContext | None,
        tunnel: str = "",
        prefix: str = "",
        proxy_line: str = "",
        tls_host: str = "",
    ) -> None:
        self.address, self.host_header, self.context = address, host_header, context
        self.tunnel, self.prefix, self.tls_host = tunnel, prefix, tls_host
        # In a tunnel the proxy sees the CONNECT only, and the server must not see this line.
        self.proxy_line = "" if tunnel else proxy_line
        self.tunnel_line = proxy_line if tunnel else ""
        self.idle: collections.deque[Line] = collections.deque()

    def idle_line(self, until_s: float) -> Line | None:
        """The connection used last that the server has neither closed nor sent anything on."""
        while True:
            try:
                line = self.idle.pop()
            except IndexError:
                return None
            if line.is_quiet():
                line.until_s = until_s
                return line
            line.close()

    def close(self) -> None:
        with contextlib.suppress(IndexError):
            while True:
                self.idle.pop().close()


def connected(route: Route, until_s: float) -> Line:
    """A new connection, through the tunnel and with TLS where the route has them.

    Raises: OSError, HelpError.
    """
    line = Line(_dialled(route.address, until_s), until_s)
    with contextlib.ExitStack() as stack:
        stack.callback(line.close)
        if route.tunnel:
            line.send(
                f"CONNECT {route.tunnel} HTTP/1.1\r\nHost: {route.tunnel}\r\n"
                f"{route.tunnel_line}\r\n".encode("ascii")
            )
            status = ReplyReader(line.receive).head().status
            if status != 200:
                raise errors.ConnectionFailed(f"the proxy refuses the tunnel: status {status}")
        if route.context is not None:
            line.secure(route.context, route.tls_host)
        stack.pop_all()
    return line


def _dialled(address: tuple[str, int], until_s: float) -> socket.socket:
    """Try each address that the name resolves to. Raises: the OSError of the last."""
    host, port = address
    last: OSError = OSError("the name has no address")
    for family, kind, protocol, _, place in socket.getaddrinfo(host, port, 0, socket.SOCK_STREAM):
        left_s = until_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        sock = socket.socket(family, kind, protocol)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.settimeout(min(CONNECT_S, left_s))
            sock.connect(place)
            return sock
        except OSError as error:
            sock.close()
            last = error
    raise last


def route_to(url: str) -> Route:
    """What `requests` would do for this URL in this environment.

    Raises: requests.RequestException, ValueError, BadRequest for what we do not do.
    """
    with requests.Session() as session:
        settings = session.merge_environment_settings(url, {}, None, None, None)
    parts = urllib.parse.urlsplit(requests.Request("POST", url).prepare().url or url)
    host, is_secure = parts.hostname or "", parts.scheme == "https"
    port = parts.port or (443 if is_secure else 80)
    context = _tls_context(settings["verify"]) if is_secure else None
    proxy_url = select_proxy(url, settings["proxies"])
    if not proxy_url:
        return Route(address=(host, port), host_header=parts.netloc, context=context, tls_host=host)
    proxy = urllib.parse.urlsplit(prepend_scheme_if_needed(proxy_url, "http"))
    if proxy.scheme != "http" or not proxy.hostname:
        raise errors.BadRequest(
            "the proxy that the environment names (HTTP_PROXY, HTTPS_PROXY, ALL_PROXY) must be "
            "http://host:port; add the server to NO_PROXY to go without"
        )
    user, password = get_auth_from_url(proxy.geturl())
    words = urllib3.make_headers(proxy_basic_auth=f"{user}:{password}") if user else {}
    bracketed = f"[{host}]" if ":" in host else host
    return Route(
        address=(proxy.hostname, proxy.port or 80),
        host_header=parts.netloc,
        context=context,
        tunnel=f"{bracketed}:{port}" if is_secure else "",
        prefix="" if is_secure else f"http://{parts.netloc}",
        proxy_line="".join(f"Proxy-Authorization: {word}\r\n" for word in words.values()),
        tls_host=host,
    )


def _tls_context(verify: str | bool | None) -> ssl.SSLContext:
    """verify: the bundle or folder that the environment names; else the one of `requests`."""
    bundle = verify if isinstance(verify, str) else DEFAULT_CA_BUNDLE_PATH
    if not os.path.exists(bundle):
        raise errors.BadRequest(
            f"the CA bundle {bundle} does not exist; correct REQUESTS_CA_BUNDLE or CURL_CA_BUNDLE"
        )
    is_folder = os.path.isdir(bundle)
    context = ssl.create_default_context(
        cafile=None if is_folder else bundle, capath=bundle if is_folder else None
    )
    context.set_alpn_protocols(["http/1.1"])
    return context
