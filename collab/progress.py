"""One progress line with an ETA for a long stage.

A terminal gets a tqdm bar; anything else (a log file, CI) a plain line now and then, so that logs
stay readable. Figures that last go to `collab.metrics`.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Protocol, TextIO

from tqdm import tqdm

PLAIN_LINE_EVERY_S = 10.0
HEADLINE = ("loss", "token_loss", "reward", "em", "asks", "leak")  # of a training step


class Progress(Protocol):
    """A stage under way."""

    def update(self, n: int = 1, **figures: float) -> None:
        """`n` more units are done; figures are shown until the next ones."""
        ...


@contextlib.contextmanager
def progress(
    total: int,
    label: str,
    *,
    stream: TextIO | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Progress]:
    """Show how a stage of `total` units goes on, with the time it still needs.

    stream: stderr unless given. The last line tells how far the stage came, also if it was left.
    """
    stream = sys.stderr if stream is None else stream
    if stream.isatty():
        with tqdm(total=total, desc=label, file=stream, dynamic_ncols=True) as bar:
            yield _Bar(bar)
        return
    lines = _PlainLines(total, label, stream=stream, clock=clock)
    try:
        yield lines
    finally:
        lines.finish()


def headline(metrics: Mapping[str, float]) -> dict[str, float]:
    """What of a training step's metrics stands on the line; dollars once there are any."""
    figures = {key: metrics[key] for key in HEADLINE if key in metrics}
    if metrics.get("client/usd"):
        figures["spent_usd"] = metrics["client/usd"]
    return figures


def span(seconds: float) -> str:
    """A duration as people read it: 42s, 3m20s, 2h05m."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


class _Bar:
    def __init__(self, bar: tqdm) -> None:
        self._bar = bar

    def update(self, n: int = 1, **figures: float) -> None:
        if figures:
            self._bar.set_postfix_str(_shown(figures), refresh=False)
        self._bar.update(n)


class _PlainLines:
    def __init__(
        self, total: int, label: str, *, stream: TextIO, clock: Callable[[], float]
    ) -> None:
        self._total, self._label = total, label
        self._stream, self._clock = stream, clock
        self._done = 0
        self._figures = ""
        self._started_s = self._written_s = clock()

    def update(self, n: int = 1, **figures: float) -> None:
        self._done += n
        self._figures = _shown(figures) or self._figures
        now_s = self._clock()
        if now_s - self._written_s < PLAIN_LINE_EVERY_S or self._done >= self._total:
            return
        self._written_s = now_s
        taken_s = now_s - self._started_s
        left_s = taken_s * (self._total - self._done) / self._done if self._done else None
        eta = "unknown" if left_s is None else span(left_s)
        self._write(f"{span(taken_s)}, ETA {eta}")

    def finish(self) -> None:
        self._write(f"took {span(self._clock() - self._started_s)}")

    def _write(self, times: str) -> None:
        share = f" ({100 * self._done // self._total}%)" if self._total else ""
        figures = f"  {self._figures}" if self._figures else ""
        line = f"{self._label}: {self._done}/{self._total}{share}, {times}{figures}"
        print(line, file=self._stream, flush=True)


def _shown(figures: dict[str, float]) -> str:
    return " ".join(f"{name}={figure:.3g}" for name, figure in figures.items())
