"""How much leaks, and what it costs not to: policies of several leak weights, and the gate.

`python -m experiments.privacy` trains a policy under each leak weight of WEIGHTS on three seeds,
those of a seed from one cold start; evaluates some again under the gate, and greedily; and writes
results.json, fronts.png and kinds.png beside this file. The SLM starts out careless (most requests
carry notes along), units are graded, helpers don't know everything, and the evaluation samples as
training does: greedy decoding would round a request's chance of leaking to 0 or 1. What is said in
a request is the SLM's own skill, so training is longer than in the other studies, and moves the SLM
more. 15 runs of 4 to 8 core-minutes and 5 minutes for the gates: about 85 core-minutes. NOTES.md
reads the figures.
"""

from __future__ import annotations

import pathlib
import sys
from typing import Any

import numpy as np

from experiments import fronts, results, statistics
from experiments.fronts import Point
from experiments.privacy import requests
from experiments.runner import execute
from experiments.statistics import Estimate
from experiments.study import Job, Run, arguments
from experiments.trained import at_bias, dial

HERE = pathlib.Path(__file__).parent
CONFIG = "configs/study.py"
WEIGHTS = (0.0, 0.5, 2.0, 8.0)
CARELESS = "careless"  # the run whose imitation all others begin with
USUAL = 0.5  # the default of reward.leak
KNOWN = 0.8  # of facts, to every helper
SHARED: dict[str, Any] = {
    "task.world.graded_sensitivity": True,
    "task.world.leak_needed_share": 0.05,
    "cold_start.steps": 900,  # before it copies notes as they stand
    # short traces are those whose requests carry no notes: of few steps only
    "cold_start.curriculum": ((100, 64), (100, 128)),
    "cold_start.overshare": 0.9,
    "rollout.request_tokens": 48,  # room for notes in a request
    "llm.helpers": {
        name: {"hops": hops, "knowledge_share": KNOWN}
        for name, hops in (("one_hop", 1), ("two_hops", 2), ("three_hops", 3))
    },
    "evaluate.strategies": ("learned", "slm_cot", "llm_alone"),
    "evaluate.greedy": False,
    "log.test_episodes": 384,  # all, for what became of each request
}
LONGER = {"rl.iterations": 72, "rl.learning_rate": 3e-4, "rl.final_learning_rate": 3e-5}
VARIANTS: dict[str, dict[str, Any]] = {
    "gate mask": {"privacy.gate": "mask"},
    "gate block": {"privacy.gate": "block"},
    "greedy": {"evaluate.greedy": True},
}
LOOKED_AT = (0.0, USUAL)  # weights whose policies run under every variant
COSTS = ("leaked_units", "leak")
GOAL, NO_WORSE = 0.8, -0.02  # share of leaked units that is gone; exact match
SAMPLED, RULE = "leak weight", "rules"


def planned(seeds: list[int]) -> list[Run]:
    """A short run a seed for its imitation, and a long one for each weight and seed."""
    short = [Run(CARELESS, CONFIG, seed, {**SHARED, "reward.leak": 0.0}) for seed in seeds]
    return short + [
        Run(run_name(weight), CONFIG, seed, {**SHARED, **LONGER, "reward.leak": weight}, CARELESS)
        for weight in WEIGHTS
        for seed in seeds
    ]


def run_name(weight: float) -> str:
    """The run of a leak weight."""
    return f"leak_{weight:g}"


# --- points --------------------------------------------------------------------------------------


def points_of(groups: dict[str, list[Job]]) -> list[Point]:
    """Every policy as it was trained, under the variants, and two rules."""
    found = []
    for weight in WEIGHTS:
        jobs, name = groups.get(run_name(weight), []), f"{weight:g}"
        if not jobs:
            continue
        by_seed = [results.outcomes(job) for job in jobs]
        found.append(fronts.point(name, SAMPLED, by_seed, costs=COSTS))
        for variant, changes in VARIANTS.items() if weight in LOOKED_AT else ():
            file = f"privacy_{variant.replace(' ', '_')}"
            looked = [dial(job, name=file, changes=changes) for job in jobs]
            found.append(fronts.point(name, variant, looked, strategy=at_bias(0.0), costs=COSTS))
        if weight == USUAL:
            found += [
                fronts.point(rule, RULE, by_seed, strategy=rule, costs=COSTS)
                for rule in ("slm_cot", "llm_alone")
            ]
    return found


# --- claims --------------------------------------------------------------------------------------


def claims_of(points: list[Point], seeds: list[int]) -> list[dict[str, Any]]:
    """What is claimed of the policies that are there."""
    of = {
        group: {one.name: one for one in points if one.group == group}
        for group in (SAMPLED, *VARIANTS)
    }
    claims = _goal_claims(of[SAMPLED], seeds) + _weight_claims(of[SAMPLED], seeds)
    for gate in ("gate mask", "gate block"):
        claims += _gate_claims(gate, of[gate], of[SAMPLED], seeds)
    trained, masked = of[SAMPLED].get(f"{USUAL:g}"), of["gate mask"].get("0")
    if trained and masked:
        em = statistics.difference(trained.values["em"], masked.values["em"])
        claims.append(
            results.claim(
                f"the policy of leak weight {USUAL:g} without a gate has an exact match no more "
                f"than {-NO_WORSE:g} below that of weight 0 behind gate mask: first less second",
                em, seeds=seeds, holds=statistics.is_above(em, NO_WORSE),
            )
        )  # fmt: skip
    return claims


def reduction(one: Point, start: Point) -> Estimate:
    """Share of the private units leaked by `start` that `one` does not leak."""
    left = statistics.ratio(one.values["leaked_units"], start.values["leaked_units"])
    ci = None if left.ci is None else (1.0 - left.ci[1], 1.0 - left.ci[0])
    return Estimate(None if left.figure is None else 1.0 - left.figure, ci)


