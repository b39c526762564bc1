"""The modes of the command line: train, evaluate, ask; glue of assembly, trainer and evaluator."""

from __future__ import annotations

import dataclasses
import json
import logging
import pathlib
import time
from typing import Any

import jax

from collab import plots, report, sharding
from collab.assembly import Assembly, assemble
from collab.checkpoint import Checkpointer, install_signal_handlers
from collab.config import validate
from collab.evaluate import Evaluation, Evaluator, check_strategies
from collab.metrics import make_writers
from collab.rewards import score
from collab.rl import load_objective
from collab.rollout.episodes import Job
from collab.samples import describe
from collab.train import Trainer
from collab.types import Params, PrivateUnit, Problem

_log = logging.getLogger(__name__)


def start_processes(coordinator: str, processes: int, process: int) -> None:
    """Join the other processes of a multi-host run; nothing to do for a single one.

    coordinator: "auto" on a TPU pod, "host:port" elsewhere, "" for one process.
    """
    if coordinator == "auto":
        jax.distributed.initialize()
    elif coordinator:
        jax.distributed.initialize(coordinator, processes, process)


def prepare(config: Any, workdir: str) -> None:
    """Check the config, make the folder and set jax's own switches. Raises: ValueError."""
    validate(config)
    load_objective(config.rl.objective)
    check_strategies(config)
    folder = pathlib.Path(workdir)
    folder.mkdir(parents=True, exist_ok=True)
    if config.compile_cache:
        jax.config.update("jax_compilation_cache_dir", config.compile_cache)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def train(config: Any, workdir: str, checkpoint: str) -> None:
    """Train, or go on training, then evaluate and print the table."""
    if checkpoint:
        raise ValueError("--checkpoint is for --mode=evaluate and ask; training resumes by itself")
    started = time.monotonic()
    stop = install_signal_handlers()
    assembly = assemble(config, workdir)
    _write_config(config, assembly.workdir)
    _log.info(
        "%s: %d training questions, %s, %d rows on %d device(s) of kind %s",
        assembly.task.name,
        len(assembly.task.problems("train")),
        config.model.preset,
        config.rollout.rows,
        assembly.mesh.size,
        jax.devices()[0].device_kind,
    )
    with make_writers(config.log, workdir) as writer:
        trainer = Trainer(assembly, writer, stop.should_stop)
        trainer.run()
    if trainer.step < trainer.total:
        _log.info("stopped at step %d of %d; the same command goes on", trainer.step, trainer.total)
        return
    stop.uninstall()
    plots.training_curves(assembly.workdir / "metrics.jsonl", assembly.workdir / "plots")
    evaluation = Evaluator(assembly, trainer.state.params, trainer.reference).run()
    _publish(assembly, evaluation, time.monotonic() - started)
    _log.info("compiled programs: %s", json.dumps(trainer.programs()))


def evaluate(config: Any, workdir: str, checkpoint: str) -> None:
    """Evaluate the newest (or given) checkpoint of this run, or of another run's folder."""
    started = time.monotonic()
    assembly, params, reference = _restored(config, workdir, checkpoint)
    evaluation = Evaluator(assembly, params, reference).run()
    _publish(assembly, evaluation, time.monotonic() - started)


def ask(config: Any, workdir: str, checkpoint: str) -> None:
    """Answer questions from the terminal by the learned policy; show what leaves the machine."""
    assembly, params, _ = _restored(config, workdir, checkpoint)
    print("notes on one line (private, may be empty), then questions; an empty question ends.")
    notes = input("notes: ").strip()
    count = 0
    while question := input("question: ").strip():
        problem = Problem(f"ask-{count}", question, ("",), notes=notes, units=_units(notes))
        job = Job(problem, (config.seed, count, 0), helper=next(iter(assembly.helpers)))
        episode = assembly.engine.run(params, [job], temperature=0.0)[0]
        text = describe(episode, score(episode, config.reward), show_private=True)
        print("\n".join(line for line in text.splitlines() if not line.startswith("gold")))
        count += 1


def _units(notes: str) -> tuple[PrivateUnit, ...]:
    """Each sentence of the user's notes is a unit, for want of labels."""
    return tuple(PrivateUnit(part.strip(), "note") for part in notes.split(".") if part.strip())


def _restored(config: Any, workdir: str, checkpoint: str) -> tuple[Assembly, Params, Params]:
    """Assembly with trained parameters and those after the cold start."""
    is_folder = bool(checkpoint) and not checkpoint.isdigit()
    source = pathlib.Path(checkpoint if is_folder else workdir)
    if not (source / "checkpoints").is_dir():
        raise ValueError(
            f"no checkpoints in {source}; train first, or name a run's folder by --checkpoint"
        )
    if not (source / "tokenizer").is_dir():
        raise ValueError(f"no tokenizer in {source}; it is not the folder of a run")
    assembly = assemble(config, str(source))
    assembly = dataclasses.replace(assembly, workdir=pathlib.Path(workdir))
    trainer = Trainer(assembly, make_writers(config.log, workdir), lambda step: False)
    like = trainer.checkpoint_layout()
    checkpointer = Checkpointer(source / "checkpoints", keep=config.checkpoint.keep)
    try:
        step = int(checkpoint) if checkpoint and not is_folder else None
        restored = checkpointer.restore(step, like=like)
    finally:
        checkpointer.close()
    if restored is None:
        raise ValueError(f"{source / 'checkpoints'} holds no finished checkpoint; train first")
    _log.info("checkpoint step %d of %s", restored.step, source)
    return assembly, restored.state["learner"].params, restored.state["reference"]


def _write_config(config: Any, folder: pathlib.Path) -> None:
    (folder / "config.json").write_text(config.to_json_best_effort(indent=2) + "\n")


def _publish(assembly: Assembly, evaluation: Evaluation, wall_s: float) -> None:
    """Table to the terminal; JSON and plots to the work folder."""
    config = assembly.config
    rows = report.summarise(
        evaluation.outcomes, resamples=config.evaluate.bootstrap, seed=config.seed
    )
    if not sharding.is_first_process():
        return
    report.write_evaluation(
        assembly.workdir / "evaluation.json",
        rows,
        config=config.to_dict(),
        seed=config.seed,
        commit=report.git_commit(),
        device=jax.devices()[0].device_kind,
        wall_s=wall_s,
    )
    paths = plots.plot(rows, assembly.workdir / "plots")
    print(report.table(rows))
    for name, candidate in evaluation.chosen.items():
        _log.info("%s: %s, %s weights", name, candidate.setting, candidate.weights)
    print(f"{wall_s:.0f} s in all; figures in {paths[0].parent}, numbers in "
          f"{assembly.workdir / 'evaluation.json'}")  # fmt: skip
