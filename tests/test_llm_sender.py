"""When an attempt may go: budgets, turns, deadlines of episodes; and what it is charged."""

from __future__ import annotations

import dataclasses
import json
import threading
import time
from collections.abc import Sequence

import pytest

from collab.llm import Completion, Message, errors
from collab.llm.client import Client
from collab.types import Feedback, HelpRequest
from fake_llm import OK, REQUESTS, Clock, FakeBackend, later, llm_config, passed, request


def client_of(backend: FakeBackend, clock: Clock | None = None, **changes: object) -> Client:
    clock = clock or Clock()
    return Client(backend, llm_config(**changes), REQUESTS, clock=clock, sleep=clock.sleep)


def asked(client: Client, *requests: HelpRequest) -> list[Feedback]:
    return [client.submit(passed(one)).result(timeout=0) for one in requests]


def failures(client: Client, *requests: HelpRequest) -> list[str | None]:
    return [feedback.failure for feedback in asked(client, *requests)]


# --- budgets and prices --------------------------------------------------------------------

PRICES = (("", 1.0, 1.0, 1.0), ("one", 10.0, 1.0, 20.0), ("big-2.1", 100.0, 100.0, 100.0))


@pytest.mark.parametrize(
    ("model", "helper", "usd_million"),
    [
        ("", "one", 4000 + 600 + 2000),
        ("", "two", 1100),
        ("big-2.1", "one", 110_000),  # the model is what the server bills
    ],
)
def test_a_reply_is_priced_by_who_gave_it(model: str, helper: str, usd_million: float) -> None:
    backend = FakeBackend(Completion("x", 1000, 100, cached_prompt_tokens=600))
    client = client_of(backend, prices=PRICES, model=model)
    (feedback,) = asked(client, request(helper=helper))
    assert feedback.cost_usd == pytest.approx(usd_million / 1e6)
    counters = client.counters()
    assert counters["usd"] == pytest.approx(usd_million / 1e6)
    assert counters["cached_prompt_tokens"] == 600


def test_an_episode_over_its_budget_is_alone_in_that(caplog: pytest.LogCaptureFixture) -> None:
    client = client_of(FakeBackend(OK), budget={"episode": {"requests": 1}})
    one, two = request(episode="1"), request(episode="2")
    assert failures(client, one, later(one), two) == [None, "over_budget", None]
    assert not client.is_spent
    assert failures(client, one) == [None]  # a name that comes again is a new episode
    assert not caplog.records


def test_a_spent_budget_is_said_once_and_what_is_cached_is_still_given(
    caplog: pytest.LogCaptureFixture,
) -> None:
    client = client_of(FakeBackend(OK), cache=True, budget={"run": {"tokens": 1100}})
    found = failures(client, request(), request("a"), request(), request("b"))
    assert found == [None, "over_budget", None, "over_budget"]
    assert client.is_spent
    said = [record.getMessage() for record in caplog.records]
    assert said == ["llm.budget is spent (0.00045 dollars): no more help"]


def test_retries_count_as_requests() -> None:
    client = client_of(FakeBackend(errors.ServerFailed("x"), OK), budget={"run": {"requests": 2}})
    assert failures(client, request(), request()) == [None, "over_budget"]
    backend = FakeBackend(errors.ServerFailed("x"))
    assert failures(client_of(backend, budget={"run": {"requests": 2}}), request()) == [
        "over_budget"
    ]
    assert backend.calls == 2


def test_the_spend_goes_on_in_another_process() -> None:
    limits = {"run": {"usd": 800e-6}}
    first = client_of(FakeBackend(OK), budget=limits)
    asked(first, request())
    state = json.loads(json.dumps(first.spend_state()))
    second = client_of(FakeBackend(OK), budget=limits)
    second.restore_spend(state)
    assert second.counters()["usd"] == pytest.approx(450e-6)
    assert failures(second, request(), request()) == [None, "over_budget"]
    counters = second.counters()
    assert (counters["usd"], counters["sent"]) == (pytest.approx(900e-6), 2)
    assert counters["requests"] == 2  # those of this process


