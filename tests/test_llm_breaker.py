"""The circuit breaker and the retry budget: by themselves, and through an outage of the helper."""

from __future__ import annotations

import heapq
import itertools
import threading
from collections.abc import Callable, Sequence

import pytest

from collab.config import default_config
from collab.llm import Completion, Message, errors
from collab.llm.breaker import CircuitBreaker, RetryBudget
from collab.llm.client import Client
from collab.types import Exchange, HelpRequest
from fake_llm import Clock, passed


def opened(clock: Clock, failures: int = 3) -> CircuitBreaker:
    breaker = CircuitBreaker(failures=failures, pause_s=10.0, clock=clock)
    for _ in range(failures):
        breaker.note(ticket(breaker), False)
    return breaker


def ticket(breaker: CircuitBreaker) -> int:
    found = breaker.admit()
    assert found is not None
    return found


def race(count: int, work: Callable[[], object]) -> list[object]:
    """What `count` threads get out of `work`, begun at one moment."""
    results: list[object] = []
    start = threading.Barrier(count)

    def run() -> None:
        start.wait(20)
        results.append(work())

    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    return results


# --- the breaker ---------------------------------------------------------------------------


def test_failures_at_one_moment_are_no_outage() -> None:
    clock = Clock()
    breaker = CircuitBreaker(failures=3, span_s=1.0, pause_s=10.0, clock=clock)
    for _ in range(16):  # in flight when a port was closed for an instant
        assert breaker.note(ticket(breaker), False) == ""
    assert breaker.note(ticket(breaker), True) == ""
    for pause_s in (0.0, 0.5, 0.0):
        clock.sleep(pause_s)
        assert breaker.note(ticket(breaker), False) == ""
    clock.sleep(0.5)
    assert breaker.note(ticket(breaker), False) == "open"


def test_failures_in_a_row_open_it_and_a_reply_ends_the_row() -> None:
    breaker = CircuitBreaker(failures=3, pause_s=10.0, clock=Clock())
    outcomes = [False, False, True, False, False, None, False]
    changes = [breaker.note(ticket(breaker), outcome) for outcome in outcomes]
    assert changes == ["", "", "", "", "", "", "open"]
    assert (breaker.is_open, breaker.times_opened, breaker.admit()) == (True, 1, None)


def test_after_the_pause_one_probe_goes_and_a_reply_closes_it() -> None:
    clock = Clock()
    breaker = opened(clock)
    clock.now_s += 9.9
    assert not breaker.would_admit() and breaker.admit() is None
    clock.now_s += 0.1
    assert breaker.would_admit() and not breaker.would_admit(may_probe=False)
    assert breaker.admit(may_probe=False) is None
    probe = ticket(breaker)
    clock.now_s += 1000.0
    assert not breaker.would_admit() and breaker.admit() is None
    assert breaker.note(probe, True) == "closed"
    assert not breaker.is_open
    assert breaker.note(ticket(breaker), False) == ""  # and it counts from the start
    assert not breaker.is_open


def test_a_probe_that_fails_costs_another_pause() -> None:
    clock = Clock()
    breaker = opened(clock)
    clock.now_s += 10.0
    probe = ticket(breaker)
    clock.now_s += 5.0
    assert breaker.note(probe, False) == ""
    clock.now_s += 9.9
    assert breaker.admit() is None
    clock.now_s += 0.1
    assert breaker.admit() is not None
    assert breaker.times_opened == 1


def test_a_probe_that_says_nothing_lets_the_next_one_go() -> None:
    clock = Clock()
    breaker = opened(clock)
    clock.now_s += 10.0
    assert breaker.note(ticket(breaker), None) == ""
    assert breaker.is_open
    assert breaker.note(ticket(breaker), True) == "closed"


