"""How long training stands still for a checkpoint, beside a save that it would wait for.

`python -m experiments.bench.checkpoint_stall` prints a table and writes
results/checkpoint_stall.json and checkpoint_stall.png. The state is all that a run of
configs/quickstart.py or configs/smollm2.py saves: parameters, Adam's two moments, the reference,
random values; a new step each time, into a temporary folder. Ours takes digests, copies the state
and writes it in the background; Orbax alone is its StandardCheckpointer, waited for at once, and
takes no digests. Ours is told apart: until the loop goes on, and until the step is on disk.
"""

from __future__ import annotations

import argparse
import contextlib
import pathlib
import re
import shutil
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from collab.checkpoint import Checkpointer, digests
from experiments.bench import records
from experiments.bench.shapes import configured, planned_here

RESULTS = pathlib.Path(__file__).parent / "results" / "checkpoint_stall.json"
CONFIGS = ("quickstart", "smollm2")
OURS, ORBAX = "collab, in the background", "Orbax alone, waited for"
STALL, DISK = "seconds that the loop stands still", "seconds until it is on disk"
DIGESTS = "seconds of digests, of them"
COPIES = 5  # of the state that disk and memory must hold: those kept, one more of each kind


def state_of(name: str) -> dict[str, Any]:
    """What `collab.train` saves of a run of this config, with random values."""
    shapes = planned_here(configured(name))
    rng = np.random.default_rng(0)

    def filled(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return jnp.zeros(leaf.shape, leaf.dtype)
        return jax.device_put(rng.standard_normal(leaf.shape, np.float32))

    return jax.tree.map(filled, {"learner": shapes.state, "reference": shapes.reference})


def check_room(folder: str, size: int) -> None:
    """Raises: RuntimeError unless disk and memory hold some copies of the state."""
    text = pathlib.Path("/proc/meminfo").read_text(encoding="utf-8")
    memory = int(re.search(r"MemAvailable: +(\d+) kB", text)[1]) * 1024
    for name, free in (("disk", shutil.disk_usage(folder).free), ("memory", memory)):
        if free < COPIES * size:
            raise RuntimeError(
                f"{free / 1e9:.1f} GB of {name} are free, and the states take "
                f"{COPIES * size / 1e9:.1f}; name another folder by TMPDIR, or fewer --configs"
            )


def seconds(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def save_plainly(orbax: ocp.StandardCheckpointer, path: pathlib.Path, state: Any) -> None:
    orbax.save(path, state)
    orbax.wait_until_finished()


def measured(state: Any, keep: int, repeats: int) -> list[dict[str, dict[str, float]]]:
    """Of each repeat, after a first one; the two take turns. keep: steps of ours that stay."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        check_room(folder, sum(leaf.nbytes for leaf in jax.tree.leaves(state)))
        plain = pathlib.Path(folder) / "plain"
        with (
            contextlib.closing(Checkpointer(f"{folder}/ours", keep=keep)) as ours,
            ocp.StandardCheckpointer() as orbax,
        ):
            for step in range(repeats + 1):
                digests_s = seconds(lambda: digests(state))
                stall_s = seconds(lambda step=step: ours.save(step, state, host={"step": step}))
                rest_s = seconds(ours.wait)
                plain_s = seconds(lambda: save_plainly(orbax, plain, state))
                shutil.rmtree(plain)
                found.append(
                    {
                        OURS: {STALL: stall_s, DISK: stall_s + rest_s, DIGESTS: digests_s},
                        ORBAX: {STALL: plain_s, DISK: plain_s},
                    }
                )
    return found[1:]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--configs", nargs="+", choices=CONFIGS, default=list(CONFIGS))
    parser.add_argument("--repeats", type=int, default=5)
    flags = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for name in flags.configs:
        state = state_of(name)
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) / 1e6
        found = measured(state, configured(name).checkpoint.keep, flags.repeats)
        rows += records.rows_of(found, ours=OURS, batch=0, of=f", {name}, {size:.0f} MB")
    records.show(rows)
    records.write(RESULTS, rows, repeats=flags.repeats)
    stalls = dict.fromkeys(row["metric"] for row in rows if row["metric"].startswith(STALL))
    records.bars(RESULTS.with_suffix(".png"), rows, list(stalls))


if __name__ == "__main__":
    main()
