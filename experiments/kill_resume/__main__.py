"""Whether a run that is killed again and again pays for nothing twice and ends as if unharmed.

`python -m experiments.kill_resume --workdir=runs/kills --kills=30` trains and evaluates a tiny
policy over a socket, with `llm.replay=replay_or_call`: once to the end, and once with `kill -9` at
moments that are drawn, each time started again by the same command. The server counts what it was
asked. Writes results.json beside this file and exits with 1 where a claim does not hold. NOTES.md
reads the figures.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import json
import os
import pathlib
import random
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

import jax

from collab import tasks
from collab.config import default_config
from collab.llm import Backend, Completion, Message
from collab.llm.journal import Journal
from collab.llm.replay_store import ReplayStore
from collab.llm.scripted import ScriptedBackend
from collab.llm.serve import serving
from collab.metrics import OF_A_PROCESS, read_jsonl
from collab.progress import progress
from collab.report import git_commit
from experiments.fault_campaign.child import TRAINING

HERE = pathlib.Path(__file__).parent
READ_S = 2.0  # within which a client that lives has read and stored a reply that was made
ECHO_S = 0.5  # from a start, in which the server may still reply to the process before
LATENCY_S = 0.02  # of each reply, so that some are in flight at a kill
LONGEST_WAIT_S = 0.3  # between the event that a kill was drawn for and the kill
HUNG_S = 900.0  # a child is ended then
SETTINGS = {
    **TRAINING,
    "rl.iterations": 6,
    "rl.constant_problems": 4,
    "checkpoint.every": 1,
    "checkpoint.imitation_every": 1,
    "evaluate.strategies": ("learned", "llm_alone"),
    "evaluate.bootstrap": 50,
    "llm.model": "",
    "llm.cache": True,
    "llm.deadline_s": 30.0,
    "llm.replay": "replay_or_call",
    "llm.scripted.latency_s": LATENCY_S,
}
Talk = tuple[str, tuple[tuple[str, str], ...]]  # helper, and the messages as pairs


class Counting:
    """A helper that notes what it is asked, and when it had replied."""

    is_local = False

    def __init__(self, backend: Backend) -> None:
        self._backend, self.helper_names = backend, backend.helper_names
        self._lock = threading.Lock()  # guards the two below
        self.asked: list[tuple[float, Talk]] = []
        self.replied: dict[Talk, float] = {}  # the last time

    def complete(
        self, messages: Sequence[Message], *, reply_tokens: int, deadline_s: float, helper: str
    ) -> Completion:
        talk = (helper, tuple((message.role, message.content) for message in messages))
        with self._lock:
            self.asked.append((time.monotonic(), talk))
        completion = self._backend.complete(
            messages, reply_tokens=reply_tokens, deadline_s=deadline_s, helper=helper
        )
        with self._lock:
            # `serve` waits for the latency before it sends.
            self.replied[talk] = time.monotonic() + (completion.latency_s or 0.0)
        return completion

    def check(self) -> None:
        """Nothing can be wrong."""

    def close(self) -> None:
        """Nothing is open."""


@dataclasses.dataclass(frozen=True)
class Kill:
    """What stood on disk when a run had been killed.

    lost: replies that were made to this process, READ_S before the kill at least, and are not
    stored. at_step: of the newest checkpoint, None before the first.
    """

    at_s: float
    stored: frozenset[Talk]
    lost: int
    integrity: str
    at_step: int | None


@dataclasses.dataclass(frozen=True)
class Course:
    """A run from start to end, killed or not."""

    workdir: pathlib.Path
    server: Counting
    kills: list[Kill]
    wall_s: float


def course(
    workdir: pathlib.Path,
    settings: dict[str, Any],
    *,
    after: Sequence[int | float] = (),
    rng: random.Random,
) -> Course:
    """Run the command to its end, killed once for each row of `after`.

    after: so many requests that the server was asked in all (int), or seconds from the start of the
    command (float). A command that ends before that is not killed.
    """
    folder = workdir / "run"
    folder.mkdir(parents=True)
    server, kills, started_s = Counting(_backend(settings)), [], time.monotonic()
    with serving(server) as url:
        _write_config(workdir / "config.py", {**settings, "llm.base_url": url})
        for moment in after:
            begun_s, child = time.monotonic() + ECHO_S, _start(workdir)
            try:
                _wait(child, server, moment)
                time.sleep(rng.uniform(0.0, LONGEST_WAIT_S))
            finally:
                child.kill()
                is_killed = child.wait() != 0
            if not is_killed:  # it had ended before its moment came
                continue
            kills.append(_inspected(folder, server, begun_s, time.monotonic()))
        child = _start(workdir)
        if child.wait(HUNG_S):
            raise RuntimeError(f"the run failed; see {workdir / 'log.txt'}")
    return Course(workdir, server, kills, time.monotonic() - started_s)


def moments(unbroken: Course, kills: int, rng: random.Random) -> list[int | float]:
    """When to kill: by requests, spread over all of the unbroken run's; every third by time."""
    asked = len(unbroken.server.asked)
    by_requests = iter(sorted(rng.sample(range(1, asked), kills)))
    return [
        rng.uniform(0.0, unbroken.wall_s) if index % 3 == 2 else next(by_requests)
        for index in range(kills)
    ]


