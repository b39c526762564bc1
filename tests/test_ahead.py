"""Batches that begin before the update on the last one, by a clock that is counted, not read.

A decode step, a prefilled token, an update and each reply take a time that is written here, so what
is saved is the same on every machine.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import heapq
import zlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import pytest

from collab.privacy.gate import Screened
from collab.rollout.ahead import Batches
from collab.rollout.engine import Engine
from collab.rollout.episodes import Job
from collab.stopwatch import Stopwatch
from collab.types import Episode, Feedback
from test_rollout import EchoClient, make_engine, make_jobs, same

STEP_S, TOKEN_S, UPDATE_S, REPLY_S = 0.05, 0.001, 1.0, 4.0

pytestmark = pytest.mark.usefixtures("quick")

BATCHES = 4


class VirtualTime(Stopwatch):
    """Passes by what the engine says that it has done, and when it has nothing to do but wait."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._due: list[tuple[float, int, concurrent.futures.Future[Feedback], Feedback]] = []
        self._sent = 0
        super().__init__(lambda: self.now_s)

    def promise(self, reply: Feedback, latency_s: float) -> concurrent.futures.Future[Feedback]:
        """A future that is done once the time has come."""
        future: concurrent.futures.Future[Feedback] = concurrent.futures.Future()
        heapq.heappush(self._due, (self.now_s + latency_s, self._sent, future, reply))
        self._sent += 1
        return future

    def pass_to(self, now_s: float) -> None:
        self.now_s = now_s
        while self._due and self._due[0][0] <= now_s:
            *_, future, reply = heapq.heappop(self._due)
            future.set_result(reply)

    def count(self, **amounts: float) -> None:
        super().count(**amounts)
        busy_s = STEP_S * amounts.get("decode_steps", 0) + TOKEN_S * amounts.get("prefilled", 0)
        self.pass_to(self.now_s + busy_s)

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        with super().part(name):
            if name == "wait":
                self.pass_to(self._due[0][0])
            yield


class SlowClient(EchoClient):
    """The echo's replies, after one to two times REPLY_S, as the request's text says."""

    def __init__(self, time: VirtualTime) -> None:
        super().__init__()
        self.time = time

    def submit(self, screened: Screened) -> concurrent.futures.Future[Feedback]:
        request = screened.request
        self.requests.append(request)
        share = zlib.crc32(f"{request.episode} {request.text}".encode("utf-8", "replace")) % 64 / 64
        return self.time.promise(self.reply(request), REPLY_S * (1.0 + share))


def jobs_of(index: int) -> list[Job]:
    """Eight episodes, two of each question, with chances of their own."""
    return [
        dataclasses.replace(job, identity=(index, *job.identity[1:]), episode=f"{index}-{place}")
        for place, job in enumerate(make_jobs(4))
    ]


class Course:
    """All batches, with an update of UPDATE_S after each."""

    def __init__(
        self, engine: Engine, params_by_batch: list[Any], *, max_staleness: int, stop_at: int = -1
    ) -> None:
        self.time = VirtualTime()
        engine.stopwatch, engine.client = self.time, SlowClient(self.time)
        batches = Batches(engine, jobs_of, temperature=1.0, max_staleness=max_staleness)
        self.episodes: list[list[Episode]] = []
        self.staleness: list[float] = []
        self.programs: list[dict[str, int]] = []
        for index, params in enumerate(params_by_batch):
            may_begin = index + 1 < len(params_by_batch) and index != stop_at
            jobs, episodes, counters = batches.take(index, params, may_begin_next=may_begin)
            assert [job.problem for job in jobs] == [episode.problem for episode in episodes]
            self.time.pass_to(self.time.now_s + UPDATE_S)
            self.episodes.append(episodes)
            self.staleness.append(counters.get("staleness", 0.0))
            self.programs.append(engine.programs())
        self.wall_s, self.lap = self.time.now_s, self.time.lap()


@pytest.fixture
def made(tiny_config: Any) -> tuple[Engine, Any]:
    return make_engine(tiny_config, EchoClient())


