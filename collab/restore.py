"""What stands in a run's folder: its config, and a trained policy, read back to be used.

A folder is refused where it was made with another config than the one given.
"""

from __future__ import annotations

import contextlib
import dataclasses
import filecmp
import json
import logging
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

from collab import cold_start, helpers, sharding
from collab.assembly import Assembly, assemble
from collab.checkpoint import Checkpointer
from collab.config import flatten
from collab.metrics import make_writers
from collab.models.lora import completed
from collab.train import Trainer
from collab.types import Params

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Restored:
    """A trained policy with all that runs it. reference: parameters after the cold start.

    helpers: what `collab.helpers.probed` found.
    """

    assembly: Assembly
    params: Params
    reference: Params
    step: int
    helpers: dict[str, Any]


def source_of(workdir: str, checkpoint: str) -> pathlib.Path:
    """The folder of the training: workdir, unless --checkpoint names another."""
    is_folder = bool(checkpoint) and checkpoint != "best" and not checkpoint.isdigit()
    return pathlib.Path(checkpoint if is_folder else workdir)


def restored(config: Any, workdir: str, checkpoint: str) -> Restored:
    """A checkpoint's policy; the helpers are probed, where config says so."""
    source = source_of(workdir, checkpoint)
    if not (source / "checkpoints").is_dir():
        raise ValueError(
            f"no checkpoints in {source}; train first, or name a run's folder by --checkpoint"
        )
    if not (source / "tokenizer").is_dir():
        raise ValueError(f"no tokenizer in {source}; it is not the folder of a run")
    check_same_run(config, source, is_resumed=False)
    settings = config.checkpoint
    with contextlib.closing(
        Checkpointer(source / "checkpoints", keep=settings.keep, best_metric=settings.best_metric)
    ) as checkpointer:
        steps = checkpointer.steps()
        if not steps:
            raise ValueError(f"no checkpoint in {source} is finished; train first")
        step = int(checkpoint) if checkpoint.isdigit() else None
        if checkpoint == "best":
            step = checkpointer.best_step()
            if step is None:
                raise ValueError(f"--checkpoint=best: no step in {source} has a figure; {steps}")
        if step not in (None, *steps):
            raise ValueError(f"--checkpoint={step} is not in {source}; there are {steps}")
        assembly = assemble(config, str(source))
        assembly = dataclasses.replace(assembly, workdir=pathlib.Path(workdir))
        trainer = Trainer(assembly, make_writers(config.log, workdir), lambda step: False)
        kept = checkpointer.restore(step, like=trainer.steps.checkpoint_layout())
    assert kept is not None  # there are steps
    _log.info("checkpoint step %d of %s", kept.step, source)
    assembly, probed = helpers.probed(assembly, source, requests=config.llm.probe.requests)
    params = kept.state["learner"].params
    reference = completed(kept.state["reference"], params)
    return Restored(assembly, params, reference, kept.step, probed)


# Keys that a folder's tokenizer depends on, its checkpoints, and a training run that goes on.
FIXED_BY_TOKENIZER = ("tokenizer.", "requests", "chain_request")
FIXED_BY_CHECKPOINT = (
    *(
        "model.preset",
        "model.lora.",
        "model.features",
        "model.helper_features",
        "model.head",
        "model.head_width",
    ),
    "rl.credit",
)
FIXED_BY_RUN = (
    *("task.name", "task.path", "task.gsm.", "task.world.", "task.privatise.", "task.atlas."),
)
FIXED_BY_PROGRESS = ("seed", "cold_start.steps", "cold_start.from_run")
# What a cold start is made by; not what only its run's labels, evaluation or place depend on. In
# traces all features are 0, so that its head learned none.
FIXED_BY_COLD_START = (*FIXED_BY_TOKENIZER, "seed", "task.", "model.", "cold_start.")
FREE_AFTER_COLD_START = (
    *("task.data_dir", "task.validation", "task.test", "model.remat", "model.features"),
    *("cold_start.from_run", "cold_start.judge", "cold_start.label_"),
)


