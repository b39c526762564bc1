"""Engines that a benchmark compares on one network, each in a process of its own.

`Peers` starts those that are installed, in processes that take turns: nothing of one engine (its
threads, its memory) stands in the way of another. The table names all; a new one is a file and a
line. Every engine has random or real weights of SmolLM2-135M's shape in f32.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

OURS = "collab"
PROMPT = 64  # tokens of a row that `update` reads but doesn't learn to write
# name -> (module:Class, what must be importable, how to install it)
PEERS: dict[str, tuple[str, str, str]] = {
    OURS: ("experiments.bench.peers.ours:Ours", "jax", ""),
    "tunix": ("experiments.bench.peers.tunix:Tunix", "tunix", "google-tunix"),
    "transformers": (
        "experiments.bench.peers.transformers:Transformers",
        "torch",
        "torch==2.13.0 transformers",
    ),
    "llama.cpp": ("experiments.bench.peers.llama_cpp:LlamaCpp", "llama_cpp", "-e .[smollm2]"),
    "bound": ("experiments.bench.peers.bound:Bound", "numpy", ""),
}


class Engine(Protocol):
    """What a benchmark asks of an engine. Each call returns when its results are on the host.

    An engine that can't do one of them raises NotImplementedError.
    """

    def generate(self, *, batch: int, prompt: int, new: int, greedy: bool) -> float | None:
        """Read `batch` prompts of `prompt` tokens and write `new` tokens a row.

        Returns seconds where the engine knows better than a clock around the call.
        """

    def update(self, *, batch: int, length: int, has_reference: bool) -> float | None:
        """One step of GRPO and Adam on `batch` rows of `length` tokens, all after PROMPT written.

        has_reference: what a KL needs of the reference is computed, too; else it is given.
        """


class Worker:
    """One engine in its process."""

    def __init__(self, name: str) -> None:
        self.name = name
        # An engine whose thread pool ignores the cores it may use is told their number.
        threads = str(len(os.sched_getaffinity(0)))
        variables = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "experiments.bench.peers.worker", PEERS[name][0]],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **dict.fromkeys(variables, threads)},
        )

    def call(self, method: str, **arguments: Any) -> float:
        """Wall seconds of a call, or what it returns.

        Raises: RuntimeError with the engine's own words.
        """
        assert self.process.stdin and self.process.stdout
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps([method, arguments]) + "\n")
            self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} ended with status {self.process.wait()}")
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(f"{self.name}: {answer['error']}")
        return float(answer["told"])

    def peak_gb(self) -> float:
        """Memory that the process has held at most, on Linux."""
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text(encoding="utf-8")
        peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
        return int(peak.split()[1]) * 1024 / 1e9

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin
        with contextlib.suppress(BrokenPipeError):  # it has ended by itself, and said why
            self.process.stdin.close()
        self.process.wait()


@contextlib.contextmanager
def workers(names: Sequence[str]) -> Iterator[list[Worker]]:
    """A worker for each engine that is installed; those that are not are named on stderr."""
    found: list[Worker] = []
    try:
        for name in names:
            _, needed, install = PEERS[name]
            if importlib.util.find_spec(needed) is None:
                print(f"{name} is left out; pip install {install}", file=sys.stderr)
            else:
                found.append(Worker(name))
        yield found
    finally:
        for worker in found:
            worker.close()