def test_replies_that_come_after_the_last_dollar_are_no_news(
    caplog: pytest.LogCaptureFixture,
) -> None:
    meet = threading.Barrier(3)

    def reply() -> Completion:
        meet.wait(20)  # three are in flight, the first reply spends it all
        return OK

    backend = FakeBackend(reply, is_local=False)
    client = client_of(backend, budget={"run": {"usd": 1e-6}})
    futures = [client.submit(passed(request(str(index)))) for index in range(3)]
    assert [future.result(timeout=20).failure for future in futures] == [None] * 3
    client.close()
    assert len(caplog.records) == 1
    assert client.counters()["usd"] == pytest.approx(3 * 450e-6)  # over by what was in flight


def test_a_request_that_can_not_be_sent_does_not_lead_others() -> None:
    """Else whoever joins it would fail by a limit that is another episode's."""
    go = threading.Event()

    def reply() -> Completion:
        assert go.wait(20)
        return OK

    client = client_of(
        FakeBackend(reply, is_local=False),
        cache=True,
        concurrency=1,
        budget={"episode": {"requests": 1}},
    )
    go.set()
    one = request("first", episode="1")
    assert client.submit(passed(one)).result(timeout=20).failure is None
    go.clear()
    second = later(one)
    twin = HelpRequest("2", second.kind, second.text, second.history, second.helper)
    futures = [
        client.submit(passed(each)) for each in (request("in the way", episode="3"), second, twin)
    ]
    go.set()
    assert [future.result(timeout=20).failure for future in futures] == [None, "over_budget", None]
    client.close()


# --- turns ---------------------------------------------------------------------------------


def test_a_rate_limit_puts_requests_off_before_their_deadline_begins() -> None:
    clock, backend = Clock(), FakeBackend(OK)
    client = client_of(backend, clock, requests_per_minute=1, deadline_s=5.0)
    assert failures(client, request(), request(), request()) == [None] * 3
    assert clock.slept == pytest.approx([60 / 0.9] * 2)
    assert backend.deadlines == [5.0] * 3
    counters = client.counters()
    assert counters["rate_limited_wait_s"] == pytest.approx(2 * 60 / 0.9)
    assert counters["latency_s"] == 0.0


def test_retries_wait_for_turns_too_but_not_past_the_deadline() -> None:
    clock, backend = Clock(), FakeBackend(errors.ServerFailed("x"), OK)
    client = client_of(backend, clock, requests_per_minute=6, backoff_s=0.0)
    assert failures(client, request()) == [None]
    assert sum(clock.slept) == pytest.approx(60 / 5.4)
    backend = FakeBackend(errors.ServerFailed("x"), OK)
    client = client_of(backend, requests_per_minute=1, backoff_s=0.0)
    assert failures(client, request()) == ["server_failed"]
    assert backend.calls == 1


def test_tokens_are_reserved_by_an_estimate_and_settled_by_the_bill() -> None:
    clock = Clock()
    client = client_of(FakeBackend(OK), clock, tokens_per_minute=60_000)  # 6000 at once
    assert failures(client, *[request(str(index)) for index in range(7)]) == [None] * 7
    # Six replies of 1100 were billed, and the seventh is estimated as its prompt and 64 of reply.
    assert 600 + 64 < 900 * sum(clock.slept) < 600 + 600


def test_no_turn_within_the_episode_is_a_typed_failure() -> None:
    client = client_of(FakeBackend(OK), requests_per_minute=1, episode_deadline_s=60.0)
    assert failures(client, request(), request()) == [None, "rate_limited"]


# --- deadlines of an episode ---------------------------------------------------------------


class Slow(FakeBackend):
    """Takes its time, or all that the deadline leaves, and then plays a step."""

    def __init__(self, clock: Clock, *steps: object, takes_s: float = 1e9) -> None:
        super().__init__(*steps)
        self.clock, self.takes_s = clock, takes_s

    def complete(
        self, messages: Sequence[Message], *, reply_tokens: int, deadline_s: float, helper: str
    ) -> Completion:
        self.clock.now_s += min(self.takes_s, deadline_s)
        return super().complete(
            messages, reply_tokens=reply_tokens, deadline_s=deadline_s, helper=helper
        )


