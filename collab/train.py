"""The training loop: traces to imitate, labels for the head, then the policy gradient.

One step counter runs through all three: `cold_start.steps` optimiser steps of imitation, one step
that fits the head to the SLM's own solve rate, then `rl.iterations`. Every step is a function of
(seed, step), and a checkpoint holds all that the next one needs, so a run that was stopped goes on
as if it had not been.
"""

from __future__ import annotations

import collections
import contextlib
import logging
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from collab import cold_start, sharding
from collab.assembly import Assembly
from collab.checkpoint import Checkpointer
from collab.detectors import alarms, figures
from collab.episode_log import append_training
from collab.llm.weakening import Weakening
from collab.metrics import MetricWriter
from collab.progress import progress
from collab.rewards import score
from collab.rl import load_objective
from collab.rl.batch import Batch, collate
from collab.rl.credit import assign
from collab.rl.imitation import label_decisions, pad_labels
from collab.rl.steps import Steps
from collab.rl.traces import Synthesiser
from collab.rl.update import TrainState
from collab.rollout.episodes import Job
from collab.samples import write_samples
from collab.strategies import Setting
from collab.strategies.constant import constant_rules
from collab.types import FIRST_REQUEST_ID, Episode, Params, TeachableTask, Trace

_log = logging.getLogger(__name__)

ORDER, HELPER, TRACES, LABELS, CONSTANTS = range(5)  # streams of host randomness
IMITATION_LOG_EVERY = 25  # optimiser steps


