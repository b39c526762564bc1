"""Seconds until the programs of the first iteration are there: cold, and from the kept cache.

`taskset -c 0 python -m experiments.bench.compile_time` prints a table and writes
results/compile_time.json and compile_time.png. The programs are the rollout's three and the two
updates, traced at the largest shapes that configs/quickstart.py and configs/smollm2.py allow, and
compiled one after another in a fresh process. First with an empty folder as `compile_cache`, then
in another process with the folder that the first has filled. No array is made. A process's seconds
include imports, and what reads the config.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import Any

from collab import run
from experiments.bench import records
from experiments.bench.shapes import configured, planned_here

RESULTS = pathlib.Path(__file__).parent / "results" / "compile_time.json"
CONFIGS = ("quickstart", "smollm2")
COLD, WARM = "cold", "cache kept"
ALL, PROCESS = "seconds to all five programs", "seconds of the process"


def compiled(name: str, cache: str) -> dict[str, float]:
    """Seconds of tracing and compiling each program of a config, or of finding it in the cache."""
    config = configured(name)
    config.compile_cache = cache
    with tempfile.TemporaryDirectory() as workdir:
        run.prepare(config, workdir)
    found = {}
    for program, lower in planned_here(config).lower.items():
        began = time.perf_counter()
        lower().compile()
        found[f"seconds to {program}"] = time.perf_counter() - began
    return {ALL: sum(found.values()), **found}


def in_a_process(name: str, cache: str) -> dict[str, float]:
    command = [sys.executable, "-m", "experiments.bench.compile_time", "--child", name, cache]
    began = time.perf_counter()
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    seconds = time.perf_counter() - began
    return {**json.loads(done.stdout.splitlines()[-1]), PROCESS: seconds}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--configs", nargs="+", choices=CONFIGS, default=list(CONFIGS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--child", nargs=2, metavar=("CONFIG", "CACHE"), help="one process of it")
    flags = parser.parse_args()
    if flags.child:
        print(json.dumps(compiled(*flags.child)))
        return
    rows: list[dict[str, Any]] = []
    for name in flags.configs:
        found = []
        for _ in range(flags.repeats):
            with tempfile.TemporaryDirectory() as cache:
                found.append({kind: in_a_process(name, cache) for kind in (COLD, WARM)})
        rows += records.rows_of(found, ours=COLD, batch=0, of=f", {name}")
    records.show(rows)
    records.write(RESULTS, rows, repeats=flags.repeats)
    metrics = [f"{ALL}, {name}" for name in flags.configs]
    records.bars(RESULTS.with_suffix(".png"), rows, metrics)


if __name__ == "__main__":
    main()
