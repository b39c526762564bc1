"""Memory of SmolLM2-135M's programs, f32, as XLA plans it: a step on 8 x 512 tokens, a rollout.

`python -m experiments.bench.memory` (some minutes) prints a table and writes results/memory.json
and memory.png. It only compiles: no array is made, nothing is timed. Temporaries are what a program
holds at its peak beside its arguments and outputs. The step is the policy gradient of
configs/smollm2.py with the reference's forward pass, every token written by the policy; beside it
the same with all rows or all logits at once, and with layers kept that are else recomputed in the
backward pass.
"""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Mapping
from typing import Any
from unittest import mock

from collab.planning.memory import kept_bytes, shard_bytes
from collab.rl import reading
from experiments.bench import records
from experiments.bench.shapes import configured, planned_here, temporary_gb

RESULTS = pathlib.Path(__file__).parent / "results" / "memory.json"
OURS = "collab"
STEP = "GB of temporaries of a step"
WHOLE = 2**62  # logits at once: all of them
EPISODES, ROWS, CAPACITY = 8, 64, 512
# rl.chunk_rows, logits at once (None: as suits the machine), model.remat
STEPS: Mapping[str, tuple[int, int | None, str]] = {
    OURS: (0, None, "layers"),
    "a row at a time": (1, None, "layers"),
    "half of the rows at once": (EPISODES // 2, None, "layers"),
    "all logits at once": (0, WHOLE, "layers"),
    "matmuls kept": (0, None, "dots"),
    "layers kept": (0, None, ""),
    "layers kept, all rows and logits at once": (EPISODES, WHOLE, ""),
}


def shaped() -> Any:
    config = configured("smollm2")
    config.rollout.update({"rows": ROWS, "capacity": CAPACITY})
    config.rl.update({"problems": EPISODES // config.rl.samples})
    return config


def step_gb(chunk_rows: int, logits: int | None, remat: str) -> float:
    """Temporaries of one step of the policy gradient."""
    config = shaped()
    config.rl.chunk_rows, config.model.remat = chunk_rows, remat
    here = "CPU_LOGITS" if reading._is_cpu() else "LOGITS"
    with mock.patch.object(reading, here, logits or getattr(reading, here)):
        return temporary_gb(planned_here(config).lower["policy_gradient"])


def rollout_gb() -> dict[str, float]:
    """What a rollout keeps, and the temporaries of its three programs."""
    plan = planned_here(shaped())
    kept = {name: value / 1e9 for name, value in kept_bytes(plan).items()}
    found = {f"GB of {name}": kept[name] for name in ("parameters", "cache", "records")}
    copies = plan.inputs["advance"][:-1]  # beside the call's settings
    found["GB of parameters, laid out for decoding"] = shard_bytes(copies) / 1e9
    programs = ("admit", "feed", "advance")
    return found | {
        f"GB of temporaries of {name}": temporary_gb(plan.lower[name]) for name in programs
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.parse_args()
    steps = {name: {STEP: step_gb(*setting)} for name, setting in STEPS.items()}
    rows = records.rows_of([steps], ours=OURS, batch=EPISODES)
    rollout = {OURS: rollout_gb()}
    rows += records.rows_of([rollout], ours=OURS, batch=ROWS, of=" in a rollout")
    records.show(rows)
    records.write(RESULTS, rows, tokens_a_row=CAPACITY)
    records.bars(RESULTS.with_suffix(".png"), rows[: len(steps)], (STEP,))


if __name__ == "__main__":
    main()
