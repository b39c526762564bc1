"""The replay file as a database: older files, files that are not ours, files in the making."""

from __future__ import annotations

import dataclasses
import json
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from collab.llm import Completion, prompts
from collab.llm.replay_file import SCHEMA_VERSION
from collab.llm.replay_store import ReplayStore, exchange_key
from replays import ASKED, REPLY, TALK

# --- files of before ------------------------------------------------------------------------


def make_version_1(path: Path) -> None:
    """A file as it was before replies could be cut or structured, with one exchange."""
    ReplayStore(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute("ALTER TABLE exchanges DROP COLUMN cut")
        connection.execute("ALTER TABLE exchanges DROP COLUMN is_structured")
        connection.execute("PRAGMA user_version = 1")
        columns = (
            "key, backend, model, helper, instruction_version, messages, reply_tokens, "
            "temperature, text, prompt_tokens, completion_tokens, latency_s, stored_at_s"
        )
        talk = json.dumps([[message.role, message.content] for message in TALK])
        key, version = [exchange_key(ASKED)], [prompts.INSTRUCTION_VERSION]
        connection.execute(
            f"INSERT INTO exchanges ({columns}) VALUES ({', '.join('?' * 13)})",
            (*key, "openai", "big", "one", *version, talk, 64, 0.7, "Oslo", 9, 2, 0.5, 1.0),
        )
    connection.close()


OLD = Completion("Oslo", 9, 2, 0.5)


def test_a_file_of_version_1_is_read_without_a_change(replay_path: Path) -> None:
    make_version_1(replay_path)
    before = replay_path.read_bytes()
    store = ReplayStore(replay_path, create=False)
    assert store.get(exchange_key(ASKED)) == OLD
    (row,) = store.recorded()
    assert (row.asked, row.completion) == (ASKED, OLD)
    store.close()
    assert replay_path.read_bytes() == before


def test_a_file_of_version_1_is_completed_when_it_is_written(replay_path: Path) -> None:
    make_version_1(replay_path)
    structured = dataclasses.replace(ASKED, is_structured=True)
    for _ in range(2):  # the second time there is nothing left to do
        store = ReplayStore(replay_path)
        assert store.get(exchange_key(ASKED)) == OLD
        kept = store.put(structured, REPLY)
        assert kept == store.get(exchange_key(structured))
        assert kept == dataclasses.replace(REPLY, is_structured=True)
        assert [row.asked for row in store.recorded()] == [ASKED, structured]
        store.close()


# --- files that are not ours ---------------------------------------------------------------


def another_version(path: Path) -> None:
    ReplayStore(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    connection.close()


def another_database(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE songs (title TEXT)")
    connection.close()


STRANGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "version": (another_version, "schema version 3, this code reads 2; export it"),
    "database": (another_database, "is not a replay file; name another"),
    "text": (lambda path: path.write_text("hello " * 500), "not a database; name another"),
    "short text": (lambda path: path.write_text("hello"), "not a database; name another"),
    "folder": (lambda path: path.mkdir(), "open database file; name a file in a folder"),
}


@pytest.mark.parametrize("name", STRANGE)
@pytest.mark.parametrize("create", [True, False])
def test_a_strange_file_is_refused_and_left_alone(
    name: str, create: bool, replay_path: Path
) -> None:
    make, reason = STRANGE[name]
    make(replay_path)
    before = replay_path.read_bytes() if replay_path.is_file() else None
    with pytest.raises(ValueError, match=rf"replay\.sqlite.*{reason}"):
        ReplayStore(replay_path, create=create)
    assert (replay_path.read_bytes() if replay_path.is_file() else None) == before


def test_a_missing_file_or_folder_is_named(replay_path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist; record one"):
        ReplayStore(replay_path, create=False)
    assert not replay_path.exists()
    with pytest.raises(ValueError, match="folder does not exist; make it"):
        ReplayStore(replay_path.parent / "none" / "replay.sqlite")


@pytest.mark.parametrize("content", [b"", None], ids=["empty", "no table yet"])
def test_a_file_as_a_kill_leaves_it_at_birth_becomes_a_store(
    content: bytes | None, replay_path: Path
) -> None:
    if content is None:
        connection = sqlite3.connect(replay_path)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.close()
    else:
        replay_path.write_bytes(content)
    store = ReplayStore(replay_path)
    assert store.put(ASKED, REPLY) == REPLY
    store.close()


def test_a_file_that_is_being_made_is_waited_for(replay_path: Path) -> None:
    other = sqlite3.connect(replay_path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    release = threading.Timer(0.2, other.execute, ["ROLLBACK"])
    release.start()
    store = ReplayStore(replay_path)
    assert store.put(ASKED, REPLY) == REPLY
    store.close()
    release.join()
    other.close()