def chosen(points: dict[str, Point]) -> str | None:
    """The weight that leaks least among those whose exact match is at most 2 points below 0's."""
    start = points["0"]
    good = [
        one
        for one in points.values()
        if one is not start and one.mean("em") - start.mean("em") >= NO_WORSE
    ]
    return min(good, key=lambda one: one.mean("leaked_units")).name if good else None


def _goal_claims(points: dict[str, Point], seeds: list[int]) -> list[dict[str, Any]]:
    """The goal, its weight chosen on every second question and measured on the others."""
    if "0" not in points:
        return []
    text = f"a leak weight chosen on other questions takes at least {GOAL:.0%} of the leaked units "
    text += f"away at no more than {-NO_WORSE:g} of exact match"
    weight = chosen(_every_second(points, 0))
    if weight is None:
        return [results.claim(text, Estimate(None, None), seeds=seeds, holds=False)]
    rest = _every_second(points, 1)
    gone = reduction(rest[weight], rest["0"])
    em = statistics.difference(rest[weight].values["em"], rest["0"].values["em"])
    holds = fronts.reaches(gone, GOAL) and fronts.reaches(em, NO_WORSE)
    return [
        results.claim(f"{text} (weight {weight}): share gone", gone, seeds=seeds, holds=holds),
        results.claim(f"{text} (weight {weight}): exact match", em, seeds=seeds, holds=holds),
    ]


def _every_second(points: dict[str, Point], first: int) -> dict[str, Point]:
    return {
        name: Point(
            name, one.group, {metric: v_SQ[:, first::2] for metric, v_SQ in one.values.items()}
        )
        for name, one in points.items()
    }


def _weight_claims(points: dict[str, Point], seeds: list[int]) -> list[dict[str, Any]]:
    """Each weight against none: what is gone, and what that costs."""
    claims = []
    for name, one in points.items():
        if name == "0" or "0" not in points:
            continue
        gone = reduction(one, points["0"])
        em = statistics.difference(one.values["em"], points["0"].values["em"])
        claims += [
            results.claim(
                f"leak weight {name} against 0: at least {GOAL:.0%} fewer private units leaked",
                gone, seeds=seeds, holds=fronts.reaches(gone, GOAL),
            ),
            results.claim(
                f"leak weight {name} against 0: exact match no more than {-NO_WORSE:g} lower",
                em, seeds=seeds, holds=fronts.reaches(em, NO_WORSE),
            ),
        ]  # fmt: skip
    return claims


def _gate_claims(
    gate: str, gated: dict[str, Point], open_: dict[str, Point], seeds: list[int]
) -> list[dict[str, Any]]:
    """Nothing leaves through a gate, and what it costs the policy that had none in training."""
    claims = []
    for name, one in gated.items():
        left = statistics.mean(one.values["leaked_units"])
        em = statistics.difference(one.values["em"], open_[name].values["em"])
        claims += [
            results.claim(
                f"{gate}, policy of leak weight {name}: no private unit leaves",
                left, seeds=seeds, holds=not one.values["leaked_units"].any(),
            ),
            results.claim(
                f"{gate}, policy of leak weight {name}: exact match no more than {-NO_WORSE:g} "
                "below that without the gate",
                em, seeds=seeds, holds=statistics.is_above(em, NO_WORSE),
            ),
        ]  # fmt: skip
    return claims


def _grading_claims(kinds: dict[str, dict[str, list[float]]], seeds: list[int]) -> list[Any]:
    """Of two units that no question needs, the heavier is given up sooner."""
    light, heavy = "name", "condition"
    claims = []
    for weight in (one for one in kinds if one != "0"):
        left = {
            kind: np.array(kinds[weight][kind]) / np.maximum(kinds["0"][kind], 1e-9)
            for kind in (light, heavy)
        }
        more_S = left[light] - left[heavy]
        claims.append(
            results.claim(
                f"leak weight {weight}: of {light} (1) a larger share of its leaks is left than of "
                f"{heavy} (8)",
                Estimate(float(more_S.mean()), (float(more_S.min()), float(more_S.max()))),
                seeds=seeds, holds=bool(more_S.min() > 0.0),
            )
        )  # fmt: skip
    return claims


def main() -> int:
    """Run what is missing, look at it behind the gate, write results and figures, print claims."""
    flags = arguments(__doc__ or "", seeds=3)
    result = execute("privacy", planned(flags.seeds), root=flags.root, jobs=flags.jobs)
    groups = fronts.complete(results.by_name(result), like=run_name(WEIGHTS[0]))
    claims: list[dict[str, Any]] = []
    if groups:
        points = points_of(groups)
        jobs = {name: groups[run_name(float(name))] for name in _names(points)}
        seeds = [job.run.seed for job in jobs["0"]]
        kinds = {name: requests.leaks_by_kind(of) for name, of in jobs.items()}
        claims = claims_of(points, seeds) + _grading_claims(kinds, seeds)
        results.write_results(
            HERE / "results.json",
            result,
            claims,
            points=fronts.rows(points, COSTS),
            leaks_by_kind=kinds,
            reformulations={
                name: requests.reformulated(jobs["0"], of)
                for name, of in jobs.items()
                if name != "0"
            },
        )
        fronts.draw(points, COSTS).savefig(HERE / "fronts.png", dpi=100)
        requests.figure(kinds).savefig(HERE / "kinds.png", dpi=100)
    results.show(claims)
    return result.status


def _names(points: list[Point]) -> list[str]:
    return [one.name for one in points if one.group == SAMPLED]


if __name__ == "__main__":
    sys.exit(main())
