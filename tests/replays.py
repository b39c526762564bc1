"""A request, its reply, and a backend that counts, for the tests of replay."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from collab.llm import Completion, Message
from collab.llm.replay import ReplayBackend
from collab.llm.replay_jsonl import export_jsonl
from collab.llm.replay_store import (
    Asked,
    ReplayStore,
)

TALK = (Message("system", "You are an expert."), Message("user", "[ask_fact] State it.\nOslo é"))
ASKED = Asked("openai", "big", "one", TALK, 64, 0.7)
REPLY = Completion('{"kind": "hint", "text": "look"}', 1000, 100, 0.1 + 0.2, 900, "length")
PATIENCE_S = 60.0


class CountingBackend:
    """Replies "reply <n>" to the n-th call; where `go` is given, once it is set."""

    where = "http://127.0.0.1:9/v1"

    def __init__(
        self,
        *steps: Completion | Exception,
        go: threading.Event | None = None,
        is_local: bool = True,
    ) -> None:
        self.steps, self.go, self.is_local = list(steps), go, is_local
        self.helper_names = ("one", "two")
        self.lock = threading.Lock()
        self.calls = self.checks = 0
        self.is_closed = False

    def complete(
        self, messages: Sequence[Message], *, reply_tokens: int, deadline_s: float, helper: str
    ) -> Completion:
        with self.lock:
            self.calls += 1
            call = self.calls
        if self.go is not None:
            assert self.go.wait(PATIENCE_S)
        step = self.steps.pop(0) if self.steps else Completion(f"reply {call}", 10, 2)
        if isinstance(step, Exception):
            raise step
        return step

    def check(self) -> None:
        self.checks += 1

    def close(self) -> None:
        self.is_closed = True


def replaying(backend: Any, store: ReplayStore | None, mode: str, **changes: Any) -> ReplayBackend:
    settings = {"backend_name": "openai", "model": "big", "temperature": 0.7, **changes}
    return ReplayBackend(backend, store, mode, **settings)


def ask(backend: ReplayBackend, text: str = "Oslo", helper: str = "one") -> Completion:
    talk = [Message("user", text)]
    return backend.complete(talk, reply_tokens=64, deadline_s=PATIENCE_S, helper=helper)


def three_lines(store: ReplayStore, file: Path) -> Path:
    """`file`, with three exchanges as JSONL that are in the store, too."""
    for helper in ("one", "two", "three"):
        store.put(dataclasses.replace(ASKED, helper=helper), REPLY, stored_at_s=1.5)
    export_jsonl(store, file)
    return file


def met(backend: ReplayBackend) -> dict[str, float]:
    return {name: total for name, total in backend.counters().items() if total}


def until(is_so: Callable[[], bool]) -> None:
    give_up_s = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < give_up_s
        time.sleep(0.001)
