"""Fronts: quality against what it costs, policy by policy, and which of them another one dominates.

A point is a policy on the test questions of some seeds. Between two points lies whatever one comes
to by answering each question with one of both at random, so a front is joined by straight lines.
Figures and claims of `experiments.efficiency` and `experiments.privacy` stand on this.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from collab.report import Outcome
from experiments import statistics
from experiments.results import DIGITS
from experiments.statistics import Estimate
from experiments.study import Job

QUALITY = "em"
LABELS = {
    "em": "exact match, share",
    "asks": "asks a question",
    "tokens": "helper tokens a question",
    "usd": "dollars a question",
    "leaked_units": "private units leaked a question",
    "leak": "leak weighted by sensitivity, share",
}


@dataclasses.dataclass(frozen=True, eq=False)
class Point:
    """A policy. group: what it is drawn with. values: f64 [S, Q] by metric, exact match in it.

    is_bound: it knows what no policy can, as an oracle does, and stands on no front.
    """

    name: str
    group: str
    values: Mapping[str, np.ndarray]
    is_bound: bool = False

    def mean(self, metric: str) -> float:
        """Over seeds and questions."""
        return float(self.values[metric].mean())


def point(
    name: str,
    group: str,
    by_seed: Sequence[Sequence[Outcome]],
    *,
    strategy: str = "learned",
    costs: Sequence[str],
    is_bound: bool = False,
) -> Point:
    """A strategy of runs, one a seed. Raises: ValueError where a run lacks it or a metric."""
    metrics = (QUALITY, *costs)
    values = {metric: statistics.values_of(by_seed, strategy, metric) for metric in metrics}
    return Point(name, group, values, is_bound)


def complete(groups: Mapping[str, list[Job]], *, like: str) -> dict[str, list[Job]]:
    """Runs by name that are there with every seed of `like`, for points are compared by seed."""
    seeds = [job.run.seed for job in groups.get(like, [])]
    return {
        name: jobs
        for name, jobs in groups.items()
        if seeds and [job.run.seed for job in jobs] == seeds
    }


def is_dominated(one: Point, points: Sequence[Point], cost: str) -> bool:
    """Whether another point is as good and as cheap on average, and one of it strictly so."""
    quality, price = one.mean(QUALITY), one.mean(cost)
    return any(
        other.mean(QUALITY) >= quality
        and other.mean(cost) <= price
        and (other.mean(QUALITY), other.mean(cost)) != (quality, price)
        for other in points
    )


def front(points: Sequence[Point], cost: str) -> list[Point]:
    """Those that no other dominates, by rising cost; bounds left out."""
    policies = [one for one in points if not one.is_bound]
    best = [one for one in policies if not is_dominated(one, policies, cost)]
    return sorted(best, key=lambda one: one.mean(cost))


def quality_at(points: Sequence[Point], cost: str, most: float) -> np.ndarray | None:
    """Exact match f64 [S, Q] of what the front of `points` reaches at a mean cost of `most`.

    A mixture of the two points of the front around it; beyond the dearest point that one. None
    where even the cheapest costs more.
    """
    ordered = front(points, cost)
    prices = [one.mean(cost) for one in ordered]
    above = int(np.searchsorted(prices, most, side="right"))
    if above == 0:
        return None
    low_SQ = ordered[above - 1].values[QUALITY]
    if above == len(ordered):
        return low_SQ
    share = (most - prices[above - 1]) / (prices[above] - prices[above - 1])
    mixed_SQ: np.ndarray = (1.0 - share) * low_SQ + share * ordered[above].values[QUALITY]
    return mixed_SQ


# --- verdicts ------------------------------------------------------------------------------------


def reaches(estimate: Estimate, bound: float) -> bool:
    """Whether the figure is at least the bound, whatever its interval."""
    return estimate.figure is not None and estimate.figure >= bound


# --- results -------------------------------------------------------------------------------------


def rows(points: Sequence[Point], costs: Sequence[str]) -> list[dict[str, Any]]:
    """Points as results.json has them: means, 95 % intervals, costs by whose front one stands."""
    found = []
    for one in points:
        row: dict[str, Any] = {"point": one.name, "group": one.group}
        for metric, values_SQ in one.values.items():
            estimate = statistics.mean(values_SQ)
            assert estimate.figure is not None and estimate.ci is not None
            row[metric] = _short(metric, estimate.figure)
            row[f"{metric}_ci"] = [_short(metric, end) for end in estimate.ci]
        row["on_front_of"] = [
            cost for cost in costs if cost in one.values and one in front(_with(points, cost), cost)
        ]
        found.append(row)
    return found


def _with(points: Sequence[Point], metric: str) -> list[Point]:
    return [one for one in points if metric in one.values]


def _short(metric: str, value: float) -> float:
    return round(value, DIGITS + 4 if metric == "usd" else DIGITS)


# --- figure --------------------------------------------------------------------------------------


def draw(points: Sequence[Point], costs: Sequence[str], *, joined: Sequence[str] = ()) -> Figure:
    """Exact match against each cost, a panel each, with 95 % intervals; the front as a grey line.

    joined: groups whose points are one policy under a dial, drawn as a line without names.
    """
    figure = Figure(figsize=(4.8 * len(costs), 4.4), layout="constrained")
    panels = figure.subplots(1, len(costs), squeeze=False)[0]
    for axes, cost in zip(panels, costs, strict=True):
        shown = _with(points, cost)
        best = front(shown, cost)
        axes.plot(
            [one.mean(cost) for one in best],
            [one.mean(QUALITY) for one in best],
            color="0.8", lw=5, zorder=0, label="front",
        )  # fmt: skip
        for at, group in enumerate(dict.fromkeys(one.group for one in shown)):
            members = [one for one in shown if one.group == group]
            _draw_group(axes, members, cost, color=f"C{at}", is_joined=group in joined)
        axes.set_xlabel(LABELS[cost])
        axes.ticklabel_format(axis="x", scilimits=(-3, 4))
        axes.grid(alpha=0.3)
    panels[0].set_ylabel(LABELS[QUALITY])
    panels[0].legend()
    return figure


def _draw_group(
    axes: Axes, members: Sequence[Point], cost: str, *, color: str, is_joined: bool
) -> None:
    ordered = sorted(members, key=lambda one: one.mean(cost))
    x, y = ([one.mean(metric) for one in ordered] for metric in (cost, QUALITY))
    if is_joined:
        axes.plot(x, y, "o-", ms=3, color=color, label=members[0].group)
        return
    spread = [[_reach(one.values[metric]) for one in ordered] for metric in (cost, QUALITY)]
    xerr, yerr = (np.array(pairs).T for pairs in spread)
    axes.errorbar(
        x, y, xerr=xerr, yerr=yerr, fmt="s", ms=4, lw=0.8, color=color, label=members[0].group
    )
    for one in ordered:
        axes.annotate(
            one.name, (one.mean(cost), one.mean(QUALITY)),
            xytext=(4, 4), textcoords="offset points", fontsize=7, color=color,
        )  # fmt: skip


def _reach(values_SQ: np.ndarray) -> tuple[float, float]:
    """How far the interval reaches below and above the mean."""
    estimate = statistics.mean(values_SQ)
    assert estimate.figure is not None and estimate.ci is not None
    low, high = estimate.ci
    return max(0.0, estimate.figure - low), max(0.0, high - estimate.figure)
