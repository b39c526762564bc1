"""Replay files as JSONL: round trips, and lines that are wrong."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collab.llm import Completion, Message
from collab.llm.replay import main
from collab.llm.replay_jsonl import export_jsonl, import_jsonl
from collab.llm.replay_store import (
    ReplayStore,
    exchange_key,
)
from commands import refusal
from replays import ASKED, REPLY, three_lines


@pytest.fixture
def lines(store: ReplayStore, replay_path: Path) -> Path:
    return three_lines(store, replay_path.with_name("lines.jsonl"))


def test_export_and_import_are_a_round_trip(lines: Path, replay_path: Path, tmp_path: Path) -> None:
    new, again = tmp_path / "new.sqlite", tmp_path / "again.jsonl"
    assert main(["import", str(new), str(lines)]) == 0
    assert main(["export", str(new), str(again)]) == 0
    assert lines.read_bytes() == again.read_bytes()
    assert lines.read_text(encoding="ascii").count("\n") == 3
    assert not list(tmp_path.glob(".*"))


def test_a_line_may_be_written_by_hand(lines: Path, tmp_path: Path) -> None:
    fields = json.loads(lines.read_text().splitlines()[0])
    turned = dict(reversed(fields.items())) | {"temperature": 1, "latency_s": 0}
    by_hand = tmp_path / "by_hand.jsonl"
    by_hand.write_text("\n" + json.dumps(turned, ensure_ascii=False) + "\n", encoding="utf-8")
    store = ReplayStore(tmp_path / "new.sqlite")
    assert import_jsonl(store, by_hand) == (1, 1)
    asked = dataclasses.replace(ASKED, temperature=1.0)
    assert store.get(exchange_key(asked)) == dataclasses.replace(REPLY, latency_s=0.0)
    store.close()


def test_half_a_surrogate_pair_in_a_line_is_replaced(lines: Path, store: ReplayStore) -> None:
    fields = json.loads(lines.read_text().splitlines()[0]) | {"helper": "new", "text": "a\ud800"}
    lines.write_text(json.dumps(fields) + "\n" + json.dumps(fields) + "\n")
    assert import_jsonl(store, lines) == (2, 1)
    reply = store.get(exchange_key(dataclasses.replace(ASKED, helper="new")))
    assert reply is not None
    assert reply.text == "a\ufffd"


def test_the_same_reply_twice_is_fine(lines: Path, store: ReplayStore) -> None:
    with open(lines, "a") as file:
        line = json.loads(lines.read_text().splitlines()[0])
        file.write(json.dumps(line | {"latency_s": 9.0, "stored_at_s": 9.0}) + "\n")
    assert import_jsonl(store, lines) == (4, 0)
    assert store.get(exchange_key(ASKED)) == REPLY


BROKEN: dict[str, tuple[dict[str, Any] | bytes, str]] = {
    "conflict": ({"text": "private"}, "another reply in .*; remove one"),
    "usage conflict": ({"completion_tokens": 99}, "another reply"),
    "not JSON": (b"{private", "not JSON in UTF-8"),
    "not UTF-8": (b'{"text": "\xff"}', "not JSON in UTF-8"),
    "deep": (b"[" * 10**5, "not JSON in UTF-8"),
    "not an object": (b'["private"]', "not a JSON object"),
    "missing": (b'{"text": "private"}', "backend, cached_prompt_tokens, .* must be given"),
    "extra": ({"private": 1}, "1 fields besides backend"),
    "text": ({"text": None}, "text must be a text"),
    "count": ({"reply_tokens": -1}, "reply_tokens must be a count"),
    "bool": ({"reply_tokens": True}, "reply_tokens must be a count"),
    "float": ({"reply_tokens": 6.4}, "reply_tokens must be a count"),
    "large": ({"prompt_tokens": 2**63}, "prompt_tokens must be a count or null"),
    "nan": ({"temperature": float("nan")}, "temperature must be a number"),
    "inf": ({"latency_s": float("inf")}, "latency_s must be a number"),
    "huge": ({"latency_s": 10**400}, "latency_s must be a number"),
    "null latency": ({"latency_s": None}, "latency_s must be a number"),
    "messages": ({"messages": "private"}, "messages must be a list"),
    "pairs": ({"messages": [["user", "private"]]}, "messages must be a list"),
    "cut": ({"cut": "private"}, "cut must be '', 'length', 'deadline' or 'tail'"),
    "structured": ({"is_structured": 1}, "is_structured must be true or false"),
    "content": ({"messages": [{"role": "user", "content": 1}]}, "messages must be a list"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_line_is_named_and_nothing_is_imported(
    name: str, lines: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken, reason = BROKEN[name]
    good = lines.read_bytes().splitlines()
    if isinstance(broken, dict):
        broken = json.dumps(json.loads(good[0]) | broken).encode()
    lines.write_bytes(b"\n".join([*good, b"", broken, good[0]]))
    new = tmp_path / "new.sqlite"
    said = refusal(main, ["import", str(new), str(lines)], capsys)
    assert said.startswith(f"error: {lines}, line 5: ")
    assert "private" not in said
    assert re.search(reason, said)
    store = ReplayStore(new)
    assert len(store) == 0
    store.close()


def test_an_export_that_fails_leaves_the_old_file(
    lines: Path, store: ReplayStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = lines.read_bytes()

    def fail(_: int) -> None:
        raise OSError("no space")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="no space"):
        export_jsonl(store, lines)
    assert lines.read_bytes() == before
    assert not list(lines.parent.glob(".*"))


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Completion)[:-1]])
def test_every_field_of_a_reply_is_kept(
    field: str, lines: Path, store: ReplayStore, tmp_path: Path
) -> None:
    assert getattr(REPLY, field) != getattr(Completion(""), field)
    assert getattr(store.get(exchange_key(ASKED)), field) == getattr(REPLY, field)
    imported = ReplayStore(tmp_path / "new.sqlite")
    import_jsonl(imported, lines)
    assert getattr(imported.get(exchange_key(ASKED)), field) == getattr(REPLY, field)
    imported.close()


def test_whether_a_reply_was_structured_is_kept(
    lines: Path, store: ReplayStore, tmp_path: Path
) -> None:
    asked = dataclasses.replace(ASKED, is_structured=True)
    store.put(asked, REPLY)
    export_jsonl(store, lines)
    imported = ReplayStore(tmp_path / "new.sqlite")
    assert import_jsonl(imported, lines) == (4, 4)
    kept = imported.get(exchange_key(asked))
    assert kept == dataclasses.replace(REPLY, is_structured=True)
    imported.close()


def test_a_line_of_before_is_whole_and_not_structured(lines: Path, tmp_path: Path) -> None:
    fields = json.loads(lines.read_text().splitlines()[0])
    del fields["cut"], fields["is_structured"]
    lines.write_text(json.dumps(fields))
    imported = ReplayStore(tmp_path / "new.sqlite")
    import_jsonl(imported, lines)
    assert imported.get(exchange_key(ASKED)) == dataclasses.replace(REPLY, cut="")
    imported.close()


@settings(max_examples=60, deadline=None)
@given(content=st.text(st.characters()), reply=st.text(st.characters()))
def test_all_texts_come_back(content: str, reply: str) -> None:
    asked = dataclasses.replace(ASKED, messages=(Message("user", content),))
    with tempfile.TemporaryDirectory() as folder:
        stores = [ReplayStore(Path(folder) / name) for name in ("a.sqlite", "b.sqlite")]
        lines = Path(folder) / "lines.jsonl"
        kept = stores[0].put(asked, Completion(reply, 1, None, 0.1))
        # Halves of surrogate pairs stay in what was asked, and are replaced in what was replied.
        half = [c for c in reply if "\ud800" <= c <= "\udfff"]
        assert half or kept.text == reply
        kept.text.encode("utf-8")
        assert export_jsonl(stores[0], lines) == 1
        assert import_jsonl(stores[1], lines) == (1, 1)
        assert import_jsonl(stores[1], lines) == (1, 0)
        for store in stores:
            assert store.get(exchange_key(asked)) == kept
            (row,) = store.recorded()
            joined = content.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")
            assert row.asked.messages[0].content == joined
            store.close()
