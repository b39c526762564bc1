"""Whether the learned policy beats every strategy, and how near it comes to the oracle.

`python -m experiments.main` trains and evaluates each of RUNS on five seeds, two runs side by side
on 2 CPU cores, skips what is there already, and writes results.json, rewards.png and
reliability.png beside this file. NOTES.md reads the figures. 20 runs of about 8 minutes of a core.
"""

from __future__ import annotations

import pathlib
import sys
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments import results, statistics
from experiments.main import boundaries
from experiments.runner import execute
from experiments.study import Job, Run, arguments

HERE = pathlib.Path(__file__).parent
CONFIG = "configs/study.py"
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "world": (CONFIG, {}),
    "world_honest": (CONFIG, {"task.world.stale_relations": ()}),  # sure of nothing false
    # The world's questions in a profile of twelve kinds; more pieces, or its names are split.
    "privatise": (CONFIG, {"task.name": "privatise", "tokenizer.vocabulary": 1024}),
    "gsm": ("configs/study_gsm.py", {}),
}
NO_BASELINE = ("learned", "oracle")
GOAL_SHARE, GOAL_AUC, GOAL_ECE = 0.7, 0.9, 0.05


def planned(seeds: list[int]) -> list[Run]:
    """Every run of the study; the names of RUNS are those of the results."""
    return [
        Run(name, config, seed, overrides)
        for seed in seeds
        for name, (config, overrides) in RUNS.items()
    ]


def best_static(jobs: list[Job]) -> str:
    """The baseline with the highest mean reward on test: a choice that favours it."""
    by_seed = [results.outcomes(job) for job in jobs]
    names = {outcome.strategy for outcome in by_seed[0]} - set(NO_BASELINE)
    return max(sorted(names), key=lambda name: float(statistics.values_of(by_seed, name).mean()))


def claims_of(name: str, jobs: list[Job]) -> list[dict[str, Any]]:
    """What is claimed of one task, with its figures."""
    seeds = [job.run.seed for job in jobs]
    by_seed = [results.outcomes(job) for job in jobs]

    def of(strategy: str, metric: str = "reward") -> np.ndarray:
        return statistics.values_of(by_seed, strategy, metric)

    static = best_static(jobs)
    ahead = statistics.difference(of("learned"), of(static))
    constant = statistics.difference(of("learned"), of("best_constant"))
    share = statistics.share(of("learned"), of("best_constant"), of("oracle"))
    em = statistics.difference(of("learned", "em"), of(static, "em"))
    return [
        results.claim(
            f"{name}: learned is above the best static pipeline ({static}) in reward",
            ahead, seeds=seeds, holds=statistics.is_above(ahead, 0.0),
        ),
        results.claim(
            f"{name}: learned is above the best constant, chosen on validation, in reward",
            constant, seeds=seeds, holds=statistics.is_above(constant, 0.0),
        ),
        results.claim(
            f"{name}: learned closes at least {GOAL_SHARE:.0%} of the gap between the best "
            "constant and the oracle",
            share, seeds=seeds, holds=share.figure is not None and share.figure >= GOAL_SHARE,
        ),
        results.claim(
            f"{name}: exact match of learned is no lower than that of {static}",
            em, seeds=seeds, holds=em.figure is not None and em.figure >= 0.0,
        ),
    ]  # fmt: skip


