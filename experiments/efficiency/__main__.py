"""What exact match costs in asks, tokens and dollars: policies of several prices, and one dial.

`python -m experiments.efficiency` trains policies under the turn prices of PRICES and the target
ask rates of TARGETS on three seeds, all from the cold start of the main study's `world`, whose own
price is the fourth; turns the ask threshold of `world` over BIASES; and writes results.json,
fronts.png and dual.png beside this file. 18 runs of 3 to 4 minutes a core where `world` is there
(8 minutes each where it is not), and a minute a seed for the dial: about 65 core-minutes.
NOTES.md reads the figures.
"""

from __future__ import annotations

import pathlib
import sys
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from collab.metrics import read_jsonl
from experiments import fronts, results, statistics
from experiments.fronts import Point
from experiments.runner import execute
from experiments.study import Job, Run, arguments
from experiments.trained import at_bias, dial

HERE = pathlib.Path(__file__).parent
CONFIG = "configs/study.py"
SOURCE, SOURCE_PRICE = "world", 0.2  # as configs/study.py has it
PRICES = (0.05, 0.4, 0.8)  # share of Q a turn
TARGETS = (0.3, 0.6, 0.9)  # asks an episode
DUAL_RATE = 0.2  # 24 iterations at 0.3 asks off the target move the price by more than 1
BIASES = (-8.0, -4.0, -2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0, 4.0, 8.0)  # nats
DIAL = "efficiency_dial"
COSTS = ("asks", "tokens", "usd")
RULES = (
    "slm_cot", "best_constant", "step_cascade", "cascade", "ask_every_hop", "ask_chain",
    "random_rate", "oracle",
)  # fmt: skip
NO_WORSE = -0.02  # exact match
TOLERANCE = 0.1  # asks a question
LAST = 6  # iterations whose mean ask rate counts as reached
PRICE, TARGET, TURNED, RULE = "trained at a price", "dual ascent", "dial of one policy", "rules"


def planned(seeds: list[int]) -> list[Run]:
    """The source of all cold starts first; names say price or target."""
    learned_only = {"evaluate.strategies": ("learned",)}
    changes: dict[str, dict[str, Any]] = {
        **{price_name(price): {"reward.turn": price} for price in PRICES},
        **{
            target_name(target): {"rl.target_ask_rate": target, "rl.dual_rate": DUAL_RATE}
            for target in TARGETS
        },
    }
    return [Run(SOURCE, CONFIG, seed) for seed in seeds] + [
        Run(name, CONFIG, seed, {**learned_only, **overrides}, cold_start=SOURCE)
        for name, overrides in changes.items()
        for seed in seeds
    ]


def price_name(price: float) -> str:
    """The run of a turn price."""
    return SOURCE if price == SOURCE_PRICE else f"price_{price:g}"


def target_name(target: float) -> str:
    """The run of a target ask rate."""
    return f"target_{target:g}"


# --- points --------------------------------------------------------------------------------------


def points_of(groups: dict[str, list[Job]]) -> list[Point]:
    """Every policy of the runs that are there, the dial's among them."""
    dials = [dial(job, BIASES, name=DIAL) for job in groups[SOURCE]]
    found = [
        fronts.point(f"{bias:+g}", TURNED, dials, strategy=at_bias(bias), costs=COSTS)
        for bias in BIASES
    ]
    # Of the source the dial at 0: its own outcomes may be older than a cost.
    found.append(fronts.point("0.2", PRICE, dials, strategy=at_bias(0.0), costs=COSTS))
    trained = {price_name(price): (f"{price:g}", PRICE) for price in PRICES}
    trained |= {target_name(target): (f"target {target:g}", TARGET) for target in TARGETS}
    for run, (name, group) in trained.items():
        if run in groups:
            by_seed = [results.outcomes(job) for job in groups[run]]
            found.append(fronts.point(name, group, by_seed, costs=COSTS))
    by_seed = [results.outcomes(job) for job in groups[SOURCE]]
    there = {outcome.strategy for outcome in by_seed[0]}
    return found + [
        fronts.point(
            rule, RULE, by_seed, strategy=rule, costs=("asks", "usd"), is_bound=rule == "oracle"
        )
        for rule in RULES
        if rule in there
    ]


# --- claims --------------------------------------------------------------------------------------


def claims_of(points: list[Point], seeds: list[int]) -> list[dict[str, Any]]:
    """What is claimed of the policies that are there."""
    of = {group: [one for one in points if one.group == group] for group in (PRICE, TARGET)}
    return [
        *_price_claims(of[PRICE], seeds),
        *_dial_claims(points, [*of[PRICE], *of[TARGET]], seeds),
        *_target_claims(of[TARGET], seeds),
        *_saving_claims(points, seeds),
    ]


def _price_claims(priced: list[Point], seeds: list[int]) -> list[dict[str, Any]]:
    """Dearer turns, fewer asks: the cheapest price against the dearest."""
    ordered = sorted(priced, key=lambda one: float(one.name))
    if len(ordered) < 2:
        return []
    low, high = ordered[0], ordered[-1]
    fewer = statistics.difference(low.values["asks"], high.values["asks"])
    return [
        results.claim(
            f"a turn at a price of {high.name} is taken less often than at {low.name}: asks saved "
            "a question",
            fewer, seeds=seeds, holds=statistics.is_above(fewer, 0.0),
        )
    ]  # fmt: skip


