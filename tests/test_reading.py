"""Packed, chunked reading against the plain one: an episode a row, all rows and logits at once."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from collab import sharding
from collab.models.policy import Policy, init_params
from collab.models.sampling import token_logp
from collab.models.transformer import TransformerConfig
from collab.rl import batch as batch_module
from collab.rl import reading
from collab.rl.batch import Batch, collate
from collab.rl.imitation import decision_hidden
from collab.rl.update import log_probabilities
from collab.rollout.state import FEATURES
from collab.types import ANSWER_ID, FIRST_REQUEST_ID, THINK_ID, Params, Trace
from compiling import quick_jit
from episodes import NAMES, make_trace

A, F = len(NAMES), len(FEATURES)
ROWS, CAPACITY, DECISIONS = 6, 48, 6
NETWORK = TransformerConfig(
    vocabulary=40, width=16, layers=2, heads=4, kv_heads=2, head_channels=4, feed_forward=32,
    is_tied=False,
)  # fmt: skip
POLICY = Policy(NETWORK, A)
IS_BARRED = np.arange(NETWORK.vocabulary) >= 36
TEMPERATURE = 0.8
Weights = tuple[np.ndarray, np.ndarray]  # of log-probabilities [B, N] and [B, K, A]


@pytest.fixture(scope="module", autouse=True)
def small_chunks() -> Iterator[None]:
    """Three chunks of rows and many of tokens; one shape, so one program."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(reading, "CPU_ROWS", 2)
        monkeypatch.setattr(reading, "CPU_LOGITS", 1)
        monkeypatch.setattr(reading, "LEAST_TOKENS", 10)
        monkeypatch.setattr(batch_module, "ROW_SHARES", 1)
        monkeypatch.setattr(batch_module, "WRITTEN_SHARES", 1)
        yield


@functools.cache
def make_params() -> Params:
    """Random weights, in the heads too, which start at zero."""
    params = quick_jit(lambda key: init_params(POLICY, key, F))(jax.random.key(0))
    keys = iter(jax.random.split(jax.random.key(1), 8))
    for head in ("action_head", "feature_head"):
        params[head] = jax.tree.map(
            lambda leaf: 0.5 * jax.random.normal(next(keys), leaf.shape), params[head]
        )
    return params


def traces_of(actions: Sequence[Sequence[int]], seed: int) -> list[Trace]:
    """Traces with these decisions and random tokens."""
    made, rng = [make_trace(each) for each in actions], np.random.default_rng(seed)
    vocabulary = NETWORK.vocabulary - IS_BARRED.sum()
    return [
        dataclasses.replace(
            trace, tokens_S=rng.integers(0, vocabulary, len(trace.tokens_S)).astype(np.int32)
        )
        for trace in made
    ]


def packed(traces: Sequence[Trace], **sizes: int) -> Batch[np.ndarray]:
    known = {"rows": ROWS, "capacity": CAPACITY, "decisions": DECISIONS}
    return collate(traces, **{**known, **sizes}, actions=A, features=F)


# --- the plain reading ---------------------------------------------------------------------


@dataclasses.dataclass
class Plain:
    """An episode a row, padded to the capacity."""

    tokens_BS: np.ndarray
    written_at_BN: np.ndarray
    decided_at_BK: np.ndarray


def plain(traces: Sequence[Trace]) -> Plain:
    made = Plain(
        np.zeros((ROWS, CAPACITY), np.int32),
        np.ones((ROWS, CAPACITY), np.int32),
        np.zeros((ROWS, DECISIONS), np.int32),
    )
    for b, trace in enumerate(traces):
        made.tokens_BS[b, : len(trace.tokens_S)] = trace.tokens_S
        written = np.flatnonzero(trace.sampled_S)
        made.written_at_BN[b, : len(written)] = written
        made.decided_at_BK[b, : len(trace.decided_at_K)] = trace.decided_at_K
    return made


def read_plainly(params: Params, batch: Batch, arrays: Any) -> tuple[jax.Array, jax.Array]:
    tokens_BS, written_at_BN, decided_at_BK = arrays
    positions_BS = jnp.broadcast_to(jnp.arange(CAPACITY), tokens_BS.shape)
    hidden_BSD, _ = POLICY.apply({"params": params}, tokens_BS, positions_BS)
    row_B1 = jnp.arange(ROWS)[:, None]
    logits_BNV = POLICY.apply(
        {"params": params}, hidden_BSD[row_B1, written_at_BN - 1], method=Policy.token_logits
    )
    logp_BNV = token_logp(logits_BNV, jnp.asarray(IS_BARRED), jnp.float32(TEMPERATURE))
    token_BN1 = tokens_BS[row_B1, written_at_BN][..., None]
    logp_BN = jnp.take_along_axis(logp_BNV, token_BN1, axis=-1)[..., 0]
    logits_BKA = POLICY.apply(
        {"params": params}, hidden_BSD[row_B1, decided_at_BK], batch.features_BKF,
        method=Policy.action_logits,
    )  # fmt: skip
    logp_BKA = jax.nn.log_softmax(jnp.where(batch.legal_BKA, logits_BKA, -1e30), axis=-1)
    return jnp.where(batch.written_BN, logp_BN, 0.0), logp_BKA


def read_packed(params: Params, batch: Batch) -> tuple[jax.Array, jax.Array]:
    return log_probabilities(POLICY, params, batch, IS_BARRED, TEMPERATURE)


