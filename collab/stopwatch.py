"""Where an iteration's seconds go, and what was done in them. Host code.

What a second counts as is said where the work is started (`collab.rollout`, `collab.train`); what
the counts come to, against what the chip could do, in `collab.usage`.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping

import jax

# The host waits for: decode steps; an LLM, with no row that could go on; prompts and replies that
# are read; the update. What is left is the host's own.
PARTS = ("decode", "wait", "prefill", "update")
HOST = "host"


@dataclasses.dataclass(frozen=True)
class Lap:
    """From one call of `Stopwatch.lap` to the next.

    seconds: of each part and of the host, in sum wall_s.
    """

    wall_s: float
    seconds: Mapping[str, float]
    counts: Mapping[str, float]


class Stopwatch:
    """Parts are not nested: a second belongs to one of them. clock: seconds, for tests."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._begin()

    def _begin(self) -> None:
        self._since_s = self._clock()
        self._seconds = dict.fromkeys(PARTS, 0.0)
        self._counts: collections.Counter[str] = collections.Counter()

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time what is done inside; a profiler's trace shows it by this name, too."""
        started_s = self._clock()
        with jax.profiler.TraceAnnotation(name):
            yield
        self._seconds[name] += self._clock() - started_s

    def count(self, **amounts: float) -> None:
        """Add to what was done."""
        self._counts.update(amounts)

    def lap(self) -> Lap:
        """All since the last call, or since this was made; then everything begins at 0."""
        wall_s = self._clock() - self._since_s
        seconds = {**self._seconds, HOST: wall_s - sum(self._seconds.values())}
        lap = Lap(wall_s, seconds, self._counts)
        self._begin()
        return lap
