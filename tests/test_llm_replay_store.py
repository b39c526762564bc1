"""The replay file: keys, what comes back, what is damaged."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import pytest

from collab.llm import Completion, Message, prompts
from collab.llm.replay_store import (
    Asked,
    ReplayStore,
    StoreFailed,
    exchange_key,
)
from replays import ASKED, REPLY, TALK

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


def test_a_store_gives_back_what_it_got(replay_path: Path) -> None:
    store = ReplayStore(replay_path)
    assert store.get(exchange_key(ASKED)) is None
    assert store.put(ASKED, REPLY, stored_at_s=3.5) == REPLY
    store.close()
    again = ReplayStore(replay_path)
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


def test_a_damaged_file_is_told_with_what_to_do(replay_path: Path) -> None:
    store = ReplayStore(replay_path)
    with store.transaction():
        for index in range(200):
            store.put(dataclasses.replace(ASKED, helper=str(index)), REPLY)
    store.close()
    content = replay_path.read_bytes()
    first_page = content[:4096]
    replay_path.write_bytes(first_page + b"\xff" * (len(content) - len(first_page)))
    damaged = ReplayStore(replay_path)
    with pytest.raises(StoreFailed, match="malformed; export what can be read"):
        damaged.get(exchange_key(ASKED))
    damaged.close()
