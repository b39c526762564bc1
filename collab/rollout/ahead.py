"""Rollouts batch by batch, where the next batch may begin before the update on this one.

While the stragglers of a batch wait for replies, free rows take jobs of the next. When the batch is
whole it is updated on; rows of the next stand still meanwhile, but their requests don't, so that an
LLM's latency hides behind the update and behind the decoding of the other batch. Weights change
only there. A row that spans the update goes on under the new weights, over keys and values that the
old ones wrote: its sampler is a mixture of both. Each token and decision keeps the log-probability
that it was drawn with, so the correction (`collab.rl.importance`) has the true sampler's.

How far the next batch has come at an update depends on when replies arrive. With a helper that
answers at once, or by a virtual clock, a run is a function of its config; else it is not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from collab.llm.weakening import Weakening
from collab.rollout.engine import Engine
from collab.rollout.episodes import Job
from collab.rollout.flight import Flight
from collab.types import Episode, Params


class Batches:
    """The batches of a run, in order.

    jobs_of: those of a batch by its index. max_staleness: 0 = no batch begins early.
    """

    def __init__(
        self,
        engine: Engine,
        jobs_of: Callable[[int], list[Job]],
        *,
        temperature: float,
        weakening: Weakening | None = None,
        max_staleness: int = 0,
    ) -> None:
        self._max_staleness = max_staleness
        self._engine, self._jobs_of = engine, jobs_of
        self._settings: dict[str, Any] = {"temperature": temperature, "weakening": weakening}
        self._flight: Flight | None = None  # with the next batch begun
        self._next: tuple[list[Job], range] = ([], range(0))

    def take(
        self, index: int, params: Params, *, may_begin_next: bool
    ) -> tuple[list[Job], list[Episode], dict[str, float]]:
        """Finish a batch. Returns its jobs, its episodes, and counters of the engine meanwhile.

        index: one above the last call's, if that has begun the next batch. may_begin_next: False
        leaves nothing in flight. staleness, if any may be: updates since an episode began, on
        average.
        """
        flight = self._flight or self._engine.flight(**self._settings)
        jobs, batch = self._next if self._flight else self._begin(flight, index)
        self._engine.reset_counters()
        self._flight = None
        if self._max_staleness and may_begin_next:
            self._flight, self._next = flight, self._begin(flight, index + 1)
        flight.version = index
        while not flight.is_finished(batch):
            flight.turn(params)
        episodes, version_B = flight.take(batch)
        counters: dict[str, float] = dict(self._engine.counters)
        if self._max_staleness:
            counters["staleness"] = index - sum(version_B) / len(version_B)
        return jobs, episodes, counters

    def _begin(self, flight: Flight, index: int) -> tuple[list[Job], range]:
        jobs = self._jobs_of(index)
        return jobs, flight.add(jobs)
