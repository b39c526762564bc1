"""A server that talks as a test says, connection by connection."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

CERTIFICATE = Path(__file__).with_name("localhost.pem")  # self-signed, with its key, until 2120

Talk = Callable[[socket.socket], None]


@contextlib.contextmanager
def listening(talk: Talk, *, is_secure: bool = False) -> Iterator[str]:
    """A server that does `talk` with each connection; yields host:port."""
    listener = socket.create_server(("127.0.0.1", 0))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                threading.Thread(target=handle, args=(connection,), daemon=True).start()

    def handle(connection: socket.socket) -> None:
        with contextlib.suppress(OSError, ValueError):
            if is_secure:
                connection = context.wrap_socket(connection, server_side=True)
            with connection:
                talk(connection)

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield f"127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def head_of(connection: socket.socket) -> str:
    """The head of a request; its body is left to be read."""
    data = b""
    while not data.endswith(b"\r\n\r\n"):
        data += connection.recv(1) or _exhausted()
    return data.decode()


def read_request(connection: socket.socket) -> bytes:
    """A whole request."""
    head = head_of(connection).encode()
    lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    wanted = int(lengths[0].split(b":")[1]) if lengths else 0
    body = b""
    while len(body) < wanted:
        body += connection.recv(wanted - len(body)) or _exhausted()
    return head + body


def _exhausted() -> bytes:
    raise ConnectionError("the client has closed")
