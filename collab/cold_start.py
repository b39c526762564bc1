"""The parameters at the end of imitation, kept in a run's folder for others to begin from.

Imitation takes more than half of a small run, and runs that differ in how they go on from there
can share it. Whether two runs may is checked in `collab.restore`. A critic is no part of it: it is
zero until the policy gradient, so that runs with and without one share it, too.
"""

from __future__ import annotations

import contextlib
import logging
import pathlib
import shutil

import jax
import jax.numpy as jnp

from collab import sharding
from collab.checkpoint import Checkpointer
from collab.models.policy import CRITIC
from collab.types import Params

FOLDER = "cold_start"  # in that of the run

_log = logging.getLogger(__name__)


def keep(run: pathlib.Path, params: Params, *, step: int) -> None:
    """Write them to the run's folder, in place of what stood there; returns once they are there."""
    folder = run / FOLDER

    def clear() -> bool:
        if sharding.is_first_process():
            shutil.rmtree(folder, ignore_errors=True)
        return True

    sharding.first_process_first(clear)
    with contextlib.closing(_checkpointer(run)) as checkpointer:
        checkpointer.save(step, {"params": _without_critic(params)}, host={})


def take(run: pathlib.Path, *, like: Params) -> Params:
    """Read them, laid out as `like`. Raises: ValueError if they are damaged or of another shape."""
    with contextlib.closing(_checkpointer(run)) as checkpointer:
        kept = checkpointer.restore(like={"params": _without_critic(like)})
    if kept is None:
        raise ValueError(f"cold_start.from_run={str(run)!r} holds no finished cold start")
    _log.info("begins with the cold start of %s, %d steps", run, kept.step)
    critic = {name: part for name, part in like.items() if name == CRITIC}
    zeros = jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, leaf.dtype, device=leaf.sharding), critic
    )
    return {**kept.state["params"], **zeros}


def is_kept(run: pathlib.Path) -> bool:
    """Whether a run's imitation is done; it may be training on."""
    return any(path.name.isdigit() for path in (run / FOLDER).glob("*"))


def _without_critic(params: Params) -> Params:
    return {name: part for name, part in params.items() if name != CRITIC}


def _checkpointer(run: pathlib.Path) -> Checkpointer:
    return Checkpointer(run / FOLDER, keep=1)
