"""Budgets and prices: limits per run, hour and episode, worked by hand and raced by threads."""

from __future__ import annotations

import json
import threading

import pytest

from collab.llm import Completion
from collab.llm.budget import Budget, Prices, Spend
from collab.llm.errors import OverBudget
from fake_llm import Clock

NONE = {"usd": 0.0, "requests": 0, "tokens": 0}


def budget(clock: Clock | None = None, **limits: dict[str, float]) -> Budget:
    scopes = {scope: {**NONE, **limits.get(scope, {})} for scope in ("run", "hour", "episode")}
    return Budget(scopes, clock=clock or Clock())


def spend(counted: Budget, episode: Spend, *, usd: float = 0.0, tokens: int = 0) -> None:
    """One request and its reply."""
    counted.take_request(episode)
    counted.add_reply(episode, usd=usd, tokens=tokens)


# --- prices --------------------------------------------------------------------------------

PRICES = Prices([("", 1.0, 1.0, 4.0), ("big-2.1", 2.0, 0.5, 8.0), ("free", 0.0, 0.0, 0.0)])


@pytest.mark.parametrize(
    ("name", "completion", "usd_million"),
    [
        ("big-2.1", Completion("x", 1000, 100), 2000 + 800),
        ("big-2.1", Completion("x", 1000, 100, cached_prompt_tokens=600), 800 + 300 + 800),
        ("big-2.1", Completion("x", 1000, 100, cached_prompt_tokens=9999), 500 + 800),
        ("big-2", Completion("x", 1000, 100), 1000 + 400),
        ("", Completion("x", 1000, 100, cached_prompt_tokens=600), 1000 + 400),
        ("free", Completion("x", 1000, 100), 0),
        ("big-2.1", Completion("x"), 0),
    ],
)
def test_prices_by_model(name: str, completion: Completion, usd_million: float) -> None:
    assert PRICES.usd(name, completion) == pytest.approx(usd_million / 1e6)


# --- limits --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scope", "limit"),
    [
        (scope, limit)
        for scope in ("run", "hour", "episode")
        for limit in ({"usd": 0.5}, {"requests": 2}, {"tokens": 200})
    ],
    ids=str,
)
def test_each_limit_ends_asking_and_names_its_key(scope: str, limit: dict[str, float]) -> None:
    counted, episode = budget(**{scope: limit}), Spend()
    for _ in range(2):
        assert counted.allows(episode) and not counted.is_spent
        spend(counted, episode, usd=0.25, tokens=100)
    (name,) = limit
    with pytest.raises(OverBudget, match=rf"^llm\.budget\.{scope}\.{name} is spent$"):
        counted.check(episode)
    with pytest.raises(OverBudget):
        counted.take_request(episode)
    assert counted.run == Spend(usd=0.5, requests=2, tokens=200)  # the refused one is not counted
    # An episode's limit is its own; the others are everybody's.
    assert counted.is_spent is (scope != "episode")
    assert counted.allows(Spend()) is (scope == "episode")


def test_without_limits_nothing_is_ever_spent() -> None:
    counted, episode = budget(), Spend()
    for _ in range(100):
        spend(counted, episode, usd=1e6, tokens=10**9)
    assert counted.allows(episode) and not counted.is_spent


def test_an_hour_is_any_sixty_minutes() -> None:
    clock = Clock()
    counted = budget(clock, hour={"requests": 2})
    spend(counted, Spend())
    clock.now_s += 1800.0
    spend(counted, Spend())
    assert counted.is_spent
    clock.now_s += 1800.0  # an hour after the first, which counts as of the end of its minute
    assert counted.is_spent
    clock.now_s += 60.0
    assert not counted.is_spent
    spend(counted, Spend())
    assert counted.is_spent
    clock.now_s += 1740.0
    assert counted.is_spent
    clock.now_s += 60.0
    assert not counted.is_spent


def test_no_hour_of_a_long_run_exceeds_the_limit() -> None:
    clock, sent_s = Clock(), []
    counted = budget(clock, hour={"requests": 50})
    for _ in range(4000):
        clock.now_s += 7.0
        if counted.allows(Spend()):
            counted.take_request(Spend())
            sent_s.append(clock.now_s)
    for start_s in sent_s:
        assert sum(0 <= time_s - start_s < 3600 for time_s in sent_s) <= 50
    assert len(sent_s) >= 0.95 * 50 * 4000 * 7 / 3660
    assert len(counted.state()["hour"]) <= 61


def test_what_is_spent_survives_a_restart() -> None:
    clock, later = Clock(), Clock()
    limits = {"run": {"usd": 3.0}, "hour": {"tokens": 300}}
    counted = budget(clock, **limits)
    spend(counted, Spend(), usd=0.1, tokens=100)
    clock.now_s += 600.0
    spend(counted, Spend(), usd=0.2, tokens=100)
    state = json.loads(json.dumps(counted.state()))
    later.now_s = 5.0  # another process: its clock began anew
    again = budget(later, **limits)
    again.restore(state)
    assert again.run == counted.run == Spend(usd=0.1 + 0.2, requests=2, tokens=200)
    assert json.loads(json.dumps(again.state())) == state
    spend(again, Spend(), tokens=100)
    assert again.is_spent  # this hour's
    later.now_s += 3060.0
    assert not again.is_spent  # the first is an hour old by now
    spend(again, Spend(), usd=2.7)
    assert again.is_spent  # the run's


def test_what_was_spent_before_a_restart_is_known_still_counts() -> None:
    """Helpers are probed before the checkpoint is read."""
    clock = Clock()
    limits = {"run": {"requests": 4}, "hour": {"tokens": 300}}
    counted, again = budget(clock, **limits), budget(clock, **limits)
    spend(counted, Spend(), usd=0.1, tokens=100)
    clock.now_s += 600.0
    spend(again, Spend(), usd=0.2, tokens=100)
    again.restore(counted.state())
    assert again.run == Spend(usd=0.1 + 0.2, requests=2, tokens=200)
    ends_s = [end_s for end_s, *_ in again.state()["hour"]]
    assert ends_s == sorted(ends_s) and len(ends_s) == 2
    spend(again, Spend(), tokens=100)
    assert again.is_spent


def test_the_hour_is_not_kept_where_nothing_limits_it() -> None:
    counted = budget()
    spend(counted, Spend(), usd=1.0)
    assert counted.state() == {"run": {"usd": 1.0, "requests": 1, "tokens": 0}, "hour": []}


@pytest.mark.parametrize("scope", ["run", "hour", "episode"])
def test_threads_do_not_overspend_requests(scope: str) -> None:
    counted, episode = budget(**{scope: {"requests": 100}}), Spend()
    start, granted = threading.Barrier(16), []

    def work() -> None:
        start.wait(20)
        for _ in range(50):
            try:
                counted.take_request(episode)
            except OverBudget:
                continue
            counted.add_reply(episode, usd=0.5, tokens=3)
            granted.append(1)

    threads = [threading.Thread(target=work) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(granted) == 100
    assert counted.run == episode == Spend(usd=50.0, requests=100, tokens=300)
