"""What a trained policy loses when its helper is exchanged, and what its ask threshold gives back.

`python -m experiments.recalibrate --workdir=runs/seeds/seed0 [--workdir=...]` takes trained
quickstart runs and, for every row of HELPERS, probes the new helper against those of the training,
calibrates on the validation split (to the ask rate under the old helpers, and to the best reward),
and compares on the test split. It writes results.json and dial.png beside this file; NOTES.md reads
the figures. About a minute a helper and run on 2 CPU cores.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import pathlib
from typing import Any

import jax
from matplotlib.figure import Figure

from collab.calibrate import GRID, Point, best, point, reach, sweep
from collab.config import load_config
from collab.evaluate import Evaluator
from collab.llm.fingerprint import Fingerprint, pool_changes
from collab.report import git_commit, paired_difference
from collab.restore import restored
from collab.run import prepare

HERE = pathlib.Path(__file__).parent
HELPERS = {
    "stronger": {"hops": 3},
    "knows_half": {"hops": 3, "knowledge_share": 0.5},
    "weaker": {"hops": 1, "knowledge_share": 0.5},
    "errs": {"hops": 2, "error_rate": 0.3},
}
REQUESTS = 48  # of the probe
TOLERANCE = 0.02  # asks per validation question
METRICS = ("em", "asks", "reward")


@contextlib.contextmanager
def policy_with(workdir: pathlib.Path, helpers: dict[str, Any] | None) -> Any:
    """An evaluator of a trained run, and the fingerprints of its helpers, by default its own."""
    config = load_config("configs/quickstart.py")
    config.compile_cache = str(workdir.parent / "programs")
    if helpers is not None:
        config.llm.helpers = helpers
    prepare(config, str(workdir))
    run = restored(config, str(workdir), "")
    with contextlib.closing(run.assembly):
        assembly = run.assembly.probed(REQUESTS)
        yield Evaluator(assembly, run.params), assembly.fingerprints


def measured(
    name: str, workdir: pathlib.Path, before: dict[str, Fingerprint], old_rate: float
) -> dict[str, Any]:
    """One new helper: what the probe says, both calibrations, the test split at three biases."""
    with policy_with(workdir, {name: HELPERS[name]}) as (evaluator, now):
        near = reach(lambda bias: sweep(evaluator, [bias])[0], target=old_rate, tolerance=TOLERANCE)
        top = best(lambda biases: sweep(evaluator, biases))
        biases = {
            "as trained": 0.0,
            "old ask rate": near.chosen.ask_bias,
            "best reward": top.chosen.ask_bias,
        }
        dial = sorted({0.0, *GRID, *biases.values()})
        outcomes, config = evaluator.sweep(dial, "test"), evaluator.config
    drawn = {"resamples": config.evaluate.bootstrap, "seed": config.seed}
    points = {bias: point(bias, outcomes[bias], **drawn) for bias in dial}
    rows = {}
    for title, bias in biases.items():
        row: dict[str, Any] = {"ask_bias": bias, **plain(points[bias])}
        for metric in METRICS:
            paired = paired_difference(outcomes[bias], outcomes[0.0], metric=metric, **drawn)
            assert paired is not None
            row[f"{metric}_gain"], row[f"{metric}_gain_ci"] = paired
        rows[title] = row
    return {
        "helper": name,
        "settings": HELPERS[name],
        "strength": round(now[name].strength, 4),
        "changes": pool_changes(before, now)[name],
        "calibration": near.words,
        "is_reached": near.is_reached,
        "test": rows,
        "dial": [plain(points[bias]) for bias in dial],
    }


def plain(one: Point) -> dict[str, Any]:
    """A point in four digits."""
    return {
        key: [round(end, 4) for end in value] if isinstance(value, tuple) else round(value, 4)
        for key, value in vars(one).items()
    }


def one_run(workdir: pathlib.Path, names: list[str]) -> dict[str, Any]:
    """New helpers for one trained policy."""
    with policy_with(workdir, None) as (evaluator, before):
        (old,) = sweep(evaluator, [0.0])
        (old_test,) = sweep(evaluator, [0.0], "test")
    return {
        "workdir": workdir.name,
        "trained_with": {name: round(one.strength, 4) for name, one in before.items()},
        "old_validation": plain(old),
        "old_test": plain(old_test),
        "helpers": [measured(name, workdir, before, old.asks) for name in names],
    }


def claims(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What NOTES.md says, with its figures; an interval is the one of the worst case."""
    cases = [(run, case) for run in runs for case in run["helpers"]]

    def off_rate(pair: tuple[dict[str, Any], dict[str, Any]]) -> float:
        run, case = pair
        return abs(case["test"]["old ask rate"]["asks"] - run["old_test"]["asks"])

    def gain(pair: tuple[dict[str, Any], dict[str, Any]]) -> float:
        return pair[1]["test"]["best reward"]["reward_gain"]

    far, least, most = max(cases, key=off_rate), min(cases, key=gain), max(cases, key=gain)
    where = {"seeds": [run["workdir"] for run in runs]}
    return [
        {
            "claim": "calibrated to the old ask rate on validation, the rate on test is off by at "
            "most 0.06 asks a question",
            "figure": round(off_rate(far), 4),
            "ci": far[1]["test"]["old ask rate"]["asks_ci"],
            "holds": off_rate(far) <= 0.06,
            **where,
        },
        {
            "claim": "under the bias of best validation reward, test reward is in no case shown to "
            "be below bias 0",
            "figure": round(gain(least), 4),
            "ci": least[1]["test"]["best reward"]["reward_gain_ci"],
            "holds": least[1]["test"]["best reward"]["reward_gain_ci"][1] >= 0.0,
            **where,
        },
        {
            "claim": "it is above that of bias 0 in at least one case",
            "figure": round(gain(most), 4),
            "ci": most[1]["test"]["best reward"]["reward_gain_ci"],
            "holds": most[1]["test"]["best reward"]["reward_gain_ci"][0] > 0.0,
            **where,
        },
    ]


