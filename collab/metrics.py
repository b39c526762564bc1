"""Figures of a run: the masked mean of losses, and writers (JSON lines, TensorBoard, wandb).

`metrics.jsonl` is the truth, one line a logged step; the others are views. Writers touch nothing
before their first line, so a mode that writes none leaves no trace. What is measured is decided in
`collab.rl.update` and `collab.detectors`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Protocol

import jax
import jax.numpy as jnp

from collab.sharding import is_first_process

Figure = float | int | str
# Of names that tell of a process, not of what was learned: what it sent, where its time went. A run
# that was stopped and resumed, or made again on kept replies, has others.
OF_A_PROCESS = ("client/", "engine/", "time/")

_log = logging.getLogger(__name__)


def masked_mean(
    x: jax.Array, mask: jax.Array, *, axis: int | tuple[int, ...] | None = None
) -> jax.Array:
    """Sum of `x` where `mask` holds over the NUMBER of places where it holds, f32.

    mask: bool, broadcasts to the shape of `x`. axis: reduced axes, None for all. An empty mask
    gives 0. Masked places never count, not even as NaN, and their gradient is exactly 0.
    """
    mask = jnp.broadcast_to(mask, x.shape).astype(bool)
    total = jnp.sum(jnp.where(mask, x.astype(jnp.float32), 0.0), axis=axis)
    count = jnp.sum(mask, axis=axis, dtype=jnp.float32)
    return total / jnp.maximum(count, 1.0)


class MetricWriter(Protocol):
    """Somewhere figures go.

    The first `write` of a process drops what an earlier course of the same run wrote at that step
    and later: a resumed run repeats those steps.
    """

    def write(self, step: int, figures: Mapping[str, Figure]) -> None:
        """One line of named figures. A text (a stage's name) says which part of a run it is."""
        ...

    def close(self) -> None:
        """Flush what is open."""
        ...


class Writers(contextlib.AbstractContextManager["Writers"]):
    """Several writers as one; closes them when its `with` block ends."""

    def __init__(self, *writers: MetricWriter) -> None:
        self._writers = writers

    def write(self, step: int, figures: Mapping[str, Figure]) -> None:
        for writer in self._writers:
            writer.write(step, figures)

    def close(self) -> None:
        with contextlib.ExitStack() as stack:  # the others close even if one fails
            for writer in self._writers:
                stack.callback(writer.close)

    def __exit__(self, *exception: object) -> None:
        self.close()


def make_writers(log_config: Any, workdir: str | Path) -> Writers:
    """The writers that `config.log` asks for; none but on the first of several processes.

    Raises: ValueError if `log.wandb_project` is set and wandb is not installed.
    """
    if not is_first_process():
        return Writers()
    writers: list[MetricWriter] = [JsonlWriter(Path(workdir) / "metrics.jsonl")]
    if log_config.tensorboard:
        writers.append(TensorBoardWriter(Path(workdir) / "tensorboard"))
    if log_config.wandb_project:
        writers.append(WandbWriter(log_config.wandb_project, Path(workdir)))
    return Writers(*writers)


class JsonlWriter:
    """One JSON object a line, flushed each time.

    A figure that is not finite becomes null, and `nonfinite` counts those of the line.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        self._file: IO[str] | None = None

    def write(self, step: int, figures: Mapping[str, Figure]) -> None:
        if self._file is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            _drop_lines(self._path, from_step=step)
            self._file = self._path.open("a", encoding="utf-8")
        line: dict[str, Figure | None] = {"step": int(step)}
        nonfinite = 0
        for name, figure in figures.items():
            plain = _plain(figure)
            is_finite = isinstance(plain, str) or math.isfinite(plain)
            line[name] = plain if is_finite else None
            nonfinite += not is_finite
        if nonfinite:
            line["nonfinite"] = nonfinite
        self._file.write(json.dumps(line, allow_nan=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


class TensorBoardWriter:
    """Scalars as TensorBoard events; text figures become the group that a chart stands in."""

    def __init__(self, folder: str | Path) -> None:
        self._folder = Path(folder)
        self._events: Any = None

    def write(self, step: int, figures: Mapping[str, Figure]) -> None:
        if self._events is None:
            from tensorboardX import SummaryWriter  # takes half a second, and may not be asked for

            self._events = SummaryWriter(str(self._folder), purge_step=step)
        for name, number in _by_chart(figures).items():
            if math.isfinite(number):
                self._events.add_scalar(name, number, step)

    def close(self) -> None:
        if self._events is not None:
            self._events.close()


class WandbWriter:
    """Scalars to wandb, named as for TensorBoard. A resumed run goes on under the same id."""

    def __init__(self, project: str, workdir: str | Path) -> None:
        try:
            import wandb
        except ImportError as error:
            raise ValueError(
                f"log.wandb_project={project!r} needs the package wandb; "
                'pip install -e .[wandb], or set log.wandb_project=""'
            ) from error
        self._wandb, self._project, self._workdir = wandb, project, Path(workdir)
        self._run: Any = None

    def write(self, step: int, figures: Mapping[str, Figure]) -> None:
        if self._run is None:
            self._run = self._start()
        self._run.log(_by_chart(figures), step=step)

    def close(self) -> None:
        if self._run is not None:
            self._run.finish()

    def _start(self) -> Any:
        self._workdir.mkdir(parents=True, exist_ok=True)
        id_file = self._workdir / "wandb_id"
        if not id_file.exists():
            id_file.write_text(self._wandb.util.generate_id())
        return self._wandb.init(
            project=self._project,
            dir=str(self._workdir),
            id=id_file.read_text().strip(),
            resume="allow",
        )


def read_jsonl(path: str | Path) -> list[dict[str, Any]]:
    """The lines of a metrics file; a last line that a kill cut short is left out.

    Raises: ValueError for any other line that is not JSON, with file and line number.
    """
    text = Path(path).read_text(encoding="utf-8")
    complete = text[: text.rfind("\n") + 1]
    lines = []
    for number, line in enumerate(complete.splitlines(), 1):
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}:{number} is not a line of JSON; remove that line") from error
    return lines


def _drop_lines(path: Path, *, from_step: int) -> None:
    """Rewrite a metrics file without the steps that are about to be written again."""
    if not path.exists():
        return
    before = path.read_text(encoding="utf-8").count("\n")
    kept = [line for line in read_jsonl(path) if line["step"] < from_step]
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
    os.replace(temporary, path)
    if len(kept) < before:
        _log.info("%s: %d lines from step %d on dropped", path, before - len(kept), from_step)


def _plain(figure: Any) -> Figure:
    """A Python number or text; arrays of one value (numpy or jax) become numbers."""
    if isinstance(figure, str | int | float):
        return figure
    return figure.item()


def _by_chart(figures: Mapping[str, Figure]) -> dict[str, float]:
    plain = {name: _plain(figure) for name, figure in figures.items()}
    group = "".join(f"{figure}/" for figure in plain.values() if isinstance(figure, str))
    return {group + name: float(x) for name, x in plain.items() if not isinstance(x, str)}
