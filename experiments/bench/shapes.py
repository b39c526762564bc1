"""Programs of a config as they are compiled for this machine, from shapes alone."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Callable
from typing import Any
from unittest import mock

import ml_collections

from collab import sharding
from collab.config import load_config
from collab.planning import programs
from collab.rules import validate

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"


def configured(name: str) -> ml_collections.ConfigDict:
    """A file of configs/."""
    return load_config(str(CONFIGS / f"{name}.py"))


def planned_here(config: Any) -> programs.Planned:
    """Those of `collab.planning`, which traces as on an accelerator; here as on what is there."""
    validate(config)
    with mock.patch.object(programs, "as_on_accelerator", contextlib.nullcontext):
        return programs.planned(config, sharding.make_mesh(config.mesh))


def temporary_gb(lower: Callable[[], Any]) -> float:
    """What a program holds at its peak beside arguments and outputs."""
    return float(lower().compile().memory_analysis().temp_size_in_bytes) / 1e9