def draw(run: dict[str, Any]) -> Figure:
    """Exact match and reward on test against asks, one curve a helper; stars: as trained."""
    figure = Figure(figsize=(9.5, 3.8), layout="constrained")
    for axes, metric in zip(figure.subplots(1, 2), ("em", "reward"), strict=True):
        for case in run["helpers"]:
            dial = sorted(case["dial"], key=lambda one: one["asks"])
            asks = [one["asks"] for one in dial]
            (line,) = axes.plot(
                asks, [one[metric] for one in dial], "o-", ms=3, label=case["helper"]
            )
            trained = case["test"]["as trained"]
            axes.plot(trained["asks"], trained[metric], "*", ms=13, color=line.get_color())
        axes.set_xlabel("asks per question")
        axes.set_ylabel({"em": "exact match, share", "reward": "reward"}[metric])
        axes.grid(alpha=0.3)
    axes.legend()
    figure.suptitle(f"Test split under ask biases from -8 to 8, {run['workdir']}; star: bias 0")
    return figure


def main() -> None:
    """Measure all runs, write the results, print a line a case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", type=pathlib.Path, action="append", required=True)
    parser.add_argument("--helpers", nargs="+", choices=list(HELPERS), default=list(HELPERS))
    parser.add_argument("--out", type=pathlib.Path, default=HERE, help="folder of the results")
    arguments = parser.parse_args()
    commit = git_commit()
    runs = [one_run(workdir, arguments.helpers) for workdir in arguments.workdir]
    found = {
        "commit": commit,
        "device": jax.devices()[0].device_kind,
        "claims": claims(runs),
        "runs": runs,
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "results.json").write_text(
        json.dumps(found, indent=1) + "\n", encoding="utf-8"
    )
    draw(runs[0]).savefig(arguments.out / "dial.png", dpi=100)
    for run in runs:
        for case in run["helpers"]:
            print(f"{run['workdir']}, {case['helper']}: {'; '.join(case['changes'])}")
            for title, row in case["test"].items():
                low, high = row["reward_gain_ci"]
                print(
                    f"  {title:12} bias {row['ask_bias']:7.3f}  asks {row['asks']:.3f}  EM "
                    f"{row['em']:.3f}  reward {row['reward']:.3f} ({row['reward_gain']:+.3f} "
                    f"[{low:+.3f} {high:+.3f}])"
                )


if __name__ == "__main__":
    main()
