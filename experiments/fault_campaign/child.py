"""What runs against a faulty server, in a process of its own: a training run, or many calls.

`python -m experiments.fault_campaign.child WHAT --base_url=... --workdir=...` writes result.json
into the workdir. WHAT: train (200 episodes), outage (training until the helper has been gone and is
back), jumps (train, by a clock that jumps) or calls. The server answers with a digest of what it
was asked (`Echo`), so that a reply tells whose it is.
"""

from __future__ import annotations

import argparse
import collections
import ctypes
import gc
import hashlib
import itertools
import json
import logging
import os
import pathlib
import random
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

from collab.config import default_config
from collab.llm import Completion, Message, estimated_tokens, make_backend, prompts
from collab.llm.client import Client
from collab.privacy.gate import Gate, Screened
from collab.progress import progress
from collab.types import Feedback, FeedbackKind, HelpRequest

DEADLINE_S = 2.0
WAIT_S = 0.5  # a request that took longer was waited for
WARM_CALLS = 4000  # before the first look at memory
LOOK_EVERY = 1000  # calls
IN_FLIGHT = 256  # calls at once, as of a rollout of so many rows
COLD_STEPS, ITERATIONS, PROBLEMS, SAMPLES = 2, 5, 20, 2  # 200 episodes of the policy gradient
AFTERWARDS = 12  # iterations of an outage's run once the circuit has closed
MANY = 5000  # iterations: more than an outage lasts
JUMP_S = 86_400.0  # by how much the clock may be off, either way, at each look
EARLY = 1  # iterations that still compile and fill caches
MODEL = "echo"

TRAINING = {
    "task.train": 32,
    "task.validation": 8,
    "task.test": 8,
    "task.world.people": 8,
    "task.world.cities": 8,
    "task.world.countries": 4,
    "task.world.organisations": 4,
    "task.world.films": 4,
    "task.world.max_local_hops": 1,
    "task.world.max_world_hops": 1,
    "tokenizer.vocabulary": 512,
    "rollout.rows": PROBLEMS * SAMPLES,
    "rollout.capacity": 192,
    "rollout.max_segments": 6,
    "rollout.max_asks": 3,
    "rollout.think_tokens": 24,
    "rollout.request_tokens": 32,
    "rollout.answer_tokens": 12,
    "rollout.reply_tokens": 32,
    "rollout.steps_per_call": 16,
    "cold_start.steps": COLD_STEPS,
    "cold_start.batch": 8,
    "cold_start.curriculum": (),
    "cold_start.warmup": 1,
    "cold_start.label_problems": 4,
    "cold_start.label_samples": 2,
    "cold_start.label_steps": 2,
    "rl.iterations": ITERATIONS,
    "rl.constant_problems": 0,
    "rl.problems": PROBLEMS,
    "rl.samples": SAMPLES,
    "rl.warmup": 1,
    "checkpoint.every": ITERATIONS,
    "log.tensorboard": False,
    "llm.backend": "openai",
    "llm.model": MODEL,
    "llm.api_key_env": "",
    "llm.concurrency": PROBLEMS * SAMPLES,
    "llm.deadline_s": DEADLINE_S,
    "llm.backoff_s": 0.1,  # so that three retries outlast a port that is closed for a moment
    "llm.cache": False,
}
CALLING = {
    "model": MODEL,
    "api_key_env": "",
    "concurrency": 64,
    "deadline_s": DEADLINE_S,
    "backoff_s": 0.01,
    "cache": False,
    # Else a closed port makes most of the calls fail at once, which tests little.
    "circuit_failures": 0,
}


class Echo:
    """A backend whose reply names the request."""

    is_local, where = True, ""
    helper_names = (MODEL,)

    def complete(
        self, messages: Sequence[Message], *, reply_tokens: int, deadline_s: float, helper: str
    ) -> Completion:
        text = prompts.written_feedback(FeedbackKind.ANSWER, digest(messages))
        sent = sum(estimated_tokens(message.content) for message in messages)
        return Completion(text, sent, estimated_tokens(text), 0.0)

    def check(self) -> None:
        """Nothing can be wrong."""

    def close(self) -> None:
        """Nothing is open."""


def digest(messages: Sequence[Message]) -> str:
    talk = json.dumps([(message.role, message.content) for message in messages])
    return hashlib.sha256(talk.encode()).hexdigest()[:16]


