"""The client on a clock of its own: retries, deadlines, cache, meters; no failure escapes."""

from __future__ import annotations

import re
import threading
from concurrent.futures import Future

import pytest

from collab.llm import Completion, errors
from collab.llm import client as client_module
from collab.llm.client import Client
from collab.llm.meters import METERS
from collab.llm.sender import DOWN_AFTER
from collab.types import Feedback, FeedbackKind, HelpRequest
from fake_llm import OK, REQUESTS, Clock, FakeBackend, llm_config, passed, request


def ask(
    backend: FakeBackend, clock: Clock | None = None, **changes: object
) -> tuple[Client, Feedback]:
    clock = clock or Clock()
    client = Client(backend, llm_config(**changes), REQUESTS, clock=clock, sleep=clock.sleep)
    return client, client.submit(passed(request())).result(timeout=0)


def test_a_reply_is_typed_metered_and_priced() -> None:
    client, feedback = ask(FakeBackend(OK))
    assert feedback == Feedback(FeedbackKind.HINT, "look", 1000, 100, 450e-6, 0.0, "one", None)
    expected = dict.fromkeys(METERS, 0.0)
    expected.update(requests=1, sent=1, prompt_tokens=1000, completion_tokens=100, usd=450e-6)
    assert client.counters() == pytest.approx(expected)


def test_usage_that_no_one_reported_is_estimated_and_counted() -> None:
    backend = FakeBackend(Completion("x" * 41))
    client, feedback = ask(backend)
    assert feedback.completion_tokens == 11  # 41 characters at 4 a token, rounded up
    assert feedback.prompt_tokens > 0
    assert client.counters()["usage_estimated"] == 1


def test_latency_is_measured_unless_the_backend_is_on_a_virtual_clock() -> None:
    clock = Clock()

    def slow() -> Completion:
        clock.now_s += 2.5
        return OK

    assert ask(FakeBackend(slow), clock)[1].latency_s == 2.5
    client, feedback = ask(FakeBackend(Completion("x", 1, 1, latency_s=7.0)))
    assert feedback.latency_s == client.counters()["latency_s"] == 7.0


TRANSIENT = [
    errors.ConnectionFailed("x"),
    errors.TimedOut("x"),
    errors.ServerFailed("x"),
    errors.RateLimited("x"),
]
FINAL = [
    errors.BadRequest("x"),
    errors.ContextTooLong("x"),
    errors.AuthFailed("x"),
    errors.ModelNotFound("x"),
    errors.QuotaSpent("x"),
    errors.ContentFiltered("x"),
]


def test_a_scripted_timeout_takes_no_time_and_is_not_tried_again() -> None:
    backend, clock = FakeBackend(errors.NeverReplied("x")), Clock()
    client = Client(
        backend, llm_config(circuit_failures=2, circuit_span_s=0.0), REQUESTS,
        clock=clock, sleep=clock.sleep,
    )  # fmt: skip
    for count in range(1, 9):
        feedback = client.submit(passed(request())).result(timeout=0)
        assert (feedback.kind, feedback.failure) == (FeedbackKind.UNAVAILABLE, "timed_out")
        assert backend.calls == count  # nor does it open the circuit
    assert clock.now_s == Clock().now_s and client.counters()["retries"] == 0


@pytest.mark.parametrize("error", TRANSIENT, ids=lambda error: error.name)
def test_transient_failures_are_retried_up_to_the_bound(error: errors.HelpError) -> None:
    backend = FakeBackend(error, error, error, OK)
    client, feedback = ask(backend)
    assert (feedback.kind, client.counters()["retries"]) == (FeedbackKind.HINT, 3)
    backend = FakeBackend(error)
    client, feedback = ask(backend)
    assert (feedback.kind, feedback.failure) == (FeedbackKind.UNAVAILABLE, error.name)
    assert backend.calls == 4
    counters = client.counters()
    assert (counters["failures"], counters[f"failures/{error.name}"]) == (1, 1)
    assert client.is_down is False


