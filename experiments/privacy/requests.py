"""What became of requests once leaking had a price: read off the episodes that each run keeps.

Texts are masked as the runs wrote them: a private unit stands as its kind, "[doctor]".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from collab import episode_log
from collab.tasks.world.generate import GRADED
from experiments.study import Job

EXAMPLES = 4  # a seed
FATES = ("asks without", "leaks less", "leaks as much", "asks no more")


def episodes_of(job: Job) -> dict[str, dict[str, Any]]:
    """The learned policy's evaluated episodes by question."""
    path = job.folder / episode_log.FOLDER / episode_log.EVALUATION
    return {row["uid"]: row for row in episode_log.read(path) if row["strategy"] == "learned"}


def leaked(episode: dict[str, Any]) -> list[str]:
    """Kinds of the private units that its requests gave away."""
    return [kind for segment in episode["segments"] for kind in segment.get("leaked", ())]


def sent(episode: dict[str, Any]) -> list[str]:
    """What left, request by request."""
    return [segment["sent"] for segment in episode["segments"] if segment["sent"] is not None]


# --- kinds ---------------------------------------------------------------------------------------


def leaks_by_kind(jobs: Sequence[Job]) -> dict[str, list[float]]:
    """How often each kind left, a question that holds such a unit: a rate a seed, by kind."""
    rates: dict[str, list[float]] = {kind: [] for kind in GRADED}
    for job in jobs:
        episodes = list(episodes_of(job).values())
        for kind, found in rates.items():
            having = [e for e in episodes if any(unit["kind"] == kind for unit in e["units"])]
            left = sum(leaked(episode).count(kind) for episode in having)
            found.append(round(left / max(len(having), 1), 4))
    return rates


def figure(kinds: dict[str, dict[str, list[float]]]) -> Figure:
    """Leaks of each kind against the leak weight; thin lines are seeds."""
    drawn = Figure(figsize=(5.2, 4.0), layout="constrained")
    axes = drawn.subplots()
    weights = list(kinds)
    for at, kind in enumerate(sorted(GRADED, key=lambda kind: -GRADED[kind])):
        by_seed = list(zip(*(kinds[weight][kind] for weight in weights), strict=True))
        for rates in by_seed:
            axes.plot(weights, rates, color=f"C{at}", lw=0.6, alpha=0.5)
        mean = [sum(rates) / len(rates) for rates in zip(*by_seed, strict=True)]
        axes.plot(weights, mean, "o-", color=f"C{at}", label=f"{kind} ({GRADED[kind]:g})")
    axes.set_xlabel("leak weight")
    axes.set_ylabel("leaks a question that holds the unit")
    axes.grid(alpha=0.3)
    axes.legend(title="unit (sensitivity)")
    return drawn


# --- reformulations ------------------------------------------------------------------------------


def fate(before: dict[str, Any], after: dict[str, Any]) -> str:
    """What a policy does on a question on which another one leaked."""
    if not sent(after):
        return "asks no more"
    if not leaked(after):
        return "asks without"
    return "leaks less" if len(leaked(after)) < len(leaked(before)) else "leaks as much"


def reformulated(before: Sequence[Job], after: Sequence[Job]) -> dict[str, Any]:
    """Of the questions on which `before` leaked: what `after` does, and examples of requests.

    questions: how many came to each fate. exact_match: of both policies there, [before, after].
    examples: answered right by both, without any unit the second time.
    """
    pairs = [
        (old.run.seed, first, second)
        for old, new in zip(before, after, strict=True)
        for first, second in _same_questions(old, new)
        if leaked(first)
    ]
    fates = [fate(first, second) for _, first, second in pairs]
    found: dict[str, Any] = {"questions": {}, "exact_match": {}, "examples": []}
    for name in FATES:
        among = [pair for pair, one in zip(pairs, fates, strict=True) if one == name]
        found["questions"][name] = len(among)
        if among:
            found["exact_match"][name] = [
                round(sum(pair[side]["terms"]["em"] for pair in among) / len(among), 4)
                for side in (1, 2)
            ]
    taken: dict[int, int] = {}
    for (seed, first, second), one in zip(pairs, fates, strict=True):
        is_right = first["terms"]["em"] == second["terms"]["em"] == 1.0
        if one == "asks without" and is_right and taken.get(seed, 0) < EXAMPLES:
            taken[seed] = taken.get(seed, 0) + 1
            found["examples"].append(
                {
                    "seed": seed,
                    "question": second["question"],
                    "before": sent(first),
                    "gave_away": leaked(first),
                    "after": sent(second),
                }
            )
    return found


def _same_questions(old: Job, new: Job) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    before, after = episodes_of(old), episodes_of(new)
    return [(before[uid], after[uid]) for uid in before if uid in after]
