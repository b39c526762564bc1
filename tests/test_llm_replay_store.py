"""The replay file: keys, what comes back, files that are none or damaged."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import hashlib
import json
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from collab.llm import Completion, Message, prompts
from collab.llm.replay_store import (
    SCHEMA_VERSION,
    Asked,
    ReplayStore,
    StoreFailed,
    exchange_key,
)
from replays import ASKED, REPLY, TALK


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "replay.sqlite"


@pytest.fixture
def store(path: Path) -> Iterator[ReplayStore]:
    store = ReplayStore(path)
    yield store
    store.close()


# --- keys ----------------------------------------------------------------------------------

OTHERS: dict[str, Any] = {
    "backend": "scripted",
    "model": "small",
    "helper": "two",
    "messages": (*TALK[:1], Message("user", "Rome")),
    "reply_tokens": 65,
    "temperature": 0.7000000000000001,
    "instruction_version": prompts.INSTRUCTION_VERSION + 1,
    "is_structured": True,
}


def test_the_key_is_what_it_was() -> None:
    """Written by hand: if this changes, every replay file in the world is lost."""
    text = (
        '{"backend":"openai","helper":"one","instruction_version":1,"messages":'
        '[["system","You are an expert."],["user","[ask_fact] State it.\\nOslo \\u00e9"]],'
        '"model":"big","reply_tokens":64,"temperature":0.7}'
    )
    asked = dataclasses.replace(ASKED, instruction_version=1)
    assert exchange_key(asked) == hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Asked)])
def test_every_field_is_in_the_key(field: str) -> None:
    other = dataclasses.replace(ASKED, **{field: OTHERS[field]})
    assert exchange_key(other) != exchange_key(ASKED)


@pytest.mark.parametrize(
    "messages",
    [
        TALK[::-1],
        TALK[1:],
        (Message("user", TALK[0].content), TALK[1]),
        (Message("system", "You are an expert.user"), TALK[1]),
        (Message("system", ""), *TALK),
    ],
    ids=["order", "fewer", "role", "shifted", "more"],
)
def test_the_whole_talk_is_in_the_key(messages: tuple[Message, ...]) -> None:
    assert exchange_key(dataclasses.replace(ASKED, messages=messages)) != exchange_key(ASKED)


@pytest.mark.parametrize(("one", "other"), [(0, 0.0), (0.0, -0.0), (1, 1.0), (0.1, 1e-1)])
def test_one_temperature_has_one_key(one: float, other: float) -> None:
    keys = {exchange_key(dataclasses.replace(ASKED, temperature=t)) for t in (one, other)}
    assert len(keys) == 1


def test_a_key_of_no_number_is_refused() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        exchange_key(dataclasses.replace(ASKED, temperature=float("nan")))


# --- the store -----------------------------------------------------------------------------


def test_a_store_gives_back_what_it_got(path: Path) -> None:
    store = ReplayStore(path)
    assert store.get(exchange_key(ASKED)) is None
    assert store.put(ASKED, REPLY, stored_at_s=3.5) == REPLY
    store.close()
    again = ReplayStore(path)
    assert again.get(exchange_key(ASKED)) == REPLY
    (row,) = again.recorded()
    assert (row.asked, row.completion, row.stored_at_s) == (ASKED, REPLY, 3.5)
    again.close()


@pytest.mark.parametrize("latency_s", [None, -1.0, float("nan"), float("inf")])
def test_a_latency_that_cannot_be_replayed_is_refused(
    latency_s: float | None, store: ReplayStore
) -> None:
    with pytest.raises(ValueError, match="latency_s"):
        store.put(ASKED, dataclasses.replace(REPLY, latency_s=latency_s))


def test_absurd_usage_does_not_cost_the_reply(store: ReplayStore) -> None:
    kept = store.put(ASKED, Completion("x", 2**63, 2**63 - 1, 0.0))
    assert kept == store.get(exchange_key(ASKED)) == Completion("x", None, 2**63 - 1, 0.0)


def test_listing_goes_on_past_a_page(store: ReplayStore) -> None:
    with store.transaction():
        for index in range(600):
            store.put(dataclasses.replace(ASKED, helper=str(index)), REPLY)
    assert [row.asked.helper for row in store.recorded()] == [str(i) for i in range(600)]


def test_a_transaction_is_whole_or_nothing(store: ReplayStore) -> None:
    with pytest.raises(KeyError), store.transaction():
        store.put(ASKED, REPLY)
        raise KeyError
    assert len(store) == 0
    with store.transaction():
        store.put(ASKED, REPLY)
    assert len(store) == 1


def test_other_threads_stay_out_of_a_transaction(store: ReplayStore) -> None:
    other = dataclasses.replace(ASKED, helper="two")
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        with pytest.raises(KeyError), store.transaction():
            store.put(ASKED, REPLY)
            put = pool.submit(store.put, other, REPLY)
            concurrent.futures.wait([put], timeout=0.2)  # ample, were there no lock
            raise KeyError
        put.result()
    assert store.get(exchange_key(ASKED)) is None
    assert store.get(exchange_key(other)) == REPLY


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


def test_a_file_of_version_1_is_read_without_a_change(path: Path) -> None:
    make_version_1(path)
    before = path.read_bytes()
    store = ReplayStore(path, create=False)
    assert store.get(exchange_key(ASKED)) == OLD
    (row,) = store.recorded()
    assert (row.asked, row.completion) == (ASKED, OLD)
    store.close()
    assert path.read_bytes() == before


def test_a_file_of_version_1_is_completed_when_it_is_written(path: Path) -> None:
    make_version_1(path)
    structured = dataclasses.replace(ASKED, is_structured=True)
    for _ in range(2):  # the second time there is nothing left to do
        store = ReplayStore(path)
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
def test_a_strange_file_is_refused_and_left_alone(name: str, create: bool, path: Path) -> None:
    make, reason = STRANGE[name]
    make(path)
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(ValueError, match=rf"replay\.sqlite.*{reason}"):
        ReplayStore(path, create=create)
    assert (path.read_bytes() if path.is_file() else None) == before


def test_a_missing_file_or_folder_is_named(path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist; record one"):
        ReplayStore(path, create=False)
    assert not path.exists()
    with pytest.raises(ValueError, match="folder does not exist; make it"):
        ReplayStore(path.parent / "none" / "replay.sqlite")


@pytest.mark.parametrize("content", [b"", None], ids=["empty", "no table yet"])
def test_a_file_as_a_kill_leaves_it_at_birth_becomes_a_store(
    content: bytes | None, path: Path
) -> None:
    if content is None:
        connection = sqlite3.connect(path)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.close()
    else:
        path.write_bytes(content)
    store = ReplayStore(path)
    assert store.put(ASKED, REPLY) == REPLY
    store.close()


def test_a_file_that_is_being_made_is_waited_for(path: Path) -> None:
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    release = threading.Timer(0.2, other.execute, ["ROLLBACK"])
    release.start()
    store = ReplayStore(path)
    assert store.put(ASKED, REPLY) == REPLY
    store.close()
    release.join()
    other.close()


def test_a_damaged_file_is_told_with_what_to_do(path: Path) -> None:
    store = ReplayStore(path)
    with store.transaction():
        for index in range(200):
            store.put(dataclasses.replace(ASKED, helper=str(index)), REPLY)
    store.close()
    content = path.read_bytes()
    path.write_bytes(content[:4096] + b"\xff" * (len(content) - 4096))  # all but the first page
    damaged = ReplayStore(path)
    with pytest.raises(StoreFailed, match="malformed; export what can be read"):
        damaged.get(exchange_key(ASKED))
    damaged.close()