@pytest.mark.parametrize("error", FINAL, ids=lambda error: error.name)
def test_other_failures_are_not_retried(error: errors.HelpError) -> None:
    backend = FakeBackend(error)
    assert ask(backend)[1].failure == error.name
    assert backend.calls == 1


def test_a_malformed_reply_is_retried_once() -> None:
    bad = errors.Malformed("x")
    assert ask(FakeBackend(bad, OK))[1].kind is FeedbackKind.HINT
    backend = FakeBackend(bad, errors.ServerFailed("x"), bad, OK)
    assert ask(backend)[1].failure == "malformed"
    assert backend.calls == 3
    backend = FakeBackend(bad, errors.BadRequest("x"), OK)
    assert ask(backend)[1].failure == "bad_request"
    assert backend.calls == 2


def test_pauses_double_with_full_jitter() -> None:
    pauses = []
    for seed in range(40):
        clock = Clock()
        llm = llm_config(deadline_s=1e6, retries=9, circuit_failures=0)
        backend = FakeBackend(errors.ServerFailed("x"))
        client = Client(backend, llm, REQUESTS, clock=clock, sleep=clock.sleep, seed=seed)
        client.submit(passed(request()))
        pauses.append(clock.slept)
    bounds = [min(0.5 * 2**attempt, 30.0) for attempt in range(9)]
    for attempt, bound_s in enumerate(bounds):
        column = [slept[attempt] for slept in pauses]
        assert 0.0 <= min(column) < 0.25 * bound_s
        assert 0.75 * bound_s < max(column) <= bound_s


def test_the_pause_that_the_server_asks_for_is_kept_but_never_past_the_deadline() -> None:
    clock = Clock()
    error = errors.RateLimited("x", retry_after_s=7.0)
    assert ask(FakeBackend(error, OK), clock)[1].kind is FeedbackKind.HINT
    assert 7.0 <= clock.slept[0] <= 7.5
    clock = Clock()
    error = errors.RateLimited("x", retry_after_s=31.0)
    assert ask(FakeBackend(error, OK), clock)[1].failure == "rate_limited"
    assert clock.slept == []


def test_the_deadline_spans_all_retries() -> None:
    clock = Clock()
    backend = FakeBackend(errors.RateLimited("x", retry_after_s=8.0))
    assert ask(backend, clock, retries=99)[1].failure == "rate_limited"
    assert backend.calls == 4  # at 0, 8+, 16+ and 24+ s
    assert clock.now_s - 100.0 < 30.0
    assert backend.deadlines[0] == 30.0
    assert backend.deadlines[3] == pytest.approx(30.0 - sum(clock.slept))


def test_a_bug_in_a_backend_is_a_typed_failure_whose_text_stays_here(
    caplog: pytest.LogCaptureFixture,
) -> None:
    client, feedback = ask(FakeBackend(KeyError("private words")))
    assert feedback.failure == "internal_error"
    assert client.counters()["failures/internal_error"] == 1
    assert re.search(r"KeyError at fake_llm\.py:\d+", caplog.text)
    assert "private words" not in caplog.text


def test_final_errors_in_a_row_put_the_helper_down_for_good() -> None:
    auth, server = errors.AuthFailed("x"), errors.ServerFailed("x")
    backend = FakeBackend(auth, auth, OK, auth, server, auth, auth, OK)
    client = Client(backend, llm_config(retries=0), REQUESTS)
    seen = []
    for _ in range(8):
        feedback = client.submit(passed(request())).result(timeout=0)
        seen.append((feedback.failure, client.is_down))
    assert DOWN_AFTER == 3
    assert seen == [
        ("auth_failed", False),
        ("auth_failed", False),
        (None, False),
        ("auth_failed", False),
        ("server_failed", False),
        ("auth_failed", False),
        ("auth_failed", True),
        ("helper_down", True),
    ]
    assert backend.calls == 7


