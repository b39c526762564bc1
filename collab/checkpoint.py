"""Save and restore of a run: device state and host record, over Orbax, with digests and fall-back.

Orbax survives a kill at any moment but restores flipped bits in silence and knows no way back from
a damaged newest step. So each save records a digest per leaf, each restore verifies them, and
`restore(None)` walks back to the newest good step. What belongs in a checkpoint is the caller's
matter (`collab.train`). This is the only file that imports Orbax.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import math
import os
import shutil
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from collab.sharding import fetch, leaf_paths

_log = logging.getLogger(__name__)

_DIGEST_BLOCK = 32_768  # words a numpy pass works on: stays in the CPU's cache (measured)
_SPREAD = np.uint32(0x9E3779B1)  # odd, near 2^32 / golden ratio: salts of neighbours lie far apart


@dataclasses.dataclass(frozen=True)
class Restored:
    """A verified checkpoint: `state` laid out as asked, `host` as JSON gives it back."""

    step: int
    state: Any
    host: dict[str, Any]


class DamagedError(Exception):
    """Why a step cannot be trusted, in plain words."""


class Checkpointer:
    """Checkpoints of one run in one folder.

    keep: newest steps that stay; best_metric: the name of the figure whose best step stays besides
    ("" = none). Only `save` changes the folder, so another process may read it meanwhile. With
    several processes of one run all of them make the same calls with the same arguments.
    """

    def __init__(self, folder: str | Path, *, keep: int, best_metric: str = "") -> None:
        if keep < 1:
            raise ValueError(f"checkpoint.keep={keep} must be at least 1; try checkpoint.keep=2")
        self._folder = Path(folder).absolute()
        self._best_metric = best_metric
        self._metrics: dict[int, float] = {}
        policy = _KeepLatestAndBest(latest=keep, metrics=self._metrics)
        self._manager = ocp.CheckpointManager(
            self._folder, options=ocp.CheckpointManagerOptions(preservation_policy=policy)
        )
        self._current: int | None = None  # the step that was last saved or restored
        self._unfinished: int | None = None
        for step in self._manager.all_steps():
            with contextlib.suppress(DamagedError):  # reported when it is restored
                self._note_metric(step, self._read_record(step)["metric"])

    def steps(self) -> list[int]:
        """Steps on disk, oldest first; a damaged one is among them until it is restored."""
        return sorted(self._manager.all_steps())

    def best_step(self) -> int | None:
        """The step with the highest metric, None if no step has one."""
        return _best(self._metrics, among=self.steps())

    def save(
        self, step: int, state: Any, *, host: Mapping[str, Any], metric: float | None = None
    ) -> None:
        """Copy `state` (a pytree of jax arrays) and write it in the background.

        The buffers may be donated as soon as this returns. Only `wait` tells that the step is on
        disk, and raises what went wrong there; the next save waits first. Steps at or after `step`
        on disk are of a course that was left by restoring an earlier step: they are renamed, with
        a warning. Saving the current step again does nothing.
        """
        if step == self._current:
            return
        self.wait()
        self._make_room_for(step)
        metric = metric if metric is not None and math.isfinite(metric) else None
        self._note_metric(step, metric)
        with jax.transfer_guard("allow"):
            leaves = _describe(state, digests(state))
            record = {"host": dict(host), "metric": metric, "leaves": leaves}
            items = ocp.args.Composite(
                state=ocp.args.StandardSave(state), record=ocp.args.JsonSave(_sealed(record))
            )
            self._manager.save(step, args=items, force=True)
        self._current = self._unfinished = step

    def wait(self) -> None:
        """Return when the last save is on disk; raise if it could not be written."""
        step, self._unfinished = self._unfinished, None
        is_written = False
        try:
            self._manager.wait_until_finished()
            is_written = True
        finally:
            if step is not None and is_written:
                _log.info("checkpoint step %d is on disk in %s", step, self._folder)
            elif step is not None:
                self._metrics.pop(step, None)
                _log.error("checkpoint step %d was not written; older steps are untouched", step)

    def close(self) -> None:
        """Wait for the last save and release the folder."""
        try:
            self.wait()
        finally:
            self._manager.close()

    def restore(self, step: int | None = None, *, like: Any) -> Restored | None:
        """Read and verify a step; None takes the newest good one and warns of each it passes over.

        like: pytree of arrays or `jax.ShapeDtypeStruct`s with the shapes and dtypes of the saved
        state and the shardings to restore to, on any mesh. Returns None if there is no step.
        Raises: ValueError if the asked step is missing or damaged (with step and leaf), if every
        step is damaged, or if a step was saved by a run of another shape.
        """
        self.wait()
        self._manager.reload()
        steps = self.steps()
        if step is not None and step not in steps:
            raise ValueError(f"checkpoint step={step} is not in {self._folder}; there are {steps}")
        reasons = []
        for candidate in [step] if step is not None else reversed(steps):
            try:
                restored = self._read(candidate, like)
            except DamagedError as damage:
                reasons.append(f"checkpoint step {candidate} is damaged: {damage}")
                continue
            for reason in reasons:
                _log.warning("%s; going back to step %d", reason, candidate)
            self._current = candidate
            return restored
        if reasons:
            fix = f"restore another of {steps}" if step is not None else "start in a new folder"
            raise ValueError(f"{'; '.join(reasons)}; in {self._folder}; {fix}")
        return None

    def _read(self, step: int, like: Any) -> Restored:
        record = self._read_record(step)
        _check_shapes(record["leaves"], like=like, step=step)
        target = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), like
        )
        with jax.transfer_guard("allow"):
            state = self._read_state(step, target)
            found = digests(state)
        changed = [path for path in found if found[path] != record["leaves"][path]["digest"]]
        if changed:
            named = ", ".join(f"leaf {path}" for path in changed[:3])
            more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
            raise DamagedError(f"the digest of {named}{more} differs from the one saved")
        return Restored(step, state, record["host"])

    def _read_record(self, step: int) -> dict[str, Any]:
        path = self._folder / str(step) / "record" / "metadata"  # where Orbax's JsonSave writes
        try:
            sealed = json.loads(path.read_bytes())
        except (OSError, ValueError) as error:
            raise DamagedError(f"its host record cannot be read ({error})") from error
        record = sealed.get("record") if isinstance(sealed, dict) else None
        if not isinstance(record, dict) or sealed != _sealed(record):
            raise DamagedError("the digest of its host record differs from the one saved")
        return record

    def _read_state(self, step: int, target: Any) -> Any:
        """The device state of a step. Raises: DamagedError, on every process if on any.

        Each process reads its own shards through a reader that waits for no other: one that meets
        a damaged chunk must not leave the rest in a barrier.
        """
        state, failure = None, ""
        try:
            with _lone_reader() as reader:
                path = self._folder / str(step) / "state"
                state = reader.restore(path, args=ocp.args.StandardRestore(target))
        # Orbax answers damage with ValueError, KeyError, OSError or JSON errors, and a missing
        # chunk with a bare Exception. All are reported; if no step is good, restore raises.
        except Exception as error:  # noqa: BLE001
            text = str(error).split(" See full TensorStore details")[0].splitlines() or [""]
            failure = f"its state cannot be read ({type(error).__name__}: {text[0][:300]})"
        if jax.process_count() > 1:
            has_failed = multihost_utils.process_allgather(np.asarray(bool(failure)))
            if has_failed.any() and not failure:
                failure = "its state cannot be read by another process"
        if failure:
            raise DamagedError(failure)
        return state

    def _note_metric(self, step: int, metric: float | None) -> None:
        self._metrics.pop(step, None)
        if self._best_metric and metric is not None:
            self._metrics[step] = metric

    def _make_room_for(self, step: int) -> None:
        """Remove what killed saves left; rename steps at or after `step`, which Orbax refuses."""
        left = [found for found in self.steps() if found >= step]
        if jax.process_index() == 0:
            for unfinished in self._folder.glob("*.orbax-checkpoint-tmp*"):
                shutil.rmtree(unfinished)
            for found in left:
                taken = len(list(self._folder.glob(f"set-aside-{found}-*")))
                aside = self._folder / f"set-aside-{found}-{taken + 1}"
                (self._folder / str(found)).rename(aside)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(f"collab.checkpoint.make_room.{step}")
        if not left:
            return
        for found in left:
            self._metrics.pop(found, None)
        self._manager.reload()
        _log.warning(
            "checkpoint steps %s are of a course that was left; renamed to set-aside-*", left
        )


def _lone_reader() -> ocp.Checkpointer:
    """An Orbax reader of this process alone."""
    process = jax.process_index()
    options = ocp.options.MultiprocessingOptions(
        primary_host=process,
        active_processes={process},
        barrier_sync_key_prefix=f"reader_{process}",
    )
    handler = ocp.StandardCheckpointHandler(multiprocessing_options=options)
    return ocp.Checkpointer(handler, multiprocessing_options=options)


@dataclasses.dataclass(frozen=True)
class _KeepLatestAndBest:
    """Orbax's preservation policy for one run; `metrics` is the checkpointer's own dict.

    Orbax's BestN reads its metrics from files without a digest and fails on a damaged one.
    """

    latest: int
    metrics: dict[int, float]

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """One flag per step; `context` is part of Orbax's protocol."""
        steps = sorted(checkpoint.step for checkpoint in checkpoints)
        kept = {*steps[-self.latest :], _best(self.metrics, among=steps)}
        return [checkpoint.step in kept for checkpoint in checkpoints]


