"""How a figure of training moves: its course over iterations, and by how much it rose.

Iterations have different questions, so one is a noisy measure of the policy of its moment. The rise
is the mean of the last third of iterations less that of the first, within each seed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from scipy import stats

from experiments.statistics import Estimate
from experiments.study import Job

SHOWN = ("reward", "em", "asks", "ask_rate_per_draft")


def course(job: Job, metric: str) -> np.ndarray:
    """A metric at each iteration of the policy gradient, f64 [I]; of two lines the newer one."""
    lines = (job.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    found = {
        row["iteration"]: float(row[metric])
        for row in map(json.loads, lines)
        if row["stage"] == "policy_gradient"
    }
    return np.array([found[iteration] for iteration in sorted(found)])


def rise(values_SI: np.ndarray) -> Estimate:
    """The last third of iterations less the first, averaged over seeds; at least 6 iterations.

    values_SI: f64, S seeds, I iterations. The interval is Welch's: every third of every seed is a
    sample with a variance of its own. It holds for these seeds: what another would do, two or three
    can't tell. None where no figure varies.
    Raises: ValueError for fewer iterations.
    """
    seeds, iterations = values_SI.shape
    third = iterations // 3
    if third < 2:
        raise ValueError(f"{iterations} iterations must be at least 6; set rl.iterations=6")
    first_Sn, last_Sn = values_SI[:, :third], values_SI[:, -third:]
    figure = float((last_Sn.mean(1) - first_Sn.mean(1)).mean())
    parts = np.concatenate([first_Sn.var(1, ddof=1), last_Sn.var(1, ddof=1)]) / third / seeds**2
    if not parts.any():
        return Estimate(figure, None)
    freedom = parts.sum() ** 2 / (parts**2 / (third - 1)).sum()
    reach = float(stats.t.ppf(0.975, freedom) * np.sqrt(parts.sum()))
    return Estimate(figure, (figure - reach, figure + reach))


def courses_figure(groups: dict[str, Sequence[Job]]) -> Figure:
    """A row a task, a panel a metric: every seed, and their mean."""
    figure = Figure(figsize=(3.2 * len(SHOWN), 2.4 * len(groups)), layout="constrained")
    panels = figure.subplots(len(groups), len(SHOWN), squeeze=False)
    for row, (name, jobs) in zip(panels, groups.items(), strict=True):
        for axes, metric in zip(row, SHOWN, strict=True):
            values_SI = np.stack([course(job, metric) for job in jobs])
            axes.plot(values_SI.T, color="C0", alpha=0.3, lw=1)
            axes.plot(values_SI.mean(0), color="C0")
            axes.set_title(f"{name}: {metric}", fontsize=9)
            axes.grid(alpha=0.3)
    for axes in panels[-1]:
        axes.set_xlabel("iteration")
    return figure