def of_boundaries(name: str, jobs: list[Job]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Claims about P(ask) at steps of no training question, and what stands behind them."""
    seeds = [job.run.seed for job in jobs]
    found = [boundaries.measured(job) for job in jobs]
    drafts = [[row for row in one["knowledge"] if row["is_held_out"]] for one in found]
    read = [_read(rows) for rows in drafts]
    area = _over_seeds([boundaries.auc(*pair) for pair in read])
    error = _pooled_error(read)
    claims = [
        results.claim(
            f"{name}: P(ask) tells false drafts of held-out steps from true ones, AUC",
            area, seeds=seeds, holds=area.figure is not None and area.figure >= GOAL_AUC,
        ),
        results.claim(
            f"{name}: P(ask) is calibrated on held-out steps, expected calibration error of all "
            "seeds' drafts",
            error, seeds=seeds, holds=error.figure is not None and error.figure <= GOAL_ECE,
        ),
    ]  # fmt: skip
    verdicts = {key: sum(one["verdicts"][key] for one in found) for key in found[0]["verdicts"]}
    pooled = [row for rows in drafts for row in rows]
    curve = boundaries.reliability(*_read(pooled))
    return claims, {"verdicts": verdicts, "reliability": curve, "drafts": len(pooled)}


def _read(drafts: list[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """P(ask) f64 [N] and whether the draft is false, bool [N]."""
    return (
        np.array([row["p_ask"] for row in drafts], float),
        np.array([row["is_false"] for row in drafts], bool),
    )


def _over_seeds(by_seed: list[float | None]) -> statistics.Estimate:
    """The mean over seeds, with the least and the most as its interval: few seeds bear no more.

    None, the figure of a seed without drafts of both kinds, makes the whole None.
    """
    values = [value for value in by_seed if value is not None]
    if len(values) < len(by_seed):
        return statistics.Estimate(None, None)
    return statistics.Estimate(float(np.mean(values)), (min(values), max(values)))


def _pooled_error(read: list[tuple[np.ndarray, np.ndarray]]) -> statistics.Estimate:
    """Expected calibration error of all drafts together; the interval draws seeds.

    A seed's drafts are too few: those of a calibrated head would be off by 0.03 to 0.04 by chance.
    """

    def error(seeds: np.ndarray) -> float:
        parts = [np.concatenate(part) for part in zip(*(read[seed] for seed in seeds), strict=True)]
        return float(boundaries.calibration_error(parts[0], parts[1]))

    if not any(len(p_ask) for p_ask, _ in read):
        return statistics.Estimate(None, None)
    rng = np.random.default_rng(0)
    drawn = [error(rng.integers(len(read), size=len(read))) for _ in range(statistics.RESAMPLES)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return statistics.Estimate(error(np.arange(len(read))), (float(low), float(high)))


# --- figures -----------------------------------------------------------------------------------


def rewards_figure(groups: dict[str, list[Job]]) -> Figure:
    """Mean reward of each strategy with its interval, a panel a task."""
    figure = Figure(figsize=(5.5 * len(groups), 4.2), layout="constrained")
    panels = figure.subplots(1, len(groups), squeeze=False)[0]
    for axes, (name, jobs) in zip(panels, groups.items(), strict=True):
        by_seed = [results.outcomes(job) for job in jobs]
        strategies = sorted({outcome.strategy for outcome in by_seed[0]})
        means = {
            strategy: statistics.mean(statistics.values_of(by_seed, strategy))
            for strategy in strategies
        }
        ordered = sorted(strategies, key=lambda strategy: means[strategy].figure or 0.0)
        for place, strategy in enumerate(ordered):
            at, ci = means[strategy].figure, means[strategy].ci
            assert at is not None and ci is not None
            color = "C3" if strategy == "learned" else "C0" if strategy != "oracle" else "C7"
            axes.errorbar(at, place, xerr=[[at - ci[0]], [ci[1] - at]], fmt="o", color=color)
        axes.set_yticks(range(len(ordered)), ordered)
        axes.set_xlabel(f"reward a question (mean, 95 % interval, {len(jobs)} seeds)")
        axes.set_title(name)
        axes.grid(axis="x", alpha=0.3)
    return figure


def reliability_figure(found: dict[str, dict[str, Any]]) -> Figure:
    """P(ask) against the share of drafts that are false, over held-out steps."""
    figure = Figure(figsize=(4.6, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="0.7", lw=1, label="calibrated")
    for name, one in found.items():
        if not one["drafts"]:
            continue
        p, share, count = zip(*one["reliability"], strict=True)
        axes.plot(p, share, alpha=0.6, lw=1)
        axes.scatter(p, share, s=[10 + 120 * n / one["drafts"] for n in count], label=name)
    axes.set_xlabel("P(ask) at a draft of a step that no training question has")
    axes.set_ylabel("share of these drafts that is false")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def main() -> int:
    """Run what is missing, write results and figures, print the claims."""
    flags = arguments(__doc__ or "", seeds=5)
    result = execute("main", planned(flags.seeds), root=flags.root, jobs=flags.jobs)
    groups = results.by_name(result)
    claims, found = [], {}
    for name, jobs in groups.items():
        claims += claims_of(name, jobs)
        more, found[name] = of_boundaries(name, jobs)
        claims += more
    if groups:
        results.write_results(HERE / "results.json", result, claims, boundaries=found)
        rewards_figure(groups).savefig(HERE / "rewards.png", dpi=100)
        reliability_figure(found).savefig(HERE / "reliability.png", dpi=100)
    results.show(claims)
    return result.status


if __name__ == "__main__":
    sys.exit(main())
