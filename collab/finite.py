"""Stops a run whose numbers have blown up, with what it takes to see why."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np

from collab import sharding
from collab.rl.batch import Batch
from collab.types import Params

WATCHED = ("loss", "label_loss", "gradient_norm", "parameter_norm")


def check_finite(
    metrics: Mapping[str, float],
    batch: Batch,
    *,
    params: Params,
    step: int,
    into: Path,
    key: str,
) -> None:
    """Let watched metrics pass if they are finite; else save the batch and stop.

    into: the folder of the batch. key: of the config, whose value is too high in that case.
    Raises: FloatingPointError that names the metrics, the parameters and the file.
    """
    bad = [name for name in WATCHED if not np.isfinite(metrics.get(name, 0.0))]
    if not bad:
        return
    path = into / f"bad_batch_{step}.npz"
    arrays = {name: np.asarray(value) for name, value in vars(batch).items()}
    np.savez_compressed(path, allow_pickle=False, **arrays)
    leaves = jax.tree_util.tree_leaves_with_path(sharding.fetch(params))
    names = [jax.tree_util.keystr(where) for where, leaf in leaves if not np.isfinite(leaf).all()]
    raise FloatingPointError(
        f"{' and '.join(bad)} not finite at step {step}; parameters affected: "
        f"{', '.join(names[:5]) or 'none yet'}; the batch is in {path}; lower {key}"
    )