def with_gradient(read: Any) -> Any:
    """Log-probabilities, of decisions made, and the gradient of their weighted sum; jitted."""

    def weighted(params: Params, weights: Weights, batch: Batch, *args: Any) -> Any:
        logp_BN, logp_BKA = read(params, batch, *args)
        logp_BKA = jnp.where(batch.decided_BK[..., None], logp_BKA, 0.0)
        loss = jnp.sum(weights[0] * logp_BN) + jnp.sum(weights[1] * logp_BKA)
        return loss, (logp_BN, logp_BKA)

    def both(params: Params, weights: Weights, *args: Any) -> Any:
        (_, logp), gradient = jax.value_and_grad(weighted, has_aux=True)(params, weights, *args)
        return logp, gradient

    return quick_jit(both)


packed_step, plain_step = with_gradient(read_packed), with_gradient(read_plainly)


def weights_of(batch: Batch[np.ndarray], seed: int) -> Weights:
    """Random where something was written or decided, else 0."""
    rng = np.random.default_rng(seed)
    weight_BN = np.where(batch.written_BN, rng.normal(size=batch.written_BN.shape), 0.0)
    weight_BKA = rng.normal(size=batch.legal_BKA.shape) * batch.decided_BK[..., None]
    return weight_BN.astype(np.float32), weight_BKA.astype(np.float32)


def assert_close(found: Any, expected: Any) -> None:
    """Every leaf within 1e-5 of its largest entry."""

    def check(got: jax.Array, wanted: jax.Array) -> None:
        largest = float(np.abs(wanted).max()) or 1.0
        np.testing.assert_allclose(got, wanted, rtol=0.0, atol=1e-5 * largest)

    jax.tree.map(check, found, expected)


actions = st.lists(st.sampled_from([THINK_ID, FIRST_REQUEST_ID, ANSWER_ID]), min_size=1, max_size=6)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(actions, min_size=1, max_size=ROWS), st.integers(0, 9))
def test_packing_and_chunks_move_no_number(episodes: list[list[int]], seed: int) -> None:
    """Log-probabilities and gradients, for 1 to 6 episodes of 6 to 33 tokens."""
    traces = traces_of(episodes, seed)
    batch = packed(traces)
    weights, arrays = weights_of(batch, seed), dataclasses.astuple(plain(traces))
    found = packed_step(make_params(), weights, batch)
    expected = plain_step(make_params(), weights, batch, arrays)
    assert_close(found, expected)


# --- apart from each other -----------------------------------------------------------------

MIXED = [[THINK_ID, ANSWER_ID], [ANSWER_ID], [THINK_ID, FIRST_REQUEST_ID, ANSWER_ID], [THINK_ID]]


def test_other_episodes_of_a_row_move_nothing() -> None:
    """Bit for bit, what stands before or behind an episode in its row."""
    traces = traces_of(MIXED, seed=0)
    batch, others = packed(traces), traces_of(MIXED, seed=1)
    assert (batch.positions_QRS[0, 1:] == -1).all()  # all in one row
    weights = weights_of(batch, seed=0)
    (expected_BN, expected_BKA), _ = packed_step(make_params(), weights, batch)
    for b, trace in enumerate(traces):
        changed = packed([*others[:b], trace, *others[b + 1 :]])
        assert not np.array_equal(changed.tokens_QRS, batch.tokens_QRS)
        (found_BN, found_BKA), _ = packed_step(make_params(), weights, changed)
        np.testing.assert_array_equal(found_BN[b], expected_BN[b])
        np.testing.assert_array_equal(found_BKA[b], expected_BKA[b])


def test_no_gradient_crosses_between_episodes() -> None:
    """Each episode has words of its own; only those move what it says."""
    traces = [
        dataclasses.replace(
            trace, tokens_S=(9 * b + np.arange(len(trace.tokens_S)) % 9).astype("i")
        )
        for b, trace in enumerate(traces_of(MIXED, seed=0))
    ]
    batch = packed(traces)
    for b, trace in enumerate(traces):
        weight_BN, weight_BKA = weights_of(batch, seed=0)
        of_others = np.arange(ROWS) != b
        weight_BN[of_others], weight_BKA[of_others] = 0.0, 0.0
        _, gradient = packed_step(make_params(), (weight_BN, weight_BKA), batch)
        moved = np.abs(gradient["lm"]["embed"]["embedding"]).max(axis=1) > 0.0
        read = trace.tokens_S[: trace.decided_at_K.max() + 1]  # by a decision at the latest
        assert set(read) <= set(np.flatnonzero(moved)) <= set(trace.tokens_S)


def test_decisions_read_their_own_state() -> None:
    traces = traces_of(MIXED, seed=0)
    read = quick_jit(functools.partial(decision_hidden, POLICY))
    together = read(make_params(), packed(traces))
    for b, trace in enumerate(traces):
        alone = read(make_params(), packed([trace]))
        K = len(trace.action_K)
        np.testing.assert_allclose(together[b, :K], alone[0, :K], atol=1e-5)


# --- devices -------------------------------------------------------------------------------


def test_hidden_states_stay_on_their_device() -> None:
    """Over 4 shards nothing but whether a chunk is needed is told to the others."""
    mesh = sharding.make_mesh({"data": 4, "fsdp": 1, "model": 1})
    traces = traces_of([*MIXED, *MIXED], seed=0)
    alone, split = (packed(traces, rows=8, shards=shards) for shards in (1, 4))
    placed = sharding.put_rows(split, mesh)
    whole = jax.device_put(make_params(), sharding.replicated(mesh))
    out = (sharding.row_sharding(mesh),) * 2
    compiled = quick_jit(read_packed, out_shardings=out).lower(whole, placed).compile()
    assert not re.search("all-gather|all-to-all|collective-permute", compiled.as_text())
    found_BN, found_BKA = sharding.fetch(compiled(whole, placed))
    expected_BN, expected_BKA = quick_jit(read_packed)(make_params(), alone)
    assert_close(found_BN, expected_BN)
    assert_close(found_BKA[alone.decided_BK], expected_BKA[alone.decided_BK])