def check_same_run(config: Any, folder: pathlib.Path, *, is_resumed: bool) -> None:
    """Raise ValueError if what stands in a run's folder was made with another config.

    is_resumed: training goes on in it, so that the task, too, must be the same.
    """
    if not (folder / "config.json").is_file() or not (folder / "tokenizer").is_dir():
        return
    has_trained = _has_trained(folder)
    fixed = FIXED_BY_TOKENIZER + (FIXED_BY_CHECKPOINT if has_trained else ())
    if is_resumed:
        fixed += FIXED_BY_RUN + (FIXED_BY_PROGRESS if has_trained else ())
    for path, now, before in _changes(config, folder):
        if path.startswith(fixed):
            raise ValueError(
                f"{path}={now!r}, but what stands in {folder} was made with {path}={before!r}; "
                "set it back, or name a new --workdir"
            )


def take_over(config: Any, folder: pathlib.Path) -> None:
    """Check that a run in `folder` may begin with another's cold start, and take its tokenizer.

    Raises: ValueError where that run is not there, has not finished its imitation, or was made
    with another seed, task, tokenizer, model or cold start.
    """
    named = config.cold_start.from_run
    source, settings = pathlib.Path(named), config.checkpoint
    if not named or (settings.resume and _has_trained(folder)):
        return
    if not all((source / part).exists() for part in ("config.json", "tokenizer")):
        raise ValueError(
            f"cold_start.from_run={named!r} is not the folder of a run; name one, or '' to imitate"
        )
    for path, now, before in _changes(config, source):
        if path.startswith(FIXED_BY_COLD_START) and not path.startswith(FREE_AFTER_COLD_START):
            raise ValueError(
                f"{path}={now!r}, but the cold start in {source} was made with {path}={before!r}; "
                "set it back, or name another cold_start.from_run"
            )
    if not cold_start.is_kept(source):
        raise ValueError(
            f"cold_start.from_run={named!r} has not finished its imitation, or is older than this "
            "key or has a cold start from elsewhere; name a run that imitated to the end"
        )
    sharding.first_process_first(lambda: _take_tokenizer(source, folder))


def _take_tokenizer(source: pathlib.Path, folder: pathlib.Path) -> bool:
    theirs, ours = source / "tokenizer", folder / "tokenizer"
    if not ours.is_dir():
        temporary = folder / "tokenizer.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.copytree(theirs, temporary)
        temporary.rename(ours)
    names = sorted({path.name for place in (theirs, ours) for path in place.iterdir()})
    _, differ, missing = filecmp.cmpfiles(theirs, ours, names, shallow=False)
    if differ or missing:
        raise ValueError(
            f"the tokenizer in {folder} is not that of cold_start.from_run={str(source)!r}; name a "
            "new --workdir"
        )
    return True


def _has_trained(folder: pathlib.Path) -> bool:
    return any(path.name.isdigit() for path in (folder / "checkpoints").glob("*"))


def _changes(config: Any, folder: pathlib.Path) -> Iterator[tuple[str, Any, Any]]:
    """Path, value now and value then of each key that a run's folder was made otherwise with."""
    saved = _comparable(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    for path, now in _comparable(json.loads(config.to_json_best_effort())).items():
        before = saved.get(path, now)  # a key that is newer than the run
        if before != now:
            yield path, now, before


def _comparable(config: dict[str, Any]) -> dict[str, Any]:
    """Leaves by path; of the requests only their names, since their wording may change."""
    return flatten({**config, "requests": sorted(config["requests"])})


def write_config(config: Any, folder: pathlib.Path) -> None:
    """Keep the config beside what is made with it."""
    if sharding.is_first_process():
        temporary = folder / "config.json.tmp"
        temporary.write_text(config.to_json_best_effort(indent=2) + "\n", encoding="utf-8")
        temporary.replace(folder / "config.json")
