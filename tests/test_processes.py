"""Rollouts of two processes with one helper: each process starts this file as a program."""

from __future__ import annotations

import hashlib
import json
import sys
import threading
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np

import processes
from collab import tasks
from collab.assembly import assemble
from collab.llm import make_backend
from collab.llm.serve import serving
from collab.rollout.episodes import Job
from collab.types import HelpRequest, Problem

SAMPLES = 2


class Counting:
    """A backend that counts what it is asked."""

    def __init__(self, backend: Any) -> None:
        self.backend, self.asked, self.lock = backend, 0, threading.Lock()

    def complete(self, *args: Any, **kwargs: Any) -> Any:
        with self.lock:
            self.asked += 1
        return self.backend.complete(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.backend, name)


def rolled_out(config: Any, folder: Path) -> dict[str, Any]:
    """What became of some episodes, and a reply that is waited for outside of them."""
    assembly = assemble(config, str(folder))
    jobs = [
        Job(Problem(str(p), "who is it ?", ("x",)), (0, p, s), "ask_first", helpers=("one_hop",))
        for p in range(2)
        for s in range(SAMPLES)
    ]
    episodes = assembly.engine.run(assembly.initial_params(), jobs, temperature=1.0)
    request = HelpRequest("alone", "ask_fact", "who", helper="one_hop")
    reply = assembly.client.submit(assembly.gate.screen(request, ())).result()
    assembly.close()
    tokens = np.concatenate([episode.trace.tokens_S for episode in episodes])
    return {
        "tokens": hashlib.sha256(tokens.tobytes()).hexdigest(),
        "statuses": [int(episode.status) for episode in episodes],
        "replied": [len(episode.segments) for episode in episodes],
        "reply": [reply.kind.value, reply.text],
    }


def worker(address: str, process: int, config: str, folder: Path) -> None:
    jax.distributed.initialize(address, num_processes=2, process_id=process)
    made = ml_collections.ConfigDict(json.loads(config))
    print(json.dumps(rolled_out(made, folder)), flush=True)


def test_two_processes_ask_once_and_go_on_alike(tiny_config: Any, tmp_path: Path) -> None:
    """A helper takes its time: replies reach both in the same turn, or one would hang."""
    config = tiny_config
    config.mesh.update({"data": 2})
    config.llm.scripted.update({"latency_s": 0.02, "latency_sigma": 1.0})
    knowledge = tasks.make_task(config, str(tmp_path / "data")).knowledge
    helper: Any = Counting(make_backend("scripted", config.llm, knowledge=knowledge))
    with serving(helper) as url:
        config.llm.update({"backend": "openai", "base_url": url, "model": "", "cache": False})
        alone = rolled_out(config, tmp_path / "alone")
        asked, helper.asked = helper.asked, 0
        said = processes.outputs(
            __file__, config.to_json(), str(tmp_path / "both"), devices=1, timeout_s=180
        )
    assert [json.loads(text.splitlines()[-1]) for text in said] == [alone, alone]
    assert helper.asked == asked > 2 * SAMPLES


if __name__ == "__main__":
    worker(sys.argv[1], int(sys.argv[2]), sys.argv[3], Path(sys.argv[4]))
