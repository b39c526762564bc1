"""A training run on a file of replies: no network, and the numbers of the run that was recorded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

import runs
from collab import tasks
from collab.llm.replay_store import ReplayStore
from collab.llm.scripted import ScriptedBackend
from collab.llm.serve import serving
from collab.metrics import OF_A_PROCESS
from collab.train import Trainer
from compiling import compiled_once


def lines(workdir: Path) -> list[dict[str, Any]]:
    """Of metrics.jsonl, without the meters of a process: it sends nothing the second time."""
    text = (workdir / "metrics.jsonl").read_text()
    return [
        {
            name: figure
            for name, figure in json.loads(line).items()
            if not name.startswith(OF_A_PROCESS)
        }
        for line in text.splitlines()
    ]


def params(trainer: Trainer) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(trainer.state.params)]


def test_a_replayed_run_needs_no_server_and_gives_the_same_numbers(
    tiny_config: Any, tmp_path: Path, compiled: Path
) -> None:
    config = runs.trainable(tiny_config)
    config.cold_start.steps, config.rl.iterations = 1, 2
    task = tasks.make_task(config, str(tmp_path / "data"))
    backend = ScriptedBackend.from_config(config.llm, knowledge=task.knowledge, seed=0)
    with compiled_once(compiled):
        with serving(backend) as url:
            config.llm.update({"backend": "openai", "base_url": url, "model": ""})
            config.llm.update({"replay": "record", "replay_file": str(tmp_path / "r.sqlite")})
            recorded, first = runs.train(config, tmp_path / "recorded")
            recorded.close()
        config.llm.replay = "replay"  # the server is gone
        replayed, second = runs.train(config, tmp_path / "replayed")
        replayed.close()
    store = ReplayStore(tmp_path / "r.sqlite", create=False)
    assert len(store) > 0
    store.close()
    meters = replayed.client.counters()
    assert meters["sent"] == meters["failures"] == meters["usd"] == 0.0
    assert meters["requests"] == recorded.client.counters()["requests"] > 0.0
    assert lines(tmp_path / "replayed") == lines(tmp_path / "recorded")
    for found, expected in zip(params(second), params(first), strict=True):
        np.testing.assert_array_equal(found, expected)