def test_an_episode_waits_no_longer_than_its_deadline() -> None:
    clock = Clock()
    backend = Slow(clock, OK, takes_s=8.0)
    client = client_of(backend, clock, episode_deadline_s=20.0)
    one = request()
    assert failures(client, one, later(one), later(one), later(one)) == [None] * 3 + ["timed_out"]
    assert backend.deadlines == [20.0, 12.0, 4.0]
    assert clock.now_s == 120.0
    assert failures(client, request(episode="2")) == [None]


def test_an_episode_loses_one_deadline_until_the_helper_answers_anyone() -> None:
    clock = Clock()
    backend = Slow(clock, errors.TimedOut("x"))
    client = client_of(backend, clock, deadline_s=10.0)
    one, two = request(episode="1"), request(episode="2")
    assert failures(client, one, later(one)) == ["timed_out", "circuit_open"]
    assert clock.now_s == 110.0
    assert failures(client, two) == ["timed_out"]  # each loses its own
    backend.steps, backend.takes_s = [OK], 0.5
    assert failures(client, later(one), request(episode="3"), later(one)) == [
        "circuit_open",
        None,
        None,
    ]


def test_what_was_lost_shortens_the_next_deadline() -> None:
    """Until less than a tenth is left, which is not worth a request."""
    clock = Clock()
    backend = Slow(clock, errors.ServerFailed("x"), takes_s=4.6)
    client = client_of(backend, clock, deadline_s=10.0, retries=0)
    one = request()
    found = failures(client, one, later(one), later(one), later(one))
    assert found == ["server_failed"] * 2 + ["circuit_open"] * 2
    assert backend.deadlines == pytest.approx([10.0, 5.4])


def test_the_time_spent_waiting_for_a_twin_is_lost_as_well() -> None:
    entered, go, clock = threading.Event(), threading.Event(), Clock()

    def hang() -> Completion:
        entered.set()
        assert go.wait(20)
        clock.now_s += 10.0
        raise errors.TimedOut("x")

    backend = FakeBackend(hang, is_local=False)
    client = client_of(backend, clock, deadline_s=10.0, cache=True, retries=0)
    one, two = request(episode="1"), request(episode="2")
    futures = [client.submit(passed(one)), client.submit(passed(two))]
    assert entered.wait(20)
    go.set()
    assert [future.result(timeout=20).failure for future in futures] == ["timed_out"] * 2
    assert client.submit(passed(later(two))).result(timeout=20).failure == "circuit_open"
    client.close()
    assert backend.calls == 1


@pytest.mark.parametrize("episode_deadline_s", [0.0, 10.0])
def test_no_episode_waits_for_a_twin_beyond_its_own_deadline(episode_deadline_s: float) -> None:
    entered, go, clock = threading.Event(), threading.Event(), Clock()

    def take_long() -> Completion:
        clock.now_s += 9.9
        if episode_deadline_s:
            return OK
        raise errors.TimedOut("x")  # which shortens the next deadline

    def wait() -> Completion:
        entered.set()
        assert go.wait(20)
        return OK

    backend = FakeBackend(take_long, wait, is_local=False)
    bounds = {"deadline_s": 10.0, "episode_deadline_s": episode_deadline_s}
    client = client_of(backend, clock, cache=True, retries=0, **bounds)
    first = request(episode="1")
    client.submit(passed(first)).result(timeout=20)
    twin = later(first)
    leader = client.submit(passed(dataclasses.replace(twin, episode="2")))
    assert entered.wait(20)
    follower, third = client.submit(passed(twin)), dataclasses.replace(twin, episode="3")
    assert follower.result(timeout=20).failure == "timed_out"  # 0.1 s was left, and has passed
    patient = client.submit(passed(third))
    assert not leader.done() and not patient.done()
    go.set()
    assert leader.result(timeout=20).failure is patient.result(timeout=20).failure is None
    assert client.counters()["failures/timed_out"] == (1 if episode_deadline_s else 2)
    assert client.submit(passed(twin)).result(timeout=20).failure is None  # it is there now
    client.close()
    assert backend.calls == 2


