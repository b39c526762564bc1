"""Whether the learned policy of the quickstart beats every baseline, on several seeds.

`python -m experiments.quickstart_seeds --workdir=runs/seeds` runs the README's main command for
each seed, one after the other (5 to 6 minutes each on 2 CPU cores), and writes results.json and
reward.png beside this file. A seed whose workdir holds evaluation.json is not run again.
NOTES.md reads the figures.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import subprocess
import sys
from typing import Any

from matplotlib.figure import Figure

HERE = pathlib.Path(__file__).parent
RATES = ("ask_rate_known", "ask_rate_unknown")
PAIRED = ("reward_minus_learned", "reward_minus_learned_ci")
KEPT = ("em", "asks", "leaked_units", "reward", "reward_ci", *PAIRED, *RATES)
NO_BASELINE = ("learned", "oracle")


def evaluation(seed: int, workdir: pathlib.Path) -> dict[str, Any]:
    """`evaluation.json` of a seed's run, made now if it is not there."""
    path = workdir / f"seed{seed}" / "evaluation.json"
    if not path.is_file():
        command = ["-m", "collab.main", "--config=configs/quickstart.py", f"--config.seed={seed}"]
        subprocess.run([sys.executable, *command, f"--workdir={path.parent}"], check=True)
    return json.loads(path.read_text(encoding="utf-8"))


def summary(seed: int, found: dict[str, Any]) -> dict[str, Any]:
    """What is kept of a run."""
    rows = {row["strategy"]: {name: row.get(name) for name in KEPT} for row in found["rows"]}
    best = max(
        (name for name in rows if name not in NO_BASELINE), key=lambda name: rows[name]["reward"]
    )
    learned, ideal, other = (rows[name]["reward"] for name in ("learned", "oracle", best))
    return {
        "seed": seed,
        "commit": found["commit"],
        "device": found["device"],
        "wall_s": round(found["wall_s"]),
        "best_baseline": best,
        "margin": round(learned - other, 4),
        "share_of_gap_closed": round((learned - other) / (ideal - other), 3),
        "strategies": rows,
    }


def draw(runs: list[dict[str, Any]]) -> Figure:
    """Reward of each strategy, one mark a seed with its 95 % interval."""
    names = sorted(
        runs[0]["strategies"],
        key=lambda name: sum(run["strategies"][name]["reward"] for run in runs),
    )
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for index, run in enumerate(runs):
        rows = [run["strategies"][name] for name in names]
        reward = [row["reward"] for row in rows]
        reach = [
            [row["reward"] - row["reward_ci"][0] for row in rows],
            [row["reward_ci"][1] - row["reward"] for row in rows],
        ]
        places = [place + 0.2 * (index - (len(runs) - 1) / 2) for place in range(len(names))]
        axes.errorbar(reward, places, xerr=reach, fmt="o", ms=4, label=f"seed {run['seed']}")
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("reward per episode (mean, 95 % interval over 384 test questions)")
    axes.grid(axis="x", alpha=0.3)
    axes.legend(loc="lower right")
    return figure


def main() -> None:
    """Run what is missing, write the results, print a line a seed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--workdir", type=pathlib.Path, required=True, help="folder of the runs")
    arguments = parser.parse_args()
    runs = [summary(seed, evaluation(seed, arguments.workdir)) for seed in arguments.seeds]
    (HERE / "results.json").write_text(json.dumps(runs, indent=1) + "\n", encoding="utf-8")
    draw(runs).savefig(HERE / "reward.png", dpi=100)
    for run in runs:
        learned = run["strategies"]["learned"]["reward"]
        print(
            f"seed {run['seed']}: learned {learned:.3f}, {run['margin']:+.3f} to the best baseline "
            f"({run['best_baseline']}), {run['share_of_gap_closed']:.0%} of its gap to the oracle, "
            f"{run['wall_s']} s"
        )


if __name__ == "__main__":
    main()
