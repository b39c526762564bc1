"""Whether a run survives every way in which a helper server can fail.

`python -m experiments.fault_campaign --workdir=runs/faults` measures, for each fault of
`collab.llm.fault_table`, how long past its deadline a call returns; trains a tiny policy without
faults, under each, under the mix, by a clock that jumps and through an outage of 60 s; and sends
many calls under the mix. Each part is written into results.json beside this file as it finishes;
`--only-missing` runs what isn't there. Exits with 1 where a claim does not hold. `--table` prints
the table for the README from what is there, and runs nothing. NOTES.md reads the figures.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
import threading
import time
import urllib.request
from typing import Any

import jax

from collab.config import default_config
from collab.llm import Message, errors, make_backend
from collab.llm.fault_table import FAULTS
from collab.llm.faults import MIX, faulty
from collab.metrics import read_jsonl
from collab.progress import progress
from collab.report import git_commit
from experiments.fault_campaign import reading
from experiments.fault_campaign.child import CALLING, EARLY, Echo

HERE = pathlib.Path(__file__).parent
RESULTS = HERE / "results.json"
CALL_DEADLINE_S, CALLS_EACH = 1.0, 5
BETWEEN = 6  # faults between two runs without any
OUTAGE_S = 60.0
BEFORE_OUTAGE = 15 + EARLY  # iterations
HUNG_S = 900.0  # a child is ended then
# glibc keeps freed blocks for each thread, which malloc_trim does not give back: with 64 threads
# these fill by 0.5 to 1 MB per 10,000 calls for over 80,000 calls, which looks like a leak.
PLAIN_MALLOC = {"MALLOC_ARENA_MAX": "1", "GLIBC_TUNABLES": "glibc.malloc.tcache_count=0"}


def call_times() -> dict[str, Any]:
    """For each fault: what calls with a deadline end in, and how long past it."""
    llm = default_config().llm
    llm.update(CALLING)
    found = {}
    with progress(len(FAULTS), "deadlines") as line:
        for name, fault in FAULTS.items():
            taken, ends = [], set()
            with faulty(Echo(), fault=name) as base_url:
                llm.base_url = base_url
                backend = make_backend("openai", llm)
                for _ in range(CALLS_EACH):
                    started_s = time.monotonic()
                    try:
                        backend.complete(
                            [Message("user", "hello")],
                            reply_tokens=8,
                            deadline_s=CALL_DEADLINE_S,
                            helper="",
                        )
                        ends.add("reply")
                    except errors.HelpError as error:
                        ends.add(error.name)
                    taken.append(time.monotonic() - started_s)
                backend.close()
            expected = fault.expected.name if fault.expected else "reply"
            found[name] = {
                "expected": expected,
                "ends": sorted(ends),
                "longest_s": round(max(taken), 3),
                "late_s": round(max(taken) - CALL_DEADLINE_S, 3),
            }
            line.update()
    return found


class Child:
    """A program of `child` that runs in `workdir`, against a server. Ended when it hangs."""

    def __init__(self, what: str, workdir: pathlib.Path, base_url: str, *options: str) -> None:
        shutil.rmtree(workdir, ignore_errors=True)
        workdir.mkdir(parents=True)
        self.workdir = workdir
        program = [sys.executable, "-m", "experiments.fault_campaign.child", what]
        arguments = [f"--base_url={base_url}", f"--workdir={workdir}", *options]
        with (workdir / "log.txt").open("w") as log:
            environment = os.environ | (PLAIN_MALLOC if what == "calls" else {})
            self.process = subprocess.Popen(
                [*program, *arguments], stdout=log, stderr=log, env=environment
            )
        self.watchdog = threading.Timer(HUNG_S, self.process.kill)
        self.watchdog.start()

    def result(self) -> dict[str, Any]:
        """What it found and took, once it has ended."""
        _, status, usage = os.wait4(self.process.pid, 0)
        self.watchdog.cancel()
        path = self.workdir / "result.json"
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        return {
            **found,
            "exit_status": os.waitstatus_to_exitcode(status),
            "cpu_s": round(usage.ru_utime + usage.ru_stime, 1),
            "peak_rss_mb": round(usage.ru_maxrss / 1024),
            "ended_s": round(time.time(), 1),
            "commit": git_commit(),
        }


def run_child(
    what: str, workdir: pathlib.Path, fault: str, rate: float, *options: str
) -> dict[str, Any]:
    """A child against a server with a fault; its result, and what was injected."""
    with faulty(Echo(), fault=fault, rate=rate) as url:
        found = Child(what, workdir, url, *options).result()
        with urllib.request.urlopen(f"{url}/faults") as counted:
            return {**found, "injected": json.load(counted)["injected"]}


def outage(workdir: pathlib.Path, data: str) -> dict[str, Any]:
    """Training while the helper is gone for OUTAGE_S and comes back at the same address."""
    with contextlib.ExitStack() as stack:
        url = stack.enter_context(faulty(Echo(), rate=0.0))
        child = Child("outage", workdir, url, data)
        metrics = workdir / "metrics.jsonl"
        while child.process.poll() is None and _iterations(metrics) < BEFORE_OUTAGE:
            time.sleep(0.1)
        stack.close()
        gone_s = time.monotonic()
        time.sleep(OUTAGE_S)
        back_s = time.monotonic()
        port = int(url.rsplit(":", 1)[1].split("/")[0])
        stack.enter_context(faulty(Echo(), rate=0.0, port=port))
        return {**child.result(), "gone_s": round(gone_s, 2), "back_s": round(back_s, 2)}


def _iterations(path: pathlib.Path) -> int:
    lines = read_jsonl(path) if path.is_file() else []
    return sum(line["stage"] == "policy_gradient" for line in lines)


class Campaign:
    """What has been found; each part is kept on disk as soon as it is there."""

    def __init__(self, path: pathlib.Path, *, is_resumed: bool) -> None:
        self._path = path
        self.parts: dict[str, Any] = {"free": [], "training": {}}
        if is_resumed and path.is_file():
            self.parts = json.loads(path.read_text(encoding="utf-8"))

    def save(self) -> None:
        self.parts["commit"] = git_commit()
        self.parts["device"] = jax.devices()[0].device_kind
        self.parts["claims"] = reading.claims(self.parts)
        temporary = self._path.with_suffix(".tmp")
        temporary.write_text(json.dumps(self.parts, indent=1) + "\n", encoding="utf-8")
        temporary.replace(self._path)

    def train(self, workdir: pathlib.Path, names: list[str], rate: float) -> None:
        """The missing ones of `names`, with runs without faults before, between and after."""
        missing = [name for name in names if name not in self.parts["training"]]
        data = f"--data_dir={workdir / 'data'}"
        if not missing:
            return
        run_child("train", workdir / "first", MIX, 0.0, data)  # compiles, for all
        with progress(len(missing), "training runs") as line:
            for place, name in enumerate(missing):
                if place % BETWEEN == 0:
                    self._train_free(workdir, data)
                if name == reading.OUTAGE:
                    found = outage(workdir / name, data)
                elif name == reading.JUMPS:
                    found = run_child("jumps", workdir / name, MIX, 0.0, data)
                else:
                    found = run_child("train", workdir / name, name, rate, data)
                self.parts["training"][name] = found
                self.save()
                line.update()
        self._train_free(workdir, data)

    def _train_free(self, workdir: pathlib.Path, data: str) -> None:
        found = run_child("train", workdir / "free", MIX, 0.0, data)
        if found["exit_status"]:
            raise SystemExit(f"training fails without faults; see {workdir}/free/log.txt")
        self.parts["free"].append(found)
        self.save()


def main() -> int:
    """Run what is missing, write the results, print the claims."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", type=pathlib.Path, help="folder of the runs")
    parser.add_argument("--results", type=pathlib.Path, default=RESULTS)
    names = [*FAULTS, MIX, reading.JUMPS, reading.OUTAGE]
    parser.add_argument("--faults", nargs="*", default=names, help="to train under")
    parser.add_argument("--rate", type=float, default=0.2, help="share of requests")
    parser.add_argument("--calls", type=int, default=10_000, help="in a batch; 0 = none")
    parser.add_argument("--batches", type=int, default=3, help="of calls under the mix")
    parser.add_argument("--only-missing", action="store_true", help="keep what is in the results")
    parser.add_argument("--table", action="store_true", help="print the README's table")
    flags = parser.parse_args()
    campaign = Campaign(flags.results, is_resumed=flags.only_missing or flags.table)
    if flags.table:
        print(reading.table(campaign.parts))
        return 0
    if flags.workdir is None:
        parser.error("--workdir is missing; try --workdir=runs/faults")
    workdir = flags.workdir.absolute()
    if "deadlines" not in campaign.parts:
        campaign.parts["deadlines"] = call_times()
        campaign.save()
    campaign.train(workdir, flags.faults, flags.rate)
    if "calls" not in campaign.parts and flags.calls:
        options = (f"--count={flags.calls}", f"--batches={flags.batches}")
        campaign.parts["calls"] = run_child("calls", workdir / "calls", MIX, flags.rate, *options)
    campaign.parts["rate"] = flags.rate
    campaign.save()
    for row in campaign.parts["claims"]:
        print(f"{'holds' if row['holds'] else 'FAILS'}: {row['claim']}: {row['figure']}")
    return int(not all(row["holds"] for row in campaign.parts["claims"]))


if __name__ == "__main__":
    sys.exit(main())