def findings(killed: Course, unbroken: Course) -> dict[str, Any]:
    """What the killed run has to show beside the unbroken one."""
    times = collections.Counter(talk for _, talk in killed.server.asked)
    again = sum(
        talk in kill.stored
        for kill in killed.kills
        for at_s, talk in killed.server.asked
        if at_s > kill.at_s
    )
    one, other = (_outcome(each.workdir / "run") for each in (killed, unbroken))
    run = killed.workdir / "run"
    journal = Journal(run / "spend.jsonl")
    spent = sum(amount["requests"] for _, amount in journal.history())
    journal.close()
    store = ReplayStore(run / "replay.sqlite", create=False)
    stored = len(store)
    store.close()
    return {
        "kills": len(killed.kills),
        "steps_at_kills": [kill.at_step for kill in killed.kills],
        "requests_unbroken": len(unbroken.server.asked),
        "requests": len(killed.server.asked),
        "distinct_requests": len(times),
        "stored": stored,
        "asked_again_though_stored": again,
        "asked_again_in_flight_at_a_kill": len(killed.server.asked) - len(times),
        "most_in_flight": SETTINGS["llm.concurrency"] * len(killed.kills),
        "replies_lost": sum(kill.lost for kill in killed.kills),
        "integrity": sorted({kill.integrity for kill in killed.kills}),
        "journalled_requests": spent,
        "differ": [name for name in one if one[name] != other[name]],
        "compared": {name: len(part) for name, part in one.items()},
        "unfinished_checkpoints": len(list(run.glob("checkpoints/*tmp*"))),
        "wall_s": round(killed.wall_s, 1),
        "wall_unbroken_s": round(unbroken.wall_s, 1),
    }


