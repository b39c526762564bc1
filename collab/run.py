"""The modes of the command line; glue of assembly, trainer, evaluator and what looks at helpers."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import logging
import pathlib
import re
import sys
import tempfile
import time
from typing import Any

import jax

from collab import calibrate as calibration
from collab import helpers, outcomes, plots, report, sharding
from collab.assembly import Assembly, assemble
from collab.checkpoint import StopFlag, install_signal_handlers
from collab.episode_log import write_evaluation
from collab.evaluate import Evaluation, Evaluator, check_strategies
from collab.llm.fingerprint import Fingerprint, pool_changes
from collab.llm.probe import USUAL_REQUESTS
from collab.metrics import make_writers
from collab.models.lora import completed
from collab.privacy import presidio
from collab.profiler import FOLDER, Profiler
from collab.restore import (
    Restored,
    check_same_run,
    restored,
    source_of,
    take_over,
    write_config,
)
from collab.rewards import score
from collab.rl import load_objective
from collab.rollout.episodes import Job
from collab.rules import validate
from collab.samples import describe
from collab.strategies import Setting
from collab.train import Trainer
from collab.types import PrivateUnit, Problem

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
    try:
        pathlib.Path(workdir).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=workdir):
            pass
    except OSError as error:
        raise ValueError(
            f"--workdir={workdir} is no folder to write to ({error.strerror}); name another"
        ) from error
    if config.compile_cache:
        jax.config.update("jax_compilation_cache_dir", config.compile_cache)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def train(config: Any, workdir: str, checkpoint: str, *, is_profiled: bool = False) -> None:
    """Train, or go on training, then evaluate and print the table.

    is_profiled: leave a profiler's trace of a few iterations in the workdir.
    """
    if checkpoint:
        raise ValueError("--checkpoint is for the other modes; training resumes by itself")
    started, commit = time.monotonic(), report.git_commit()
    check_same_run(config, pathlib.Path(workdir), is_resumed=True)
    take_over(config, pathlib.Path(workdir))
    write_config(config, pathlib.Path(workdir))
    stop = install_signal_handlers()
    try:
        assembly = assemble(config, workdir)
        with contextlib.closing(assembly):
            assembly, probed = helpers.probed(
                assembly, assembly.workdir, requests=config.llm.probe.requests, keeps=True
            )
            trainer = _trained(assembly, stop, is_profiled=is_profiled)
            if trainer.was_stopped:
                _log.info("stopped at step %d of %d; the same command goes on", trainer.step,
                          trainer.total)  # fmt: skip
                return
            stop.uninstall()
            bias = calibration.given(config) or calibration.AS_TRAINED
            evaluation = Evaluator(
                assembly,
                trainer.state.params,
                completed(trainer.reference, trainer.state.params),
                ask_bias=bias.ask_bias,
            ).run()
    finally:
        stop.uninstall()
    plots.training_curves(assembly.workdir / "metrics.jsonl", assembly.workdir / "plots")
    _publish(assembly, evaluation, bias, probed, commit, time.monotonic() - started)
    _log.info("compiled programs: %s", json.dumps(trainer.programs()))


def _trained(assembly: Assembly, stop: StopFlag, *, is_profiled: bool) -> Trainer:
    """A trainer that has run to the end, or until it was told to stop."""
    config = assembly.config
    _log.info(
        "%s: %d training questions, %s, %d rows on %d device(s) of kind %s",
        assembly.task.name,
        len(assembly.task.problems("train")),
        config.model.preset or config.model.weights,
        config.rollout.rows,
        assembly.mesh.size,
        jax.devices()[0].device_kind,
    )
    with make_writers(config.log, assembly.workdir) as writer:
        profiler = Profiler(assembly.workdir / FOLDER) if is_profiled else None
        trainer = Trainer(assembly, writer, stop.should_stop, profiler)
        trainer.run()
    return trainer


def evaluate(config: Any, workdir: str, checkpoint: str) -> None:
    """Evaluate the newest (or given) checkpoint of this run, or of another run's folder."""
    started, commit = time.monotonic(), report.git_commit()
    run = restored(config, workdir, checkpoint)
    with contextlib.closing(run.assembly):
        bias = _ask_bias(run)
        evaluation = Evaluator(
            run.assembly, run.params, run.reference, ask_bias=bias.ask_bias
        ).run()
    _publish(run.assembly, evaluation, bias, run.helpers, commit, time.monotonic() - started)


def calibrate(config: Any, workdir: str, checkpoint: str) -> None:
    """Find the ask bias for the helper now configured; `evaluate` and `ask` use it from then on."""
    commit = report.git_commit()
    run = restored(config, workdir, checkpoint)
    with contextlib.closing(run.assembly):
        found = calibration.calibrated(Evaluator(run.assembly, run.params))
    if not sharding.is_first_process():
        return
    path, target = run.assembly.workdir / calibration.FILE, config.calibrate.ask_rate
    fingerprints = {name: one.to_json() for name, one in run.assembly.fingerprints.items()}
    about = {
        "target": {"ask_rate": target or None, "tolerance": config.calibrate.tolerance},
        "step": run.step,
        "helper": calibration.helper_of(config),
        "fingerprints": fingerprints,
        "commit": commit,
        "device": jax.devices()[0].device_kind,
    }
    calibration.write(path, found, about)
    picture = plots.calibration_curves(
        [dataclasses.asdict(point) for point in found.points],
        dataclasses.asdict(found.chosen),
        target=target,
        folder=run.assembly.workdir / "plots",
    )
    print(calibration.table(found))
    (_log.info if found.is_reached else _log.warning)("%s", found.words)
    print(f"ask bias {found.chosen.ask_bias:g} is in {path}, the curves in {picture}")


