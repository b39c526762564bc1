"""Replay files under kills, several processes and other users.

Each test starts this file as a program of its own.
"""

from __future__ import annotations

import dataclasses
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from collab.llm import Completion
from collab.llm.replay_store import (
    ReplayStore,
    exchange_key,
)
from replays import ASKED, PATIENCE_S, REPLY, CountingBackend, ask, replaying, until


def start(work: str, path: Path, *more: str, stdout: Any = subprocess.PIPE) -> Any:
    return subprocess.Popen(
        [sys.executable, __file__, work, str(path), *more],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
        stdout=stdout,
        text=True,
    )


def run(work: str, path: Path, *more: str) -> list[str]:
    child = start(work, path, *more)
    said, _ = child.communicate(timeout=PATIENCE_S)
    assert child.returncode == 0
    return said.splitlines()


def record_for_ever(path: Path, first: str) -> None:
    """Ask from several threads until killed; print each text once it has been answered."""
    wrapped = replaying(CountingBackend(), ReplayStore(path), "replay_or_call")

    def work(thread: int) -> None:
        for index in range(10**9):
            text = f"{first} {thread} {index} " + "x" * 2000
            reply = ask(wrapped, text)
            os.write(1, f"{first} {thread} {index}|{reply.text}\n".encode())  # one write each

    for thread in range(4):
        threading.Thread(target=work, args=(thread,)).start()


@pytest.mark.parametrize(
    "kills", [5, pytest.param(60, marks=[pytest.mark.soak, pytest.mark.timeout(1800)])]
)
def test_a_kill_at_any_moment_loses_no_answer(kills: int, replay_path: Path) -> None:
    rng, answered = random.Random(0), 0
    for kill in range(kills):
        said = replay_path.with_name(f"said{kill}")
        with open(said, "w") as file:
            child = start("record_for_ever", replay_path, str(kill), stdout=file)
            try:
                if kill:  # the first is killed at birth perhaps
                    until(lambda said=said: said.stat().st_size > 0)  # type: ignore[misc]
                time.sleep(rng.uniform(0.0, 0.3))
            finally:
                child.send_signal(signal.SIGKILL)
                child.wait()
        lines = said.read_text().split("\n")[:-1]
        backend = CountingBackend()
        resumed = replaying(backend, ReplayStore(replay_path), "replay_or_call")
        for text, reply in (line.split("|") for line in lines):
            assert ask(resumed, f"{text} " + "x" * 2000).text == reply
        assert backend.calls == 0
        assert resumed._store is not None
        state = resumed._store._connection.execute("PRAGMA integrity_check").fetchall()
        assert state == [("ok",)]
        answered += len(lines)
        assert len(resumed._store) >= answered
        resumed.close()
    assert answered > kills


def race(path: Path, name: str) -> None:
    """Store an own reply under keys that others store too; print what stands there."""
    store = ReplayStore(path)
    for index in range(300):
        asked = dataclasses.replace(ASKED, helper=str(index))
        kept = store.put(asked, Completion(f"{name} {index}", 1, 1, 0.0))
        assert store.get(exchange_key(asked)) == kept
        print(kept.text)
    store.close()


def test_processes_that_write_one_file_agree(replay_path: Path) -> None:
    children = [start("race", replay_path, name) for name in "abc"]  # all make the file, too
    said = [child.communicate(timeout=PATIENCE_S)[0].splitlines() for child in children]
    assert [child.returncode for child in children] == [0, 0, 0]
    assert said[0] == said[1] == said[2]
    store = ReplayStore(replay_path)
    assert sorted(row.completion.text for row in store.recorded()) == sorted(said[0])
    store.close()


@pytest.mark.parametrize("is_folder_closed", [True, False], ids=["folder", "file"])
def test_what_is_read_only_can_be_replayed_from_and_not_recorded_into(
    is_folder_closed: bool,
) -> None:
    with tempfile.TemporaryDirectory() as name:  # pytest's own folder is closed to other users
        folder = Path(name)
        path = folder / "replay.sqlite"
        store = ReplayStore(path)
        store.put(ASKED, REPLY)
        store.close()
        path.chmod(0o444)
        folder.chmod(0o555 if is_folder_closed else 0o777)
        try:
            said = run("read_without_rights", path)
        finally:
            folder.chmod(0o755)
        assert said[0] == "read"
        assert "attempt to write a readonly database; make file and folder writable" in said[1]
        if is_folder_closed:
            assert [file.name for file in folder.iterdir()] == ["replay.sqlite"]


def read_without_rights(path: Path) -> None:
    if os.getuid() == 0:
        os.setuid(65534)  # root may write anywhere
    store = ReplayStore(path, create=False)
    assert store.get(exchange_key(ASKED)) == REPLY
    print("read")
    try:
        ReplayStore(path)
    except ValueError as error:
        print(error)


if __name__ == "__main__":
    globals()[sys.argv[1]](Path(sys.argv[2]), *sys.argv[3:])
