"""Rate limits on a clock of their own: what any minute can hold, and whose turn it is."""

from __future__ import annotations

import itertools
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from collab.llm.limits import RateLimits
from fake_llm import Clock


def limits(clock: Clock, *, requests: int = 0, tokens: int = 0) -> RateLimits:
    return RateLimits(requests_per_minute=requests, tokens_per_minute=tokens, clock=clock)


def departures(limiter: RateLimits, clock: Clock, asked: list[tuple[float, int]]) -> list[float]:
    """When each of `asked`, (seconds after the one before, tokens), may go."""
    found = []
    for gap_s, tokens in asked:
        clock.now_s += gap_s
        wait_s = limiter.reserve(tokens)
        assert wait_s is not None and wait_s >= 0.0
        found.append(clock.now_s + wait_s)
    return found


def most_in_a_minute(at_s: list[float], amounts: list[int]) -> int:
    """The largest sum over the minutes [t, t + 60) that begin with a departure."""
    return max(
        sum(amount for time_s, amount in zip(at_s, amounts, strict=True) if 0 <= time_s - t < 60)
        for t in at_s
    )


GAPS_S = some.one_of(some.just(0.0), some.floats(0.0, 2.0), some.floats(0.0, 100.0))


@settings(deadline=None, max_examples=50)
@given(some.integers(1, 300), some.lists(GAPS_S, min_size=1, max_size=120))
def test_no_minute_has_more_requests_than_the_limit(limit: int, gaps_s: list[float]) -> None:
    clock = Clock()
    at_s = departures(limits(clock, requests=limit), clock, [(gap_s, 1) for gap_s in gaps_s])
    assert at_s == sorted(at_s)  # in the order of asking
    # Rounding may put a turn that is due at the end of a minute a hair inside.
    assert most_in_a_minute([round(time_s, 6) for time_s in at_s], [1] * len(at_s)) <= limit


@pytest.mark.parametrize("largest_share", [0.1, 1.0])
@settings(deadline=None, max_examples=50)
@given(
    limit=some.integers(100, 100_000),
    asked=some.lists(some.tuples(GAPS_S, some.floats(0.0, 1.0)), min_size=1, max_size=60),
)
def test_no_minute_has_more_tokens_than_the_limit(
    largest_share: float, limit: int, asked: list[tuple[float, float]]
) -> None:
    """One request of more than a tenth of the allowance can exceed it by what it is larger."""
    clock = Clock()
    amounts = [int(share * largest_share * limit) for _, share in asked]
    turns = [(gap_s, amount) for (gap_s, _), amount in zip(asked, amounts, strict=True)]
    at_s = departures(limits(clock, tokens=limit), clock, turns)
    most = max(limit, 0.9 * limit + max(amounts))
    assert most_in_a_minute(at_s, amounts) <= most + 1e-6 * limit


def test_a_tenth_goes_at_once_and_the_rest_is_spread_over_the_minute() -> None:
    clock = Clock()
    at_s = departures(limits(clock, requests=600), clock, [(0.0, 1)] * 600)
    assert at_s[:60] == [100.0] * 60
    gaps_s = [later - earlier for earlier, later in itertools.pairwise(at_s[59:])]
    assert gaps_s == pytest.approx([60 / 540] * 540)  # nine tenths of the limit, without a break


@pytest.mark.parametrize("limit", [1, 2, 9])
def test_the_first_request_never_waits(limit: int) -> None:
    assert limits(Clock(), requests=limit).reserve(5.0) == 0.0


def test_no_limit_no_wait() -> None:
    limiter = limits(Clock())
    assert {limiter.reserve(1e9) for _ in range(1000)} == {0.0}
    limiter.settle(reserved=1, used=10**9)


def test_the_scarcer_of_the_two_decides() -> None:
    clock = Clock()
    limiter = limits(clock, requests=60, tokens=6000)  # 6 and 600 at once
    assert limiter.reserve(600) == 0.0
    assert limiter.reserve(90) == pytest.approx(1.0)  # tokens: 90 a second
    assert [limiter.reserve(0) for _ in range(4)] == pytest.approx([1.0] * 4)
    assert limiter.reserve(0) == pytest.approx(60 / 54)  # requests: the burst is used up


def test_a_turn_that_would_come_too_late_is_not_taken() -> None:
    clock = Clock()
    limiter = limits(clock, requests=60, tokens=6000)
    for _ in range(6):
        limiter.reserve(100)
    for _ in range(5):
        assert limiter.reserve(100, at_most_s=1.0) is None
    assert limiter.reserve(100, at_most_s=1.2) == pytest.approx(100 / 90)


def test_what_an_estimate_fell_short_of_is_charged_and_no_more() -> None:
    clock = Clock()
    limiter = limits(clock, tokens=6000)
    assert limiter.reserve(500) == 0.0
    limiter.settle(reserved=500, used=200)  # nothing comes back
    limiter.settle(reserved=500, used=690)
    assert limiter.reserve(0) == pytest.approx(1.0)  # 90 short, at 90 a second
    clock.now_s += 1000.0
    assert limiter.reserve(600) == 0.0  # a bucket does not hold more than when new
    assert limiter.reserve(90) == pytest.approx(1.0)


def test_threads_get_turns_of_their_own() -> None:
    limiter = limits(Clock(), requests=60)
    start, waits_s = threading.Barrier(16), []

    def take() -> None:
        start.wait(20)
        waits_s.extend(limiter.reserve(1) for _ in range(10))

    threads = [threading.Thread(target=take) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    expected = [max(0, place - 5) * 60 / 54 for place in range(160)]
    assert sorted(waits_s) == pytest.approx(expected)


# --- a pause that the server asked for -----------------------------------------------------


def test_a_hold_lasts_as_long_as_the_longest_pause_that_was_asked_for() -> None:
    clock = Clock()
    limiter = limits(clock)
    assert limiter.held_s() == 0.0
    limiter.hold(5.0)
    limiter.hold(2.0)
    assert limiter.held_s() == 5.0
    clock.now_s += 4.0
    limiter.hold(3.0)
    assert limiter.held_s() == 3.0
    clock.now_s += 3.0
    assert limiter.held_s() == 0.0