def _best(metrics: Mapping[int, float], *, among: Sequence[int]) -> int | None:
    """The step of the highest metric, the newest of equals."""
    scored = [(metrics[step], step) for step in among if step in metrics]
    return max(scored)[1] if scored else None


# --- digests -------------------------------------------------------------------------------


def digests(state: Any) -> dict[str, str]:
    """A 32-bit digest of every leaf's values, by path, the same on every mesh and device.

    The sum modulo 2^32 of each word after a bijection that depends on its place. So any change
    within one word is found for certain, others but for one in about 2^32. CPU arrays of one
    process are summed by numpy (a compiled program costs 0.1 s per shape, the sum a few ms); others
    where they lie, so that no leaf is ever gathered.
    Source: our choice, with the multipliers of Wellons 2018 ("lowbias32").
    """
    data = [
        jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
        for leaf in jax.tree.leaves(state)
    ]
    sums = fetch([_host_sum(leaf) if _is_on_host(leaf) else _device_sum(leaf) for leaf in data])
    return {path: f"{int(total):08x}" for path, total in zip(leaf_paths(state), sums, strict=True)}


def _is_on_host(leaf: jax.Array) -> bool:
    return leaf.is_fully_addressable and {d.platform for d in leaf.devices()} == {"cpu"}


def _mixed(word: Any, salt: Any) -> Any:
    """For each salt a bijection of 32-bit words; numpy and jax alike."""
    word = word ^ salt
    word *= np.uint32(0x7FEB352D)  # in place for numpy: half the time
    word ^= word >> np.uint32(15)
    word *= np.uint32(0x846CA68B)
    word ^= word >> np.uint32(16)
    return word


