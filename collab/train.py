"""The training loop: traces to imitate, labels for the head, then the policy gradient.

One step counter runs through all three: `cold_start.steps` optimiser steps of imitation, one step
that fits the head to the SLM's own solve rate, then `rl.iterations`. Every step is a function of
(seed, step), and a checkpoint holds all that the next one needs, so a run that was stopped goes on
as if it had not been.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from collab import cold_start, sharding, usage
from collab.assembly import Assembly
from collab.checkpoint import Checkpointer
from collab.chips import chip_of
from collab.detectors import alarms, figures
from collab.episode_log import append_training
from collab.finite import check_finite
from collab.llm.weakening import Weakening
from collab.metrics import MetricWriter
from collab.profiler import Profiler
from collab.progress import headline, progress
from collab.rewards import Terms, score
from collab.rl import branching, dual, load_objective
from collab.rl.batch import Batch, collate
from collab.rl.credit import assign
from collab.rl.steps import Steps
from collab.rl.traces import longest_at
from collab.rl.update import TrainState
from collab.rollout.ahead import Batches
from collab.rollout.episodes import Job
from collab.samples import write_samples
from collab.solve_rate import constant_jobs, constant_rewards, fit_labels, label_jobs, roll_out
from collab.types import Episode, Params, Trace

_log = logging.getLogger(__name__)

ORDER, HELPER, TRACES, LABELS, CONSTANTS, BRANCHES = range(6)  # streams of host randomness
IMITATION_LOG_EVERY = 25  # optimiser steps


class Trainer:
    """One training run over an assembly.

    is_stopped: polled with the step after each one; True ends the run with a checkpoint.
    profiler: of iterations of the policy gradient, if any.
    """

    def __init__(
        self,
        assembly: Assembly,
        writer: MetricWriter,
        is_stopped: Callable[[int], bool],
        profiler: Profiler | None = None,
    ) -> None:
        self.a, self.config, self.writer = assembly, assembly.config, writer
        self.is_stopped, self.profiler = is_stopped, profiler
        self.stopwatch = assembly.engine.stopwatch
        self.problems = assembly.task.problems("train")
        self.objective = load_objective(self.config.rl.objective)
        self.cold_steps = self.config.cold_start.steps
        self.total = self.cold_steps + 1 + self.config.rl.iterations
        self.step = 0
        self.was_stopped = False
        self.constant_reward: float | None = None  # of the best constant rule after the cold start
        self.multiplier = 0.0  # on the price of a turn, with rl.target_ask_rate
        self.warned: set[str] = set()
        self.synthesiser = functools.cache(assembly.synthesiser)  # made when imitation begins
        self.weakening = Weakening.from_config(self.config.llm.weaken, assembly.task.knowledge)
        self.batches = Batches(
            assembly.engine,
            self._jobs,
            temperature=self.config.rollout.temperature,
            weakening=self.weakening,
            max_staleness=self.config.rollout.max_staleness,
        )
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
                self.stopwatch.lap()
                self._stage(self.total, self._reinforce, "policy gradient")
            self._save(None)
        finally:
            self.checkpointer.close()
            if self.profiler:
                self.profiler.close()
        return self.state.params

    def programs(self) -> dict[str, int]:
        """Compiled programs of the updates and of the rollout, by name."""
        return {**self.steps.programs(), **self.a.engine.programs()}

    def _begin(self) -> None:
        """Fresh state, another run's cold start, or the newest good checkpoint."""
        source, layout = self.config.cold_start.from_run, self.steps.checkpoint_layout()
        if source and not (self.config.checkpoint.resume and self.checkpointer.steps()):
            params = cold_start.take(pathlib.Path(source), like=layout["learner"].params)
            self.step = self.cold_steps
        else:
            params = self.a.initial_params()
        self.state: TrainState = self.steps.start_cold(params)
        self.reference: Params = self.steps.copy(self.state.params)  # of what is trained
        if not self.config.checkpoint.resume:
            return
        restored = self.checkpointer.restore(like=layout)
        if restored is not None:
            self.state, self.reference = restored.state["learner"], restored.state["reference"]
            self.step = restored.host["step"]
            self.constant_reward = restored.host.get("constant_reward")
            if self.config.rl.target_ask_rate:
                self.multiplier = restored.host.get("multiplier", 0.0)  # not in an older run
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
                    line.update(1, **headline(metrics))
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
            "multiplier": self.multiplier,
            "spend": self.a.client.spend_state(),
            "judge_spend": self.a.panel.spend_state(),
        }
        self.checkpointer.save(self.step, state, host=host, metric=metric)

    def _rng(self, stream: int, index: int) -> np.random.Generator:
        return np.random.default_rng((self.config.seed, stream, index))

    # --- imitation -------------------------------------------------------------------------

    def _imitate(self) -> dict[str, float]:
        """One optimiser step on synthesised traces."""
        traces, unfit_share = self.synthesiser().batch(
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
        jobs = label_jobs(self.a, self.problems, rng=self._rng(LABELS, 0))
        rules = constant_jobs(self.a, self.problems, rng=self._rng(CONSTANTS, 0))
        made = roll_out(self.a, self.state.params, jobs=[*jobs, *rules], weakening=self.weakening)
        episodes, ruled = made[: len(jobs)], made[len(jobs) :]
        rows = -(-len(episodes) // self.config.rollout.rows) * self.config.rollout.rows
        batch = self._collate([episode.trace for episode in episodes], rows=rows)
        params, metrics = fit_labels(
            self.a, self.state.params, steps=self.steps, episodes=episodes, batch=batch
        )
        self._check_finite(metrics, batch, "cold_start.label_learning_rate")
        self.constant_reward, by_rule = constant_rewards(self.a, jobs=rules, episodes=ruled)
        self.state = self.steps.start_rl(params)
        self.reference = self.steps.copy(params)
        return self._write("solve_rate", {**metrics, **by_rule})

    # --- policy gradient -------------------------------------------------------------------

    def _reinforce(self) -> dict[str, float]:
        """One iteration, under the profiler where there is one."""
        iteration = self.step - self.cold_steps - 1
        with self.profiler.iteration(iteration) if self.profiler else contextlib.nullcontext():
            return self._iterate(iteration)

    def _iterate(self, iteration: int) -> dict[str, float]:
        """Roll out P problems x G samples, credit them, update."""
        config, engine = self.config, self.a.engine
        # Nothing is in flight at a save: whoever resumes there goes on as if never stopped.
        is_break = self.step + 1 == self.total or self._is_save_due(self.step + 1)
        jobs, rolled, counters = self.batches.take(
            iteration, self.state.params, may_begin_next=not is_break
        )
        episodes, judged = self._judged(rolled, iteration)
        terms = [score(episode, config.reward) for episode in episodes]
        weights = dual.priced(config.reward, self.multiplier)
        priced = [score(episode, weights) for episode in episodes] if self.multiplier else terms
        batch = self._collate([episode.trace for episode in episodes], rows=len(jobs))
        metrics = assign(
            batch,
            episodes,
            priced,
            samples=config.rl.samples,
            objective=self.objective,
            leak_weight=config.reward.leak,
            standardise=config.rl.standardise,
        )
        if config.rl.credit == "branch":
            metrics.update(
                branching.compare(
                    batch,
                    jobs,
                    episodes,
                    [term.reward for term in priced],
                    roll_out=lambda turns: self._other_turns(turns, iteration),
                    weights=weights,
                    standardise=config.rl.standardise,
                    rng=self._rng(BRANCHES, iteration),
                )
            )
        with self.stopwatch.part("update"):
            on_device = sharding.put_rows(batch, self.a.mesh)
            for _ in range(config.rl.updates):
                self.state, learned = self.steps.policy_gradient(
                    self.state, self.reference, on_device
                )
            metrics.update(figures(episodes, terms, engine.names))  # while the device is busy
            metrics.update({k: float(v) for k, v in jax.device_get(learned).items()})
        metrics.update(judged)
        metrics.update(self._ascended(episodes, terms))
        if self.constant_reward is not None:
            metrics["gap_to_constant"] = metrics["reward"] - self.constant_reward
        metrics.update(counters)
        metrics.update({f"client/{k}": total for k, total in self.a.client.counters().items()})
        self._check_finite(metrics, batch, "rl.learning_rate")
        found = alarms(metrics, is_rounded=bool(config.rollout.weights))
        metrics["alarms"] = float(self._warn(iteration, found))
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
        metrics.update(self._usage(episodes))
        if iteration % config.log.every == 0:
            self._write("policy_gradient", {"iteration": iteration, **metrics})
        return metrics

    def _usage(self, episodes: Sequence[Episode]) -> dict[str, float]:
        """Where the iteration's time went: since the last one ended, so with what was saved."""
        network, mesh = self.a.policy.config, self.a.mesh
        one = usage.update_flops(network, [episode.trace for episode in episodes])
        self.stopwatch.count(update_flops=one * self.config.rl.updates)
        chip = chip_of(mesh.devices.flat[0].device_kind)
        return usage.figures(
            self.stopwatch.lap(),
            network,
            chip=chip,
            devices=mesh.size,
            weights=self.config.rollout.weights,
        )

    def _ascended(self, episodes: Sequence[Episode], terms: Sequence[Terms]) -> dict[str, float]:
        """Move the multiplier by the batch; returns what it was, with a target ask rate alone."""
        rl, turn_price = self.config.rl, self.config.reward.turn
        if not rl.target_ask_rate:
            return {}
        before = self.multiplier
        self.multiplier = dual.next_multiplier(
            before,
            episodes,
            terms,
            target=rl.target_ask_rate,
            rate=rl.dual_rate,
            turn_price=turn_price,
        )
        return {"multiplier": before, "turn_price": turn_price + before}

    def _other_turns(self, jobs: Sequence[Job], iteration: int) -> list[Episode]:
        """Sampled as the episodes were that they are compared with."""
        rolled = self.a.engine.run(
            self.state.params,
            jobs,
            temperature=self.config.rollout.temperature,
            weakening=self.weakening,
        )
        return self._judged(rolled, iteration)[0]

    def _judged(
        self, rolled: Sequence[Episode], iteration: int
    ) -> tuple[list[Episode], dict[str, float]]:
        """Episodes with the judge's verdicts where they count, and figures about those."""
        with self.stopwatch.part("wait"):  # for the judge, which is an LLM, too
            return self.a.panel.judged(rolled, draw=f"iteration {iteration}")

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
            shards=sharding.row_parts(self.a.mesh),
        )

    def _write(self, stage: str, metrics: dict[str, Any]) -> dict[str, float]:
        self.writer.write(self.step, {"stage": stage, **metrics})
        return metrics

    def _check_finite(self, metrics: dict[str, float], batch: Batch, rate: str) -> None:
        """Stop at a loss that is not finite; the last checkpoint stays good."""
        check_finite(
            metrics, batch, params=self.state.params, step=self.step, into=self.a.workdir, key=rate
        )