def _dial_claims(
    points: list[Point], trained: list[Point], seeds: list[int]
) -> list[dict[str, Any]]:
    """At the asks of each policy that was trained apart: exact match of the dial less its own."""
    turned = [one for one in points if one.group == TURNED]
    claims = []
    for one in trained:
        if one.name == f"{SOURCE_PRICE:g}":  # the dial's own policy
            continue
        dial_SQ = fronts.quality_at(turned, "asks", one.mean("asks"))
        if dial_SQ is None:
            gap, holds = statistics.Estimate(None, None), False
        else:
            gap = statistics.difference(dial_SQ, one.values[fronts.QUALITY])
            holds = statistics.is_above(gap, NO_WORSE)
        kind = "a policy trained at a price of" if one.group == PRICE else "dual ascent to a"
        claims.append(
            results.claim(
                f"at the asks of {kind} {one.name}, the dial of one checkpoint has an exact match "
                f"no more than {-NO_WORSE:g} below it: dial less policy",
                gap, seeds=seeds, holds=holds,
            )
        )  # fmt: skip
    return claims


def _target_claims(targeted: list[Point], seeds: list[int]) -> list[dict[str, Any]]:
    """Asks of the greedy policy on test questions against what it was trained to."""
    claims = []
    for one in targeted:
        target = float(one.name.split()[-1])
        off = statistics.mean(one.values["asks"] - target)
        assert off.figure is not None
        claims.append(
            results.claim(
                f"dual ascent to {target:g} asks is off by at most {TOLERANCE:g} on test: asks "
                "less target",
                off, seeds=seeds, holds=abs(off.figure) <= TOLERANCE,
            )
        )  # fmt: skip
    return claims


def _saving_claims(points: list[Point], seeds: list[int]) -> list[dict[str, Any]]:
    """The learned policy of fewest asks that is as good as the best constant, against it."""
    constant = next((one for one in points if one.name == "best_constant"), None)
    if constant is None:
        return []
    enough = constant.mean(fronts.QUALITY) + NO_WORSE
    good = [one for one in points if one.group != RULE and one.mean(fronts.QUALITY) >= enough]
    text = f"asks that a learned policy saves at no more than {-NO_WORSE:g} less exact match than "
    text += "the best constant rule"
    if not good:
        return [results.claim(text, statistics.Estimate(None, None), seeds=seeds, holds=False)]
    least = min(good, key=lambda one: one.mean("asks"))
    saved = statistics.difference(constant.values["asks"], least.values["asks"])
    return [
        results.claim(
            f"{text} ({least.group}, {least.name})",
            saved, seeds=seeds, holds=statistics.is_above(saved, 0.0),
        )
    ]  # fmt: skip


# --- dual ascent ---------------------------------------------------------------------------------


def ascents(groups: dict[str, list[Job]]) -> dict[str, dict[str, Any]]:
    """By target: ask rate and price of every iteration, means over seeds, and the last ones'."""
    found = {}
    for target in TARGETS:
        jobs = groups.get(target_name(target), [])
        if not jobs:
            continue
        logged = [
            [
                line
                for line in read_jsonl(job.folder / "metrics.jsonl")
                if line["stage"] == "policy_gradient"
            ]
            for job in jobs
        ]
        asks_SI, price_SI = (
            np.array([[line[key] for line in lines] for lines in logged])
            for key in ("asks", "turn_price")
        )
        found[f"{target:g}"] = {
            "asks": asks_SI.mean(0).round(3).tolist(),
            "turn_price": price_SI.mean(0).round(4).tolist(),
            "asks_at_the_end": round(float(asks_SI[:, -LAST:].mean()), 3),
            "price_at_the_end": price_SI[:, -1].round(4).tolist(),
        }
    return found


def dual_figure(found: dict[str, dict[str, Any]]) -> Figure:
    """Ask rate and price by iteration, the target as a dashed line."""
    figure = Figure(figsize=(9.0, 3.6), layout="constrained")
    rate, price = figure.subplots(1, 2)
    for at, (target, one) in enumerate(found.items()):
        rate.plot(one["asks"], color=f"C{at}", label=f"target {target}")
        rate.axhline(float(target), color=f"C{at}", ls="--", lw=0.8)
        price.plot(one["turn_price"], color=f"C{at}")
    rate.set_ylabel("asks an episode, sampled")
    price.set_ylabel("price of a turn, share of Q")
    for axes in (rate, price):
        axes.set_xlabel("iteration")
        axes.grid(alpha=0.3)
    rate.legend()
    return figure


def main() -> int:
    """Run what is missing, turn the dial, write results and figures, print the claims."""
    flags = arguments(__doc__ or "", seeds=3)
    result = execute("efficiency", planned(flags.seeds), root=flags.root, jobs=flags.jobs)
    groups = fronts.complete(results.by_name(result), like=SOURCE)
    claims: list[dict[str, Any]] = []
    if groups:
        points = points_of(groups)
        claims = claims_of(points, [job.run.seed for job in groups[SOURCE]])
        dual = ascents(groups)
        results.write_results(
            HERE / "results.json", result, claims, points=fronts.rows(points, COSTS), dual=dual
        )
        fronts.draw(points, COSTS, joined=(TURNED,)).savefig(HERE / "fronts.png", dpi=100)
        dual_figure(dual).savefig(HERE / "dual.png", dpi=100)
    results.show(claims)
    return result.status


if __name__ == "__main__":
    sys.exit(main())
