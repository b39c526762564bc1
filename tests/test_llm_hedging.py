"""Hedged requests: who wins, who pays, and when there is none."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest

from collab.llm import Completion, Message, errors
from collab.llm.client import Client
from collab.llm.sender import Call
from fake_llm import OK, REQUESTS, FakeBackend, llm_config, passed, request


class Twins:
    """The first call and the second, each held until the test lets it go, then played."""

    is_local, where, helper_names = False, "", ("one",)

    def __init__(self, first: Completion | Exception, second: Completion | Exception) -> None:
        self.steps, self.lock, self.calls = (first, second), threading.Lock(), 0
        self.entered = [threading.Event(), threading.Event()]
        self.go = [threading.Event(), threading.Event()]

    def complete(
        self, messages: Sequence[Message], *, reply_tokens: int, deadline_s: float, helper: str
    ) -> Completion:
        with self.lock:
            place, self.calls = self.calls, self.calls + 1
        self.entered[place].set()
        assert self.go[place].wait(20)
        step = self.steps[place]
        if isinstance(step, Exception):
            raise step
        return step

    def check(self) -> None: ...

    def close(self) -> None: ...


SOON_S = 1e-3  # of real time; the tests go on when the second call is there, not by the clock
LEFT, RIGHT = Completion("left", 1000, 100), Completion("right", 1000, 200)


def hedging(backend: Twins | FakeBackend, after_s: float = SOON_S, **changes: object) -> Client:
    return Client(backend, llm_config(hedge_after_s=after_s, retries=0, **changes), REQUESTS)


@pytest.mark.parametrize(("winner", "text"), [(0, "left"), (1, "right")])
def test_the_first_reply_counts_and_both_are_paid(winner: int, text: str) -> None:
    backend = Twins(LEFT, RIGHT)
    client = hedging(backend)
    future = client.submit(passed(request()))
    assert all(entered.wait(20) for entered in backend.entered)
    backend.go[winner].set()
    feedback = future.result(timeout=20)
    assert feedback.text == text
    assert feedback.completion_tokens == (100, 200)[winner]  # the hedge is not the episode's
    backend.go[1 - winner].set()
    client.close()
    counters = client.counters()
    assert (counters["requests"], counters["sent"]) == (1, 2)
    assert (counters["hedged"], counters["hedges_won"]) == (1, winner)
    assert counters["completion_tokens"] == 300
    assert counters["usd"] == pytest.approx((2000 * 0.25 + 300 * 2.0) / 1e6)


@pytest.mark.parametrize("loser", [0, 1])
def test_one_failure_of_two_is_none(loser: int) -> None:
    steps: list[Completion | Exception] = [LEFT, LEFT]
    steps[loser] = errors.ServerFailed("x")
    backend = Twins(*steps)
    client = hedging(backend)
    future = client.submit(passed(request()))
    assert all(entered.wait(20) for entered in backend.entered)
    backend.go[loser].set()
    backend.go[1 - loser].set()
    assert future.result(timeout=20).text == "left"
    client.close()


def test_two_failures_are_the_first_ones() -> None:
    backend = Twins(errors.ServerFailed("x"), errors.Malformed("x"))
    client = hedging(backend)
    future = client.submit(passed(request()))
    assert all(entered.wait(20) for entered in backend.entered)
    backend.go[1].set()
    backend.go[0].set()
    assert future.result(timeout=20).failure == "server_failed"
    client.close()


@pytest.mark.parametrize(
    "changes",
    [
        {"retry_budget": 1, "retry_refill": 0.0},
        {"budget": {"run": {"requests": 3}}},
        {"requests_per_minute": 30},  # three at once
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_hedge_needs_what_a_retry_needs(changes: dict[str, object]) -> None:
    """The first request and its hedge use up what there is, so the second request gets none."""
    both, decided = threading.Event(), threading.Event()

    def reply() -> Completion:
        if backend.calls == 2:
            both.set()
        assert (both if backend.calls <= 2 else decided).wait(20)
        return OK

    backend = FakeBackend(reply, is_local=False)
    client = hedging(backend, **changes)
    may_hedge, answers = client._sender._may_hedge, []

    def watched(call: Call) -> bool:
        answers.append(may_hedge(call))
        if len(answers) == 2:
            decided.set()
        return answers[-1]

    client._sender._may_hedge = watched  # type: ignore[method-assign]
    for text in ("a", "b"):
        assert client.submit(passed(request(text))).result(timeout=20).failure is None
    client.close()
    assert answers == [True, False]
    assert (backend.calls, client.counters()["hedged"]) == (3, 1)


def test_a_reply_in_time_is_not_hedged() -> None:
    backend = FakeBackend(OK, is_local=False)
    client = hedging(backend, after_s=20.0)
    assert client.submit(passed(request())).result(timeout=20).failure is None
    client.close()
    assert (backend.calls, client.counters()["hedged"]) == (1, 0)


def test_a_local_backend_is_never_hedged() -> None:
    backend = FakeBackend(OK)
    client = hedging(backend, after_s=1e-9)
    assert client.submit(passed(request())).result(timeout=0).failure is None
    assert (backend.calls, client._sender._pool) == (1, None)
