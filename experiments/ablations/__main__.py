"""Which ingredients keep the policy from a learned constant, and what each is worth.

`python -m experiments.ablations` trains and evaluates each of `ingredients.VARIANTS` on three
seeds, two runs side by side on 2 CPU cores, skips what is there already, and writes results.json
and ablations.png beside this file. NOTES.md reads the figures. What explains most is run first, and
when it is stopped, what is done is written. 60 runs of 2 to 3 core-minutes, 9 of which imitate for
5 to 7 more, besides `world`, which `experiments.main` makes: 3 to 4 hours of one core, the last of
them for how it learns.
"""

from __future__ import annotations

import dataclasses
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from collab import episode_log
from collab.report import Outcome
from experiments import results, variants
from experiments.ablations.ingredients import BASE, VARIANTS
from experiments.runner import execute
from experiments.statistics import Estimate
from experiments.study import Job, Run, arguments
from experiments.variants import EVALUATED, TELLING, Columns, Variant, columns, difference

HERE = pathlib.Path(__file__).parent
CONFIG = "configs/study.py"
WORDS = "the default"
# Of all variants, to save time: strategies, questions to choose rules on, rules while it trains.
SHARED = {
    "evaluate.strategies": EVALUATED,
    "task.validation": 96,
    "rl.constant_problems": 0,
}

Found = Mapping[str, Mapping[int, Sequence[Outcome]]]  # outcomes by run name and seed


def planned(seeds: Sequence[int]) -> list[Run]:
    """The base, then the variants in their order, each on all seeds."""
    return [
        *(Run(BASE, CONFIG, seed) for seed in seeds),
        *(one.run(CONFIG, seed, SHARED) for one in VARIANTS for seed in seeds),
    ]


# --- what is read ------------------------------------------------------------------------------


def outcomes(job: Job) -> list[Outcome]:
    """Of a run's evaluation, graded by the gated reward also where it trained with another."""
    found, weights = results.outcomes(job), job.config.reward
    if weights.gated:
        return found
    path = job.folder / episode_log.FOLDER / episode_log.EVALUATION
    return regraded(found, episode_log.read(path), weights)


def regraded(
    found: Sequence[Outcome], episodes: Sequence[Mapping[str, Any]], weights: Mapping[str, Any]
) -> list[Outcome]:
    """Outcomes with the gated reward. episodes: of the log, all that the outcomes count.

    Raises: ValueError where the log lacks some.
    """
    reward = {}
    for episode in episodes:
        terms = episode["terms"]
        reward[episode["strategy"], episode["uid"]] = (
            terms["quality"] * terms["efficiency"]
            - weights["leak"] * terms["leak"]
            - weights["format"] * terms["cut"]
        )
    missing = sum((one.strategy, one.uid) not in reward for one in found)
    if missing:
        raise ValueError(
            f"the episode log lacks {missing} of {len(found)} test episodes; set "
            "log.test_episodes to task.test and evaluate again"
        )
    return [dataclasses.replace(one, reward=reward[one.strategy, one.uid]) for one in found]


def tabled(found: Found) -> dict[str, Columns]:
    """Columns of the base and of every variant that is there, in the order of the study."""
    words = {BASE: WORDS} | {one.name: one.words for one in VARIANTS}
    return {
        name: columns(said, found[name], found[BASE])
        for name, said in words.items()
        if found.get(name) and found.get(BASE)
    }


# --- claims ------------------------------------------------------------------------------------


def claims_of(found: Found, rows: Mapping[str, Columns]) -> list[dict[str, Any]]:
    """What is claimed: the constants, what is needed, and what the default is not worse than."""
    claims = [_constancy(rows[BASE], is_constant=False)] if BASE in rows else []
    for one in VARIANTS:
        if one.name not in rows:
            continue
        row = rows[one.name]
        if one.is_constant is not None:
            claims.append(_constancy(row, is_constant=one.is_constant))
        if one.against in rows:
            above = difference(found[one.name], found[one.against])
            claims.append(_compared(one, rows[one.against], row, above))
    return claims


def _constancy(row: Columns, *, is_constant: bool) -> dict[str, Any]:
    """That the policy is a learned constant, or that it is none."""
    said, than = ("a", "less than") if is_constant else ("no", "at least")
    return results.claim(
        f"{row.words}: the policy is {said} learned constant, its ask rate on unknown steps {than} "
        f"{TELLING} above that on known ones",
        row.telling, seeds=row.seeds, holds=row.verdict == ("yes" if is_constant else "no"),
    )  # fmt: skip


def _compared(one: Variant, other: Columns, row: Columns, above: Estimate) -> dict[str, Any]:
    """Of the variant's reward less that of the run that it differs from in one thing."""
    ci, seeds = above.ci, sorted(set(row.seeds) & set(other.seeds))
    if one.is_needed:
        text, holds = "lowers the reward", ci is not None and ci[1] < 0.0
    else:
        text, holds = "is not shown to raise the reward", ci is not None and ci[0] <= 0.0
    return results.claim(f"{one.words}: {text} of {other.words}", above, seeds=seeds, holds=holds)


def main() -> int:
    """Run what is missing, write results and figure, print table and claims."""
    flags = arguments(__doc__ or "", seeds=3)
    result = execute("ablations", planned(flags.seeds), root=flags.root, jobs=flags.jobs)
    found = {
        name: {job.run.seed: outcomes(job) for job in jobs}
        for name, jobs in results.by_name(result).items()
    }
    rows = tabled(found)
    claims = claims_of(found, rows)
    if rows:
        plain = {name: row.plain for name, row in rows.items()}
        results.write_results(HERE / "results.json", result, claims, columns=plain)
        variants.picture(rows, WORDS).savefig(HERE / "ablations.png", dpi=100)
        print(variants.table(rows))
    results.show(claims)
    return result.status


if __name__ == "__main__":
    sys.exit(main())