def test_what_a_twin_was_refused_is_no_time_lost_but_one_failure_more() -> None:
    entered, go, clock = threading.Event(), threading.Event(), Clock()

    def refuse() -> Completion:
        entered.set()
        assert go.wait(20)
        clock.now_s += 10.0
        raise errors.BadRequest("x")

    backend = FakeBackend(refuse, OK, is_local=False)
    client = client_of(backend, clock, deadline_s=10.0, cache=True)
    one, two = request(episode="1"), request(episode="2")
    futures = [client.submit(passed(one)), client.submit(passed(two))]
    assert entered.wait(20)
    go.set()
    assert [future.result(timeout=20).failure for future in futures] == ["bad_request"] * 2
    counters = client.counters()
    assert (counters["failures"], counters["failures/bad_request"]) == (2, 2)
    assert client.submit(passed(later(two))).result(timeout=20).failure is None
    client.close()


# --- the circuit ---------------------------------------------------------------------------


def test_an_open_circuit_sends_nothing_and_closes_by_itself(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = Clock()
    backend = FakeBackend(*[errors.ConnectionFailed("x")] * 4, OK)
    client = client_of(backend, clock, circuit_failures=3, circuit_pause_s=9.0, retries=0)

    def ask(count: int) -> list[str | None]:
        return failures(client, *[request(episode=str(index)) for index in range(count)])

    assert ask(5) == ["connection_failed"] * 3 + ["circuit_open"] * 2
    assert backend.calls == 3
    clock.now_s += 9.0
    assert ask(2) == ["connection_failed", "circuit_open"]
    clock.now_s += 9.0
    assert ask(2) == [None, None]
    assert client.counters()["circuit_opened"] == 1
    assert [record.getMessage() for record in caplog.records] == [
        "the helper seems down (3 failures in a row); it is tried again every 9 s",
        "the helper replies again",
    ]


@pytest.mark.parametrize(
    "error", [errors.RateLimited("x"), errors.BadRequest("x"), errors.Malformed("x")]
)
def test_a_helper_that_says_no_is_not_down(error: errors.HelpError) -> None:
    client = client_of(FakeBackend(error), circuit_failures=2, retries=0)
    assert (
        failures(client, *[request(episode=str(index)) for index in range(9)]) == [error.name] * 9
    )


def test_a_retry_is_not_sent_into_an_open_circuit() -> None:
    backend = FakeBackend(errors.ConnectionFailed("x"))
    client = client_of(backend, circuit_failures=2, retries=9)
    assert failures(client, request()) == ["connection_failed"]
    assert backend.calls == 2


def test_a_probe_that_a_bug_ends_leaves_its_place_to_the_next() -> None:
    clock = Clock()
    down = errors.ConnectionFailed("x")
    backend = FakeBackend(down, down, KeyError("x"), OK)
    client = client_of(backend, clock, circuit_failures=2, circuit_pause_s=9.0, retries=0)
    assert failures(client, request(), request()) == ["connection_failed"] * 2
    clock.now_s += 9.0
    assert failures(client, request()) == ["internal_error"]
    assert client._sender.breaker.is_open
    assert failures(client, request()) == [None]


def test_a_probe_that_the_budget_ends_does_so_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if another thread had spent the rest since the budget was looked at."""
    clock = Clock()
    down = errors.ConnectionFailed("x")
    limits = {"run": {"requests": 2}}
    client = client_of(
        FakeBackend(down), clock, circuit_failures=2, circuit_pause_s=9.0, retries=0, budget=limits
    )
    assert failures(client, request(), request()) == ["connection_failed"] * 2
    clock.now_s += 9.0
    monkeypatch.setattr(client._sender.budget, "check", lambda episode: None)
    assert failures(client, request()) == ["over_budget"]
    assert client._sender.breaker.is_open
    assert client._sender.breaker.would_admit()


# --- a pause that the server asked for -----------------------------------------------------

BUSY = errors.RateLimited("x", retry_after_s=6.0)


def test_what_one_request_is_told_all_others_heed() -> None:
    """The second is sent when the pause is over, within its deadline, and not before."""
    clock, backend = Clock(), FakeBackend(BUSY, OK)
    client = client_of(backend, clock, deadline_s=10.0, retries=0)
    assert failures(client, request(episode="1")) == ["rate_limited"]
    clock.now_s += 2.0
    assert failures(client, request(episode="2")) == [None]
    assert clock.slept == [4.0] and clock.now_s == 106.0
    assert backend.deadlines == [10.0, 6.0]  # it waited for 4 s of its own
    assert failures(client, request(episode="3")) == [None]
    assert clock.now_s == 106.0
    assert client.counters()["rate_limited_wait_s"] == 4.0


def test_a_pause_that_outlasts_what_is_left_of_a_deadline_costs_no_time_and_no_request() -> None:
    clock, backend = Clock(), FakeBackend(errors.RateLimited("x", retry_after_s=9.0), OK)
    client = client_of(backend, clock, deadline_s=10.0, retries=0, episode_deadline_s=5.0)
    found = failures(client, *[request(episode=str(index)) for index in range(5)])
    assert found == ["rate_limited"] * 5
    assert backend.calls == 1 and clock.slept == []


def test_a_pause_that_no_request_can_sit_out_is_an_outage_if_it_comes_again_and_again() -> None:
    """One such reply alone, which may be a mistake, holds nobody up."""
    clock, shut = Clock(), errors.RateLimited("x", retry_after_s=3600.0)
    backend = FakeBackend(shut, OK, shut, shut, shut, OK)
    client = client_of(backend, clock, circuit_failures=3, circuit_pause_s=9.0)

    def ask(count: int) -> list[str | None]:
        return failures(client, *[request(episode=str(index)) for index in range(count)])

    assert ask(2) == ["rate_limited", None]
    assert ask(5) == ["rate_limited"] * 3 + ["circuit_open"] * 2
    assert backend.calls == 5 and clock.slept == []
    clock.now_s += 9.0
    assert ask(1) == [None]


def test_a_retry_too_waits_for_what_others_were_told() -> None:
    clock = Clock()
    backend = FakeBackend(errors.ServerFailed("x"), OK)
    client = client_of(backend, clock, deadline_s=10.0, backoff_s=0.0)
    send = backend.complete

    def told(*args: object, **options: object) -> Completion:
        client._sender._limits.hold(3.0 if backend.calls == 0 else 0.0)
        return send(*args, **options)  # type: ignore[arg-type]

    backend.complete = told  # type: ignore[method-assign, assignment]
    assert failures(client, request()) == [None]
    assert clock.now_s == 103.0


def test_no_thread_sends_into_a_pause() -> None:
    """One of many in flight is told to wait: from then on nothing arrives until it is over."""
    lock, arrived_s, told_s = threading.Lock(), [], []

    def reply() -> Completion:
        with lock:
            arrived_s.append(time.monotonic())
            is_told = len(arrived_s) == 20
        if is_told:
            told_s.append(time.monotonic())
            raise errors.RateLimited("x", retry_after_s=0.5)
        time.sleep(0.005)
        return OK

    client = Client(
        FakeBackend(reply, is_local=False), llm_config(concurrency=4, backoff_s=0.001), REQUESTS
    )
    futures = [client.submit(passed(request(episode=str(index)))) for index in range(60)]
    assert [future.result(timeout=20).failure for future in futures] == [None] * 60
    client.close()
    in_flight_s, pause_s = 0.1, 0.5
    early = [at_s for at_s in arrived_s if told_s[0] + in_flight_s < at_s < told_s[0] + pause_s]
    assert not early
    assert len([at_s for at_s in arrived_s if at_s >= told_s[0] + pause_s]) > 30


def test_a_closed_client_does_not_sit_out_a_pause() -> None:
    client = Client(
        FakeBackend(errors.RateLimited("x", retry_after_s=25.0), OK, is_local=False),
        llm_config(concurrency=1, retries=0),
        REQUESTS,
    )
    futures = [client.submit(passed(request(episode=str(index)))) for index in range(2)]
    assert futures[0].result(timeout=20).failure == "rate_limited"
    client.close()
    assert futures[1].result(timeout=1).failure == "closed"


# --- many threads --------------------------------------------------------------------------


def test_threads_that_race_for_the_budget_are_all_answered_and_never_overspend() -> None:
    client = Client(
        FakeBackend(OK, is_local=False),
        llm_config(concurrency=32, budget={"run": {"requests": 100}}),
        REQUESTS,
    )
    futures = [client.submit(passed(request(episode=str(index)))) for index in range(400)]
    found = [future.result(timeout=20).failure for future in futures]
    client.close()
    assert (found.count(None), found.count("over_budget")) == (100, 300)
    counters = client.counters()
    assert (counters["sent"], counters["failures/over_budget"]) == (100, 300)
