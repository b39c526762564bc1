"""A whole run in the small, for tests of what puts the parts together.

The tiny config with a vocabulary, limits and questions that worked solutions fit. Programs are
compiled once a session: those of one shape are read back from a cache on disk, and most tests have
them unoptimised, since optimising takes longer than running them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ml_collections

from collab import tokenizers
from collab.assembly import Assembly, assemble
from collab.config import default_config, flatten, request_names
from collab.llm import make_backend
from collab.llm.client import Client
from collab.metrics import make_writers
from collab.rl.traces import Synthesiser
from collab.rollout.state import Limits
from collab.train import Trainer
from collab.types import action_names
from conftest import TINY
from fake_llm import passed

TRAINABLE = {
    "task.world.max_local_hops": 1,
    "task.world.max_world_hops": 1,
    "cold_start.curriculum": (),
    "tokenizer.kind": "sentencepiece",
    "tokenizer.vocabulary": 512,
    "rollout.capacity": 192,
    "rollout.think_tokens": 24,
    "rollout.request_tokens": 32,
    "rollout.answer_tokens": 12,
    "rollout.reply_tokens": 32,
}


def trainable(tiny_config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """The tiny config, changed so that cold-start traces fit it."""
    tiny_config.update_from_flattened_dict(TRAINABLE)
    return tiny_config


def small_config() -> ml_collections.ConfigDict:
    """`trainable` of a fresh tiny config, for what no fixture reaches."""
    config = default_config()
    config.update_from_flattened_dict(TINY)
    return trainable(config)


def short_config() -> ml_collections.ConfigDict:
    """Two steps of imitation, the fit of the head, one iteration; two strategies."""
    config = small_config()
    config.cold_start.steps, config.rl.iterations = 2, 1
    config.evaluate.strategies = ("learned", "slm_cot")
    return config


def write_config(path: Path, config: ml_collections.ConfigDict) -> None:
    """A config file as a user would write it, with what differs from the defaults."""
    before = flatten(default_config())
    deltas = {key: value for key, value in flatten(config).items() if value != before[key]}
    path.write_text(
        "from collab.config import default_config\n\n\n"
        "def get_config():\n"
        "    config = default_config()\n"
        f"    config.update_from_flattened_dict({deltas!r})\n"
        "    return config\n"
    )


def synthesiser(task: Any, config: Any, *, helpers: Sequence[str]) -> Synthesiser:
    """Of a task alone, without an assembly; the scripted expert teaches."""
    names = action_names(request_names(config))
    backend = make_backend("scripted", config.llm, knowledge=task.knowledge)
    client = Client(backend, config.llm, config.requests)
    return Synthesiser(
        task=task,
        tokenizer=tokenizers.make_tokenizer(config, corpus=task.corpus),
        names=names,
        limits=Limits.of(config.rollout, len(names)),
        settings=config.cold_start,
        teacher=lambda request: client.submit(passed(request)).result(),
        helpers=helpers,
    )


def train(
    config: Any,
    workdir: Path,
    is_stopped: Callable[[Trainer, int], bool] = lambda trainer, step: False,
) -> tuple[Assembly, Trainer]:
    """A new trainer that has run in `workdir`, to the end or until told to stop."""
    assembly = assemble(config, str(workdir))
    with make_writers(config.log, workdir) as writer:
        trainer = Trainer(assembly, writer, lambda step: is_stopped(trainer, step))
        trainer.run()
    return assembly, trainer
