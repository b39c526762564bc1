"""Exchanges with an LLM in one SQLite file: a key per request, its first reply for good.

What is asked again is found by `exchange_key`. When to look here and when to call is decided in
`replay`, which also moves exchanges in and out as JSONL.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from collab.llm import Completion, Message, errors, prompts

SCHEMA_VERSION = 2  # raise it with any change of the table below
APPLICATION_ID = 0x636F6C6C  # "coll": tells this file from any other SQLite database
LARGEST_COUNT = 2**63 - 1  # what an SQLite integer holds
_BUSY_S = 60.0  # how long to wait for another process's write: an import is one long one
_POLL_S = 0.01
_PAGE_ROWS = 256  # read at once when all are listed

_TABLE = """
CREATE TABLE exchanges (
    id INTEGER PRIMARY KEY,
    key TEXT NOT NULL UNIQUE,
    backend TEXT NOT NULL,
    model TEXT NOT NULL,
    helper TEXT NOT NULL,
    instruction_version INTEGER NOT NULL,
    messages TEXT NOT NULL,
    reply_tokens INTEGER NOT NULL,
    temperature REAL NOT NULL,
    text TEXT NOT NULL,
    prompt_tokens INTEGER,
    completion_tokens INTEGER,
    cached_prompt_tokens INTEGER,
    latency_s REAL NOT NULL,
    stored_at_s REAL NOT NULL,
    cut TEXT NOT NULL DEFAULT '',
    is_structured INTEGER NOT NULL DEFAULT 0
)"""
# What version 2 has beyond version 1: such files are read as they are, and completed to be written.
_ADDED = (
    "ALTER TABLE exchanges ADD COLUMN cut TEXT NOT NULL DEFAULT ''",
    "ALTER TABLE exchanges ADD COLUMN is_structured INTEGER NOT NULL DEFAULT 0",
)
_REPLY = (  # a Completion
    "text, prompt_tokens, completion_tokens, latency_s, cached_prompt_tokens, cut, is_structured"
)
_REPLY_1 = _REPLY.replace("cut, is_structured", "'', 0")
_COLUMNS = (
    "key, backend, model, helper, instruction_version, messages, reply_tokens, temperature, "
    f"{_REPLY}, stored_at_s"
)
_INSERT = (
    f"INSERT INTO exchanges ({_COLUMNS}) VALUES ({', '.join('?' * len(_COLUMNS.split(',')))}) "
    "ON CONFLICT (key) DO NOTHING"
)


@dataclasses.dataclass(frozen=True)
class Asked:
    """All that a reply depends on.

    backend: the name of a backend, not its address: a server may move; with a digest where replies
    depend on more than names. model: as configured, "" where the helper's name stands for it.
    is_structured: the server was told the reply's form.
    """

    backend: str
    model: str
    helper: str
    messages: tuple[Message, ...]
    reply_tokens: int
    temperature: float
    instruction_version: int = prompts.INSTRUCTION_VERSION
    is_structured: bool = False


@dataclasses.dataclass(frozen=True)
class Recorded:
    """One stored exchange. stored_at_s: Unix time."""

    asked: Asked
    completion: Completion
    stored_at_s: float


@dataclasses.dataclass(frozen=True)
class Tally:
    """What is stored of one helper. without_usage: exchanges whose server reported no usage."""

    backend: str
    model: str
    helper: str
    instruction_version: int
    exchanges: int
    prompt_tokens: int
    completion_tokens: int
    without_usage: int


class StoreFailed(errors.HelpError):
    """A stored reply can't be read, or a new one can't be kept: no money for what would be lost."""

    name = "store_failed"
    is_final = True


def exchange_key(asked: Asked) -> str:
    """A sha256 over the canonical JSON of `asked`, in hex: equal requests have equal keys.

    Raises: ValueError for a temperature that is not finite.
    """
    parts = {
        "backend": asked.backend,
        "model": asked.model,
        "helper": asked.helper,
        "instruction_version": int(asked.instruction_version),
        "messages": _pairs(asked.messages),
        "reply_tokens": int(asked.reply_tokens),
        "temperature": float(asked.temperature) + 0.0,  # 0, 0.0 and -0.0 are written alike
    }
    if asked.is_structured:  # left out otherwise: keys are older than this field
        parts["is_structured"] = True
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def storable(completion: Completion) -> Completion:
    """A completion as the file can hold it: valid Unicode, counts up to 63 bits or else unknown."""
    text = completion.text
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")

    def held(count: int | None) -> int | None:
        return count if count is None or count <= LARGEST_COUNT else None

    return dataclasses.replace(
        completion,
        text=text,
        prompt_tokens=held(completion.prompt_tokens),
        completion_tokens=held(completion.completion_tokens),
        cached_prompt_tokens=held(completion.cached_prompt_tokens),
    )


def is_same_reply(one: Completion, other: Completion) -> bool:
    """Whether text and token counts agree.

    The latency and what the server had cached may differ each time that it is asked the same.
    """
    return (one.text, one.prompt_tokens, one.completion_tokens) == (
        other.text,
        other.prompt_tokens,
        other.completion_tokens,
    )


class ReplayStore:
    """A replay file. Any number of threads and of processes of one machine may use it at once.

    A key keeps the reply that was stored first. Messages come back exactly, halves of surrogate
    pairs included; in a reply such halves become U+FFFD before it is stored.
    """

    def __init__(self, path: str | Path, *, create: bool = True) -> None:
        """create=False: the file must be there, and may lie in a folder that can't be written.

        Raises: ValueError for a file that can't be had or is none of ours.
        """
        self.path = Path(path)
        self._lock = threading.RLock()  # guards the connection, which all threads share
        try:
            self._connection = _opened(self.path, create=create)
        except sqlite3.Error as error:
            raise ValueError(_advice(self.path, error)) from None
        is_older = _pragma(self._connection, "user_version") < SCHEMA_VERSION
        self._reply = _REPLY_1 if is_older else _REPLY

    def get(self, key: str) -> Completion | None:
        """The reply stored under `key`, with the latency and the token counts it had.

        Raises: StoreFailed.
        """
        rows = self._rows(f"SELECT {self._reply} FROM exchanges WHERE key = ?", key)
        return _completion(rows[0]) if rows else None

    def put(
        self, asked: Asked, completion: Completion, *, stored_at_s: float | None = None
    ) -> Completion:
        """Store a reply and return what stands under its key: this one, or an earlier one.

        A kill of the process after the return loses nothing. stored_at_s: Unix time, None = now.
        A token count beyond 63 bits is kept as unknown.
        Raises: StoreFailed; ValueError for a latency that is unknown, negative or infinite.
        """
        latency_s = completion.latency_s
        if latency_s is None or not 0.0 <= latency_s < math.inf:
            raise ValueError(f"latency_s={latency_s} must be finite and 0 or more to be replayed")
        key = exchange_key(asked)
        kept = dataclasses.replace(storable(completion), is_structured=asked.is_structured)
        row = (
            key,
            asked.backend,
            asked.model,
            asked.helper,
            asked.instruction_version,
            json.dumps(_pairs(asked.messages)),
            asked.reply_tokens,
            asked.temperature,
            kept.text,
            kept.prompt_tokens,
            kept.completion_tokens,
            kept.latency_s,
            kept.cached_prompt_tokens,
            kept.cut,
            asked.is_structured,
            time.time() if stored_at_s is None else stored_at_s,
        )
        with self._using() as connection:
            is_new = connection.execute(_INSERT, row).rowcount
            first = None if is_new else self.get(key)
        return first or kept

    def recorded(self) -> Iterator[Recorded]:
        """Every exchange, in the order of storing. Raises: StoreFailed."""
        last, columns = 0, _COLUMNS.replace(_REPLY, self._reply)
        while rows := self._rows(
            f"SELECT id, {columns} FROM exchanges WHERE id > ? ORDER BY id LIMIT ?",
            last,
            _PAGE_ROWS,
        ):
            yield from (_recorded(row[2:]) for row in rows)
            last = rows[-1][0]

    def tallies(self) -> list[Tally]:
        """Totals by backend, model, helper and instruction version. Raises: StoreFailed."""
        rows = self._rows(
            "SELECT backend, model, helper, instruction_version, count(*), "
            "CAST(total(prompt_tokens) AS INTEGER), CAST(total(completion_tokens) AS INTEGER), "
            "sum(prompt_tokens IS NULL OR completion_tokens IS NULL) "
            "FROM exchanges GROUP BY 1, 2, 3, 4 ORDER BY 1, 2, 3, 4"
        )
        return [Tally(*row) for row in rows]

    def __len__(self) -> int:
        return int(self._rows("SELECT count(*) FROM exchanges")[0][0])

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """All that is put inside is stored at its end, or nothing if it ends in an exception.

        Other writers wait meanwhile. Raises: StoreFailed.
        """
        with self._using() as connection:
            connection.execute("BEGIN IMMEDIATE")
            with connection:
                yield

    def close(self) -> None:
        """Let go of the file; a second time does nothing."""
        with self._lock:
            self._connection.close()

    def _rows(self, query: str, *values: Any) -> list[Any]:
        # All rows at once: a query that is half read would keep its snapshot, and a write by the
        # same connection fails when another process has written since.
        with self._using() as connection:
            return connection.execute(query, values).fetchall()

    @contextlib.contextmanager
    def _using(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                yield self._connection
            except sqlite3.Error as error:
                raise StoreFailed(_advice(self.path, error)) from None


def _opened(path: Path, *, create: bool) -> sqlite3.Connection:
    if not path.parent.is_dir():
        raise ValueError(f"replay file {path}: its folder does not exist; make it first")
    if not create and not path.exists():
        raise ValueError(
            f"replay file {path} does not exist; record one in mode replay_or_call, or import one"
        )
    mode = "rwc" if create else "rw"
    has_log = path.with_name(f"{path.name}-wal").exists()
    if not create and not has_log and not os.access(path.parent, os.W_OK):
        # SQLite would make its log and shared memory beside the file. Without either, and without
        # the right to make them, nobody is writing: the file can be read as it stands.
        mode = "ro&immutable=1"
    uri = f"{path.absolute().as_uri()}?mode={mode}"
    connection = sqlite3.connect(
        uri, uri=True, timeout=_BUSY_S, isolation_level=None, check_same_thread=False
    )
    with contextlib.ExitStack() as stack:
        stack.callback(connection.close)
        _prepare(connection, path, create=create)
        stack.pop_all()  # it is the caller's from here on
    return connection


def _prepare(connection: sqlite3.Connection, path: Path, *, create: bool) -> None:
    """Make the table in a new file; refuse a file that is not ours. Raises: ValueError."""
    if create and _is_new(connection):
        _use_log(connection, path)
        connection.execute("BEGIN IMMEDIATE")
        with connection:  # a kill in here leaves a new file, not half a store
            if _is_new(connection):  # another process may have been faster
                connection.execute(_TABLE)
                connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    if _pragma(connection, "application_id") != APPLICATION_ID:
        raise ValueError(f"replay file {path} is not a replay file; name another or a new one")
    version = _pragma(connection, "user_version")
    if version == 1 and create:
        version = _complete(connection)
    if version not in (1, SCHEMA_VERSION):
        raise ValueError(
            f"replay file {path} has schema version {version}, this code reads {SCHEMA_VERSION}; "
            "export it with the code that wrote it and import the lines into a new file"
        )
    if create:
        _use_log(connection, path)
        connection.execute("BEGIN IMMEDIATE")
        # Any write: a file that can't be written fails now, not after the first paid reply.
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        connection.execute("ROLLBACK")
    # NORMAL: a commit is a write to the log, without fsync. Once written it belongs to the kernel
    # and survives kill -9 of this process; a power cut may cost the newest replies, never the file.
    # FULL would survive that too, for an fsync per reply under the lock that all threads share.
    connection.execute("PRAGMA synchronous = NORMAL")


def _complete(connection: sqlite3.Connection) -> int:
    """Add the columns of today to a file of version 1. Returns its version now."""
    connection.execute("BEGIN IMMEDIATE")
    with connection:
        if _pragma(connection, "user_version") == 1:  # another process may have been faster
            for statement in _ADDED:
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    return int(_pragma(connection, "user_version"))


def _use_log(connection: sqlite3.Connection, path: Path) -> None:
    """Switch to the write-ahead log: readers and one writer at once, a commit in one write."""
    give_up_s = time.monotonic() + _BUSY_S
    while True:
        try:
            mode = _pragma(connection, "journal_mode = WAL")
        except sqlite3.OperationalError as error:
            # This statement alone does not wait for other processes by itself.
            is_busy = error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY
            if not is_busy or time.monotonic() > give_up_s:
                raise
            time.sleep(_POLL_S)
            continue
        if mode != "wal":
            raise ValueError(
                f"replay file {path}: its file system can't hold a write-ahead log; "
                "name a file on a local disk"
            )
        return


def _is_new(connection: sqlite3.Connection) -> bool:
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchall()[0]
    return tables == 0 and _pragma(connection, "application_id") == 0


def _pragma(connection: sqlite3.Connection, name: str) -> Any:
    return connection.execute(f"PRAGMA {name}").fetchall()[0][0]


def _advice(path: Path, error: sqlite3.Error) -> str:
    """What SQLite says and what to do; its messages hold no values."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    fix = {
        sqlite3.SQLITE_NOTADB: "name another or a new file",
        sqlite3.SQLITE_CORRUPT: "export what can be read and import it into a new file",
        sqlite3.SQLITE_CANTOPEN: "name a file in a folder that you may write",
        sqlite3.SQLITE_READONLY: "make file and folder writable, or use mode replay",
        sqlite3.SQLITE_FULL: "free some space",
        sqlite3.SQLITE_BUSY: "end the other process that writes it",
    }.get(code, "check the file and its folder")
    return f"replay file {path}: {error}; {fix}"


def _recorded(row: tuple[Any, ...]) -> Recorded:
    """row: _COLUMNS without the key."""
    backend, model, helper, version, messages, reply_tokens, temperature, *reply, stored_at_s = row
    talk = tuple(Message(role, content) for role, content in json.loads(messages))
    completion = _completion(reply)
    asked = Asked(
        backend, model, helper, talk, reply_tokens, temperature, version, completion.is_structured
    )
    return Recorded(asked, completion, stored_at_s)


def _completion(reply: Sequence[Any]) -> Completion:
    """reply: _REPLY."""
    return dataclasses.replace(Completion(*reply), is_structured=bool(reply[-1]))


def _pairs(messages: tuple[Message, ...]) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in messages]
