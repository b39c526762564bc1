"""Whether a run survives every way in which a helper server can fail.

`python -m experiments.fault_campaign --workdir=runs/faults` measures, for each fault of
`collab.llm.fault_table`, how long past its deadline a call returns; trains a tiny policy without
faults, under each and under the mix; and sends many calls under the mix. It writes results.json
beside this file, prints tables and exits with 1 where a claim does not hold. A part whose
result.json stands in the workdir is not run again. NOTES.md reads the figures.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from typing import Any

from collab.config import default_config
from collab.llm import Message, errors, make_backend
from collab.llm.fault_table import FAULTS, UNDETECTABLE
from collab.llm.faults import MIX, faulty
from collab.progress import progress
from collab.report import git_commit
from experiments.fault_campaign.child import CALLING, ITERATIONS, PROBLEMS, SAMPLES, Echo

HERE = pathlib.Path(__file__).parent
FREE = "none"
CALL_DEADLINE_S, LATE_S, CALLS_EACH = 1.0, 0.25, 5
SLOWER = 1.5  # times the run without faults, besides what was waited for
GROWTH_MB = 30  # of peak memory over the runs without faults, and through the calls
SPOILS_NEXT = ("closed_after", "stray_reply")  # the next call on the connection may fail
HUNG_S = 900.0  # a child is ended then


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
                "is_in_time": max(taken) <= CALL_DEADLINE_S + LATE_S,
            }
            line.update()
    return found


def child(what: str, workdir: pathlib.Path, fault: str, rate: float, *options: str) -> Any:
    """Run a program of `child` against a server with a fault; its result, with what it took."""
    path = workdir / "result.json"
    if not path.is_file():
        shutil.rmtree(workdir, ignore_errors=True)
        workdir.mkdir(parents=True)
        is_free = fault == FREE
        with faulty(Echo(), fault=MIX if is_free else fault, rate=0 if is_free else rate) as url:
            program = [sys.executable, "-m", "experiments.fault_campaign.child", what]
            arguments = [f"--base_url={url}", f"--workdir={workdir}", *options]
            with (workdir / "log.txt").open("w") as log:
                process = subprocess.Popen([*program, *arguments], stdout=log, stderr=log)
                watchdog = threading.Timer(HUNG_S, process.kill)
                watchdog.start()
                _, status, usage = os.wait4(process.pid, 0)
                watchdog.cancel()
            with urllib.request.urlopen(f"{url}/faults") as counted:
                injected = json.load(counted)["injected"]
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        found["exit_status"] = os.waitstatus_to_exitcode(status)
        found["cpu_s"] = round(usage.ru_utime + usage.ru_stime, 1)
        found["peak_rss_mb"] = round(usage.ru_maxrss / 1024)
        path.write_text(json.dumps({**found, "injected": injected}), encoding="utf-8")
    return json.loads(path.read_text(encoding="utf-8"))


def verdict(name: str, found: dict[str, Any], free: dict[str, list[float]]) -> list[str]:
    """What does not hold of a training run; empty where all does."""
    if found["exit_status"]:
        return [f"exit status {found['exit_status']}"]
    wrong = []
    if sum(found["statuses"].values()) != ITERATIONS * PROBLEMS * SAMPLES:
        wrong.append("an episode without a status")
    if found["miscredited"] and name not in UNDETECTABLE:
        wrong.append("a reply credited to another episode")
    if found["wall_s"] > SLOWER * statistics.median(free["wall_s"]) + found["waited_s"]:
        wrong.append("too slow")
    if found["peak_rss_mb"] > max(free["peak_rss_mb"]) + GROWTH_MB:
        wrong.append("memory grows")
    return wrong


def table(rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])


def shown(name: str, found: dict[str, Any], free_s: float) -> list[str]:
    client = found.get("client", {})
    typed = [f"{key.split('/')[1]} {total:.0f}" for key, total in client.items() if "/" in key]
    statuses = [f"{key.lower()} {count}" for key, count in found.get("statuses", {}).items()]
    return [
        name,
        str(found["exit_status"]),
        ", ".join(statuses),
        f"{sum(found['injected'].values())} of {client.get('requests', 0):.0f}",
        f"{client.get('retries', 0):.0f}",
        ", ".join(typed) or "none",
        str(found.get("miscredited", "")),
        f"{found.get('wall_s', 0) / free_s:.2f}",
        f"{found.get('waited_s', 0):.0f}",
        f"{found['cpu_s']:.0f}",
        f"{found['peak_rss_mb']}, {found.get('rss_late_mb', 0) - found.get('rss_early_mb', 0):+d}",
    ]


HEADS = [
    "fault", "exit", "episodes by status", "injected", "retries", "requests that failed",
    "miscredited", "wall, times no fault", "waited, s", "CPU, s", "peak RSS, growth, MB",
]  # fmt: skip


def main() -> int:
    """Run what is missing, write the results, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", type=pathlib.Path, required=True, help="folder of the runs")
    parser.add_argument("--faults", nargs="*", default=[*FAULTS, MIX], help="to train under")
    parser.add_argument("--rate", type=float, default=0.2, help="share of requests")
    parser.add_argument("--calls", type=int, default=10_000, help="under the mix")
    flags = parser.parse_args()
    called = child("calls", flags.workdir / "calls", MIX, flags.rate, f"--count={flags.calls}")
    timed = call_times()
    data = f"--data_dir={flags.workdir / 'data'}"
    half = len(flags.faults) // 2
    # Spread, since the load of the machine may change.
    names = [FREE, FREE, *flags.faults[:half], FREE, *flags.faults[half:], FREE]
    runs: dict[str, list[Any]] = {}
    with progress(len(names), "training runs") as line:
        for name in names:
            place = flags.workdir / f"{name}-{len(runs.get(name, []))}"
            runs.setdefault(name, []).append(child("train", place, name, flags.rate, data))
            line.update()
    if any(found["exit_status"] for found in runs[FREE]):
        raise SystemExit(f"training fails without faults; see {flags.workdir / FREE}-*/log.txt")
    measured = runs[FREE][1:]  # the first one compiles
    keys = ("wall_s", "cpu_s", "peak_rss_mb")
    free = {key: [found[key] for found in measured] for key in keys}
    free_s = statistics.median(free["wall_s"])
    trained = {name: found[-1] for name, found in runs.items()}
    results = {
        "commit": git_commit(),
        "rate": flags.rate,
        "free": free,
        "calls": called,
        "deadlines": timed,
        "training": trained,
    }
    (HERE / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(table([HEADS, *(shown(name, found, free_s) for name, found in trained.items())]))
    print(json.dumps(called))
    wrong = {name: verdict(name, found, free) for name, found in trained.items()}
    late = [name for name, found in timed.items() if not found["is_in_time"]]
    odd = [
        name
        for name, found in timed.items()
        if name not in SPOILS_NEXT and found["ends"] != [found["expected"]]
    ]
    growth_mb = called["after"]["rss_mb"] - called["before"]["rss_mb"]
    is_back = all(called["after"][n] <= called["before"][n] for n in ("open_files", "threads"))
    is_sound = called["resolved"] == flags.calls and not called["miscredited"] and is_back
    print(f"training, does not hold: { {name: text for name, text in wrong.items() if text} }")
    print(f"past the deadline: {late}; not the error expected: {odd}")
    print(f"calls: sound {is_sound}, memory {growth_mb:+.1f} MB")
    return int(any(wrong.values()) or bool(late or odd) or not is_sound or growth_mb > GROWTH_MB)


if __name__ == "__main__":
    sys.exit(main())
