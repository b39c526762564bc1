"""Studies along a strength: runs that differ in one setting, weakest first, and what follows it.

An `Axis` names the runs; figures come as [L, S, Q], L levels with the same seeds and questions.
That something falls is two claims: the rank correlation over all runs says that it does, the
largest step against it that it does so at every level.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments import results, statistics
from experiments.statistics import Estimate
from experiments.study import Job


@dataclasses.dataclass(frozen=True)
class Axis:
    """Runs by name with their level, in increasing order of strength.

    label: of the level, with its unit. is_even: levels are drawn at even distances, by name.
    """

    name: str
    label: str
    levels: Mapping[str, float]
    is_even: bool = False

    @property
    def places(self) -> list[float]:
        """Where the levels stand in a figure."""
        places = range(len(self.levels)) if self.is_even else self.levels.values()
        return [float(place) for place in places]


class Values:
    """Figures of finished runs by run name, strategy and metric; each run is read once."""

    def __init__(self, groups: Mapping[str, Sequence[Job]]) -> None:
        self._outcomes = {
            name: [results.outcomes(job) for job in jobs] for name, jobs in groups.items()
        }
        self.seeds = sorted({job.run.seed for jobs in groups.values() for job in jobs})

    def of(self, name: str, strategy: str, metric: str) -> np.ndarray:
        """One run name's, f64 [S, Q]. Raises: ValueError as `statistics.values_of`."""
        return statistics.values_of(self._outcomes[name], strategy, metric)

    def along(self, axis: Axis, strategy: str, metric: str) -> np.ndarray:
        """An axis's, f64 [L, S, Q]."""
        return np.stack([self.of(name, strategy, metric) for name in axis.levels])

    def means(self, axis: Axis, strategy: str, metric: str) -> list[Estimate]:
        """The mean at each level of an axis."""
        return [statistics.mean(self.of(name, strategy, metric)) for name in axis.levels]

    def questions(self) -> list[str]:
        """Ids of the questions, in the order of Q."""
        (outcomes, *_), *_ = self._outcomes.values()
        return sorted({outcome.uid for outcome in outcomes})


def choice(axes: Sequence[str]) -> argparse.ArgumentParser:
    """The flag of a study that can be run in parts: axes (a list), all unless given."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--axes", nargs="+", choices=axes, default=list(axes))
    return parser


def level_of(axis: Axis, like_LSQ: np.ndarray) -> np.ndarray:
    """The level itself in the shape of a figure."""
    return np.broadcast_to(np.array([*axis.levels.values()])[:, None, None], like_LSQ.shape)


def falls(
    axis: Axis, what: str, values_LSQ: np.ndarray, seeds: Sequence[int]
) -> list[dict[str, Any]]:
    """Two claims: `what` falls with the level, and at no step is it shown to rise."""
    trend = statistics.correlation(level_of(axis, values_LSQ), values_LSQ)
    rise = statistics.largest_rise(values_LSQ)
    return [
        results.claim(
            f"{axis.name}: {what} falls with {axis.label}, rank correlation over runs below 0",
            trend, seeds=seeds, holds=is_below(trend),
        ),
        results.claim(
            f"{axis.name}: at no step of {axis.label} is {what} shown to rise; the largest rise",
            rise, seeds=seeds, holds=rise.ci is not None and not statistics.is_above(rise),
        ),
    ]  # fmt: skip


def rises(
    axis: Axis,
    what: str,
    values_LSQ: np.ndarray,
    seeds: Sequence[int],
    per_LSQ: np.ndarray | None = None,
) -> dict[str, Any]:
    """One claim: `what`, where given a rate per something, rises with the level."""
    trend = statistics.correlation(level_of(axis, values_LSQ), values_LSQ, per_LSQ)
    return results.claim(
        f"{axis.name}: {what} rises with {axis.label}, rank correlation over runs above 0",
        trend, seeds=seeds, holds=statistics.is_above(trend),
    )  # fmt: skip


def is_below(estimate: Estimate) -> bool:
    """Whether the whole interval is below 0."""
    return estimate.ci is not None and estimate.ci[1] < 0.0


Curves = Mapping[str, Mapping[str, Sequence[Estimate]]]  # axis -> name of a line -> its levels


def plain(curves: Curves) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Curves as results.json has them."""

    def short(one: Estimate) -> dict[str, Any]:
        return {
            "figure": None if one.figure is None else round(one.figure, results.DIGITS),
            "ci": None if one.ci is None else [round(end, results.DIGITS) for end in one.ci],
        }

    return {
        axis: {name: [short(one) for one in line] for name, line in lines.items()}
        for axis, lines in curves.items()
    }


# --- figures -----------------------------------------------------------------------------------

Panels = Sequence[tuple[str, Mapping[str, str]]]  # title, and the color of each line


def panels(axes_of: Sequence[Axis], rows: Panels, curves: Curves) -> Figure:
    """A column an axis, a row a panel."""
    figure = Figure(figsize=(4.2 * len(axes_of), 2.8 * len(rows)), layout="constrained")
    grid = figure.subplots(len(rows), len(axes_of), squeeze=False, sharey="row")
    for line_of_axes, (title, lines) in zip(grid, rows, strict=True):
        for axes, axis in zip(line_of_axes, axes_of, strict=True):
            for name, color in lines.items():
                _draw(axes, axis, curves[axis.name][name], label=name, color=color)
            axes.set_xlabel(axis.label)
            axes.set_xticks(axis.places, [f"{level:g}" for level in axis.levels.values()])
            axes.grid(alpha=0.3)
        line_of_axes[0].set_ylabel(title)
        line_of_axes[0].set_ylim(bottom=min(0.0, line_of_axes[0].get_ylim()[0]))
        line_of_axes[0].legend()
    return figure


def _draw(axes: Axes, axis: Axis, estimates: Sequence[Estimate], *, label: str, color: str) -> None:
    """A line along an axis with its intervals; levels where it can't be told are left out."""
    told = [
        (place, one.figure, *(one.ci or (one.figure, one.figure)))
        for place, one in zip(axis.places, estimates, strict=True)
        if one.figure is not None
    ]
    if told:
        x, y, low, high = np.array(told).T
        reach = np.maximum(0.0, [y - low, high - y])
        axes.errorbar(x, y, yerr=reach, fmt="o-", ms=4, color=color, label=label)
