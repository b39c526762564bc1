"""Whether a policy learns to go on alone where helpers fail, and what is lost.

`python -m experiments.failure` trains a policy under each of FAILURES on three seeds, all from the
imitation of the run `world`, whose helpers never fail, and asks on the same test questions what it
comes to, beside `world` itself, the SLM alone and the oracle. Test helpers fail at the same rate as
those of the training, but in answer to other requests. It writes results.json and failure.png
beside this file; NOTES.md reads the figures. What is measured is kept as it comes.

Cost, in minutes of one core: 15 runs without imitation (3 to 4 each), `world` on three seeds as
`experiments.main` has it (8 each where it is missing), 48 measurements of 5 to
20 s. One hour in all.
"""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from collab.evaluate import Evaluator
from collab.report import Outcome
from experiments import results, statistics
from experiments.exchange import About, Exchange, Found, of_seeds
from experiments.runner import execute
from experiments.study import Run, arguments

HERE = pathlib.Path(__file__).parent
CONFIG = "configs/study.py"
POOL = {"one_hop": {"hops": 1}, "two_hops": {"hops": 2}, "three_hops": {"hops": 3}}
# kind -> share of replies that fail -> what every helper's row says on top. A time-out and a
# refusal tell the same, so that only one of them is tried at full failure; an error is a false
# fact; an injection asks back for something private, instead of or before the reply.
FAILURES: dict[str, dict[float, dict[str, Any]]] = {
    "timeout": {share: {"timeout_rate": share} for share in (0.5, 1.0)},
    "refuse": {0.5: {"refuse_rate": 0.5}},
    "err": {0.5: {"error_rate": 0.5}},
    "inject": {0.5: {"injection_rate": 0.5, "injection": "ask_back"}},
}
WITHOUT = "world"  # trained with helpers that never fail
WELL = "well"  # tested with such
LEARNED, ALONE, ORACLE = "learned", "slm_cot", "oracle"
MOST_LOST = 0.02  # of reward, below the SLM alone under full failure
MOST_PAID = 0.05  # of reward, for caution where helpers are well
Seeds = Sequence[Found]
Measured = Mapping[str, Mapping[str, Seeds]]  # by training, by helpers in the test, a seed each


def name_of(kind: str, share: float) -> str:
    """Like timeout_50."""
    return f"{kind}_{share:.0%}".removesuffix("%")


CONDITIONS = {
    name_of(kind, share): changes
    for kind, by_share in FAILURES.items()
    for share, changes in by_share.items()
}


def table(changes: Mapping[str, Any], prefix: str = "") -> dict[str, dict[str, Any]]:
    """The pool with every row changed. prefix: of the names, by which what fails is drawn anew."""
    return {f"{prefix}{name}": {**row, **changes} for name, row in POOL.items()}


def planned(seeds: Sequence[int]) -> list[Run]:
    """Every training; `world` is the run of `experiments.main`."""
    runs = []
    for seed in seeds:
        runs.append(Run(WITHOUT, CONFIG, seed))
        for name, changes in CONDITIONS.items():
            overrides = {"llm.helpers": table(changes), "evaluate.strategies": (LEARNED,)}
            runs.append(Run(name, CONFIG, seed, overrides, WITHOUT))
    return runs


# --- what is measured --------------------------------------------------------------------------


def learned(evaluator: Evaluator) -> tuple[list[Outcome], About]:
    """The policy on test."""
    return evaluator.sweep([0.0], "test")[0.0], {}


def beside_rules(evaluator: Evaluator) -> tuple[list[Outcome], About]:
    """The policy, and the SLM alone and the oracle on its weights."""
    return evaluator.run((LEARNED, ALONE, ORACLE)).outcomes, {}


def exchanges(name: str) -> dict[str, Exchange]:
    """What a policy is tested with, by the name of its training."""
    changes: dict[str, dict[str, Any]] = {WELL: {}}
    changes |= CONDITIONS if name == WITHOUT else {name: CONDITIONS[name]}
    measure = beside_rules if name == WITHOUT else learned
    return {
        title: Exchange({"helpers": table(row, "other_")}, measure)
        for title, row in changes.items()
    }


# --- what it says ------------------------------------------------------------------------------


def values(
    measured: Measured, training: str, helpers: str, strategy: str = LEARNED, metric: str = "reward"
) -> np.ndarray:
    """f64 [S, Q]."""
    by_seed = [found.outcomes for found in measured[training][helpers]]
    return statistics.values_of(by_seed, strategy, metric)


