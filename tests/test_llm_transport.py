"""Connections: kept, dropped, through proxies, with TLS; what the environment says about them."""

from __future__ import annotations

import contextlib
import errno
import gzip
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import urllib3

from collab.llm import errors
from collab.llm.transport import MAX_BODY_BYTES, MAX_STREAM_BYTES, Answer, Transport
from servers import CERTIFICATE, Talk, head_of, listening

KEY = "sk-Secret.0123456789"
FAR_S = 20.0


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.lower().endswith("_proxy") or name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
            monkeypatch.delenv(name)


class Greeter:
    """Says hello to every request; keeps the heads, and counts connections."""

    def __init__(self, *headers: str) -> None:
        self.heads: list[str] = []
        self.connections = 0
        self._headers = headers

    def __call__(self, connection: socket.socket) -> None:
        self.connections += 1
        while True:
            self.heads.append(head_of(connection))
            lines = ["HTTP/1.1 200 OK", "Content-Length: 5", *self._headers, "", "hello"]
            connection.sendall("\r\n".join(lines).encode())


class Proxy(Greeter):
    """Greets whom it is asked for by URL; tunnels, where it is asked to CONNECT."""

    def __init__(self, status: str = "200 Connected") -> None:
        super().__init__()
        self._status = status

    def __call__(self, connection: socket.socket) -> None:
        head = head_of(connection)
        self.heads.append(head)
        if not head.startswith("CONNECT "):
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nproxy")
            return
        connection.sendall(f"HTTP/1.1 {self._status}\r\n\r\n".encode())
        host, port = head.split()[1].split(":")
        with socket.create_connection((host, int(port))) as far:
            back = threading.Thread(target=pump, args=(far, connection), daemon=True)
            back.start()
            pump(connection, far)
            back.join()


def pump(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)


def ask(transport: Transport, url: str, deadline_s: float = FAR_S) -> Answer:
    return transport.exchange("GET", url, deadline_s=deadline_s)


@contextlib.contextmanager
def timing_out() -> Iterator[None]:
    """What is inside ends at its deadline of less than a second."""
    started_s = time.monotonic()
    with pytest.raises(errors.TimedOut):
        yield
    assert time.monotonic() - started_s < 3.0


def kept(pool: urllib3.HTTPConnectionPool) -> list[Any]:
    """The open connections that wait for another request."""
    places = pool.pool.queue if pool.pool else []
    return [connection for connection in places if connection and not connection.is_closed]


@pytest.fixture
def transport() -> Iterator[Transport]:
    made = Transport(connections=2, key=KEY)
    yield made
    made.close()


# --- connections ---------------------------------------------------------------------------


def test_a_connection_is_used_again_until_the_server_is_done_with_it(transport: Transport) -> None:
    kept, closing = Greeter(), Greeter("Connection: close")
    with listening(kept) as here, listening(closing) as there:
        for _ in range(3):
            assert ask(transport, f"http://{here}/v1/a?b=c").body == b"hello"
            assert ask(transport, f"http://{there}/v1/a").body == b"hello"
    assert (kept.connections, closing.connections) == (1, 3)
    assert kept.heads[0].startswith(f"GET /v1/a?b=c HTTP/1.1\r\nHost: {here}\r\n")