def test_outcomes_of_requests_from_before_are_old_news() -> None:
    clock = Clock()
    breaker = CircuitBreaker(failures=1, pause_s=10.0, clock=clock)
    early, late, cause = ticket(breaker), ticket(breaker), ticket(breaker)
    assert breaker.note(cause, False) == "open"
    assert breaker.note(early, True) == ""
    clock.now_s += 10.0
    probe = ticket(breaker)
    assert breaker.note(late, False) == ""  # it is not the probe that failed
    assert breaker.note(probe, True) == "closed"


def test_zero_failures_never_open_it() -> None:
    breaker = CircuitBreaker(failures=0, pause_s=10.0, clock=Clock())
    assert not any(breaker.note(ticket(breaker), False) for _ in range(1000))


def test_of_many_threads_one_probes() -> None:
    clock = Clock()
    breaker = opened(clock)
    clock.now_s += 10.0
    assert sum(found is not None for found in race(32, breaker.admit)) == 1


# --- the retry budget ----------------------------------------------------------------------


def test_retries_are_bounded_and_earned_back_by_replies() -> None:
    retries = RetryBudget(3, refill=0.5)
    assert [retries.withdraw() for _ in range(4)] == [True, True, True, False]
    retries.note_reply()
    assert not retries.withdraw()
    retries.note_reply()
    assert [retries.withdraw() for _ in range(2)] == [True, False]
    for _ in range(100):
        retries.note_reply()
    assert [retries.withdraw() for _ in range(4)] == [True, True, True, False]


def test_zero_is_no_bound() -> None:
    retries = RetryBudget(0, refill=0.5)
    assert all(retries.withdraw() for _ in range(1000))


def test_threads_do_not_overdraw() -> None:
    retries = RetryBudget(20, refill=0.0)
    assert sum(map(bool, race(64, retries.withdraw))) == 20


# --- an outage -----------------------------------------------------------------------------

DEADLINE_S, PAUSE_S, REPLY_S, THINK_S = 10.0, 8.0, 0.5, 1.0
BEGINS_S, ENDS_S, LAST_S = 5.0, 65.0, 120.0  # of the outage, and of the test
ROWS, ASKS = 64, 3


