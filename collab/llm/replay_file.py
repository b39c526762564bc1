"""The file that replies are kept in, as a database: opened, made, completed if it is older.

What stands in its one table, and what is asked of it, is in `replay_store`.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from pathlib import Path
from typing import Any

SCHEMA_VERSION = 2  # raise it with any change of the table below
APPLICATION_ID = 0x636F6C6C  # "coll": tells this file from any other SQLite database
_BUSY_S = 60.0  # how long to wait for another process's write: an import is one long one
_POLL_S = 0.01

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


def opened(path: Path, *, create: bool) -> sqlite3.Connection:
    """A connection that threads may share, to a replay file whose table is there.

    create: make the file if it is missing, complete it if it is older, and make sure that it can be
    written; otherwise it must be there, and may lie in a folder that can't be written.
    Raises: ValueError for a file that is none of ours; sqlite3.Error.
    """
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


def advice(path: Path, error: sqlite3.Error) -> str:
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


def schema_version(connection: sqlite3.Connection) -> int:
    """Of the file behind a connection; of one that is `opened`, `SCHEMA_VERSION` or 1."""
    return int(_pragma(connection, "user_version"))


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
    version = schema_version(connection)
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
        if schema_version(connection) == 1:  # another process may have been faster
            for statement in _ADDED:
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    return schema_version(connection)


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
