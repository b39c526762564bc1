"""Rollouts of several turns with an LLM in the loop: ours, and in lock-step as peers do it.

`python -m experiments.bench.multi_turn` (extra `smollm2`) prints a table and writes
results/multi_turn.json. 64 episodes of SmolLM2-135M, f32, ask a scripted helper
over real HTTP, whose latency is log-normal with a median of 0.5, 2 and 5 s. What to do is chosen at
random, by the same keys in both, so that both make the same episodes: all but the few in which a
last bit decided otherwise, which is checked.

In lock-step all rows write until each has asked or is done; then all wait for the last reply, and
the whole context of every row that goes on is read again. So do Search-R1, Router-R1 and TRL,
except that what they read again of the prompt is not shared by siblings at the start; here it is.
`work alone` is ours with a helper that answers at once, in this process: no rollout takes less.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import dataclasses
import functools
import pathlib
import tempfile
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from collab.assembly import Assembly, assemble
from collab.config import load_config
from collab.llm import make_backend
from collab.llm.serve import serving
from collab.models.policy import Policy
from collab.models.transformer import empty_cache
from collab.rollout.episodes import Job
from collab.rollout.flight import Flight
from collab.rollout.state import DECIDE, WRITE, Rows
from collab.types import Episode, Params
from experiments.bench import records

CONFIG = pathlib.Path(__file__).parents[2] / "configs" / "smollm2.py"
RESULTS = pathlib.Path(__file__).parent / "results" / "multi_turn.json"
PROBLEMS, SAMPLES = 8, 8
LATENCIES = (0.5, 2.0, 5.0)  # seconds, median
SIGMA = 0.5  # of their log-normal spread
OURS, LOCK_STEP, ALONE = "collab", "lock-step, contexts read again", "work alone"
RATE, PREFILL = "episodes a second", "tokens read for each distinct token"
ALIKE = 0.8  # of episodes, at least
BUCKET = 64  # tokens of a context, rounded up


def configured(latency_s: float, url: str) -> ml_collections.ConfigDict:
    """Short segments, so that the episodes have several turns."""
    config = load_config(str(CONFIG))
    config.task.update({"train": PROBLEMS, "validation": 1, "test": 1})
    config.rollout.update({"rows": PROBLEMS * SAMPLES, "prompts_per_call": PROBLEMS})
    config.rollout.update({"capacity": 512, "max_segments": 8, "max_asks": 4, "think_tokens": 24})
    config.rollout.update({"request_tokens": 24, "answer_tokens": 24, "reply_tokens": 32})
    config.llm.scripted.update({"latency_s": latency_s, "latency_sigma": SIGMA})
    config.llm.update({"concurrency": PROBLEMS * SAMPLES, "model": "three_hops", "cache": False})
    config.llm.update({"backend": "openai", "base_url": url} if url else {"backend": "scripted"})
    return config


class LockStep(Flight):
    """All rows together: write, wait for all replies, read all contexts again."""

    def _advance(self, busy: int) -> Rows:
        """Until no row can go on."""
        beyond = -2 * self.engine.rows_count  # so many more may stand still: all
        host = super()._advance(beyond)
        while np.isin(host.phase_B, (DECIDE, WRITE)).any():
            host = super()._advance(beyond)
        return host

    def _feed(self) -> None:
        """Every reply, once the last one is there. The engine's `_feed` is `Decoder.append`."""
        with self.engine.stopwatch.part("wait"):
            concurrent.futures.wait(self.futures.values())
        rows = sorted(self.futures)
        super()._feed()
        if rows:
            self._read_again(rows)

    def _read_again(self, rows: list[int]) -> None:
        engine, B = self.engine, self.engine.rows_count
        F = next(size for size in (8, 16, 32, B) if size >= len(rows))
        row_F = np.full(F, B, np.int32)
        row_F[: len(rows)] = rows
        length_B = np.asarray(engine.rows.length_B)
        tokens = min(-(-int(length_B[rows].max()) // BUCKET) * BUCKET, engine.limits.capacity)
        engine.stopwatch.count(prefilled=int(length_B[rows].sum()))
        with engine.stopwatch.part("prefill"):
            engine.rows = read_again(
                engine.decoder.policy, tokens, self.params, engine.rows, engine.put_whole(row_F)
            )


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=3)
def read_again(policy: Policy, tokens: int, params: Params, rows: Rows, row_F: jax.Array) -> Rows:
    """Read the first `tokens` tokens of F rows into a new cache, each but for its last token."""
    T = rows.tokens_BT.shape[1]
    length_F = rows.length_B.at[row_F].get(mode="clip")
    offset_L = jnp.arange(tokens)
    at_FL = jnp.where(offset_L < length_F[:, None] - 1, offset_L, T)
    read_FL = rows.tokens_BT.at[row_F, :tokens].get(mode="clip")
    cache = empty_cache(policy.config, rows=len(row_F), capacity=T)
    _, cache = policy.apply({"params": params}, read_FL, at_FL, cache)

    def put(kept: jax.Array, value: jax.Array) -> jax.Array:
        return kept.at[row_F].set(value, mode="drop")

    return dataclasses.replace(rows, cache=jax.tree.map(put, rows.cache, cache))


@contextlib.contextmanager
def assembled(latency_s: float, *, is_local: bool = False) -> Iterator[Assembly]:
    """All parts; the helper is served over HTTP, unless it is to be in this process."""
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        local = stack.enter_context(contextlib.closing(assemble(configured(0.0, ""), folder)))
        if is_local:
            yield local
            return
        config = configured(latency_s, "")
        expert = make_backend("scripted", config.llm, knowledge=local.task.knowledge)
        url = stack.enter_context(serving(expert))
        made = assemble(configured(latency_s, url), f"{folder}/served")
        yield stack.enter_context(contextlib.closing(made))


def rolled_out(
    assembly: Assembly, params: Params, kind: type[Flight]
) -> tuple[list[Episode], dict[str, float]]:
    """The episodes, and their figures."""
    engine = assembly.engine
    jobs = [
        Job(problem=problem, identity=(0, p, g), helpers=("three_hops",), episode=f"{p}-{g}")
        for p, problem in enumerate(assembly.task.problems("train"))
        for g in range(SAMPLES)
    ]
    engine.reset_counters()
    engine.stopwatch.lap()
    flight, began = kind(engine, temperature=1.0, weakening=None), time.perf_counter()
    batch = flight.add(jobs)
    while not flight.is_finished(batch):
        flight.turn(params)
    seconds = time.perf_counter() - began
    lap = engine.stopwatch.lap()
    return flight.take(batch)[0], {
        RATE: len(jobs) / seconds,
        PREFILL: lap.counts["prefilled"] / lap.counts["distinct"],
        **{f"seconds of {part}": spent for part, spent in lap.seconds.items()},
    }


def compared(
    systems: Mapping[str, tuple[Assembly, type[Flight]]], params: Params
) -> dict[str, dict[str, float]]:
    """Figures of each. Raises: RuntimeError where they made other episodes."""
    made, taken = {}, {}
    for name, (assembly, kind) in systems.items():
        made[name], taken[name] = rolled_out(assembly, params, kind)
    check_alike(made)
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--latencies", type=float, nargs="+", default=LATENCIES, help="seconds")
    flags = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for latency_s in flags.latencies:
        with (
            assembled(latency_s) as served,
            assembled(latency_s) as stepped,
            assembled(latency_s, is_local=True) as alone,
        ):
            params = served.initial_params()
            decoder = stepped.engine.decoder
            stepped.engine._feed = jax.jit(
                lambda _, rows, replies, decoder=decoder: decoder.append(rows, replies),
                donate_argnums=1,
            )
            systems = {
                OURS: (served, Flight),
                LOCK_STEP: (stepped, LockStep),
                ALONE: (alone, Flight),
            }
            found = records.repeated(functools.partial(compared, systems, params), flags.repeats)
        more = records.rows_of(
            found, ours=OURS, batch=PROBLEMS * SAMPLES, of=f", latency {latency_s:g} s"
        )
        records.show(more)
        rows += more
    records.write(RESULTS, rows, repeats=flags.repeats)


def check_alike(made: dict[str, list[Episode]]) -> None:
    """Raises: RuntimeError where a system made other episodes than ours.

    What is read again has other last bits than what was kept, and of ten thousand draws from a
    vocabulary of 49,152 some hang on one: an episode goes on otherwise from there.
    """
    for name, episodes in made.items():
        same = [
            np.array_equal(a.trace.tokens_S, b.trace.tokens_S)
            for a, b in zip(made[OURS], episodes, strict=True)
        ]
        if np.mean(same) < ALIKE:
            raise RuntimeError(f"{name} made only {sum(same)} of {len(same)} episodes of {OURS}")


if __name__ == "__main__":
    main()
