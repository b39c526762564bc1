"""Replay: what each mode does, requests in flight, the client's view, the command line."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from collab.config import default_config
from collab.llm import Completion, Message, errors, prompts
from collab.llm.client import Client
from collab.llm.openai import OpenAIBackend
from collab.llm.replay import MODES, NotRecorded, main
from collab.llm.replay_jsonl import export_jsonl
from collab.llm.replay_store import (
    ReplayStore,
    StoreFailed,
)
from collab.llm.serve import serving
from collab.types import FeedbackKind, HelpRequest
from commands import refusal
from fake_llm import passed
from replays import (
    ASKED,
    PATIENCE_S,
    REPLY,
    CountingBackend,
    ask,
    met,
    replaying,
    three_lines,
    until,
)

# --- modes ---------------------------------------------------------------------------------


def test_off_passes_everything_through() -> None:
    backend = CountingBackend()
    off = replaying(backend, None, "off")
    assert [ask(off), ask(off)] == [Completion("reply 1", 10, 2), Completion("reply 2", 10, 2)]
    off.check()
    off.close()
    assert (backend.checks, backend.is_closed, met(off)) == (1, True, {})


def test_off_leaves_a_store_alone(store: ReplayStore) -> None:
    ask(replaying(CountingBackend(), store, "off"))
    assert len(store) == 0


def test_record_always_calls_and_the_first_reply_stays(store: ReplayStore) -> None:
    backend = CountingBackend()
    record = replaying(backend, store, "record")
    first = ask(record)
    assert [ask(record).text, ask(record, "Rome").text] == ["reply 1", "reply 3"]
    assert (backend.calls, len(store)) == (3, 2)
    assert met(record) == {"recorded": 2, "differed": 1}
    assert ask(replaying(CountingBackend(), store, "replay")) == first


@pytest.mark.parametrize("was_structured", [True, False])
@pytest.mark.parametrize("setting", ["auto", "on", "off"])
def test_a_reply_is_found_as_it_was_asked_for(
    setting: str, was_structured: bool, store: ReplayStore
) -> None:
    reply = Completion("kept", 10, 2, 1.0, is_structured=was_structured)
    ask(replaying(CountingBackend(reply), store, "record", structured="auto"))
    replay = replaying(CountingBackend(), store, "replay", structured=setting)
    if setting == "auto" or (setting == "on") == was_structured:
        assert ask(replay) == reply
    else:
        with pytest.raises(NotRecorded):
            ask(replay)


def test_auto_prefers_the_structured_reply_and_calls_for_neither(store: ReplayStore) -> None:
    plain, structured = (Completion("a", 1, 1, 1.0), Completion("b", 1, 1, 1.0, is_structured=True))
    backend = CountingBackend(plain, structured)
    record = replaying(backend, store, "record", structured="auto")
    assert [ask(record), ask(record)] == [plain, structured]
    assert ask(replaying(backend, store, "replay_or_call", structured="auto")) == structured
    assert ask(replaying(backend, store, "replay_or_call", structured="off")) == plain
    assert (backend.calls, len(store)) == (2, 2)


def test_replay_never_calls(store: ReplayStore) -> None:
    recorded = ask(replaying(CountingBackend(), store, "record"))
    backend = CountingBackend()
    replay = replaying(backend, store, "replay")
    assert [ask(replay), ask(replay)] == [recorded] * 2
    with pytest.raises(NotRecorded, match="replay_or_call") as missed:
        ask(replay, "private words")
    assert "private words" not in str(missed.value)
    assert (missed.value.name, missed.value.is_final) == ("not_recorded", False)
    assert not isinstance(missed.value, errors.Transient)
    replay.check()
    assert (backend.calls, backend.checks) == (0, 0)
    assert met(replay) == {"replayed": 2, "not_recorded": 1}


def test_replay_or_call_calls_for_what_is_missing(store: ReplayStore) -> None:
    backend = CountingBackend()
    either = replaying(backend, store, "replay_or_call")
    replies = [ask(either), ask(either), ask(either, "Rome"), ask(either)]
    assert [reply.text for reply in replies] == ["reply 1", "reply 1", "reply 2", "reply 1"]
    either.check()
    assert (backend.calls, backend.checks) == (2, 1)
    assert met(either) == {"recorded": 2, "replayed": 2}


def test_what_is_stored_can_be_had_before_anything_is_sent(store: ReplayStore) -> None:
    talk = [Message("user", "Oslo")]
    first = ask(replaying(CountingBackend(), store, "record"))
    for mode, found in (("off", None), ("record", None), ("replay", first)):
        wrapped = replaying(CountingBackend(), store, mode)
        assert wrapped.recall(talk, reply_tokens=64, helper="one") == found
    either = replaying(CountingBackend(), store, "replay_or_call")
    assert either.recall(talk, reply_tokens=64, helper="one") == first
    assert either.recall(talk, reply_tokens=65, helper="one") is None
    assert met(either) == {"replayed": 1}


def test_a_failure_is_not_stored(store: ReplayStore) -> None:
    backend = CountingBackend(errors.ServerFailed("x"))
    either = replaying(backend, store, "replay_or_call")
    with pytest.raises(errors.ServerFailed):
        ask(either)
    assert ask(either).text == "reply 2"
    assert len(store) == 1


def test_every_mode_is_tested_here() -> None:
    assert [*MODES] == ["off", "record", "replay", "replay_or_call"]


@pytest.mark.parametrize(("mode", "fix"), [("recrod", "must be one of off"), ("record", "needs")])
def test_a_wrong_mode_and_one_without_its_file_are_refused(mode: str, fix: str) -> None:
    with pytest.raises(ValueError, match=fix):
        replaying(CountingBackend(), None, mode)


@pytest.mark.parametrize("mode", MODES)
def test_the_wrapper_stands_for_its_backend(mode: str, store: ReplayStore) -> None:
    for is_local in (True, False):
        backend = CountingBackend(is_local=is_local)
        wrapped = replaying(backend, store, mode)
        assert wrapped.is_local is (is_local or mode == "replay")  # nothing to wait for there
        assert wrapped.helper_names == backend.helper_names
        wrapped.close()
        wrapped.close()
        assert backend.is_closed
    with pytest.raises(StoreFailed, match="closed"):
        store.get("x")


@pytest.mark.parametrize(
    "changes", [{}, {"model": "small"}, {"backend_name": "other"}], ids=["empty", "model", "name"]
)
def test_replay_of_someone_else_is_found_at_start(
    changes: dict[str, str], store: ReplayStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    if changes:
        ask(replaying(CountingBackend(), store, "record", **changes))
    with pytest.raises(errors.HelperUnusable, match=r"no reply of openai, model 'big'.* record it"):
        replaying(CountingBackend(), store, "replay").check()


def test_replay_of_another_wording_is_found_at_start(store: ReplayStore) -> None:
    now = prompts.INSTRUCTION_VERSION
    store.put(dataclasses.replace(ASKED, instruction_version=now + 1), REPLY)
    with pytest.raises(errors.HelperUnusable, match=rf"wording {now}, but of .*wording {now + 1};"):
        replaying(CountingBackend(), store, "replay").check()


def test_latency_is_measured_once_where_the_backend_names_none(store: ReplayStore) -> None:
    seconds = iter([5.0, 5.7])
    record = replaying(CountingBackend(), store, "record", clock=lambda: next(seconds))
    first = ask(record)
    assert first.latency_s == 5.7 - 5.0
    named = Completion("x", None, 3, 0.1 + 0.2)
    assert ask(replaying(CountingBackend(named), store, "record"), "Rome") == named
    replay = replaying(CountingBackend(), store, "replay")
    assert [ask(replay), ask(replay, "Rome")] == [first, named]


def test_a_reply_that_cannot_be_kept_is_a_final_failure(store: ReplayStore) -> None:
    store._connection.execute(f"PRAGMA max_page_count = {page_count(store)}")  # a full disk
    full = replaying(CountingBackend(Completion("x" * 2**16, 1, 1)), store, "record")
    with pytest.raises(StoreFailed, match=r"replay\.sqlite: .*full; free some space") as failed:
        ask(full)
    assert failed.value.is_final


def page_count(store: ReplayStore) -> int:
    return int(store._connection.execute("PRAGMA page_count").fetchall()[0][0])


def test_half_a_surrogate_pair_in_a_reply_is_replaced(store: ReplayStore) -> None:
    record = replaying(CountingBackend(Completion("a\ud800b", 1, 1)), store, "record")
    assert ask(record).text == "a\ufffdb"
    assert met(record) == {"recorded": 1}


# --- identical requests in flight ----------------------------------------------------------


@pytest.mark.parametrize("mode", ["record", "replay_or_call"])
def test_identical_requests_in_flight_are_sent_once(mode: str, store: ReplayStore) -> None:
    go = threading.Event()
    backend = CountingBackend(go=go)
    wrapped = replaying(backend, store, mode)
    with concurrent.futures.ThreadPoolExecutor(66) as pool:
        same = [pool.submit(ask, wrapped) for _ in range(64)]
        others = [pool.submit(ask, wrapped, "Rome"), pool.submit(ask, wrapped, helper="two")]
        until(lambda: met(wrapped).get("joined") == 63)
        go.set()
        assert len({future.result() for future in same}) == 1
        assert len({future.result().text for future in [*same, *others]}) == 3
    assert backend.calls == len(store) == 3
    assert wrapped._flights == {}


def test_many_threads_over_few_keys_send_each_once(store: ReplayStore) -> None:
    backend = CountingBackend()
    wrapped = replaying(backend, store, "replay_or_call")
    with concurrent.futures.ThreadPoolExecutor(32) as pool:
        replies = list(pool.map(lambda i: (i % 7, ask(wrapped, str(i % 7))), range(700)))
    assert backend.calls == 7
    assert len(set(replies)) == 7
    assert sum(met(wrapped).values()) == 700


@pytest.mark.parametrize(
    ("error", "seen"),
    [(errors.RateLimited("x", retry_after_s=3.0), errors.RateLimited), (KeyError("x"), KeyError)],
)
def test_who_joins_a_failing_request_fails_alike(
    error: Exception, seen: type[Exception], store: ReplayStore
) -> None:
    go = threading.Event()
    wrapped = replaying(CountingBackend(error, go=go), store, "replay_or_call")
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(ask, wrapped) for _ in range(4)]
        until(lambda: met(wrapped).get("joined") == 3)
        go.set()
        for future in futures:
            with pytest.raises(seen):
                future.result()
    assert ask(wrapped).text == "reply 2"


def test_a_hedge_is_sent_beside_its_like_and_the_first_reply_stays(store: ReplayStore) -> None:
    go = threading.Event()
    backend = CountingBackend(go=go)
    hedged = replaying(backend, store, "replay_or_call", joins=False)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(ask, hedged) for _ in range(2)]
        until(lambda: backend.calls == 2)
        go.set()
        assert len({future.result() for future in futures}) == 1
    assert met(hedged) == {"recorded": 1, "differed": 1}


def test_who_joins_keeps_its_own_deadline(store: ReplayStore) -> None:
    go = threading.Event()
    wrapped = replaying(CountingBackend(go=go), store, "record")
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        first = pool.submit(ask, wrapped)
        until(lambda: len(wrapped._flights) == 1)
        with pytest.raises(errors.TimedOut):
            wrapped.complete(
                [Message("user", "Oslo")], reply_tokens=64, deadline_s=-1.0, helper="one"
            )
        go.set()
        assert first.result().text == "reply 1"


def test_who_joins_a_stopped_request_is_told(store: ReplayStore) -> None:
    class Stopped(CountingBackend):
        def complete(self, *args: Any, **kwargs: Any) -> Completion:
            until(lambda: met(wrapped).get("joined") == 1)
            raise SystemExit

    wrapped = replaying(Stopped(), store, "record")
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(ask, wrapped) for _ in range(2)]
        kinds = {type(future.exception(PATIENCE_S)) for future in futures}
    assert kinds == {SystemExit, errors.Closed}


# --- with the client -----------------------------------------------------------------------


def feedbacks(backend: Any, texts: Sequence[str], **changes: object) -> list[Any]:
    llm = default_config().llm
    llm.update({"concurrency": 4, "retries": 0, **changes})
    client = Client(backend, llm, {"ask_fact": "State it."})
    futures = [
        client.submit(passed(HelpRequest("e", "ask_fact", text, helper="one"))) for text in texts
    ]
    found = [future.result(timeout=PATIENCE_S) for future in futures]
    client.close()
    return found


def test_what_the_client_says_is_the_same_to_the_bit(replay_path: Path) -> None:
    texts = [f"capital of {name}" for name in ("Norway", "Italy", "Norway")]
    record = replaying(CountingBackend(is_local=False), ReplayStore(replay_path), "record")
    recorded = feedbacks(record, texts)
    down = CountingBackend(errors.AuthFailed("x"), is_local=False)
    replay = replaying(down, ReplayStore(replay_path, create=False), "replay")
    assert feedbacks(replay, texts) == recorded
    assert recorded[0].latency_s > 0.0
    missed = feedbacks(replaying(down, ReplayStore(replay_path), "replay"), ["capital of Chile"])
    assert (missed[0].kind, missed[0].failure) == (FeedbackKind.UNAVAILABLE, "not_recorded")
    assert down.calls == 0


def test_no_api_key_is_stored(replay_path: Path) -> None:
    key = "sk-Very-Secret-0123456789"

    class Leaking(CountingBackend):
        def complete(self, *args: Any, **kwargs: Any) -> Completion:
            return Completion(f"your key is {key}", 1, 1)

    with serving(Leaking(), key=key) as url:
        backend = OpenAIBackend(
            base_url=url, model="", key=key, key_env="K", temperature=0.7, concurrency=4
        )
        store = ReplayStore(replay_path)
        wrapped = replaying(backend, store, "record", secret=key)
        wrapped.check()
        for text in ("Oslo", f"my key is {key}"):
            assert ask(wrapped, text).text == "your key is ***"
        assert ask(replaying(backend, store, "replay", secret=key), f"my key is {key}")
        export_jsonl(store, replay_path.with_suffix(".jsonl"))
        files = [file.read_bytes() for file in replay_path.parent.iterdir()]
        assert len(files) == 4  # log and shared memory among them
        assert all(key.encode() not in content for content in files)
        wrapped.close()
    assert key.encode() not in replay_path.read_bytes()


def test_a_stand_in_for_a_key_changes_no_text(store: ReplayStore) -> None:
    backend = CountingBackend(Completion("ollama is EMPTY", 1, 1))
    assert ask(replaying(backend, store, "record", secret="EMPTY")).text == "ollama is EMPTY"


# --- command line -------------------------------------------------------------------------


@pytest.fixture
def lines(store: ReplayStore, replay_path: Path) -> Path:
    return three_lines(store, replay_path.with_name("lines.jsonl"))


def test_stats_count_by_helper(
    lines: Path, store: ReplayStore, replay_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = dataclasses.replace(ASKED, helper="", reply_tokens=1)
    store.put(asked, Completion("x", None, 7, 0.0))
    assert main(["stats", str(replay_path)]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows[0][:3] == ["backend", "model", "helper"]
    now = str(prompts.INSTRUCTION_VERSION)
    assert rows[1] == ["openai", "big", "-", now, "1", "0", "7", "1"]
    assert rows[2] == ["openai", "big", "one", now, "1", "1000", "100", "0"]
    assert rows[-1] == ["all", "-", "-", "-", "4", "3000", "307", "1"]


def test_mistakes_of_the_command_line_are_one_line(
    lines: Path, replay_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    none = str(tmp_path / "none")
    for arguments, reason in (
        (["export", none, str(tmp_path / "x")], "does not exist; record one"),
        (["stats", str(lines)], "not a database"),
        (["import", none, f"{none}.jsonl"], "does not exist; name a file that export wrote"),
        (["export", str(replay_path), str(replay_path)], "is the replay file itself"),
        (["export", str(replay_path), f"{none}/x"], "folder does not exist"),
        (["export", str(replay_path), str(tmp_path)], "s a directory"),
    ):
        assert reason in refusal(main, arguments, capsys)
    assert not Path(none).exists()
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("command", ["export", "import", "stats"])
def test_help_tells_what_a_command_does(command: str) -> None:
    said = subprocess.run(
        [sys.executable, "-m", "collab.llm.replay", command, "--help"],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[1],
    ).stdout
    assert "STORE" in said
    assert "replay file (SQLite)" in said