class VirtualTime:
    """A clock for many threads: it moves on when all of them sleep, to whoever wakes first."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._lock, self._order = threading.Lock(), itertools.count()
        self._asleep: list[tuple[float, int, threading.Event]] = []
        self._awake = 0

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, pause_s: float) -> None:
        wake = threading.Event()
        with self._lock:
            heapq.heappush(self._asleep, (self.now_s + pause_s, next(self._order), wake))
            self._one_less()
        assert wake.wait(60)

    def run(self, works: Sequence[Callable[[], None]]) -> None:
        def run(work: Callable[[], None]) -> None:
            try:
                work()
            finally:
                with self._lock:
                    self._one_less()

        threads = [threading.Thread(target=run, args=(work,)) for work in works]
        self._awake = len(threads)
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)

    def _one_less(self) -> None:
        self._awake -= 1
        if self._awake == 0 and self._asleep:
            self.now_s, _, wake = heapq.heappop(self._asleep)
            self._awake = 1
            wake.set()


class Outage:
    """A helper that replies after a while, and from BEGINS_S to ENDS_S hangs or refuses."""

    is_local, where, helper_names = True, "", ("",)  # local: the callers' threads are the only ones

    def __init__(self, time: VirtualTime, *, has_hung: bool) -> None:
        self.time, self.has_hung = time, has_hung
        self.client: Client | None = None
        self.calls_s: list[float] = []
        self.lock, self.probing, self.most_probing = threading.Lock(), 0, 0

    def complete(
        self, messages: Sequence[Message], *, reply_tokens: int, deadline_s: float, helper: str
    ) -> Completion:
        assert self.client is not None
        is_probe = self.client._sender.breaker.is_open
        with self.lock:
            self.calls_s.append(self.time.now_s)
            self.probing += is_probe
            self.most_probing = max(self.most_probing, self.probing)
        try:
            if not BEGINS_S <= self.time.now_s < ENDS_S:
                self.time.sleep(REPLY_S)
                return Completion("yes", 10, 1)
            if self.has_hung:
                self.time.sleep(deadline_s)
                raise errors.TimedOut("x")
            raise errors.ConnectionFailed("x")
        finally:
            with self.lock:
                self.probing -= is_probe

    def check(self) -> None: ...

    def close(self) -> None: ...


@pytest.mark.parametrize("has_hung", [True, False], ids=["hangs", "refuses"])
@pytest.mark.parametrize("failures", [8, 0], ids=["breaker", "no breaker"])
def test_an_outage_costs_each_episode_one_deadline(has_hung: bool, failures: int) -> None:
    """64 rows, episodes of 3 requests one after another, and 60 s without a helper."""
    time = VirtualTime()
    backend = Outage(time, has_hung=has_hung)
    llm = default_config().llm
    llm.update({"deadline_s": DEADLINE_S, "circuit_failures": failures, "circuit_pause_s": PAUSE_S})
    llm.update({"cache": False, "retries": 50, "retry_budget": 0})
    client = backend.client = Client(backend, llm, {"ask": "?"}, clock=time, sleep=time.sleep)
    lost_s: dict[str, float] = {}
    failed_at_s: list[float] = []

    def row(index: int) -> None:
        time.sleep(0.01 * index)
        for count in itertools.count():
            if time.now_s > LAST_S:
                return
            episode, history = f"{index}-{count}", ()
            lost_s[episode] = 0.0
            for _ in range(ASKS):
                asked_s = time.now_s
                request = HelpRequest(episode, "ask", "x", history)
                feedback = client.submit(passed(request)).result(timeout=0)
                if feedback.failure is not None:
                    lost_s[episode] += time.now_s - asked_s
                    failed_at_s.append(time.now_s)
                history = (*history, Exchange("ask", "x", feedback))
                time.sleep(THINK_S)

    time.run([lambda index=index: row(index) for index in range(ROWS)])
    assert len(lost_s) > 10 * ROWS
    assert max(lost_s.values()) <= DEADLINE_S + 1e-6
    if not failures:
        return
    counters = client.counters()
    assert counters["circuit_opened"] == 1
    assert backend.most_probing == 1
    during = [call_s for call_s in backend.calls_s if BEGINS_S <= call_s < ENDS_S]
    waits_s = PAUSE_S + DEADLINE_S if has_hung else PAUSE_S
    assert len(during) <= 2 * ROWS + (ENDS_S - BEGINS_S) / waits_s  # each row's first, and probes
    assert counters["failures/circuit_open"] > len(during)
    assert max(failed_at_s) < ENDS_S + DEADLINE_S + PAUSE_S  # help comes back by itself


def always_failing(**changes: object) -> tuple[Client, Outage]:
    """A client of a helper that refuses all; retries don't wait, and no circuit opens."""
    time = VirtualTime()
    time.now_s = BEGINS_S
    backend = Outage(time, has_hung=False)
    llm = default_config().llm
    llm.update({"cache": False, "circuit_failures": 0, "retries": 9, "backoff_s": 0.0, **changes})
    backend.client = Client(backend, llm, {"ask": "?"}, clock=time, sleep=lambda pause_s: None)
    return backend.client, backend


def test_a_helper_that_always_fails_gets_no_storm_of_retries() -> None:
    client, backend = always_failing(retry_budget=20)
    for index in range(500):
        feedback = client.submit(passed(HelpRequest(str(index), "ask", "x"))).result(timeout=0)
        assert feedback.failure == "connection_failed"
    assert len(backend.calls_s) == 500 + 20
    counters = client.counters()
    assert (counters["retries"], counters["sent"]) == (20, 520)
    assert counters["retries_withheld"] == 500 - 2  # the first two had nine each, the third two