def _host_sum(leaf: jax.Array) -> np.uint32:
    array = np.ascontiguousarray(np.asarray(leaf)).reshape(-1)
    word = array.view(np.dtype(f"u{min(array.itemsize, 4)}"))
    salt = np.arange(_DIGEST_BLOCK, dtype=np.uint32) * _SPREAD
    total = 0
    for start in range(0, word.size, _DIGEST_BLOCK):
        block = word[start : start + _DIGEST_BLOCK].astype(np.uint32, copy=False)
        shift = np.uint32(start * int(_SPREAD) % 2**32)
        total += int(_mixed(block, salt[: block.size] + shift).sum(dtype=np.uint32))
    return np.uint32(total % 2**32)


@jax.jit
def _device_sum(leaf: jax.Array) -> jax.Array:
    if leaf.dtype == bool:
        leaf = leaf.astype(jnp.uint8)
    unsigned = jnp.dtype(f"u{min(leaf.dtype.itemsize, 4)}")
    word = jax.lax.bitcast_convert_type(leaf, unsigned).astype(jnp.uint32)
    place = jnp.zeros(word.shape, jnp.uint32)
    for axis, size in enumerate(word.shape):
        place = place * np.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, word.shape, axis)
    return _mixed(word, place * _SPREAD).sum(dtype=jnp.uint32)


def _sealed(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record as JSON gives it back, with the digest of its text."""
    plain = json.loads(json.dumps(record))
    text = json.dumps(plain, sort_keys=True)
    return {"record": plain, "sha256": hashlib.sha256(text.encode()).hexdigest()}


def _describe(tree: Any, digest: Mapping[str, str]) -> dict[str, Any]:
    """Shape, dtype and digest of every leaf by path."""
    return {
        path: {"shape": list(leaf.shape), "dtype": str(leaf.dtype), "digest": digest[path]}
        for path, leaf in zip(leaf_paths(tree), jax.tree.leaves(tree), strict=True)
    }


def _check_shapes(saved: Mapping[str, Any], *, like: Any, step: int) -> None:
    """Raise ValueError if a run of another shape saved this step: that is no damage."""
    wanted = _describe(like, dict.fromkeys(leaf_paths(like), ""))
    for path in sorted({*saved, *wanted}):
        was, is_now = (
            f"{leaves[path]['dtype']}{leaves[path]['shape']}" if path in leaves else "absent"
            for leaves in (saved, wanted)
        )
        if was != is_now:
            raise ValueError(
                f"checkpoint step {step}: leaf {path} is {was} but this run's is {is_now}; restore "
                "with the config that saved it, or start in a new folder"
            )


# --- being asked to stop -------------------------------------------------------------------


class StopFlag:
    """Whether the run was asked to stop (SIGTERM, SIGINT); the training loop polls it."""

    def __init__(self) -> None:
        self._signal_name: str | None = None
        self._previous: dict[int, Any] = {}

    def should_stop(self, step: int) -> bool:
        """Whether to checkpoint and leave after `step`; with several processes the same on all."""
        if jax.distributed.is_initialized():
            return bool(multihost_utils.reached_preemption_sync_point(step))
        return self._signal_name is not None

    def uninstall(self) -> None:
        """Give the signals back to whoever had them before."""
        while self._previous:
            signal.signal(*self._previous.popitem())

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self._signal_name is not None:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self._signal_name = signal.Signals(number).name
        # Not logged: a handler may run while the logging lock is held.
        os.write(2, f"{self._signal_name}: stopping after this step; again to kill\n".encode())


def install_signal_handlers() -> StopFlag:
    """Turn the first SIGTERM or SIGINT into a flag; a second one kills.

    Call after `jax.distributed.initialize`: there JAX's own preemption notice is used instead,
    which the processes agree on, and no handler is installed.
    """
    flag = StopFlag()
    if not jax.distributed.is_initialized():
        for number in (signal.SIGTERM, signal.SIGINT):
            flag._previous[number] = signal.signal(number, flag._handle)
    return flag