def test_latency_is_hidden_by_the_other_batch_and_the_update(made: tuple[Engine, Any]) -> None:
    """With weights that stay, every episode is what it would have been, only sooner."""
    engine, params = made
    one_by_one = Course(engine, [params] * BATCHES, max_staleness=0)
    ahead, again = (Course(engine, [params] * BATCHES, max_staleness=1) for _ in range(2))
    for expected, found in zip(one_by_one.episodes, ahead.episodes, strict=True):
        assert same(expected, found)
    assert ahead.wall_s < 0.75 * one_by_one.wall_s
    assert ahead.lap.seconds["wait"] < 0.75 * one_by_one.lap.seconds["wait"]
    assert again.wall_s == ahead.wall_s  # no clock of this machine has a say
    assert one_by_one.staleness == [0.0] * BATCHES
    assert ahead.staleness[0] == 0.0 and all(0.0 < one <= 1.0 for one in ahead.staleness[1:])
    assert ahead.programs[0] == ahead.programs[-1]


def test_without_staleness_a_batch_is_what_the_engine_makes(made: tuple[Engine, Any]) -> None:
    engine, params = made
    course = Course(engine, [params] * 2, max_staleness=0)
    engine.client = EchoClient()
    for index, found in enumerate(course.episodes):
        assert same(engine.run(params, jobs_of(index), temperature=1.0), found)
        assert "staleness" not in engine.counters


def test_weights_change_between_batches_alone(made: tuple[Engine, Any]) -> None:
    """The first batch is by the first weights; older ones have a hand in each of the others."""
    engine, params = made
    versions = [jax.tree.map(lambda leaf, f=f: leaf * f, params) for f in (1.0, 1.05, 1.1, 1.15)]
    course = Course(engine, versions, max_staleness=1)
    engine.client = EchoClient()
    for index, (version, found) in enumerate(zip(versions, course.episodes, strict=True)):
        by_newest = engine.run(version, jobs_of(index), temperature=1.0)
        assert same(by_newest, found) == (index == 0)


def test_what_begins_before_a_change_is_by_the_old_weights_up_to_there(
    made: tuple[Engine, Any],
) -> None:
    """The first segment of a row that waited through the update is that of the old weights."""
    engine, params = made
    other = jax.tree.map(lambda leaf: leaf * 1.1, params)
    course = Course(engine, [params, other], max_staleness=1)
    engine.client = EchoClient()
    old = engine.run(params, jobs_of(1), temperature=1.0)
    new = engine.run(other, jobs_of(1), temperature=1.0)
    spanning = 0
    for found, by_old, by_new in zip(course.episodes[1], old, new, strict=True):
        same_as_old = _common(found, by_old)
        same_as_new = _common(found, by_new)
        assert max(same_as_old, same_as_new) > 0
        spanning += 0 < same_as_old < len(found.trace.tokens_S)
    assert spanning > 0


def _common(one: Episode, other: Episode) -> int:
    """Log-probabilities of written tokens that agree from the beginning on."""
    n = min(len(one.trace.logp_S), len(other.trace.logp_S))
    is_equal = np.isclose(one.trace.logp_S[:n], other.trace.logp_S[:n], atol=1e-6)
    is_written = one.trace.sampled_S[:n]
    differs = np.flatnonzero(~is_equal)
    return int(is_written[: differs[0]].sum()) if len(differs) else int(is_written.sum())


def test_after_a_break_the_next_batch_begins_anew(made: tuple[Engine, Any]) -> None:
    """Nothing is in flight there: a run that is resumed at it makes the same episodes."""
    engine, params = made
    versions = [jax.tree.map(lambda leaf, f=f: leaf * f, params) for f in (1.0, 1.05, 1.1, 1.15)]
    course = Course(engine, versions, max_staleness=1, stop_at=1)
    assert course.staleness[2] == 0.0 and course.staleness[1] > 0.0
    engine.stopwatch, engine.client = course.time, SlowClient(course.time)
    resumed = Batches(engine, jobs_of, temperature=1.0, max_staleness=1)
    for index in (2, 3):
        _, episodes, _ = resumed.take(index, versions[index], may_begin_next=index < 3)
        assert same(course.episodes[index], episodes)
