"""Whether a stronger helper makes for fewer and more informative interactions.

`python -m experiments.llm_scaling` trains SLMs with helpers of graded strength, on three seeds:
scripted ones that chain one, two or three facts a reply, that know 40 % of the facts to all of
them, that are wrong about 30 % to none of them, and local Flax models of three sizes, which are
made first (`local`; needs the extra smollm2). All begin with the cold start of the main study's run
`world`. The 9 runs along `hops` take about 25 minutes of a free core, the other 6 along `knowledge`
17, along `errors` 17, and 9 along `local` 37 with the making of these models. It skips what is
there already and writes results.json and scaling.png beside this file; `--axes` runs a part.
NOTES.md reads the figures.

**Information per request.** A right answer out of N of its type is worth log2 N bits (Hartley
1928), a wrong one none. What help brings is the answer bits of the learned policy less those of
the same SLM alone on the same question, and per request: that over its requests, pooled. So a reply
counts by what came of it, and one that tells a middle hop is not worth less than one that ends
the chain; the probability of an answer that is forced right after the reply would miss it.
"""

from __future__ import annotations

import math
import pathlib
import sys
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from collab.config import load_config
from collab.tasks.world.entities import World
from collab.tasks.world.generate import Generator
from collab.tasks.world.schema import Settings
from experiments import levels, results, statistics
from experiments.levels import Axis, Values, choice
from experiments.llm_scaling import local
from experiments.runner import execute
from experiments.statistics import Estimate
from experiments.study import Job, Run, arguments, configured

HERE = pathlib.Path(__file__).parent
CONFIG = "configs/study.py"
WORLD = "world"  # of the main study: its cold start is where all of these begin
STRATEGIES = ("learned", "slm_cot", "oracle")
BEST = "hops_3"  # the end of every scripted axis: three hops, knows all, never errs
HELPERS: dict[str, dict[str, Any]] = {
    "hops_1": {"hops": 1},
    "hops_2": {"hops": 2},
    BEST: {"hops": 3},
    "knows_40": {"hops": 3, "knowledge_share": 0.4},
    "knows_70": {"hops": 3, "knowledge_share": 0.7},
    "errs_30": {"hops": 3, "error_rate": 0.3},
    "errs_15": {"hops": 3, "error_rate": 0.15},
}
LOCAL = {"local_32x2": "tiny_32x2", "local_48x3": "tiny_48x3", "local_64x3": "tiny"}
LOCAL_KEYS: dict[str, Any] = {
    "llm.backend": "local",
    "llm.local.rows": 32,
    "llm.local.context_tokens": 512,  # six exchanges and a reply
    "llm.deadline_s": 120.0,  # beside another run; a local model always replies in the end
    "llm.probe.requests": 48,  # how strong it came to be
}
AXES = (
    Axis("hops", "facts chained in a reply", {"hops_1": 1, "hops_2": 2, BEST: 3}),
    Axis(
        "knowledge",
        "share of facts the helper knows",
        {"knows_40": 0.4, "knows_70": 0.7, BEST: 1},
    ),
    Axis(
        "errors",
        "share of facts the helper has right",
        {"errs_30": 0.7, "errs_15": 0.85, BEST: 1},
    ),
    Axis(
        "local",
        "thousands of weights in the helper's layers",
        {"local_32x2": 31, "local_48x3": 99, "local_64x3": 184},
        is_even=True,
    ),
)


def planned(seeds: list[int], axes: list[Axis], root: pathlib.Path) -> list[Run]:
    """Every run along the axes; `world` is there for its cold start. root: of the studies."""
    # One name for all, since a scripted helper draws what it knows by its name: levels are nested.
    changes: dict[str, dict[str, Any]] = {
        name: {"llm.helpers": {"expert": strength}} for name, strength in HELPERS.items()
    }
    config = load_config(CONFIG)
    for name, preset in LOCAL.items():
        folder = local.place(preset, config, root)
        changes[name] = {**LOCAL_KEYS, "llm.local.weights": f"hf:{folder}"}
    few = {"evaluate.strategies": STRATEGIES}
    return [
        run
        for seed in seeds
        for run in (
            Run(WORLD, CONFIG, seed),
            *(
                Run(name, CONFIG, seed, {**overrides, **few}, cold_start=WORLD)
                for name, overrides in changes.items()
                if any(name in axis.levels for axis in axes)
            ),
        )
    ]