def test_no_more_connections_stay_open_than_wanted_and_none_after_closing() -> None:
    transport, greeter = Transport(connections=2, key=""), Greeter()
    barrier = threading.Barrier(4)

    def talk(connection: socket.socket) -> None:
        barrier.wait(FAR_S)
        greeter(connection)

    with listening(talk) as place:
        threads = [
            threading.Thread(target=ask, args=(transport, f"http://{place}/")) for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        (pool,) = transport._pools.values()
        assert (greeter.connections, len(kept(pool))) == (4, 2)
        transport.close()
        assert not kept(pool)
        barrier.reset()
        extra = [threading.Thread(target=barrier.wait, args=(FAR_S,)) for _ in range(3)]
        for thread in extra:
            thread.start()
        assert ask(transport, f"http://{place}/").body == b"hello"
        assert not transport._pools


def test_every_request_has_an_id_of_its_own_and_no_cookie(transport: Transport) -> None:
    greeter = Greeter("Set-Cookie: a=b")
    with listening(greeter) as place:
        for _ in range(2):
            ask(transport, f"http://{place}/")
    lines = [line for head in greeter.heads for line in head.split("\r\n") if "X-Request" in line]
    ids = {uuid.UUID(line.removeprefix("X-Request-Id: ")) for line in lines}
    assert [len(ids), *(found.version for found in ids)] == [2, 4, 4]  # some servers insist
    assert "Cookie" not in "".join(greeter.heads)


@pytest.mark.parametrize("url", ["http://127.0.0.1:99999/", "http://[::1/", "http://a b/", "http:"])
def test_a_url_that_can_not_be_asked_is_a_bad_request(transport: Transport, url: str) -> None:
    with pytest.raises(errors.BadRequest, match="could not be made"):
        ask(transport, url)


def test_an_unknown_name_is_a_failed_connection(
    transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(*_: object) -> None:
        raise socket.gaierror("not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(errors.ConnectionFailed):
        ask(transport, "http://helper.invalid/")


def test_the_second_address_is_tried_where_the_first_refuses(
    transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        nobody = gone.getsockname()
    with listening(Greeter()) as place:
        there = ("127.0.0.1", int(place.split(":")[1]))
        found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", at) for at in (nobody, there)]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_: found)
        assert ask(transport, "http://helper.invalid/").body == b"hello"


@pytest.mark.parametrize("number", [errno.EPIPE, errno.ECONNRESET, errno.ECONNREFUSED])
def test_a_connection_that_is_reset_while_it_opens_has_failed(
    transport: Transport, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def reset(*args: object, **options: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("collab.llm.clocked.create_connection", reset)
    with pytest.raises(errors.ConnectionFailed):
        ask(transport, "http://127.0.0.1:9/")


def test_an_encoded_body_is_decoded_up_to_the_limit(transport: Transport) -> None:
    def talk(connection: socket.socket) -> None:
        for text in (b"hello", b"x" * (MAX_BODY_BYTES + 1)):
            head_of(connection)
            body = gzip.compress(text)
            head = f"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {len(body)}"
            connection.sendall(f"{head}\r\n\r\n".encode() + body)

    with listening(talk) as place:
        assert ask(transport, f"http://{place}/").body == b"hello"
        with pytest.raises(errors.Malformed, match=f"exceeds {MAX_BODY_BYTES} bytes"):
            ask(transport, f"http://{place}/")


# --- replies on the wire -------------------------------------------------------------------

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"


def saying(data: bytes) -> Talk:
    def talk(connection: socket.socket) -> None:
        head_of(connection)
        for index in range(0, len(data), 7):  # in pieces
            connection.sendall(data[index : index + 7])

    return talk


@pytest.mark.parametrize(
    "data",
    [
        OK + b"Content-Length: 5, 5\r\n\r\nhello",
        OK + b"\r\nhello",  # to the end
        OK.replace(b"1.1", b"1.0") + b"Content-Length: 5\r\n\r\nhello",
        b"HTTP/1.1 100 Continue\r\n\r\n" + OK + b"Content-Length: 5\r\n\r\nhello",
        b"HTTP/1.1 200\nContent-Length: 5\n\nhello",
        CHUNKED + b"2\r\nhe\r\n3;a=b\r\nllo\r\n0\r\nX-Sum: 1\r\n\r\n",
        OK + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    ],
)
def test_bodies_end_where_http_says(transport: Transport, data: bytes) -> None:
    with listening(saying(data)) as place:
        assert ask(transport, f"http://{place}/").body == b"hello"


LOST, BAD = errors.ConnectionFailed, errors.Malformed


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", LOST),
        (b"SSH-2.0-OpenSSH\r\n", LOST),
        (b"HTTP/2 200\r\n\r\n", LOST),
        (b"HTTP/1.1 2000 OK\r\n\r\n", LOST),
        (OK + b"x" * 2**17, LOST),
        (OK + b"Content-Length: 5\r\n\r\nhell", LOST),
        (OK + b"Content-Length: 5, 6\r\n\r\nhello", BAD),
        (CHUNKED + b"5\r\nhell", LOST),
        (CHUNKED + b"5\r\nhello\r\n", LOST),
        (CHUNKED + b"\r\n", LOST),
        (CHUNKED + b"5" * 2**17, LOST),
        (CHUNKED + b"-5\r\nhello\r\n", BAD),
        # The reply itself comes next, and must not be taken for another request's.
        (b"HTTP/1.1 103 Hints\r\nLink: x\r\n\r\n", BAD),
    ],
)
def test_what_is_no_reply_has_its_type_and_ends_its_connection(
    transport: Transport, data: bytes, expected: type[errors.HelpError]
) -> None:
    with listening(saying(data)) as place:
        with pytest.raises(errors.HelpError) as caught:
            ask(transport, f"http://{place}/")
        assert type(caught.value) is expected
        assert not any(kept(pool) for pool in transport._pools.values())


def test_what_follows_a_reply_is_nobodys(
    transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two replies in one TLS record: the second is decrypted with the first, and waits there."""
    monkeypatch.setenv("CURL_CA_BUNDLE", str(CERTIFICATE))
    long = b"x" * 2**13  # so that reading it whole takes nothing of what follows

    def talk(connection: socket.socket) -> None:
        while True:
            head_of(connection)
            first = OK + b"Content-Length: %d\r\n\r\n%b" % (len(long), long)
            connection.sendall(first + OK + b"Content-Length: 5\r\n\r\nstray")

    with listening(talk, is_secure=True) as place:
        for _ in range(3):
            assert ask(transport, f"https://{place}/").body == long


def test_a_deadline_ends_the_reading_of_many_headers_too(transport: Transport) -> None:
    def drip(connection: socket.socket) -> None:
        head_of(connection)
        while True:
            connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            time.sleep(0.02)

    with listening(drip) as place, timing_out():
        ask(transport, f"http://{place}/", 0.3)


def test_addresses_that_do_not_answer_share_the_deadline(
    transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full, contextlib.ExitStack() as stack:
        for _ in range(4):  # then the kernel answers nobody
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", full.getsockname())]
        monkeypatch.setattr("collab.llm.clocked.CONNECT_S", 0.2)
        real = socket.getaddrinfo

        def resolved(host: str, *rest: Any) -> Any:
            return found * 20 if host == "helper.invalid" else real(host, *rest)

        monkeypatch.setattr(socket, "getaddrinfo", resolved)
        with timing_out():
            ask(transport, "http://helper.invalid/", 0.5)


# --- TLS and proxies -----------------------------------------------------------------------


def test_tls_needs_a_certificate_that_the_environment_trusts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    greeter = Greeter()
    with listening(greeter, is_secure=True) as place:
        with pytest.raises(errors.ConnectionFailed, match="TLS failed: certificate"):
            ask(Transport(connections=1, key=KEY), f"https://{place}/")
        assert not greeter.heads  # nothing was sent, the key least of all
        monkeypatch.setenv("CURL_CA_BUNDLE", str(CERTIFICATE))
        transport = Transport(connections=1, key=KEY)
        for _ in range(2):
            assert ask(transport, f"https://{place}/").body == b"hello"
        assert greeter.connections == 1
        with pytest.raises(errors.ConnectionFailed):  # 127.0.0.2 is not in the certificate
            ask(transport, f"https://{place.replace('127.0.0.1', '127.0.0.2')}/")
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path))  # a folder, without certificates
        with pytest.raises(errors.ConnectionFailed):
            ask(Transport(connections=1, key=KEY), f"https://{place}/")
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "gone.pem"))
        with pytest.raises(errors.BadRequest, match=r"gone\.pem does not exist; correct REQUESTS_"):
            ask(Transport(connections=1, key=KEY), f"https://{place}/")


def test_a_tls_handshake_ends_at_the_deadline(transport: Transport) -> None:
    with listening(lambda connection: time.sleep(FAR_S)) as place, timing_out():
        ask(transport, f"https://{place}/", 0.3)


def test_a_proxy_is_asked_for_the_whole_url(
    transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = Proxy()
    with listening(proxy) as place:
        monkeypatch.setenv("HTTP_PROXY", place)  # without a scheme, as many write it
        assert ask(transport, "http://helper.invalid:81/v1/models").body == b"proxy"
    (head,) = proxy.heads
    assert head.startswith("GET http://helper.invalid:81/v1/models HTTP/1.1\r\n")
    assert "Host: helper.invalid:81\r\n" in head
    assert "proxy-authorization" not in head.lower()


def test_a_proxy_with_a_password_gets_it_and_no_error_shows_it(
    transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = Proxy()
    with listening(proxy) as place:
        monkeypatch.setenv("HTTP_PROXY", f"http://us%40er:hunter2@{place}")
        ask(transport, "http://helper.invalid/")
    assert "\r\nproxy-authorization: Basic dXNAZXI6aHVudGVyMg==\r\n" in proxy.heads[0]
    with pytest.raises(errors.ConnectionFailed) as caught:
        ask(transport, "http://helper.invalid/")
    assert "hunter2" not in str(caught.value) + repr(vars(transport))


def test_what_is_excepted_from_the_proxy_is_asked_itself(
    transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "helper.invalid,127.0.0.1")
    with listening(Greeter()) as place:
        assert ask(transport, f"http://{place}/").body == b"hello"


def test_https_goes_through_a_tunnel_that_sees_no_key(
    transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy, greeter = Proxy(), Greeter()
    with listening(proxy) as between, listening(greeter, is_secure=True) as place:
        monkeypatch.setenv("HTTPS_PROXY", f"http://user:hunter2@{between}")
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(CERTIFICATE))
        for _ in range(2):
            assert ask(transport, f"https://{place}/v1/models").body == b"hello"
        transport.close()
    (asked,) = proxy.heads
    assert asked.startswith(f"CONNECT {place} HTTP/1.")
    assert "proxy-authorization: Basic " in asked and KEY not in asked
    assert all(KEY in head and "proxy-auth" not in head.lower() for head in greeter.heads)
    assert greeter.heads[0].startswith("GET /v1/models HTTP/1.1\r\n")


def test_a_tunnel_that_is_refused_or_drips_is_typed(
    transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    def drip(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 Connected\r\nX-Long: ")
        while True:
            connection.sendall(b"x")
            time.sleep(0.05)

    with listening(Proxy("407 Who are you")) as place:
        monkeypatch.setenv("HTTPS_PROXY", place)
        with pytest.raises(errors.ConnectionFailed, match="refuses the tunnel: status 407"):
            ask(transport, "https://helper.invalid/")
    with listening(drip) as place:
        monkeypatch.setenv("HTTPS_PROXY", place)
        with pytest.raises(errors.TimedOut):
            ask(Transport(connections=1, key=""), "https://helper.invalid/", 0.3)


def test_a_proxy_of_another_kind_is_named_without_its_password(
    transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5://user:hunter2@127.0.0.1:9")
    with pytest.raises(errors.BadRequest, match=r"must be http://host:port; .* NO_PROXY") as caught:
        ask(transport, "http://helper.invalid/")
    assert "hunter2" not in str(caught.value)


# --- streams -------------------------------------------------------------------------------

STREAM = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def streaming(*data: bytes, then: Talk = lambda connection: None) -> Talk:
    def talk(connection: socket.socket) -> None:
        while True:
            head_of(connection)
            connection.sendall(STREAM)
            for piece in data:
                connection.sendall(chunk(piece))
                time.sleep(0.02)
            then(connection)

    return talk


def watched(
    transport: Transport, place: str, patience_s: float, deadline_s: float = FAR_S
) -> tuple[Answer, bytes]:
    seen = b""

    def watch(piece: bytes) -> float:
        nonlocal seen
        seen += piece
        return patience_s

    answer = transport.exchange("POST", f"http://{place}/", deadline_s=deadline_s, watch=watch)
    return answer, seen


def end(connection: socket.socket) -> None:
    connection.sendall(b"0\r\n\r\n")


def hang(connection: socket.socket) -> None:
    connection.recv(1)


def test_a_stream_goes_to_its_watcher_and_its_connection_is_used_again(
    transport: Transport,
) -> None:
    with listening(streaming(b"one", b"two", then=end)) as place:
        for _ in range(2):
            answer, seen = watched(transport, place, FAR_S)
            assert (answer.is_stream, answer.is_late, answer.body, seen) == (
                True, False, b"", b"onetwo",
            )  # fmt: skip
        (pool,) = transport._pools.values()
        assert len(kept(pool)) == 1


def test_a_watcher_ends_the_reading_at_once_or_after_its_patience(transport: Transport) -> None:
    with listening(streaming(b"one", then=hang)) as place:
        for patience_s in (0.0, 0.1):
            started_s = time.monotonic()
            answer, seen = watched(transport, place, patience_s)
            assert (answer.is_late, seen) == (False, b"one")
            assert patience_s <= time.monotonic() - started_s < 5.0
        (pool,) = transport._pools.values()
        assert not kept(pool)  # nobody may read the rest as a reply to another request


def test_a_stream_that_goes_on_is_late_at_the_deadline(transport: Transport) -> None:
    with listening(streaming(*[b"x"] * 500)) as place:
        started_s = time.monotonic()
        answer, seen = watched(transport, place, FAR_S, deadline_s=0.3)
        assert time.monotonic() - started_s < 3.0
    assert answer.is_late and seen


@pytest.mark.parametrize(
    ("talk", "expected"),
    [
        (streaming(b"one", then=lambda c: c.shutdown(socket.SHUT_RDWR)), errors.ConnectionFailed),
        (streaming(b"one", then=lambda c: c.sendall(b"-1\r\n")), errors.Malformed),
        (streaming(*[b"x" * 2**20] * (MAX_STREAM_BYTES // 2**20 + 1)), errors.Malformed),
    ],
)
def test_a_broken_or_endless_stream_is_typed(
    transport: Transport, talk: Talk, expected: type[errors.HelpError]
) -> None:
    with listening(talk) as place, pytest.raises(errors.HelpError) as caught:
        watched(transport, place, FAR_S)
    assert type(caught.value) is expected


def test_only_streams_are_watched(transport: Transport) -> None:
    with listening(Greeter("Content-Type: application/json")) as place:
        answer, seen = watched(transport, place, 0.0)
    assert (answer.is_stream, answer.body, seen) == (False, b"hello", b"")