class Witness:
    """Stands between engine and client: whether each reply is its request's, and who was slow."""

    def __init__(self, client: Client, instructions: dict[str, str]) -> None:
        self._client, self._instructions = client, instructions
        self._lock = threading.Lock()  # guards all below
        self.miscredited = 0
        self.waits: list[tuple[float, float]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def submit(self, screened: Screened) -> Future[Feedback]:
        started_s, request = time.monotonic(), screened.request
        future = self._client.submit(screened)
        future.add_done_callback(lambda done: self._note(request, done.result(), started_s))
        return future

    def _note(self, request: HelpRequest, feedback: Feedback, started_s: float) -> None:
        instruction = prompts.instruction_of(request.kind, self._instructions)
        right = digest(prompts.messages(request, instruction))
        is_failed, ended_s = feedback.kind is FeedbackKind.UNAVAILABLE, time.monotonic()
        with self._lock:
            self.miscredited += not is_failed and feedback.text != right
            if is_failed or ended_s - started_s > WAIT_S:
                self.waits.append((started_s, ended_s))

    def waited_s(self) -> float:
        """How long at least one request was in flight that failed or was slow."""
        total_s = until_s = 0.0
        for start_s, end_s in sorted(self.waits):
            total_s += max(0.0, end_s - max(start_s, until_s))
            until_s = max(until_s, end_s)
        return total_s


def rss_mb() -> float:
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def failures(client: Client) -> dict[str, float]:
    """The client's meters that tell of faults."""
    return {
        name: total
        for name, total in client.counters().items()
        if total and name.split("/")[0] in ("requests", "retries", "failures", "usage_estimated")
    }


CIRCUIT_WORDS = {"the helper seems down": "opened", "the helper replies again": "closed"}


class Circuit(logging.Handler):
    """Notes when the client said that the helper seems down, or replies again."""

    def __init__(self) -> None:
        super().__init__()
        self.changes: list[tuple[str, float]] = []

    def emit(self, record: logging.LogRecord) -> None:
        for words, change in CIRCUIT_WORDS.items():
            if record.getMessage().startswith(words):
                self.changes.append((change, time.monotonic()))

    @property
    def has_closed(self) -> bool:
        return bool(self.changes) and self.changes[-1][0] == "closed"


class JumpingTime:
    """The module `time`, with a wall clock that is off by another amount at each look."""

    def __init__(self) -> None:
        self._rng = random.Random(0)

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)

    def time(self) -> float:
        return time.time() + self._rng.uniform(-JUMP_S, JUMP_S)


def jump_clock() -> None:
    """From now on all of our client reads a clock that jumps.

    Not all of the process: Orbax ends a save that seems to have taken longer than 20 minutes.
    """
    for name, module in list(sys.modules.items()):
        if name.startswith("collab.llm") and vars(module).get("time") is time:
            vars(module)["time"] = JumpingTime()


def train(
    base_url: str,
    workdir: pathlib.Path,
    data_dir: str,
    *,
    is_outage: bool = False,
    is_jumping: bool = False,
) -> dict[str, Any]:
    """A whole training run; its episodes of the policy gradient are counted by status.

    is_outage: go on until the helper has been gone and is back; parameters hardly move.
    is_jumping: by a wall clock that jumps.
    """
    # Seconds to import, which the calls need not wait for.
    from collab import run
    from collab.assembly import assemble
    from collab.metrics import make_writers
    from collab.rl import batch as batch_module
    from collab.train import Trainer

    if is_jumping:
        jump_clock()
    # One program for batches of all lengths: what a fault costs is not to hide in compiling.
    batch_module.LENGTH_BUCKET = TRAINING["rollout.capacity"]
    config = default_config()
    config.update_from_flattened_dict(TRAINING)
    if is_outage:
        config.rl.update({"iterations": MANY, "learning_rate": 1e-9, "final_learning_rate": 1e-9})
    config.llm.base_url, config.task.data_dir = base_url, data_dir
    config.compile_cache = str(pathlib.Path(data_dir).parent / "compiled")
    run.prepare(config, str(workdir))
    started_s = time.monotonic()
    assembly = assemble(config, str(workdir))
    witness = Witness(assembly.client, dict(config.requests))
    engine, make = assembly.engine, assembly.engine.run
    engine.client = witness
    statuses: collections.Counter[str] = collections.Counter()
    memory_mb: list[float] = []
    ends_s: list[float] = []
    circuit = Circuit()
    logging.basicConfig()  # the log goes to the file, too
    logging.getLogger().addHandler(circuit)

    def counted(params: Any, jobs: Any, **options: Any) -> Any:
        episodes = make(params, jobs, **options)
        if jobs[0].episode[0].isdigit():  # else they make labels, or constants to compare with
            statuses.update(episode.status.name for episode in episodes)
            memory_mb.append(rss_mb())
        return episodes

    def is_over(step: int) -> bool:
        if step > COLD_STEPS + len(ends_s):
            ends_s.append(time.monotonic())
        if not (is_outage and circuit.has_closed):
            return False
        return sum(end_s > circuit.changes[-1][1] for end_s in ends_s) >= AFTERWARDS

    engine.run = counted
    with make_writers(config.log, workdir) as writer:
        Trainer(assembly, writer, is_over).run()
    assembly.close()
    return {
        "wall_s": round(time.monotonic() - started_s, 2),
        "waited_s": round(witness.waited_s(), 2),
        "steps": [
            {"ended_s": round(end_s, 2), "took_s": round(end_s - before_s, 3)}
            for before_s, end_s in itertools.pairwise(ends_s)
        ],
        "circuit": [{"change": change, "at_s": round(at_s, 2)} for change, at_s in circuit.changes],
        "statuses": dict(statuses),
        "miscredited": witness.miscredited,
        "helper_is_down": witness.is_down,
        "client": failures(assembly.client),
        "rss_early_mb": round(memory_mb[EARLY]),
        "rss_late_mb": round(memory_mb[-1]),
    }


