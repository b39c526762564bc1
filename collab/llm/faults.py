"""A helper that fails on purpose: `python -m collab.llm.faults --fault=mix --rate=0.2 --seed=0`.

Serves a backend as `collab.llm.serve` does, but answers a drawn share of the chat requests wrongly.
Whether, and how, follows from the seed, the request's body and how often that body came before.
`GET /v1/faults` counts what was injected. Tests and experiments use `faulty`.

What the faults are is in `fault_table`. A reply that belongs to another request (`other_reply`,
`stray_reply`) can be told only by an id: our client sends X-Request-Id, this server echoes it, and
a wrong echo is Malformed. Where nothing is echoed (`other_unmarked`), as by most servers, no client
can tell, so `mix` leaves that one out.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import hashlib
import json
import logging
import random
import socket
import socketserver
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from collab import naming
from collab.config import default_config, load_config
from collab.llm import BACKENDS, Backend, serve
from collab.llm.fault_table import FAULTS, OUTAGE_S, UNDETECTABLE, Wire
from collab.llm.transport import ID_HEADER
from collab.rules import validate

MIX = "mix"  # every fault that a client can cope with or detect
# What `other_reply` gives before there is another: id and reply of a request that nobody made.
NOBODYS = (
    "c011ab0c011ab0c011ab0c011ab0c011",
    b'{"choices": [{"message": {"content": "of nobody"}}]}',
)


@contextlib.contextmanager
def faulty(
    backend: Backend, *, fault: str = MIX, rate: float = 1.0, seed: int = 0, port: int = 0
) -> Iterator[str]:
    """Serve `backend` with faults from a thread; yields the base URL. See `FaultyServer`."""
    server = FaultyServer(backend, host="127.0.0.1", port=port, fault=fault, rate=rate, seed=seed)
    thread = threading.Thread(target=server.serve_forever, name="llm-faults", daemon=True)
    thread.start()
    try:
        yield server.base_url
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class FaultyServer(serve.Server):
    """A `Server` that injects a fault of FAULTS, or any of "mix", into a share of chat requests."""

    daemon_threads = False  # closing waits for them, so that none outlives a test

    def __init__(
        self, backend: Backend, *, host: str, port: int, fault: str, rate: float, seed: int
    ) -> None:
        """rate: the share, in [0, 1]. Raises: ValueError, OSError."""
        self._faults = _names_of(fault)
        if not 0.0 <= rate <= 1.0:
            raise ValueError(f"--rate={rate} must be a share in [0, 1]; try --rate=0.2")
        self._rate, self._seed = rate, seed
        self.is_ending, self._is_out = threading.Event(), threading.Event()
        self._lock = threading.Lock()  # guards all below
        self._attempts: collections.Counter[bytes] = collections.Counter()
        self._injected: collections.Counter[str] = collections.Counter()
        self._open: set[socket.socket] = set()
        self._newest = [NOBODYS, NOBODYS]
        super().__init__(backend, host=host, port=port, key="")
        self.RequestHandlerClass = _Handler

    def draw(self, asked: dict[str, Any]) -> str | None:
        """The fault for a request, counted; None: answer it rightly."""
        digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).digest()
        with self._lock:
            attempt = self._attempts[digest]
            self._attempts[digest] += 1
        rng = random.Random(f"{self._seed} {digest.hex()} {attempt}")
        if rng.random() >= self._rate:
            return None
        name = rng.choice(self._faults)
        with self._lock:
            self._injected[name] += 1
        return name

    def counts(self) -> dict[str, Any]:
        """Chat requests so far, and injected faults by name."""
        with self._lock:
            asked = self._attempts.total()
            return {"asked": asked, "injected": dict(sorted(self._injected.items()))}

    def note(self, request_id: str, reply: dict[str, Any]) -> None:
        """Keep a reply, to be given to another request."""
        with self._lock:
            self._newest = [self._newest[1], (request_id, json.dumps(reply).encode())]

    def other_than(self, request_id: str) -> tuple[str, bytes]:
        """Id and reply of the newest request but this; of an invented one at first."""
        with self._lock:
            return self._newest[0] if self._newest[1][0] == request_id else self._newest[1]

    def close_port(self) -> None:
        """Refuse connections for a moment, from the next turn of the loop on."""
        self._is_out.set()

    def serve_forever(self, poll_interval: float = serve.POLL_S) -> None:
        self.timeout = poll_interval
        while not self.is_ending.is_set():
            self.handle_request()
            if self._is_out.is_set():
                self.socket.close()
                self.is_ending.wait(OUTAGE_S)
                self._open_port()
                self._is_out.clear()

    def shutdown(self) -> None:
        self.is_ending.set()

    def server_close(self) -> None:
        """Close the port and every connection, and wait for their threads."""
        self.is_ending.set()
        with self._lock:
            for connection in self._open:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        super().server_close()

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        with self._lock:
            self._open.add(connection)
        return connection, address

    def close_request(self, request: Any) -> None:
        with self._lock:
            self._open.discard(request)
        super().close_request(request)

    def _open_port(self) -> None:
        while not self.is_ending.is_set():
            self.socket = socket.socket(self.address_family, self.socket_type)
            try:
                socketserver.TCPServer.server_bind(self)
                self.server_activate()
                return
            except OSError:  # someone has the port for a moment
                self.socket.close()
                self.is_ending.wait(serve.POLL_S)


class _DrawnError(Exception):
    """A right reply is made and a fault is drawn: leaves `_answer` before anything is sent."""

    def __init__(self, name: str, reply: dict[str, Any]) -> None:
        super().__init__(name)
        self.name, self.reply = name, reply


class _Handler(serve.Handler):
    server: FaultyServer

    @property
    def request_id(self) -> str:
        return str(self.headers.get(ID_HEADER, ""))

    def do_GET(self) -> None:  # noqa: N802 - http.server's name
        is_count = self.path.rstrip("/") == "/v1/faults"
        self._answer(self.server.counts if is_count else self._models)

    def do_POST(self) -> None:  # noqa: N802
        try:
            self._answer(self._chat)
        except _DrawnError as drawn:
            wire = Wire(self.connection, self.server, request_id=self.request_id, reply=drawn.reply)
            with contextlib.suppress(OSError):  # the client has given up
                FAULTS[drawn.name].inject(wire)
            self.close_connection = self.close_connection or not wire.is_framed

    def end_headers(self) -> None:
        if self.request_id:
            self.send_header(ID_HEADER, self.request_id)
        super().end_headers()

    def _body(self) -> dict[str, Any]:
        self._asked = super()._body()
        return self._asked

    def _chat(self) -> dict[str, Any]:
        reply = super()._chat()
        self.server.note(self.request_id, reply)
        name = self.server.draw(self._asked)
        if name is not None:
            raise _DrawnError(name, reply)
        return reply


def _names_of(fault: str) -> list[str]:
    if fault == MIX:
        return [name for name in FAULTS if name not in UNDETECTABLE]
    if fault not in FAULTS:
        hint = naming.hint(fault, FAULTS) or "; --help lists them"
        raise ValueError(f"--fault={fault!r} must be {MIX!r} or the name of a fault{hint}")
    return [fault]


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until interrupted. Returns the exit status; a mistake ends in one clear line."""
    rows = [f"  {name:<17}{fault.does}" for name, fault in FAULTS.items()]
    parser = argparse.ArgumentParser(
        prog="python -m collab.llm.faults",
        description=__doc__,
        epilog="\n".join(["faults:", *rows]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--fault", default=MIX, help=f"one of the names below; default: {MIX}")
    parser.add_argument("--rate", type=float, default=0.2, help="share of requests; default: 0.2")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn; default: 0")
    parser.add_argument("--backend", default="scripted", help=f"one of {', '.join(BACKENDS)}")
    parser.add_argument("--config", default="", help="a file of configs/; default: every default")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--data_dir", default="", help="where the task's data stands or is made")
    flags = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        config = load_config(flags.config) if flags.config else default_config()
        config.llm.backend = flags.backend
        validate(config)
        backend = serve.task_backend(flags.backend, config, flags.data_dir)
        server = FaultyServer(
            backend,
            host=flags.host,
            port=flags.port,
            fault=flags.fault,
            rate=flags.rate,
            seed=flags.seed,
        )
    except (ValueError, OSError, OverflowError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    with contextlib.closing(backend):
        serve.serve_until_interrupted(server, flags.fault)
    logging.info("injected: %s", json.dumps(server.counts()["injected"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