class Trainer:
    """One training run over an assembly.

    is_stopped: polled with the step after each one; True ends the run with a checkpoint.
    """

    def __init__(
        self, assembly: Assembly, writer: MetricWriter, is_stopped: Callable[[int], bool]
    ) -> None:
        self.a, self.config, self.writer = assembly, assembly.config, writer
        self.is_stopped = is_stopped
        self.problems = assembly.task.problems("train")
        self.objective = load_objective(self.config.rl.objective)
        self.cold_steps = self.config.cold_start.steps
        self.total = self.cold_steps + 1 + self.config.rl.iterations
        self.step = 0
        self.was_stopped = False
        self.constant_reward: float | None = None  # of the best constant rule after the cold start
        self.warned: set[str] = set()
        self.synthesiser: Synthesiser | None = None  # made when imitation begins
        self.weakening = Weakening.from_config(self.config.llm.weaken, assembly.task.knowledge)
        self.steps = Steps(
            self.config,
            assembly.policy,
            assembly.mesh,
            param_shapes=assembly.param_shapes(),
            is_barred_V=assembly.engine.decoder.is_barred_V,
        )

    def run(self) -> Params:
        """Train to the end, or until told to stop; a checkpoint is written either way."""
        folder, settings = self.a.workdir / "checkpoints", self.config.checkpoint
        self.checkpointer = Checkpointer(
            folder, keep=settings.keep, best_metric=settings.best_metric
        )
        try:
            self._begin()
            # What goes to a device is said where it goes; anything else would be a slip.
            with jax.transfer_guard_host_to_device("disallow"):
                self._stage(self.cold_steps, self._imitate, "imitation")
                if self.step == self.cold_steps > 0 and not self.config.cold_start.from_run:
                    cold_start.keep(self.a.workdir, self.state.params, step=self.step)
                self._stage(self.cold_steps + 1, self._judge)
                self._stage(self.total, self._reinforce, "policy gradient")
            self._save(None)
        finally:
            self.checkpointer.close()
        return self.state.params

    def programs(self) -> dict[str, int]:
        """Compiled programs of the updates and of the rollout, by name."""
        return {**self.steps.programs(), **self.a.engine.programs()}

    def _begin(self) -> None:
        """Fresh state, another run's cold start, or the newest good checkpoint."""
        source, layout = self.config.cold_start.from_run, self.steps.checkpoint_layout()
        if source and not (self.config.checkpoint.resume and self.checkpointer.steps()):
            params = cold_start.take(pathlib.Path(source), like=layout["reference"])
            self.step = self.cold_steps
        else:
            params = self.a.initial_params()
        self.state: TrainState = self.steps.start_cold(params)
        self.reference: Params = self.steps.copy(self.state.params)
        if not self.config.checkpoint.resume:
            return
        restored = self.checkpointer.restore(like=layout)
        if restored is not None:
            self.state, self.reference = restored.state["learner"], restored.state["reference"]
            self.step = restored.host["step"]
            self.constant_reward = restored.host.get("constant_reward")
            if "spend" in restored.host:  # not in a run that is older than the record
                self.a.client.restore_spend(restored.host["spend"])
            self.a.panel.restore_spend(restored.host.get("judge_spend", {}))
            _log.info("resumed at step %d of %d", self.step, self.total)

    def _stage(self, end: int, work: Callable[[], dict[str, float]], label: str = "") -> None:
        """Run `work` until the step counter reaches `end`, with saves.

        label: of the progress line over the steps; "" where `work` shows its own.
        """
        if self.step >= end or self._is_stopped():
            return
        steps = progress(end - self.step, label) if label else contextlib.nullcontext()
        with steps as line:
            while self.step < end:
                metrics = work()
                self.step += 1
                if line:
                    line.update(1, **shown(metrics))
                if self._is_stopped():
                    break
                if self._is_save_due(self.step):
                    self._save(metrics.get(self.config.checkpoint.best_metric))

    def _is_stopped(self) -> bool:
        self.was_stopped = self.was_stopped or self.is_stopped(self.step)
        return self.was_stopped

    def _is_save_due(self, step: int) -> bool:
        """Whether to save after `step` steps: now and then in each stage, and where one ends."""
        settings = self.config.checkpoint
        if step <= self.cold_steps:
            return step == self.cold_steps or step % settings.imitation_every == 0
        return (step - self.cold_steps - 1) % settings.every == 0

    def _save(self, metric: float | None) -> None:
        state = {"learner": self.state, "reference": self.reference}
        host = {
            "step": self.step,
            "constant_reward": self.constant_reward,
            "spend": self.a.client.spend_state(),
            "judge_spend": self.a.panel.spend_state(),
        }
        self.checkpointer.save(self.step, state, host=host, metric=metric)

    def _rng(self, stream: int, index: int) -> np.random.Generator:
        return np.random.default_rng((self.config.seed, stream, index))

    # --- imitation -------------------------------------------------------------------------

    def _imitate(self) -> dict[str, float]:
        """One optimiser step on synthesised traces."""
        if self.synthesiser is None:
            assert isinstance(self.a.task, TeachableTask)
            self.synthesiser = Synthesiser(
                task=self.a.task,
                tokenizer=self.a.tokenizer,
                names=self.a.engine.names,
                limits=self.a.engine.limits,
                settings=self.config.cold_start,
                teacher=self.a.teacher(),
                helpers=list(self.a.pool.weights),
            )
        traces, unfit_share = self.synthesiser.batch(
            self.problems,
            self._rng(TRACES, self.step),
            longest=longest_at(self.step, self.config.cold_start.curriculum),
        )
        batch = self._collate(traces, rows=self.config.cold_start.batch)
        self.state, metrics = self.steps.imitate(self.state, sharding.put_rows(batch, self.a.mesh))
        if (self.step + 1) % IMITATION_LOG_EVERY and not self._is_save_due(self.step + 1):
            return {}
        learned = {k: float(v) for k, v in jax.device_get(metrics).items()}
        self._check_finite(learned, batch, "cold_start.learning_rate")
        return self._write("imitation", {**learned, "unfit_share": unfit_share})

    def _judge(self) -> dict[str, float]:
        """Fit the head to what the SLM got right on its own; start the policy gradient there."""
        settings = self.config.cold_start
        jobs, constants = self._label_jobs(), self._constant_jobs()
        with progress(len(jobs) + len(constants), "solve rate") as line:
            made = self.a.engine.run(
                self.state.params,
                [*jobs, *constants],
                temperature=self.config.rollout.temperature,
                on_done=line.update,
                weakening=self.weakening,
            )
        episodes = made[: len(jobs)]
        labels = [label_decisions(episode) for episode in episodes]
        rows = -(-len(episodes) // self.config.rollout.rows) * self.config.rollout.rows
        batch = self._collate([episode.trace for episode in episodes], rows=rows)
        target_BKA, labelled_BK = pad_labels(labels, rows, batch.action_BK.shape[1])
        placed = sharding.put_rows((batch, target_BKA, labelled_BK), self.a.mesh)
        params = self.state.params
        metrics: dict[str, float] = {}
        if labelled_BK.any() and settings.label_steps:
            hidden = self.steps.hidden(params, placed[0])
            params, loss = self.steps.fit_head(params, hidden, *placed)
            metrics["label_loss"] = float(jax.device_get(loss))
            self._check_finite(metrics, batch, "cold_start.label_learning_rate")
        terms = [score(episode, self.config.reward) for episode in episodes]
        metrics.update(figures(episodes, terms, self.a.engine.names))
        ruled, _ = self.a.panel.judged(made[len(jobs) :], draw="constants", label="judge")
        metrics.update(self._constant_rewards(constants, ruled))
        self.state = self.steps.start_rl(params)
        self.reference = self.steps.copy(params)
        return self._write("solve_rate", metrics)

    def _label_jobs(self) -> list[Job]:
        """Rollouts of some training problems, to be judged.

        They ask at random; never, where steps can't be judged one by one.
        """
        settings, rng = self.config.cold_start, self._rng(LABELS, 0)
        picked = rng.choice(
            len(self.problems), min(settings.label_problems, len(self.problems)), replace=False
        )
        kinds = range(FIRST_REQUEST_ID, len(self.a.engine.names))
        helpers = self.a.pool.draw(len(picked), rng)
        strategy, rate = ("random_rate", 0.5) if settings.judge == "steps" else ("slm_cot", 0.0)
        return [
            Job(
                problem=self.problems[int(index)],
                identity=(self.config.seed, int(index), sample),
                strategy=strategy,
                setting=Setting(kinds[(place + sample) % len(kinds)], rate),
                helpers=helpers[place],
                episode=f"label-{place}-{sample}",
            )
            for place, index in enumerate(picked)
            for sample in range(settings.label_samples)
        ]

    def _constant_jobs(self) -> list[Job]:
        """Every constant rule on the same training problems."""
        rng = self._rng(CONSTANTS, 0)
        count = min(self.config.rl.constant_problems, len(self.problems))
        picked = rng.choice(len(self.problems), count, replace=False)
        helpers = self.a.pool.draw(count, rng)
        kinds = range(FIRST_REQUEST_ID, len(self.a.engine.names))
        return [
            Job(
                problem=self.problems[int(index)],
                identity=(self.config.seed, int(index), 0),
                strategy="best_constant",
                setting=setting,
                helpers=drawn,
                episode=f"constant-{rule}-{index}",
            )
            for rule, setting in enumerate(constant_rules(kinds))
            for index, drawn in zip(picked, helpers, strict=True)
        ]

    def _constant_rewards(
        self, jobs: Sequence[Job], episodes: Sequence[Episode]
    ) -> dict[str, float]:
        """Mean reward by rule; the best is kept, for the gap that each iteration logs."""
        rewards = collections.defaultdict(list)
        for job, episode in zip(jobs, episodes, strict=True):
            rewards[job.setting].append(score(episode, self.config.reward).reward)
        means = {setting: float(np.mean(found)) for setting, found in rewards.items()}
        self.constant_reward = max(means.values(), default=None)
        return {
            f"constant_{'never' if setting.threshold else self.a.engine.names[setting.kind]}": mean
            for setting, mean in means.items()
        }

    # --- policy gradient -------------------------------------------------------------------

    def _reinforce(self) -> dict[str, float]:
        """Roll out P problems x G samples, credit them, update."""
        config, engine = self.config, self.a.engine
        iteration = self.step - self.cold_steps - 1
        jobs = self._jobs(iteration)
        rolled = engine.run(
            self.state.params,
            jobs,
            temperature=config.rollout.temperature,
            weakening=self.weakening,
        )
        episodes, judged = self.a.panel.judged(rolled, draw=f"iteration {iteration}")
        terms = [score(episode, config.reward) for episode in episodes]
        batch = self._collate([episode.trace for episode in episodes], rows=len(jobs))
        metrics = assign(
            batch,
            episodes,
            terms,
            samples=config.rl.samples,
            objective=self.objective,
            leak_weight=config.reward.leak,
            standardise=config.rl.standardise,
        )
        on_device = sharding.put_rows(batch, self.a.mesh)
        for _ in range(config.rl.updates):
            self.state, learned = self.steps.policy_gradient(self.state, self.reference, on_device)
        metrics.update(figures(episodes, terms, engine.names))
        metrics.update(judged)
        metrics.update({k: float(v) for k, v in jax.device_get(learned).items()})
        if self.constant_reward is not None:
            metrics["gap_to_constant"] = metrics["reward"] - self.constant_reward
        metrics.update(engine.counters)
        metrics.update({f"client/{k}": total for k, total in self.a.client.counters().items()})
        self._check_finite(metrics, batch, "rl.learning_rate")
        metrics["alarms"] = float(self._warn(iteration, alarms(metrics)))
        if iteration % config.log.samples_every == 0 and sharding.is_first_process():
            write_samples(
                self.a.workdir / "samples.txt",
                f"iteration {iteration}",
                episodes[: config.log.samples],
                terms,
                show_private=config.log.private,
            )
            append_training(
                self.a.workdir,
                episodes,
                terms,
                names=engine.names,
                config=config,
                iteration=iteration,
            )
        if iteration % config.log.every == 0:
            self._write("policy_gradient", {"iteration": iteration, **metrics})
        return metrics

    def _warn(self, iteration: int, found: Sequence[str]) -> int:
        """Say each alarm in words when it is first met; later ones are in the metrics."""
        for text in found:
            if text not in self.warned:
                _log.warning("iteration %d: %s", iteration, text)
        self.warned.update(found)
        return len(found)

    def _jobs(self, iteration: int) -> list[Job]:
        rl, count = self.config.rl, len(self.problems)
        places = range(iteration * rl.problems, (iteration + 1) * rl.problems)
        helpers = self.a.pool.draw(rl.problems, self._rng(HELPER, iteration))
        jobs = []
        for place, drawn in zip(places, helpers, strict=True):
            epoch, offset = divmod(place, count)
            problem = self.problems[int(self._rng(ORDER, epoch).permutation(count)[offset])]
            jobs += [
                Job(
                    problem=problem,
                    identity=(self.config.seed, place, sample),
                    helpers=drawn,
                    episode=f"{iteration}-{place}-{sample}",
                )
                for sample in range(rl.samples)
            ]
        return jobs

    # --- shared ----------------------------------------------------------------------------

    def _collate(self, traces: Sequence[Trace], *, rows: int) -> Batch:
        limits = self.a.engine.limits
        return collate(
            traces,
            rows=rows,
            capacity=limits.capacity,
            decisions=limits.max_segments,
            actions=limits.actions,
            features=limits.features,
        )

    def _write(self, stage: str, metrics: dict[str, Any]) -> dict[str, float]:
        self.writer.write(self.step, {"stage": stage, **metrics})
        return metrics

    def _check_finite(self, metrics: dict[str, float], batch: Batch, rate: str) -> None:
        """Raises: FloatingPointError after saving the batch; the last checkpoint stays good.

        rate: the config key that is too high if something is not finite.
        """
        watched = ("loss", "label_loss", "gradient_norm", "parameter_norm")
        bad = [name for name in watched if not np.isfinite(metrics.get(name, 0.0))]
        if not bad:
            return
        path = self.a.workdir / f"bad_batch_{self.step}.npz"
        arrays = {name: np.asarray(value) for name, value in vars(batch).items()}
        np.savez_compressed(path, allow_pickle=False, **arrays)
        leaves = jax.tree_util.tree_leaves_with_path(sharding.fetch(self.state.params))
        names = [jax.tree_util.keystr(path) for path, leaf in leaves if not np.isfinite(leaf).all()]
        raise FloatingPointError(
            f"{' and '.join(bad)} not finite at step {self.step}; parameters affected: "
            f"{', '.join(names[:5]) or 'none yet'}; the batch is in {path}; lower {rate}"
        )


def longest_at(step: int, curriculum: Sequence[tuple[int, int]]) -> int:
    """The limit of a trace's tokens at a step of imitation; 0 once the curriculum is over."""
    for steps, longest in curriculum:
        if step < steps:
            return longest
        step -= steps
    return 0


def shown(metrics: Mapping[str, float]) -> dict[str, float]:
    """What of a step's metrics stands on the progress line; dollars once there are any."""
    figures = {key: metrics[key] for key in SHOWN if key in metrics}
    if metrics.get("client/usd"):
        figures["spent_usd"] = metrics["client/usd"]
    return figures


SHOWN = ("loss", "token_loss", "reward", "em", "asks", "leak")