def calls(base_url: str, count: int, batches: int) -> dict[str, Any]:
    """Batches of many requests by one client; memory on the way, and what is open afterwards."""
    llm = default_config().llm
    llm.update({"base_url": base_url, **CALLING})
    before = state()
    client = Client(make_backend("openai", llm), llm, {"ask": "Echo."})
    witness = Witness(client, {"ask": "Echo."})
    kinds: collections.Counter[str] = collections.Counter()
    looks: list[dict[str, float]] = []

    def batch(name: str, size: int, on_look: Callable[[int], None]) -> None:
        open_calls: collections.deque[Future[Feedback]] = collections.deque()
        with progress(size, f"{name} calls") as line:
            for index in range(size + IN_FLIGHT):
                if index < size:
                    request = HelpRequest("e", "ask", f"{name} {index}")
                    open_calls.append(witness.submit(Gate("off").screen(request, ())))
                if index >= IN_FLIGHT and open_calls:
                    kinds[open_calls.popleft().result().kind.value] += 1
                    line.update()
                done = index + 1 - IN_FLIGHT
                if done > 0 and done % LOOK_EVERY == 0:
                    on_look(done)

    def look(after: int) -> None:
        witness.waits.clear()  # of our own making: it would grow with each failure
        looks.append({"calls": after, **state()})

    batch("warm-up", WARM_CALLS, lambda done: None)
    kinds.clear()
    started_s = time.monotonic()
    for number in range(batches):
        batch(f"batch {number}", count, lambda done, number=number: look(number * count + done))
    wall_s = time.monotonic() - started_s
    client.close()
    return {
        "asked": batches * count,
        "batches": batches,
        "wall_s": round(wall_s, 1),
        "resolved": sum(kinds.values()),
        "replies": dict(kinds),
        "miscredited": witness.miscredited,
        "client": failures(client),
        "before": before,
        "looks": looks,
        "after": state(),
    }


def state() -> dict[str, float]:
    """What is held: memory, by the system's count and by Python's, open files, threads.

    What the allocator holds in store is given back first: it is no leak, and hides one.
    """
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return {
        "rss_mb": round(rss_mb(), 2),
        "python_blocks": sys.getallocatedblocks(),
        "open_files": open_files(),
        "threads": threading.active_count(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["train", "outage", "jumps", "calls"])
    parser.add_argument("--base_url", required=True)
    parser.add_argument("--workdir", type=pathlib.Path, required=True)
    parser.add_argument("--data_dir", default="", help="of train: shared by the runs")
    parser.add_argument("--count", type=int, default=10_000, help="of calls in a batch")
    parser.add_argument("--batches", type=int, default=3, help="of calls")
    flags = parser.parse_args()
    if flags.what == "calls":
        result = calls(flags.base_url, flags.count, flags.batches)
    else:
        result = train(
            flags.base_url,
            flags.workdir,
            flags.data_dir,
            is_outage=flags.what == "outage",
            is_jumping=flags.what == "jumps",
        )
    (flags.workdir / "result.json").write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()
