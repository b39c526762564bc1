"""The optimiser step: the documented loss by hand, masks, the optimiser's rates, meshes."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from collab import sharding
from collab.models.policy import Policy, init_params
from collab.models.transformer import TransformerConfig
from collab.rl.batch import Batch, collate
from collab.rl.grpo import Grpo
from collab.rl.update import Learner, TrainState, make_optimizer
from collab.rollout.state import FEATURES
from collab.types import ANSWER_ID, FIRST_REQUEST_ID, THINK_ID, Params, Trace
from compiling import quick_jit
from episodes import NAMES, make_trace

A, F = len(NAMES), len(FEATURES)
NETWORK = TransformerConfig(
    vocabulary=32, width=16, layers=1, heads=4, kv_heads=2, head_channels=4, feed_forward=32
)
POLICY = Policy(NETWORK, A)
IS_BARRED = np.arange(NETWORK.vocabulary) >= 28
TEMPERATURE = 0.8
# Its state is the last gradient as it was.
LEARNER = Learner(POLICY, optax.trace(decay=0.0), IS_BARRED, TEMPERATURE)
WEIGHTS = {
    "clip_ratio": 0.2,
    "head_clip_ratio": 0.1,
    "decision_weight": 0.7,
    "kl_weight": 0.3,
    "entropy_weight": 0.4,
}
ONLY_LOSSES = {**WEIGHTS, "kl_weight": 0.0, "entropy_weight": 0.0}
Metrics = dict[str, jax.Array]


@functools.cache
def make_params(seed: int) -> Params:
    """Random weights, in the heads too, which start at zero."""
    params = quick_jit(lambda key: init_params(POLICY, key, F))(jax.random.key(seed))
    keys = iter(jax.random.split(jax.random.key(100 + seed), 8))
    for head in ("action_head", "feature_head"):
        params[head] = jax.tree.map(
            lambda leaf: 0.5 * jax.random.normal(next(keys), leaf.shape), params[head]
        )
    return params


POLICY_SEED, REFERENCE_SEED = 0, 1
_LONG = make_trace([THINK_ID, FIRST_REQUEST_ID, THINK_ID, ANSWER_ID])
IS_FORCED = np.array([False, False, True, False])  # only THINK was legal there
LONG = dataclasses.replace(
    _LONG,
    legal_KA=np.where(
        IS_FORCED[:, None], np.arange(A) == THINK_ID, np.arange(A) != FIRST_REQUEST_ID + 1
    ),
)
SHORT = make_trace([ANSWER_ID])


def make_batch(traces: Sequence[Trace] = (LONG, SHORT), shards: int = 1) -> Batch[np.ndarray]:
    """LONG, SHORT and 6 empty rows; ratios to the sampler inside and outside of the clip."""
    batch = collate(traces, rows=8, capacity=64, decisions=6, actions=A, features=F, shards=shards)
    rng, real_BN = np.random.default_rng(0), batch.written_BN
    advantage_BN = np.where(real_BN, rng.normal(size=real_BN.shape), 0.0)
    sampler_BN = np.where(real_BN, -3.3 + rng.normal(size=real_BN.shape), 0.0)
    # The head is less sure of these than its sampler was, so the clip binds where it is negative.
    decision_advantage_BK = np.zeros(batch.choice_BK.shape)
    decision_advantage_BK[0, :4], decision_advantage_BK[1, 0] = (-1.0, 0.5, 0.0, -2.0), 0.8
    return dataclasses.replace(
        batch,
        advantage_BN=advantage_BN.astype(np.float32),
        sampler_logp_BN=sampler_BN.astype(np.float32),
        decision_advantage_BK=decision_advantage_BK.astype(np.float32),
    )


@quick_jit
def _policy_gradient(
    state: TrainState, reference: Params, batch: Batch, weights: Mapping[str, Any]
) -> tuple[TrainState, Metrics]:
    return LEARNER.policy_gradient(state, reference, batch, objective=Grpo(), weights=weights)


def gradient_step(
    batch: Batch, *, reference: int = REFERENCE_SEED, weights: Mapping[str, Any] = WEIGHTS
) -> tuple[Metrics, Params]:
    """Metrics and the gradient of the loss. reference: a seed."""
    start = LEARNER.start(make_params(POLICY_SEED))
    state, metrics = _policy_gradient(start, make_params(reference), batch, weights)
    return metrics, state.optimizer.trace


# --- the formula ---------------------------------------------------------------------------


@quick_jit
def _network(params: Params, tokens_S: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Hidden states and logits of one context."""
    positions_1S = jnp.arange(len(tokens_S))[None]
    hidden_1SD, _ = POLICY.apply({"params": params}, tokens_S[None], positions_1S)
    logits_1SV = POLICY.apply({"params": params}, hidden_1SD, method=Policy.token_logits)
    return hidden_1SD[0], logits_1SV[0]