def bits_of_questions(run: Run, uids: list[str]) -> np.ndarray:
    """log2 of the number of entities of each test question's type of answer, f64 [Q]."""
    world = World(Settings.of(configured(run)))
    generator = Generator(world)
    bits = []
    for uid in uids:
        answer = generator.problem("test", int(uid.rpartition("-")[2])).answers[0]
        bits.append(math.log2(len(world.entities[world.type_of[answer]])))
    return np.array(bits)


def bits_gained(values: Values, name: str, bits_Q: np.ndarray) -> np.ndarray:
    """Answer bits of the learned policy less those of the same SLM alone, f64 [S, Q]."""
    return (values.of(name, "learned", "em") - values.of(name, "slm_cot", "em")) * bits_Q


def claims_of(axis: Axis, values: Values, bits_Q: np.ndarray) -> list[dict[str, Any]]:
    """What is claimed along one axis."""
    seeds = values.seeds
    turns = values.along(axis, "learned", "turns")
    asks = values.along(axis, "learned", "asks")
    gained = np.stack([bits_gained(values, name, bits_Q) for name in axis.levels])
    ends = statistics.rate_difference(gained[-1], asks[-1], gained[0], asks[0])
    weakest, *_, strongest = axis.levels
    return [
        *levels.falls(axis, "turns a question", turns, seeds),
        levels.rises(axis, "information per request (bits)", gained, seeds, asks),
        results.claim(
            f"{axis.name}: a request brings more with {strongest} than with {weakest}, bits",
            ends, seeds=seeds, holds=statistics.is_above(ends),
        ),
    ]  # fmt: skip


def curves(axis: Axis, values: Values, bits_Q: np.ndarray) -> dict[str, list[Estimate]]:
    """Every figure that is drawn along an axis."""
    return {
        "turns": values.means(axis, "learned", "turns"),
        "turns of the oracle": values.means(axis, "oracle", "turns"),
        "exact match": values.means(axis, "learned", "em"),
        "exact match alone": values.means(axis, "slm_cot", "em"),
        "bits per request": [
            statistics.ratio(bits_gained(values, name, bits_Q), values.of(name, "learned", "asks"))
            for name in axis.levels
        ],
    }


def strengths(jobs: list[Job]) -> dict[str, float]:
    """Share of the probe's requests that the helper of each job answered right, by run name."""
    found = {}
    for job in jobs:
        (fingerprint,) = results.evaluation(job)["helpers"]["fingerprints"].values()
        found[job.run.name] = fingerprint["strength"]
    return found


def figure_of(axes: list[Axis], found: dict[str, dict[str, list[Estimate]]]) -> Figure:
    """A column an axis: turns, exact match, and what a request brings."""
    panels = (
        ("turns a question", {"turns": "C3", "turns of the oracle": "C7"}),
        ("exact match", {"exact match": "C3", "exact match alone": "C0"}),
        ("answer bits gained per request", {"bits per request": "C3"}),
    )
    return levels.panels(axes, panels, found)


def main() -> int:
    """Run what is missing, write results and figure, print the claims."""
    flags = arguments(__doc__ or "", seeds=3, more=choice([axis.name for axis in AXES]))
    axes = [axis for axis in AXES if axis.name in flags.axes]
    if "local" in flags.axes:
        local.make([*LOCAL.values()], load_config(CONFIG), flags.root)
    runs = planned(flags.seeds, axes, flags.root)
    result = execute("llm_scaling", runs, root=flags.root, jobs=flags.jobs)
    if result.status:
        return result.status  # an axis with a level missing shows no trend
    groups = results.by_name(result)
    values = Values(groups)
    bits_Q = bits_of_questions(runs[0], values.questions())
    claims = [claim for axis in axes for claim in claims_of(axis, values, bits_Q)]
    found = {axis.name: curves(axis, values, bits_Q) for axis in axes}
    results.write_results(
        HERE / "results.json",
        result,
        claims,
        curves=levels.plain(found),
        local_strength=strengths([jobs[0] for name, jobs in groups.items() if name in LOCAL]),
    )
    figure_of(axes, found).savefig(HERE / "scaling.png", dpi=100)
    results.show(claims)
    return result.status


if __name__ == "__main__":
    sys.exit(main())