def test_spending_stops_at_the_limit() -> None:
    backend = FakeBackend(OK)  # 450 millionths of a dollar each
    client = Client(backend, llm_config(budget={"run": {"usd": 800e-6}}), REQUESTS)
    failures = [client.submit(passed(request())).result(timeout=0).failure for _ in range(3)]
    assert failures == [None, None, "over_budget"]
    assert (client.is_spent, client.is_down) == (True, False)


def test_identical_requests_are_paid_once_and_cost_the_same() -> None:
    backend = FakeBackend(OK)
    client = Client(backend, llm_config(cache=True), REQUESTS)
    first, second = (client.submit(passed(request())) for _ in range(2))
    assert first is not second
    assert first.result(timeout=0) == second.result(timeout=0)
    for other in (request("mayor of Oslo"), request(helper="two")):
        client.submit(passed(other))
    assert backend.calls == 3
    counters = client.counters()
    assert (counters["requests"], counters["cache_hits"]) == (4, 1)
    assert counters["usd"] == pytest.approx(3 * 450e-6)


def test_the_oldest_replies_leave_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "KEPT", 2)
    backend = FakeBackend(OK)
    client = Client(backend, llm_config(cache=True), REQUESTS)
    for text, calls in (("a", 1), ("b", 2), ("a", 2), ("c", 3), ("b", 3), ("a", 4)):
        client.submit(passed(request(text))).result(timeout=0)
        assert backend.calls == calls


def test_failures_are_not_cached() -> None:
    backend = FakeBackend(errors.BadRequest("x"), OK)
    client = Client(backend, llm_config(cache=True), REQUESTS)
    assert client.submit(passed(request())).result(timeout=0).failure == "bad_request"
    assert client.submit(passed(request())).result(timeout=0).kind is FeedbackKind.HINT


def test_identical_requests_in_flight_are_one() -> None:
    go = threading.Event()

    def wait() -> Completion:
        assert go.wait(20)
        return OK

    backend = FakeBackend(wait, is_local=False)
    client = Client(backend, llm_config(cache=True), REQUESTS)
    futures = [client.submit(passed(request())) for _ in range(8)]
    assert not any(future.done() or future.cancel() for future in futures)
    go.set()
    assert {future.result(timeout=20).text for future in futures} == {"look"}
    client.close()
    assert backend.calls == 1


def test_requests_run_side_by_side_up_to_the_bound() -> None:
    lock, running, peak = threading.Lock(), [0], [0]
    meet = threading.Barrier(4)

    def work() -> Completion:
        with lock:
            running[0] += 1
            peak[0] = max(peak[0], running[0])
        meet.wait(20)  # passes only if four are inside at once
        with lock:
            running[0] -= 1
        return OK

    client = Client(FakeBackend(work, is_local=False), llm_config(concurrency=4), REQUESTS)
    futures = [client.submit(passed(request(str(index)))) for index in range(16)]
    assert all(future.result(timeout=20).failure is None for future in futures)
    client.close()
    assert peak[0] == 4


def test_closing_resolves_everything() -> None:
    entered, go = threading.Event(), threading.Event()

    def wait() -> Completion:
        entered.set()
        assert go.wait(20)
        raise errors.ServerFailed("x", retry_after_s=1e5)

    backend = FakeBackend(wait, is_local=False)
    llm = llm_config(concurrency=1, deadline_s=1e6)
    client = Client(backend, llm, REQUESTS)
    futures: list[Future[Feedback]] = [
        client.submit(passed(request(str(index)))) for index in range(3)
    ]
    assert entered.wait(20)
    threading.Timer(0.05, go.set).start()
    client.close()  # the first is about to pause for about a day, the others are queued
    futures.append(client.submit(passed(request("late"))))
    assert [future.result(timeout=0).failure for future in futures] == ["closed"] * 4
    assert backend.is_closed
    assert backend.calls == 1


def test_an_unknown_kind_is_a_mistake_of_the_caller() -> None:
    client = Client(FakeBackend(OK), llm_config(), REQUESTS)
    with pytest.raises(ValueError, match="'ask_fcat' must be one of reply, ask_fact"):
        client.submit(passed(HelpRequest("e", "ask_fcat", "x")))