@functools.cache
def by_hand(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For `make_params(seed)`, in numpy, trace by trace and without padding.

    Returns the log-probability of each written token [M], and of each action at each decision
    that was a choice [J, A], illegal ones -inf, with the chosen action [J].
    """
    params = make_params(seed)
    token_logp, action_logp, chosen = [], [], []
    for trace in (LONG, SHORT):
        hidden_SD, logits_SV = map(np.asarray, _network(params, trace.tokens_S))
        logits_SV = np.where(IS_BARRED, -np.inf, logits_SV / TEMPERATURE)
        logp_SV = logits_SV - np.log(np.exp(logits_SV).sum(axis=-1, keepdims=True))
        at = np.flatnonzero(trace.sampled_S)
        token_logp += logp_SV[at - 1, trace.tokens_S[at]].tolist()
        head, features = jax.device_get((params["action_head"], params["feature_head"]))
        logits_KA = hidden_SD[trace.decided_at_K] @ head["kernel"] + head["bias"]
        logits_KA += trace.features_KF @ features["kernel"]
        logits_KA = np.where(trace.legal_KA, logits_KA, -np.inf)
        logp_KA = logits_KA - np.log(np.exp(logits_KA).sum(axis=-1, keepdims=True))
        is_choice_K = trace.legal_KA.sum(axis=-1) > 1
        action_logp += logp_KA[is_choice_K].tolist()
        chosen += trace.action_K[is_choice_K].tolist()
    return np.array(token_logp), np.array(action_logp), np.array(chosen)


def clipped_loss(logp: Any, sampler_logp: Any, advantage: Any, clip: float) -> np.ndarray:
    ratio = np.exp(logp - sampler_logp)
    return -np.minimum(ratio * advantage, np.clip(ratio, 1 - clip, 1 + clip) * advantage)


def test_the_loss_is_the_documented_formula() -> None:
    """10 written tokens and 4 decisions with a choice, in rows of 8, 2 and no tokens."""
    batch = make_batch()
    logp_M, logp_JA, chosen_J = by_hand(POLICY_SEED)
    reference_M, reference_JA, _ = by_hand(REFERENCE_SEED)
    assert (len(logp_M), len(logp_JA)) == (10, 4)
    token_loss = clipped_loss(
        logp_M, batch.sampler_logp_BN[batch.written_BN], batch.advantage_BN[batch.written_BN], 0.2
    ).mean()
    chosen_logp_J = logp_JA[np.arange(4), chosen_J]
    sampler_J = batch.sampler_action_logp_BK[batch.choice_BK]
    decision_loss = clipped_loss(
        chosen_logp_J, sampler_J, batch.decision_advantage_BK[batch.choice_BK], 0.1
    ).mean()
    gap_M = reference_M - logp_M
    token_kl = (np.exp(gap_M) - gap_M - 1.0).mean()
    p_JA, is_legal_JA = np.exp(logp_JA), np.isfinite(logp_JA)
    drift_JA = np.subtract(logp_JA, reference_JA, where=is_legal_JA, out=np.zeros((4, A)))
    decision_kl = (p_JA * drift_JA).sum(axis=-1).mean()
    entropy = -(p_JA * np.where(is_legal_JA, logp_JA, 0.0)).sum(axis=-1).mean()

    metrics, gradient = gradient_step(batch)
    got = {name: float(value) for name, value in metrics.items()}
    assert got["token_loss"] == pytest.approx(token_loss, rel=1e-4)
    assert got["decision_loss"] == pytest.approx(decision_loss, rel=1e-4)
    assert got["kl"] == pytest.approx(token_kl + decision_kl, rel=1e-4)
    assert got["head_entropy"] == pytest.approx(entropy, rel=1e-4)
    expected = token_loss + 0.7 * decision_loss + 0.3 * (token_kl + decision_kl) - 0.4 * entropy
    assert got["loss"] == pytest.approx(expected, rel=1e-4)
    squares = [float(jnp.sum(leaf**2)) for leaf in jax.tree.leaves(gradient)]
    assert got["gradient_norm"] == pytest.approx(math.sqrt(sum(squares)), rel=1e-5)


def test_what_older_weights_sampled_counts_by_its_truncated_ratio() -> None:
    """Of tokens and decisions, instead of the clipped ratio; and the ratios are logged."""
    batch, learner = make_batch(), dataclasses.replace(LEARNER, importance_limit=0.5)
    logp_M, logp_JA, chosen_J = by_hand(POLICY_SEED)
    _, metrics = quick_jit(
        lambda state, reference, batch: learner.policy_gradient(
            state, reference, batch, objective=Grpo(), weights=ONLY_LOSSES
        )
    )(LEARNER.start(make_params(POLICY_SEED)), make_params(REFERENCE_SEED), batch)
    places = {
        "token": (batch.written_BN, batch.sampler_logp_BN, batch.advantage_BN, logp_M),
        "decision": (
            batch.choice_BK,
            batch.sampler_action_logp_BK,
            batch.decision_advantage_BK,
            logp_JA[np.arange(4), chosen_J],
        ),
    }
    for name, (mask, sampler, advantage, logp) in places.items():
        ratio = np.exp(logp - sampler[mask])
        assert ratio.min() < 0.5 < ratio.max(), name  # the limit binds for some
        loss = -(np.minimum(ratio, 0.5) * advantage[mask]).mean()
        assert metrics[f"{name}_loss"] == pytest.approx(loss, rel=1e-4)
        assert metrics[f"importance/{name}_mean"] == pytest.approx(ratio.mean(), rel=1e-4)
        assert metrics[f"importance/{name}_max"] == pytest.approx(ratio.max(), rel=1e-4)
        assert metrics[f"importance/{name}_truncated"] == pytest.approx((ratio > 0.5).mean())


def test_imitation_is_the_cross_entropy_of_tokens_and_choices() -> None:
    logp_M, logp_JA, chosen_J = by_hand(POLICY_SEED)
    state, metrics = quick_jit(LEARNER.imitate)(
        LEARNER.start(make_params(POLICY_SEED)), make_batch(), 0.2
    )
    decision_loss = -logp_JA[np.arange(4), chosen_J].mean()
    assert metrics["token_loss"] == pytest.approx(-logp_M.mean(), rel=1e-4)
    assert metrics["decision_loss"] == pytest.approx(decision_loss, rel=1e-4)
    assert metrics["loss"] == pytest.approx(-logp_M.mean() + 0.2 * decision_loss, rel=1e-4)
    assert state.step == 1


def test_the_head_is_not_folded_into_the_token_mean() -> None:
    """What the head learns depends neither on how many tokens there are nor on their advantages."""
    batch = make_batch()
    metrics, gradient = gradient_step(batch, weights=ONLY_LOSSES)
    few = dataclasses.replace(
        batch,
        written_BN=batch.written_BN & (np.arange(batch.written_BN.shape[1]) < 2),
        advantage_BN=100.0 * batch.advantage_BN,
    )
    few_metrics, few_gradient = gradient_step(few, weights=ONLY_LOSSES)
    assert few_metrics["token_loss"] != metrics["token_loss"]
    assert few_metrics["decision_loss"] == metrics["decision_loss"]
    doubled = {**ONLY_LOSSES, "decision_weight": 2 * ONLY_LOSSES["decision_weight"]}
    _, doubled_gradient = gradient_step(batch, weights=doubled)
    for head in ("action_head", "feature_head"):
        for name, leaf in gradient[head].items():
            assert np.abs(leaf).max() > 0.0
            np.testing.assert_array_equal(few_gradient[head][name], leaf)
            np.testing.assert_allclose(doubled_gradient[head][name], 2 * leaf, rtol=1e-6)


# --- masks ---------------------------------------------------------------------------------


def changed(batch: Batch, name: str, where: np.ndarray, value: Any) -> Batch:
    array = getattr(batch, name)
    mask = where.reshape(where.shape + (1,) * (array.ndim - where.ndim))
    return dataclasses.replace(batch, **{name: np.where(mask, value, array).astype(array.dtype)})


CHANGES: dict[str, Callable[[Batch], Batch]] = {
    "tokens of no episode": lambda b: changed(b, "tokens_QRS", b.positions_QRS < 0, 9),
    "places of unwritten tokens": lambda b: changed(b, "written_at_BN", ~b.written_BN, 7),
    "their sampler": lambda b: changed(b, "sampler_logp_BN", ~b.written_BN, -5.0),
    "their advantage": lambda b: changed(b, "advantage_BN", ~b.written_BN, 3.0),
    "places of forced and unmade decisions": lambda b: changed(b, "decided_at_BK", ~b.choice_BK, 4),
    "their action": lambda b: changed(b, "action_BK", ~b.choice_BK, ANSWER_ID),
    "their sampler's": lambda b: changed(b, "sampler_action_logp_BK", ~b.choice_BK, -5.0),
    "their mask": lambda b: changed(b, "legal_BKA", ~b.choice_BK, np.arange(A) < 2),
    "their features": lambda b: changed(b, "features_BKF", ~b.choice_BK, 2.5),
    "their advantages": lambda b: changed(b, "decision_advantage_BK", ~b.choice_BK, 3.0),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_is_masked_moves_nothing(change: Callable[[Batch], Batch]) -> None:
    """Bit for bit, in every metric and in every gradient."""
    batch = make_batch()
    other = change(batch)
    assert not all(map(np.array_equal, jax.tree.leaves(batch), jax.tree.leaves(other)))
    expected, got = gradient_step(batch), gradient_step(other)
    assert jax.tree.all(jax.tree.map(np.array_equal, expected, got))
    assert expected[0]["gradient_norm"] > 0.0


def test_an_empty_batch_teaches_nothing() -> None:
    """No row has anything to learn: the loss is 0, and so is its gradient."""
    batch = make_batch()
    nothing = dataclasses.replace(
        batch,
        written_BN=np.zeros_like(batch.written_BN),
        choice_BK=np.zeros_like(batch.choice_BK),
    )
    metrics, _ = gradient_step(nothing)
    assert metrics["loss"] == metrics["gradient_norm"] == 0.0


# --- figures of a step ---------------------------------------------------------------------


def test_kl_is_0_at_the_reference() -> None:
    still = {**WEIGHTS, "decision_weight": 0.0, "entropy_weight": 0.0, "kl_weight": 1.0}
    batch = make_batch()
    batch = dataclasses.replace(batch, advantage_BN=np.zeros_like(batch.advantage_BN))
    metrics, gradient = gradient_step(batch, reference=POLICY_SEED, weights=still)
    assert metrics["kl"] == 0.0
    assert max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(gradient)) < 1e-5
    assert gradient_step(batch, weights=still)[0]["kl"] > 0.01


def test_sampler_gap_is_the_largest_over_tokens_and_choices() -> None:
    logp_M, logp_JA, chosen_J = by_hand(POLICY_SEED)
    batch = make_batch()
    sampler_BN = np.full(batch.written_BN.shape, 9.0)  # far off where it must not count
    sampler_BK = np.full(batch.choice_BK.shape, 9.0)
    sampler_BN[batch.written_BN] = logp_M
    sampler_BK[batch.choice_BK] = logp_JA[np.arange(4), chosen_J]

    def gap(token: float, decision: float) -> float:
        """With the sampler off by so much at one token and at one decision."""
        off_BN, off_BK = sampler_BN.copy(), sampler_BK.copy()
        off_BN[0, 3] += token
        off_BK[1, 0] += decision
        moved = dataclasses.replace(
            batch,
            sampler_logp_BN=off_BN.astype(np.float32),
            sampler_action_logp_BK=off_BK.astype(np.float32),
        )
        return float(gradient_step(moved)[0]["sampler_gap"])

    assert gap(0.0, 0.0) < 1e-5
    assert gap(0.25, 0.0) == pytest.approx(0.25, abs=1e-5)
    assert gap(-0.25, 0.5) == pytest.approx(0.5, abs=1e-5)


# --- the optimiser -------------------------------------------------------------------------


def test_heads_learn_at_their_own_rates() -> None:
    """Adam's first step is 1 per weight, whatever the gradient: times the rate and its factor."""
    optimizer = make_optimizer(
        optax.constant_schedule(0.1), clip_norm=1.0, head_rate=10.0, feature_rate=100.0
    )
    params = {
        "lm": {"a": jnp.ones(2), "b": jnp.ones(3)},
        "action_head": {"kernel": jnp.ones(2)},
        "feature_head": {"kernel": jnp.ones(2)},
        "value_head": {"kernel": jnp.ones(2)},
    }
    gradient = jax.tree.map(lambda leaf: -0.3 * leaf, params)
    updates, _ = optimizer.update(gradient, optimizer.init(params), params)
    np.testing.assert_allclose(updates["lm"]["a"], 0.1, rtol=1e-4)
    np.testing.assert_allclose(updates["lm"]["b"], 0.1, rtol=1e-4)
    np.testing.assert_allclose(updates["action_head"]["kernel"], 1.0, rtol=1e-4)
    np.testing.assert_allclose(updates["feature_head"]["kernel"], 10.0, rtol=1e-4)
    np.testing.assert_allclose(updates["value_head"]["kernel"], 1.0, rtol=1e-4)


def test_the_gradient_norm_is_clipped_and_the_rate_scheduled() -> None:
    """Gradients 3, 4 and 0.6, 0.8 are the same to a clip at 1: Adam takes equal steps."""
    optimizer = make_optimizer(
        lambda step: 0.1 / (1 + step), clip_norm=1.0, head_rate=1.0, feature_rate=1.0
    )
    params = {"lm": jnp.zeros(2)}
    state = optimizer.init(params)
    for gradient, rate in (([3.0, 4.0], 0.1), ([0.6, 0.8], 0.05)):
        updates, state = optimizer.update({"lm": jnp.array(gradient)}, state, params)
        np.testing.assert_allclose(updates["lm"], [-rate, -rate], rtol=1e-4)


# --- meshes --------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["policy_gradient", "imitate"])
def test_numbers_do_not_depend_on_the_mesh(stage: str, mesh: jax.sharding.Mesh) -> None:
    """Loss, metrics and gradient, jitted with the layouts that training uses."""
    traces = [LONG, *[SHORT] * 7]  # every device has something to learn
    batch, split = make_batch(traces), make_batch(traces, sharding.row_parts(mesh))
    state, reference = LEARNER.start(make_params(POLICY_SEED)), make_params(REFERENCE_SEED)

    def step(state: TrainState, reference: Params, batch: Batch) -> tuple[TrainState, Metrics]:
        if stage == "imitate":
            return LEARNER.imitate(state, batch, 0.2)
        return LEARNER.policy_gradient(state, reference, batch, objective=Grpo(), weights=WEIGHTS)

    alone, expected_metrics = quick_jit(step)(state, reference, batch)
    expected_gradient = alone.optimizer.trace
    layout = sharding.param_shardings(state, mesh)
    placed = jax.device_put((state, reference), (layout, layout.params))
    new, metrics = quick_jit(step, out_shardings=(layout, sharding.replicated(mesh)))(
        *placed, sharding.put_rows(split, mesh)
    )
    got = sharding.fetch((metrics, new.optimizer.trace))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        got,
        sharding.fetch((expected_metrics, expected_gradient)),
    )
