"""Whether a stronger SLM asks less, and asks where it lacks: its knowledge and its size are varied.

`python -m experiments.slm_scaling` trains SLMs that know 10 to 90 % of the facts of the world that
are not stale, and SLMs of four sizes, each from its own imitation, on three seeds. Run `world`,
which knows half and has the second largest size, is the main study's. The other 12 along
`knowledge` take about 95 minutes of a free core, the other 9 along `size` about 70. It skips what
is there already and writes results.json and scaling.png beside this file; `--axes` runs a part.
NOTES.md reads the figures.
"""

from __future__ import annotations

import pathlib
import sys
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments import levels, results, statistics
from experiments.levels import Axis, Values, choice
from experiments.runner import execute
from experiments.statistics import Estimate
from experiments.study import Run, arguments

HERE = pathlib.Path(__file__).parent
CONFIG = "configs/study.py"
WORLD = "world"  # as the main study has it: half of the facts, 64 channels in 3 layers
STRATEGIES = ("learned", "slm_cot", "oracle")
KNOWN = {"known_10": 0.1, "known_30": 0.3, WORLD: 0.5, "known_70": 0.7, "known_90": 0.9}
SIZES = {
    "size_32x2": "tiny_32x2",
    "size_48x3": "tiny_48x3",
    WORLD: "tiny",
    "size_96x3": "tiny_96x3",
}
# Thousands of weights in the layers: norms, embeddings and the head come on top.
WEIGHTS = {"size_32x2": 31, "size_48x3": 99, WORLD: 184, "size_96x3": 415}
AXES = (
    Axis("knowledge", "share of facts known", KNOWN),
    Axis("size", "thousands of weights in the layers", WEIGHTS, is_even=True),
)


def planned(seeds: list[int], axes: list[Axis]) -> list[Run]:
    """Every run along the axes, `world` once."""
    changes: dict[str, dict[str, Any]] = {WORLD: {}}
    for name, share in KNOWN.items():
        changes.setdefault(name, {"task.world.known_share": share})
    for name, preset in SIZES.items():
        changes.setdefault(name, {"model.preset": preset})
    few = {"evaluate.strategies": STRATEGIES}
    return [
        Run(name, CONFIG, seed, {**overrides, **few} if overrides else {})
        for seed in seeds
        for name, overrides in changes.items()
        if any(name in axis.levels for axis in axes)
    ]


def gap(values: Values, name: str) -> Estimate:
    """Ask rate on drafts of facts that the SLM lacks, less that on drafts of those it knows."""
    return statistics.rate_difference(
        *(
            values.of(name, "learned", f"{count}_{kind}")
            for kind in ("unknown", "known")
            for count in ("asked", "drafts")
        )
    )


def claims_of(axis: Axis, values: Values) -> list[dict[str, Any]]:
    """What is claimed along one axis."""
    seeds = values.seeds
    alone = values.along(axis, "slm_cot", "em")
    gaps = {name: gap(values, name) for name in axis.levels}
    least = min(gaps, key=lambda name: _or_least(gaps[name].figure))
    return [
        levels.rises(axis, "exact match of the SLM alone", alone, seeds),
        *levels.falls(axis, "asks a question", values.along(axis, "learned", "asks"), seeds),
        results.claim(
            f"{axis.name}: at every level drafts of what the SLM lacks are asked about more often "
            f"than drafts of what it knows; least difference of the two rates ({least})",
            gaps[least], seeds=seeds, holds=all(statistics.is_above(one) for one in gaps.values()),
        ),
    ]  # fmt: skip


def _or_least(figure: float | None) -> float:
    """A difference of two rates; less than any where it can't be told."""
    return -2.0 if figure is None else figure


def overall(axes: list[Axis], values: Values) -> dict[str, Any]:
    """Strength as it is measured, over the runs of all axes."""
    names = [*dict.fromkeys(name for axis in axes for name in axis.levels)]
    alone, asks = (
        np.stack([values.of(name, strategy, metric) for name in names])
        for strategy, metric in (("slm_cot", "em"), ("learned", "asks"))
    )
    found = statistics.correlation(alone, asks)
    along = " and ".join(axis.name for axis in axes)
    return results.claim(
        f"{along}: the more an SLM gets right alone, the less it asks, rank correlation over runs "
        "below 0",
        found, seeds=values.seeds, holds=levels.is_below(found),
    )  # fmt: skip


def rate(values: Values, name: str, kind: str) -> Estimate:
    """Share of the drafts of one kind that the learned policy asks about."""
    asked, drafts = (values.of(name, "learned", f"{count}_{kind}") for count in ("asked", "drafts"))
    return statistics.ratio(asked, drafts)


def curves(axis: Axis, values: Values) -> dict[str, list[Estimate]]:
    """Every figure that is drawn along an axis."""
    return {
        "asks": values.means(axis, "learned", "asks"),
        "asks of the oracle": values.means(axis, "oracle", "asks"),
        "exact match": values.means(axis, "learned", "em"),
        "exact match alone": values.means(axis, "slm_cot", "em"),
        "ask rate, unknown": [rate(values, name, "unknown") for name in axis.levels],
        "ask rate, known": [rate(values, name, "known") for name in axis.levels],
    }


def figure_of(axes: list[Axis], found: dict[str, dict[str, list[Estimate]]]) -> Figure:
    """A column an axis: asks, exact match, and the share of drafts that are asked about."""
    panels = (
        ("asks a question", {"asks": "C3", "asks of the oracle": "C7"}),
        ("exact match", {"exact match": "C3", "exact match alone": "C0"}),
        ("share of drafts asked about", {"ask rate, unknown": "C3", "ask rate, known": "C2"}),
    )
    return levels.panels(axes, panels, found)


def main() -> int:
    """Run what is missing, write results and figure, print the claims."""
    flags = arguments(__doc__ or "", seeds=3, more=choice([axis.name for axis in AXES]))
    axes = [axis for axis in AXES if axis.name in flags.axes]
    runs = planned(flags.seeds, axes)
    result = execute("slm_scaling", runs, root=flags.root, jobs=flags.jobs)
    if result.status:
        return result.status  # an axis with a level missing shows no trend
    values = Values(results.by_name(result))
    claims = [claim for axis in axes for claim in claims_of(axis, values)]
    claims.append(overall(axes, values))
    found = {axis.name: curves(axis, values) for axis in axes}
    results.write_results(HERE / "results.json", result, claims, curves=levels.plain(found))
    figure_of(axes, found).savefig(HERE / "scaling.png", dpi=100)
    results.show(claims)
    return result.status


if __name__ == "__main__":
    sys.exit(main())