def probe(config: Any, workdir: str, checkpoint: str) -> None:
    """Probe the helpers now configured, and compare them with those that a training left.

    Where it left none, these stand for them from now on.
    """
    assembly = assemble(config, workdir)
    with contextlib.closing(assembly):
        requests = config.llm.probe.requests or USUAL_REQUESTS
        assembly, found = helpers.probed(
            assembly, source_of(workdir, checkpoint), requests=requests, keeps=True
        )
    print(helpers.table(assembly.fingerprints))
    if found["changes"] is not None and not found["changes"]:
        print("no change since the training")


def _ask_bias(run: Restored) -> calibration.Applied:
    """What the learned policy runs under, said in the log where it isn't as it was trained."""
    bias = calibration.applied(run.assembly.config, run.assembly.workdir, step=run.step)
    if bias.source != calibration.AS_TRAINED.source:
        _log.info("ask bias %g: %s", bias.ask_bias, bias.source)
    kept = (bias.calibration or {}).get("fingerprints")
    if kept and run.assembly.fingerprints:
        then = {name: Fingerprint.from_json(one) for name, one in kept.items()}
        helpers.warn(pool_changes(then, run.assembly.fingerprints), "the calibration")
    return bias


def ask(config: Any, workdir: str, checkpoint: str) -> None:
    """Questions from the terminal, answered by the learned policy; shows what leaves the machine.

    Bytes that are no UTF-8 read as U+FFFD. A question too long for rollout.capacity is not run.
    """
    if config.privacy.recognisers:
        presidio.check()
    run = restored(config, workdir, checkpoint)
    assembly, setting = run.assembly, Setting(threshold=_ask_bias(run).ask_bias)
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")
    print("notes on one line (private, may be empty), then questions; an empty question ends.")
    notes = _typed("notes: ")
    units = _units(notes, config.privacy.recognisers)
    count, first = 0, tuple(assembly.pool.weights)[:1]
    with contextlib.closing(assembly):
        while question := _typed("question: "):
            problem = Problem(f"ask-{count}", question, ("",), notes=notes, units=units)
            job = Job(problem, (config.seed, count, 0), setting=setting, helpers=first)
            episode = assembly.engine.run(run.params, [job], temperature=0.0)[0]
            terms = score(episode, config.reward)
            print(describe(episode, terms, show_private=True, is_graded=False))
            count += 1


def _typed(prompt: str) -> str:
    """A line from the terminal; "" at its end."""
    try:
        return input(prompt).strip()
    except EOFError:
        print()
        return ""


def _units(notes: str, recognisers: str) -> tuple[PrivateUnit, ...]:
    """Each sentence of the user's notes is a unit, for want of labels; so is what recognisers find.

    They find parts of sentences, which count (and are masked) by themselves.
    """
    parts = re.split(r"\.(?:\s|$)", notes)  # no period within an address or a number
    sentences = [PrivateUnit(part.strip(), "note") for part in parts if part.strip()]
    return (*sentences, *(presidio.find_units(notes) if recognisers else ()))


def _publish(
    assembly: Assembly,
    evaluation: Evaluation,
    bias: calibration.Applied,
    probed: dict[str, Any],
    commit: str,
    wall_s: float,
) -> None:
    """Table to the terminal; JSON and plots to the work folder."""
    config = assembly.config
    rows = report.summarise(
        evaluation.outcomes, resamples=config.evaluate.bootstrap, seed=config.seed
    )
    if not sharding.is_first_process():
        return
    names = assembly.engine.names
    chosen = {
        name: {
            "weights": candidate.weights,
            "kind": names[candidate.setting.kind],
            "threshold": candidate.setting.threshold,
        }
        for name, candidate in evaluation.chosen.items()
    }
    outcomes.write_outcomes(assembly.workdir / outcomes.FILE, evaluation.outcomes)
    report.write_evaluation(
        assembly.workdir / "evaluation.json",
        rows,
        chosen=chosen,
        ask_bias={"value": bias.ask_bias, "source": bias.source},
        helpers=probed,
        config=config.to_dict(),
        seed=config.seed,
        commit=commit,
        device=jax.devices()[0].device_kind,
        wall_s=wall_s,
        judge=evaluation.judge,
    )
    write_evaluation(assembly.workdir, evaluation.episodes, names=names, config=config)
    paths = plots.plot(rows, assembly.workdir / "plots")
    print(report.table(rows))
    if config.rollout.weights:
        _log.info("decoded with weights in %s, as they are served", config.rollout.weights)
    for name, settled in chosen.items():
        _log.info("%s: %s", name, json.dumps(settled))
    for row in rows:
        if row["failures"]:
            _log.warning("%s: the helper failed %.2f times a question, so its figures are too low",
                         row["strategy"], row["failures"])  # fmt: skip
    print(f"{wall_s:.0f} s in all; figures in {paths[0].parent}, numbers in "
          f"{assembly.workdir / 'evaluation.json'}")  # fmt: skip