def claims_of(measured: Measured, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """All that is claimed, of the conditions that are there."""
    made = []

    def claim(text: str, one: statistics.Estimate, *, above: float = 0.0) -> None:
        holds = one.ci is not None and one.ci[0] > above
        made.append(results.claim(text, one, seeds=seeds, holds=holds))

    for kind, by_share in FAILURES.items():
        names = [name_of(kind, share) for share in by_share]
        if not all(name in measured for name in names):
            continue
        asks = [values(measured, WITHOUT, WELL, metric="asks")]
        asks += [values(measured, name, name, metric="asks") for name in names]
        fewer = statistics.difference(asks[0], asks[-1])
        is_falling = all(np.diff([one.mean() for one in asks]) < 0)
        holds = is_falling and fewer.ci is not None and fewer.ci[0] > 0
        made.append(results.claim(
            f"{kind}: the more replies fail, the less the policy trained with it asks (asks a "
            f"question saved, from none to {max(by_share):.0%})",
            fewer, seeds=seeds, holds=holds,
        ))  # fmt: skip
        for share, name in zip(by_share, names, strict=True):
            cautious = values(measured, name, name)
            gain = statistics.difference(cautious, values(measured, WITHOUT, name))
            claim(f"{name}: trained with it is above trained without, tested with it", gain)
            if share == 1.0:
                alone = values(measured, WITHOUT, name, ALONE)
                claim(f"{name}: at most {MOST_LOST} below the SLM alone",
                      statistics.difference(cautious, alone), above=-MOST_LOST)  # fmt: skip
            else:
                well = values(measured, name, WELL)
                paid = statistics.difference(well, values(measured, WITHOUT, WELL))
                claim(f"{name}: with helpers that are well, at most {MOST_PAID} below trained "
                      "without", paid, above=-MOST_PAID)  # fmt: skip
    return made


def rows_of(measured: Measured) -> list[dict[str, Any]]:
    """A plain row for each training, helpers and strategy: means over seeds and intervals."""
    rows = []
    for training, by_helpers in measured.items():
        for helpers, found in by_helpers.items():
            by_seed = [one.outcomes for one in found]
            for strategy in dict.fromkeys(outcome.strategy for outcome in by_seed[0]):
                row: dict[str, Any] = {"trained": training, "tested": helpers, "strategy": strategy}
                for metric in ("reward", "em", "asks", "failures", "leaked_units"):
                    one = statistics.mean(statistics.values_of(by_seed, strategy, metric))
                    assert one.figure is not None and one.ci is not None
                    row[metric] = round(one.figure, 4)
                    row[f"{metric}_ci"] = [round(end, 4) for end in one.ci]
                rows.append(row)
    return rows


def draw(rows: Sequence[dict[str, Any]]) -> Figure:
    """Reward and asks under each condition: trained with, trained without, alone, oracle."""
    at = {(row["trained"], row["tested"], row["strategy"]): row for row in rows}
    titles = [WELL, *(name for name in CONDITIONS if (name, name, LEARNED) in at)]
    shown = {
        "oracle": ("C7", lambda title: at[WITHOUT, title, ORACLE]),
        "trained with failures": ("C3", lambda title: at[title, title, LEARNED]),
        "trained without": ("C0", lambda title: at[WITHOUT, title, LEARNED]),
        "the SLM alone": ("C2", lambda title: at[WITHOUT, title, ALONE]),
    }
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    for axes, metric in zip(figure.subplots(1, 2), ("reward", "asks"), strict=True):
        for place, (label, (color, row_of)) in enumerate(shown.items()):
            places = [
                (x, row_of(title))
                for x, title in enumerate(titles)
                if label != "trained with failures" or title != WELL
            ]
            x_N = np.array([x for x, _ in places]) + 0.15 * (place - 1.5)
            mean_N = np.array([row[metric] for _, row in places])
            ends_2N = np.array([row[f"{metric}_ci"] for _, row in places]).T
            axes.errorbar(
                x_N, mean_N, yerr=np.abs(ends_2N - mean_N), fmt="o", color=color, label=label
            )
        axes.set_xticks(range(len(titles)), titles, rotation=20)
        axes.set_ylabel({"reward": "reward a question", "asks": "asks a question"}[metric])
        axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=len(shown))
    return figure


def main() -> int:
    """Train what is missing, measure what is missing, write results and figure."""
    flags = arguments(__doc__ or "", seeds=3)
    result = execute("failure", planned(flags.seeds), root=flags.root, jobs=flags.jobs)
    measured = {
        name: of_seeds("failure", jobs, exchanges(name))
        for name, jobs in results.by_name(result).items()
        if len(jobs) == len(flags.seeds)
    }
    if WITHOUT not in measured:
        return result.status
    claims, rows = claims_of(measured, flags.seeds), rows_of(measured)
    results.write_results(HERE / "results.json", result, claims, tested=rows)
    draw(rows).savefig(HERE / "failure.png", dpi=100)
    results.show(claims)
    return result.status


if __name__ == "__main__":
    sys.exit(main())
