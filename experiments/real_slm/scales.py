"""The runs of the study: three tasks at one of two sizes, and which LLM helps.

All stand on `configs/smollm2.py`. What either device may do in its time is in `SCALES`; the speeds
are what `experiments.real_slm.estimate` multiplies.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.study import Run

CONFIG = "configs/smollm2.py"
TASKS = ("atlas", "gsm", "fanout")


@dataclasses.dataclass(frozen=True)
class Speeds:
    """Tokens a second: of prompts and replies read, of what is written, of what is trained on.

    start_s: seconds that a run takes besides, for weights, data and compilation.
    """

    read: float
    written: float
    trained: float
    start_s: float


@dataclasses.dataclass(frozen=True)
class Scale:
    """A size. overrides: config keys of all tasks, then those of some. seeds: how many."""

    overrides: Mapping[str, Any]
    by_task: Mapping[str, Mapping[str, Any]]
    speeds: Speeds
    seeds: int


ALL = {
    "llm.backend": "scripted",
    # Nobody knows what the SLM remembers, so that every draft of a trace would be true.
    "cold_start.spoil_share": 0.2,
    "cold_start.judge": "steps",  # the drafts of a worked solution are told from one another
    "rl.head_rate": 50.0,  # as the studies with a tiny SLM have it, at a fifth of their trunk's
    "rl.feature_rate": 500.0,
    "rl.learning_rate": 2e-5,
    "rl.final_learning_rate": 2e-6,
    "checkpoint.keep": 1,  # 2 GB each
    "checkpoint.best_metric": "",
    "log.tensorboard": False,
}
# A list of several facts is hardly ever right as a whole.
BY_TASK: dict[str, dict[str, Any]] = {"fanout": {"reward.quality": "f1"}}

SCALES = {
    # Shorter than any real training, long enough to see where the curves go.
    "cpu": Scale(
        overrides={
            "task.test": 16,
            "cold_start.label_problems": 12,
            "rl.iterations": 9,
            "rl.problems": 3,
            "rl.samples": 4,
            "checkpoint.every": 9,
            "log.train_episodes": 4,
            "evaluate.strategies": ("learned", "slm_cot", "ask_chain", "llm_alone"),
        },
        by_task={  # their solutions are longer: about as many tokens as of atlas
            "gsm": {"cold_start.steps": 16},
            "fanout": {
                "cold_start.steps": 10,
                "rl.iterations": 6,
                "rl.problems": 2,
                "task.test": 8,
            },
        },
        # Of this network in JAX on one core of a 2-core x86 machine, f32, 8 rows; +- 10 %.
        speeds=Speeds(read=350.0, written=88.0, trained=58.0, start_s=120.0),
        seeds=2,
    ),
    "gpu": Scale(
        overrides={
            "model.dtype": "bfloat16",
            "task.train": 2048,
            "task.validation": 96,
            "task.test": 256,
            "rollout.rows": 128,
            "rollout.prompts_per_call": 16,
            "cold_start.steps": 300,
            "cold_start.batch": 32,
            "cold_start.warmup": 20,
            "cold_start.label_problems": 256,
            "cold_start.label_steps": 300,
            "rl.iterations": 60,
            "rl.problems": 16,
            "rl.samples": 8,
            "rl.constant_problems": 64,
            "rl.warmup": 2,
            "checkpoint.every": 20,
            "log.test_episodes": 32,
            "evaluate.strategies": (),
        },
        by_task={
            "fanout": {
                "rollout.capacity": 1024,
                "rollout.max_segments": 20,
                "rollout.max_asks": 8,
                "rollout.rows": 64,
            }
        },
        # No GPU has run it yet: a decode step of 128 rows at 6 ms, training at 30 TFLOP/s.
        speeds=Speeds(read=100_000.0, written=20_000.0, trained=30_000.0, start_s=300.0),
        seeds=3,
    ),
}


def planned(
    scale: str,
    *,
    tasks: Sequence[str] = TASKS,
    seeds: Sequence[int],
    llm: Mapping[str, Any] | None = None,
) -> list[Run]:
    """Every run of a scale. llm: config keys of another LLM than the scripted expert."""
    size = SCALES[scale]
    return [
        Run(
            f"{task}_{scale}",
            CONFIG,
            seed,
            {
                "task.name": task,
                **ALL,
                **BY_TASK.get(task, {}),
                **size.overrides,
                **size.by_task.get(task, {}),
                **(llm or {}),
            },
        )
        for task in tasks
        for seed in seeds
    ]
