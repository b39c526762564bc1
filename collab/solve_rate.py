"""The cold start's judgement: what the SLM gets right on its own, and what no rule beats.

Between imitation and the policy gradient the SLM is rolled out twice over: asking at random, for
labels that the help head is fitted to (`collab.rl.imitation` makes them), and by every constant
rule, for the reward that a policy must beat. The loop around it is in `collab.train`.
"""

from __future__ import annotations

import collections
from collections.abc import Sequence

import jax
import numpy as np

from collab import sharding
from collab.assembly import Assembly
from collab.detectors import figures
from collab.llm.weakening import Weakening
from collab.progress import progress
from collab.rewards import score
from collab.rl.batch import Batch
from collab.rl.imitation import label_decisions, pad_labels
from collab.rl.steps import Steps
from collab.rollout.episodes import Job
from collab.strategies import Setting
from collab.strategies.constant import constant_rules
from collab.types import FIRST_REQUEST_ID, Episode, Params, Problem


def label_jobs(
    assembly: Assembly, problems: Sequence[Problem], *, rng: np.random.Generator
) -> list[Job]:
    """Rollouts of some problems, to be judged: `cold_start.label_samples` of each.

    They ask at random; never, where steps can't be judged one by one.
    """
    config, settings = assembly.config, assembly.config.cold_start
    picked = _picked(settings.label_problems, problems, rng)
    kinds = _kinds(assembly)
    helpers = assembly.pool.draw(len(picked), rng)
    strategy, rate = ("random_rate", 0.5) if settings.judge == "steps" else ("slm_cot", 0.0)
    return [
        Job(
            problem=problems[index],
            identity=(config.seed, index, sample),
            strategy=strategy,
            setting=Setting(kinds[(place + sample) % len(kinds)], rate),
            helpers=helpers[place],
            episode=f"label-{place}-{sample}",
        )
        for place, index in enumerate(picked)
        for sample in range(settings.label_samples)
    ]


def constant_jobs(
    assembly: Assembly, problems: Sequence[Problem], *, rng: np.random.Generator
) -> list[Job]:
    """Every constant rule on the same problems, `rl.constant_problems` of them."""
    config = assembly.config
    picked = _picked(config.rl.constant_problems, problems, rng)
    helpers = assembly.pool.draw(len(picked), rng)
    return [
        Job(
            problem=problems[index],
            identity=(config.seed, index, 0),
            strategy="best_constant",
            setting=setting,
            helpers=drawn,
            episode=f"constant-{rule}-{index}",
        )
        for rule, setting in enumerate(constant_rules(_kinds(assembly)))
        for index, drawn in zip(picked, helpers, strict=True)
    ]


def roll_out(
    assembly: Assembly, params: Params, *, jobs: Sequence[Job], weakening: Weakening | None
) -> list[Episode]:
    """An episode per job, sampled as in training, with a progress line."""
    with progress(len(jobs), "solve rate") as line:
        return assembly.engine.run(
            params,
            jobs,
            temperature=assembly.config.rollout.temperature,
            on_done=line.update,
            weakening=weakening,
        )


def fit_labels(
    assembly: Assembly, params: Params, *, steps: Steps, episodes: Sequence[Episode], batch: Batch
) -> tuple[Params, dict[str, float]]:
    """Parameters with the head fitted to what the SLM got right, and metrics.

    batch: of the episodes' traces, in their order, on the host. Without a labelled decision, or a
    step to fit it in, the parameters stay and the metrics hold no `label_loss`.
    """
    rows, decisions = batch.action_BK.shape
    labels = [label_decisions(episode) for episode in episodes]
    target_BKA, labelled_BK = pad_labels(labels, rows, decisions)
    metrics: dict[str, float] = {}
    if labelled_BK.any() and assembly.config.cold_start.label_steps:
        placed = sharding.put_rows((batch, target_BKA, labelled_BK), assembly.mesh)
        hidden_BKD = steps.hidden(params, placed[0])
        params, loss = steps.fit_head(params, hidden_BKD, *placed)
        metrics["label_loss"] = float(jax.device_get(loss))
    terms = [score(episode, assembly.config.reward) for episode in episodes]
    return params, {**metrics, **figures(episodes, terms, assembly.engine.names)}


def constant_rewards(
    assembly: Assembly, *, jobs: Sequence[Job], episodes: Sequence[Episode]
) -> tuple[float | None, dict[str, float]]:
    """The best constant rule's mean reward, None without jobs; and each rule's, as metrics.

    A judge of leaks is asked about the episodes where its verdicts are part of the reward.
    """
    ruled, _ = assembly.panel.judged(episodes, draw="constants", label="judge")
    rewards = collections.defaultdict(list)
    for job, episode in zip(jobs, ruled, strict=True):
        rewards[job.setting].append(score(episode, assembly.config.reward).reward)
    means = {setting: float(np.mean(found)) for setting, found in rewards.items()}
    names = assembly.engine.names
    return max(means.values(), default=None), {
        f"constant_{'never' if setting.threshold else names[setting.kind]}": mean
        for setting, mean in means.items()
    }


def _picked(count: int, problems: Sequence[Problem], rng: np.random.Generator) -> list[int]:
    """Places of so many problems, or of all there are, drawn without replacement."""
    count = min(count, len(problems))
    return [int(index) for index in rng.choice(len(problems), count, replace=False)]


def _kinds(assembly: Assembly) -> range:
    """Actions that are requests."""
    return range(FIRST_REQUEST_ID, len(assembly.engine.names))
