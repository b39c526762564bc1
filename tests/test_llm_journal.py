"""The journal of what is spent: kill -9, clocks that jump, a full disk, several processes.

Started as a program, this file asks a server until it is killed.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_collections
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from collab.assembly import assemble
from collab.llm import Completion, Message, journal, make_backend
from collab.llm.budget import Budget, Spend
from collab.llm.client import Client
from collab.llm.journal import Journal, JournalFailed
from collab.llm.serve import serving
from fake_llm import OK, REQUESTS, Clock, FakeBackend, llm_config, passed, request
from replays import until

NONE = {"usd": 0.0, "requests": 0, "tokens": 0}
IN_FLIGHT = 4
BILLED = (1000, 100)  # tokens of each reply


class Wall:
    """Unix time that a test sets."""

    def __init__(self, now_s: float = 1e9) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s


def budget(path: Path, wall: Wall, **limits: dict[str, float]) -> Budget:
    """As a new process has it: its own clock begins anew."""
    scopes = {scope: {**NONE, **limits.get(scope, {})} for scope in ("run", "hour", "episode")}
    return Budget(scopes, clock=Clock(), journal=Journal(path, wall_clock=wall))


def spend(counted: Budget, *, usd: float = 0.0, tokens: int = 0) -> None:
    counted.take_request(Spend())
    counted.add_reply(Spend(), usd=usd, tokens=tokens)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "spend.jsonl"


# --- what is written is what is read ---------------------------------------------------------


def test_a_new_process_knows_what_was_spent(path: Path) -> None:
    first = budget(path, Wall())
    spend(first, usd=0.1, tokens=100)
    spend(first, usd=0.2, tokens=30)
    second = budget(path, Wall(), run={"usd": 0.3})  # the first was not closed
    assert second.run == first.run == Spend(usd=0.1 + 0.2, requests=2, tokens=130)
    assert second.is_spent


@settings(deadline=None, max_examples=30)
@given(some.lists(some.tuples(some.floats(0, 1e6), some.integers(0, 2**60)), max_size=20))
def test_sums_are_those_of_the_process_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory, amounts: list[tuple[float, int]]
) -> None:
    path = tmp_path_factory.mktemp("journal") / "spend.jsonl"
    counted = budget(path, Wall())
    for usd, tokens in amounts:
        spend(counted, usd=usd, tokens=tokens)
    assert budget(path, Wall()).run == counted.run


def test_a_checkpoint_counts_only_where_the_journal_is_empty(path: Path) -> None:
    older = {"run": {"usd": 2.0, "requests": 7, "tokens": 9}, "hour": []}
    for _ in range(2):  # the second finds it in the journal, and does not add it again
        counted = budget(path, Wall())
        counted.restore(older)
        assert counted.run == Spend(**older["run"])
    spend(counted, usd=1.0)
    later = budget(path, Wall())
    later.restore(older)
    assert later.run == Spend(usd=3.0, requests=8, tokens=9)


def test_a_record_that_is_cut_short_spoils_no_other(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spend(budget(path, Wall()), usd=1.0)
    whole = path.read_bytes()
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        kept = budget(path, Wall()).run
        spend(budget(path, Wall()), usd=0.5)
        assert budget(path, Wall()).run == Spend(kept.usd + 0.5, kept.requests + 1, 0)
    assert "1 unreadable lines left out" in caplog.text


@pytest.mark.parametrize(
    "line",
    ['{"at_s": 1, "usd": NaN, "requests": 1, "tokens": 1}', "\x00\x00", '{"at_s": 1}', "[1]",
     '{"at_s": 1, "usd": "2", "requests": 1, "tokens": 1}'],
)  # fmt: skip
def test_a_damaged_line_is_left_out(path: Path, line: str) -> None:
    path.write_text(line)
    spend(budget(path, Wall()), usd=1.0)
    assert budget(path, Wall()).run == Spend(usd=1.0, requests=1)


# --- the hour ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("later_s", "is_spent"), [(0, True), (1800, True), (3599, True), (3661, False), (-7200, True)]
)
def test_the_hour_goes_on_through_a_restart(path: Path, later_s: float, is_spent: bool) -> None:
    """A clock that was set back makes it last longer, never shorter."""
    wall = Wall()
    spend(budget(path, wall), tokens=100)
    wall.now_s += later_s
    again = budget(path, wall, hour={"tokens": 100})
    assert again.is_spent is is_spent
    assert again.run.tokens == 100


def test_an_hour_that_goes_on_ends(path: Path) -> None:
    wall = Wall()
    spend(budget(path, wall), tokens=100)
    wall.now_s -= 86_400.0  # the record seems to be of tomorrow: it counts as just now
    clock, limits = Clock(), {"run": NONE, "episode": NONE, "hour": {**NONE, "tokens": 100}}
    again = Budget(limits, clock=clock, journal=Journal(path, wall_clock=wall))
    clock.now_s += 3599.0
    assert again.is_spent
    clock.now_s += 62.0
    assert not again.is_spent


def test_records_of_a_jumping_clock_are_counted_once_each(path: Path) -> None:
    wall = Wall()
    counted = budget(path, wall)
    for jump_s in (0.0, -600.0, 900.0, 5.0, -100.0):
        wall.now_s += jump_s
        spend(counted, tokens=10)
    again = budget(path, wall, hour={"tokens": 51})
    assert not again.is_spent
    spend(again, tokens=1)
    assert again.is_spent


# --- what goes wrong -----------------------------------------------------------------------------


def test_nothing_is_sent_that_can_not_be_written_down(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    backend = FakeBackend(OK)
    client = Client(backend, llm_config(), REQUESTS, journal=Journal(path))
    monkeypatch.setattr(journal.os, "write", full)
    found = [client.submit(passed(request(str(i)))).result(timeout=0).failure for i in range(5)]
    assert found == ["journal_failed"] * 3 + ["helper_down"] * 2
    assert backend.calls == 0
    with pytest.raises(JournalFailed, match="No space left"):
        Journal(path).add(usd=0.0, requests=1, tokens=0)
    monkeypatch.setattr(journal.os, "write", lambda file, data: len(data) - 1)
    with pytest.raises(JournalFailed, match="no space left"):
        Journal(path).add(usd=0.0, requests=1, tokens=0)


def test_a_reply_that_was_paid_for_is_given_though_it_can_not_be_written_down(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reply_on_a_full_disk() -> Completion:
        monkeypatch.setattr(journal.os, "write", lambda file, data: 0)
        return OK

    client = Client(
        FakeBackend(reply_on_a_full_disk), llm_config(), REQUESTS, journal=Journal(path)
    )
    found = [client.submit(passed(request(str(i)))).result(timeout=0).failure for i in range(4)]
    assert found == [None, "journal_failed", "journal_failed", "helper_down"]
    assert client.counters()["usd"] == pytest.approx(450e-6)


def test_a_folder_that_can_not_be_written_is_said_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"spend journal .*: No such file or directory; name a"):
        Journal(tmp_path / "none" / "spend.jsonl")


def test_a_run_keeps_one_for_a_helper_that_is_not_in_this_process(
    tiny_config: ml_collections.ConfigDict, tmp_path: Path
) -> None:
    assemble(tiny_config, str(tmp_path)).close()
    assert not (tmp_path / "spend.jsonl").exists()
    with serving(make_backend("scripted", tiny_config.llm, knowledge=NoKnowledge())) as url:
        tiny_config.llm.update({"backend": "openai", "base_url": url, "api_key_env": ""})
        for sent in range(3):  # as training, evaluation and questions from the terminal do
            assembly = assemble(tiny_config, str(tmp_path))
            assert assembly.client.counters()["sent"] == sent
            assembly.client.submit(passed(request(str(sent), "one_hop"))).result(timeout=20)
            assembly.close()


class NoKnowledge:
    def resolve(self, text: str) -> None:
        return None

    def wrong_answer(self, step: Any, rng: Any) -> str:
        return ""


# --- kill -9 -------------------------------------------------------------------------------------


class Till:
    """A backend that bills every request it gets, and counts."""

    is_local, helper_names = True, ("one",)

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.billed = 0

    def complete(
        self, messages: Sequence[Message], *, reply_tokens: int, deadline_s: float, helper: str
    ) -> Completion:
        with self.lock:
            self.billed += 1
        return Completion("yes", *BILLED, 0.002)

    def check(self) -> None: ...

    def close(self) -> None: ...


def paying(base_url: str, path: Path) -> Client:
    llm = llm_config(
        backend="openai", base_url=base_url, model="one", api_key_env="", concurrency=IN_FLIGHT,
        backoff_s=0.001,
    )  # fmt: skip
    return Client(make_backend("openai", llm), llm, REQUESTS, journal=Journal(path))


def ask_for_ever(base_url: str, path: Path) -> None:
    client = paying(base_url, path)
    for count in itertools.count():
        futures = [client.submit(passed(request(f"{count} {i}"))) for i in range(IN_FLIGHT)]
        for future in futures:
            future.result()


@pytest.mark.parametrize(
    "kills", [4, pytest.param(40, marks=[pytest.mark.soak, pytest.mark.timeout(1800)])]
)
def test_kills_at_any_moment_forget_nothing_that_was_billed(kills: int, path: Path) -> None:
    """Requests exactly; tokens and dollars but for what was in flight at each kill."""
    rng, till = random.Random(0), Till()
    with serving(till) as url:
        for kill in range(1, kills + 1):
            before = till.billed
            child = subprocess.Popen(
                [sys.executable, __file__, url, str(path)],
                env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
            )
            try:
                until(lambda before=before: till.billed > before + 20)  # type: ignore[misc]
                time.sleep(rng.uniform(0.0, 0.2))
            finally:
                child.send_signal(signal.SIGKILL)
                child.wait()
            time.sleep(0.1)  # the server may still be reading what was sent
            run = budget(path, Wall()).run
            assert till.billed <= run.requests <= till.billed + IN_FLIGHT * kill
            unpaid = till.billed - run.tokens / sum(BILLED)
            assert 0 <= unpaid <= IN_FLIGHT * kill
            assert run.usd > 0.0
        client = paying(url, path)
        assert client.counters()["sent"] == run.requests
        client.close()
    lines = path.read_text().splitlines()[1:]
    assert len([json.loads(line) for line in lines]) >= 2 * 20 * kills


if __name__ == "__main__":
    ask_for_ever(sys.argv[1], Path(sys.argv[2]))