def claims(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Each claim with its figure; no intervals, since none of them may fail once."""
    kills, in_flight = found["kills"], found["asked_again_in_flight_at_a_kill"]
    rows = [
        ("no request is sent again whose reply is stored", found["asked_again_though_stored"], 0),
        (f"no reply made {READ_S:g} s before a kill is lost", found["replies_lost"], 0),
        ("figures, parameters and evaluation equal the unbroken run's", found["differ"], []),
        ("the replay file is sound after each kill", found["integrity"], ["ok"] if kills else []),
        ("no half-written checkpoint is left", found["unfinished_checkpoints"], 0),
    ]
    checked = [(claim, figure, figure == wanted) for claim, figure, wanted in rows]
    is_bounded = in_flight <= found["most_in_flight"]
    checked.append(("sent twice: at most what was in flight at a kill", in_flight, is_bounded))
    is_counted = found["journalled_requests"] >= found["requests"]
    checked.append(("spent requests, those of killed processes too, are counted",
                    [found["journalled_requests"], found["requests"]], is_counted))  # fmt: skip
    return [
        {"claim": claim, "figure": figure, "ci": None, "seeds": 1, "holds": holds}
        for claim, figure, holds in checked
    ]


# --- one command ---------------------------------------------------------------------------


def _backend(settings: dict[str, Any]) -> ScriptedBackend:
    config = default_config()
    config.update_from_flattened_dict(settings)
    task = tasks.make_task(config, settings["task.data_dir"])
    seed = config.task.world.seed
    return ScriptedBackend.from_config(config.llm, knowledge=task.knowledge, seed=seed)


def _write_config(path: pathlib.Path, settings: dict[str, Any]) -> None:
    path.write_text(
        "from collab.config import default_config\n\n\n"
        "def get_config():\n"
        "    config = default_config()\n"
        f"    config.update_from_flattened_dict({settings!r})\n"
        "    return config\n",
        encoding="utf-8",
    )


def _start(workdir: pathlib.Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "collab.main", f"--config={workdir}/config.py"]
    root = str(HERE.parents[1])
    with (workdir / "log.txt").open("a") as log:
        return subprocess.Popen(
            [*command, f"--workdir={workdir}/run"],
            stdout=log,
            stderr=log,
            env=os.environ | {"PYTHONPATH": root},
        )


def _wait(child: subprocess.Popen[bytes], server: Counting, moment: int | float) -> None:
    """Until the moment has come or the child has ended."""
    started_s = time.monotonic()
    while child.poll() is None and time.monotonic() - started_s < HUNG_S:
        now = len(server.asked) if isinstance(moment, int) else time.monotonic() - started_s
        if now >= moment:
            return
        time.sleep(0.005)


# --- what is on disk -----------------------------------------------------------------------


def _inspected(folder: pathlib.Path, server: Counting, begun_s: float, killed_s: float) -> Kill:
    path = folder / "replay.sqlite"
    stored: frozenset[Talk] = frozenset()
    integrity = "ok"
    if path.exists():
        with sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True) as connection:
            integrity = str(connection.execute("PRAGMA integrity_check").fetchone()[0])
            is_made = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if is_made:
            store = ReplayStore(path, create=False)
            stored = frozenset(
                (row.asked.helper, tuple((m.role, m.content) for m in row.asked.messages))
                for row in store.recorded()
            )
            store.close()
    # What was on its way to an earlier process is none of this one's.
    replied = list(server.replied.items())
    read = {talk for talk, at_s in replied if begun_s < at_s < killed_s - READ_S}
    steps = [int(path.name) for path in folder.glob("checkpoints/*") if path.name.isdigit()]
    return Kill(killed_s, stored, len(read - stored), integrity, max(steps, default=None))


def _outcome(folder: pathlib.Path) -> dict[str, Any]:
    """All that must not depend on kills: no clock, and none of a process's own counts."""
    metrics = [
        {name: figure for name, figure in line.items() if not name.startswith(OF_A_PROCESS)}
        for line in read_jsonl(folder / "metrics.jsonl")
    ]
    evaluation = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    records = {
        path.parents[1].name: json.loads(path.read_text(encoding="utf-8"))["record"]
        for path in folder.glob("checkpoints/[0-9]*/record/metadata")
        if path.parents[1].name.isdigit()
    }
    newest = records[max(records, key=int)]
    return {
        "metrics": metrics,
        "evaluation": {"rows": evaluation["rows"], "chosen": evaluation["chosen"]},
        "digests of the last parameters and optimiser state": newest["leaves"],
    }


def main() -> int:
    """Run both courses, write the results, print the claims."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", type=pathlib.Path, required=True, help="a new folder")
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    flags = parser.parse_args()
    shared = {
        "task.data_dir": str(flags.workdir.absolute() / "data"),
        "compile_cache": str(flags.workdir.absolute() / "compiled"),
    }
    rng, settings = random.Random(flags.seed), {**SETTINGS, **shared}
    with progress(2, "courses") as line:
        unbroken = course(flags.workdir / "unbroken", settings, rng=rng)
        line.update()
        after = moments(unbroken, flags.kills, rng)
        killed = course(flags.workdir / "killed", settings, after=after, rng=rng)
        line.update()
    found = findings(killed, unbroken)
    results = {
        "commit": git_commit(),
        "device": jax.devices()[0].device_kind,
        "seed": flags.seed,
        "claims": claims(found),
        **found,
    }
    (HERE / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    for row in results["claims"]:
        print(f"{'holds' if row['holds'] else 'FAILS'}: {row['claim']}: {row['figure']}")
    return int(not all(row["holds"] for row in results["claims"]))


if __name__ == "__main__":
    sys.exit(main())
