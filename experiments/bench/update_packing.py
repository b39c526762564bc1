"""A step of imitation: ours, packed and in chunks, and the plain one, an episode a padded row.

`taskset -c 0 python -m experiments.bench.update_packing` (a few minutes) prints a table and writes
results/update_packing.json. Batches are those of configs/study.py, with traces of at most so many
tokens as its curriculum allows, and whole. Both steps compute the same: the loss is compared. They
take turns, after a first step that compiles; counted are the CPU and wall time of a step.
NOTES.md reads the figures.
"""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from collab.assembly import Assembly, assemble
from collab.config import load_config
from collab.models.policy import Policy
from collab.models.sampling import token_logp
from collab.rl.batch import Batch, bucket, collate
from collab.rl.steps import cold_learner
from collab.rl.update import Learner
from collab.types import Trace
from experiments.bench import records

CONFIG = pathlib.Path(__file__).parents[2] / "configs" / "study.py"
RESULTS = pathlib.Path(__file__).parent / "results" / "update_packing.json"
LONGEST = (64, 128, 0)  # tokens of a trace; 0 = as long as it is
PAIRS = 5
OURS, PLAIN = "collab", "one padded row an episode, all at once"


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Padded(Batch):
    """written_at_BN and decided_at_BK: in the episode's own row."""

    tokens_BS: Any


class PlainLearner(Learner):
    """Reads an episode a row, all rows and all logits at once."""

    def _read(self, params: Any, batch: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
        policy, (B, S) = self.policy, batch.tokens_BS.shape
        positions_BS = jnp.broadcast_to(jnp.arange(S), (B, S))
        hidden_BSD, _ = policy.apply({"params": params}, batch.tokens_BS, positions_BS)
        row_B1 = jnp.arange(B)[:, None]
        logits_BNV = policy.apply(
            {"params": params},
            hidden_BSD[row_B1, batch.written_at_BN - 1],
            method=Policy.token_logits,
        )
        logp_BNV = token_logp(
            logits_BNV, jnp.asarray(self.is_barred_V), jnp.float32(self.temperature)
        )
        token_BN1 = batch.tokens_BS[row_B1, batch.written_at_BN][..., None]
        logp_BN = jnp.take_along_axis(logp_BNV, token_BN1, axis=-1)[..., 0]
        hidden_BKD = hidden_BSD[row_B1, batch.decided_at_BK]
        logits_BKA = policy.apply(
            {"params": params}, hidden_BKD, batch.features_BKF, method=Policy.action_logits
        )
        logp_BKA = jax.nn.log_softmax(jnp.where(batch.legal_BKA, logits_BKA, -1e30), axis=-1)
        return jnp.where(batch.written_BN, logp_BN, 0.0), logp_BKA, hidden_BKD


def padded(batch: Batch[np.ndarray], traces: Sequence[Trace]) -> Padded:
    """Right-padded to a multiple of 64 tokens, and of 64 written ones."""
    S = batch.tokens_QRS.shape[-1]
    N = bucket(int(batch.written_BN.sum(axis=1).max()), S)
    fields = {
        name: value[:, :N] if name.endswith("_BN") else value for name, value in vars(batch).items()
    }
    made = Padded(
        **{**fields, "written_at_BN": np.ones_like(fields["written_at_BN"])},
        tokens_BS=np.zeros((len(traces), S), np.int32),
    )
    for b, trace in enumerate(traces):
        made.tokens_BS[b, : len(trace.tokens_S)] = trace.tokens_S
        written, k = np.flatnonzero(trace.sampled_S), len(trace.decided_at_K)
        made.written_at_BN[b, : len(written)] = written
        made.decided_at_BK[b, :k] = trace.decided_at_K
    return made


def steps_of(assembly: Assembly, traces: Sequence[Trace]) -> dict[str, Callable[[], float]]:
    """By system, what takes one step on the traces and returns its loss."""
    limits, config = assembly.engine.limits, assembly.config
    batch = collate(
        traces,
        rows=len(traces),
        capacity=limits.capacity,
        decisions=limits.max_segments,
        actions=limits.actions,
        features=limits.features,
    )
    ours = cold_learner(config, assembly.policy, assembly.engine.decoder.is_barred_V)
    plain = PlainLearner(**{f.name: getattr(ours, f.name) for f in dataclasses.fields(ours)})
    state = ours.start(assembly.initial_params())

    def stepping(learner: Learner, batch: Any) -> Callable[[], float]:
        step = jax.jit(
            lambda state, batch: learner.imitate(state, batch, config.cold_start.decision_weight)
        )
        on_device = jax.device_put(batch)
        return lambda: float(jax.block_until_ready(step(state, on_device))[1]["loss"])

    return {
        OURS: stepping(ours, batch),
        PLAIN: stepping(plain, padded(jax.tree.map(np.copy, batch), traces)),
    }


def measured(steps: dict[str, Callable[[], float]]) -> list[dict[str, dict[str, float]]]:
    """Of each pair of steps, by system, CPU and wall seconds."""
    losses = [step() for step in steps.values()]
    np.testing.assert_allclose(losses, losses[0], rtol=1e-5)
    pairs = []
    for _ in range(PAIRS):
        pair = {}
        for system, step in steps.items():
            wall_s, cpu_s = time.perf_counter(), time.process_time()
            step()
            pair[system] = {
                "cpu_s": time.process_time() - cpu_s,
                "wall_s": time.perf_counter() - wall_s,
            }
        pairs.append(pair)
    return pairs


def main() -> None:
    config = load_config(str(CONFIG))
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        assembly = assemble(config, folder)
        with contextlib.closing(assembly):
            problems = assembly.task.problems("train")
            for longest in LONGEST:
                rng = np.random.default_rng(config.seed)
                traces, _ = assembly.synthesiser().batch(problems, rng, longest=longest)
                pairs = measured(steps_of(assembly, traces))
                of = f"traces up to {longest} tokens" if longest else "whole traces"
                rows += records.rows_of(pairs, ours=OURS, batch=len(traces), of=f" of a step, {of}")
    records.show(rows)
    records.write(RESULTS, rows, pairs=PAIRS)


if __name__ == "__main__":
    main()
