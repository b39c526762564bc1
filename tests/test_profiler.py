"""A trace of some iterations, which says what the design's parts are called."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from collab.profiler import TRACED, WARM_UP, Profiler
from collab.stopwatch import Stopwatch


def traced(folder: Path) -> list[dict]:
    """Events of the one trace in a folder, as Perfetto reads them."""
    (path,) = folder.rglob("*.trace.json.gz")
    return json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]


def work(profiler: Profiler, index: int) -> None:
    watch = Stopwatch()
    with profiler.iteration(index), watch.part("decode"):
        jax.block_until_ready(jnp.sin(jnp.ones(8)) * index)


def test_the_iterations_after_the_warm_up_are_traced(tmp_path: Path) -> None:
    profiler = Profiler(tmp_path)
    for index in range(10, 10 + WARM_UP + TRACED + 2):
        work(profiler, index)
    events = traced(tmp_path)
    steps = [event for event in events if event.get("name", "").startswith("iteration")]
    numbers = {int(event["args"]["step_num"]) for event in steps}
    assert numbers == set(range(10 + WARM_UP, 10 + WARM_UP + TRACED))
    assert sum(event.get("name") == "decode" for event in events) == TRACED


def test_a_run_that_ends_early_leaves_what_it_has(tmp_path: Path) -> None:
    profiler = Profiler(tmp_path)
    for index in range(WARM_UP + 1):
        work(profiler, index)
    assert not list(tmp_path.iterdir()) or not list(tmp_path.rglob("*.gz"))
    profiler.close()
    assert traced(tmp_path)
    profiler.close()  # once is enough


def test_an_error_within_the_trace_still_leaves_it(tmp_path: Path) -> None:
    profiler = Profiler(tmp_path)
    work(profiler, 0)
    with pytest.raises(RuntimeError, match="on purpose"), profiler.iteration(1):
        raise RuntimeError("on purpose")
    profiler.close()
    assert traced(tmp_path)


def test_without_enough_iterations_nothing_is_written(tmp_path: Path) -> None:
    profiler = Profiler(tmp_path)
    for index in range(WARM_UP):
        work(profiler, index)
    profiler.close()
    assert not list(tmp_path.iterdir())
