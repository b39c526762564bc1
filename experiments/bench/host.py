"""What the host costs a rollout: its milliseconds a decode step beside the device's.

`python -m experiments.bench.host` prints a table and writes results/host.json and host.png. The
tiny network of configs/quickstart.py, random weights, in 8, 32 and 128 rows, four episodes a row;
with --full also SmolLM2-135M in 128 rows, an episode each (extra `smollm2`), whose share is the one
that counts. The helper is scripted, in this process, and answers at once: its work is the host's,
too. The parts are the engine's stopwatch's: the device's time is decoding and reading, fetching the
rows included, the host's what is left: filling rows, texts, requests, episodes. Each repeat draws
other episodes of the same questions. Also counted: transfers to the host, and programs compiled
after the first repeat.
"""

from __future__ import annotations

import argparse
import contextlib
import pathlib
import tempfile
from collections.abc import Sequence
from typing import Any
from unittest import mock

import jax

from collab import sharding
from collab.assembly import Assembly, assemble
from collab.rollout.episodes import Job
from collab.types import Params
from experiments.bench import multi_turn, records
from experiments.bench.shapes import configured

RESULTS = pathlib.Path(__file__).parent / "results" / "host.json"
TINY, FULL = "tiny network", "SmolLM2-135M"
SHARE, HOST = "host's share of the device's time, %", "ms of the host a decode step"
TRANSFERS, PROGRAMS = "transfers to the host a round", "programs compiled after the first repeat"


def config_of(system: str, rows: int, problems: int) -> Any:
    """As in configs/, but for the helper; SmolLM2's segments are as short as in `multi_turn`."""
    config = configured("quickstart") if system == TINY else multi_turn.configured(0.0, "")
    config.task.update({"train": problems, "validation": 1, "test": 1})
    config.rollout.rows = rows
    return config


def figures(assembly: Assembly, params: Params, jobs: Sequence[Job]) -> dict[str, float]:
    """Of one rollout of these jobs."""
    engine, fetch, fetched_bytes, rounds = assembly.engine, sharding.fetch, [], 0

    def counted(tree: Any) -> Any:
        host = fetch(tree)
        fetched_bytes.append(sum(leaf.nbytes for leaf in jax.tree.leaves(host)))
        return host

    flight, before = engine.flight(temperature=1.0), sum(engine.programs().values())
    engine.stopwatch.lap()
    with (
        mock.patch.object(sharding, "fetch", counted),
        jax.transfer_guard_device_to_host("disallow"),  # what is not fetched so
    ):
        batch = flight.add(jobs)
        while not flight.is_finished(batch):
            flight.turn(params)
            rounds += 1
    lap = engine.stopwatch.lap()
    steps, spent = lap.counts["decode_steps"], lap.seconds
    device_s = spent["decode"] + spent["prefill"]
    return {
        SHARE: 100 * spent["host"] / device_s,
        HOST: 1e3 * spent["host"] / steps,
        "ms of the device a decode step": 1e3 * device_s / steps,
        "ms of waiting for replies a decode step": 1e3 * spent["wait"] / steps,
        "ms of the host an episode": 1e3 * spent["host"] / len(jobs),
        "decode steps a round": steps / rounds,
        TRANSFERS: len(fetched_bytes) / rounds,
        "KB of a transfer to the host": sum(fetched_bytes) / len(fetched_bytes) / 1e3,
        PROGRAMS: sum(engine.programs().values()) - before,
    }


def measured(system: str, rows: int, repeats: int) -> list[dict[str, dict[str, float]]]:
    """Of each repeat, after a first one that compiles."""
    episodes, samples = (4 * rows, 4) if system == TINY else (rows, 4)
    problems = episodes // samples
    with tempfile.TemporaryDirectory() as folder:
        config = config_of(system, rows, problems)
        assembly = assemble(config, folder)
        with contextlib.closing(assembly):
            params, found = assembly.initial_params(), []
            helper = assembly.backend.helper_names[0]
            for repeat in range(repeats + 1):
                jobs = [
                    Job(problem, (repeat, p, g), helpers=(helper,))
                    for p, problem in enumerate(assembly.task.problems("train"))
                    for g in range(samples)
                ]
                found.append({system: figures(assembly, params, jobs)})
    return found[1:]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batches", type=int, nargs="+", default=[8, 32, 128], help="rows")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--full", action="store_true", help="also SmolLM2-135M in 128 rows")
    flags = parser.parse_args()
    runs = [(TINY, rows) for rows in flags.batches] + [(FULL, 128)] * flags.full
    table: list[dict[str, Any]] = []
    for system, rows in runs:
        found = measured(system, rows, flags.repeats)
        more = records.rows_of(found, ours=system, batch=rows)
        records.show(more)
        table += more
    records.write(RESULTS, table, repeats=flags.repeats)
    records.bars(RESULTS.with_suffix(".png"), table, (SHARE, HOST))


if __name__ == "__main__":
    main()
