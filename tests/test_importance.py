"""Truncated importance weights: their gradient by hand, and what they make of another sampler."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from collab.rl import OBJECTIVES, load_objective
from collab.rl.importance import corrected, figures

LIMIT, CLIP = 2.0, 0.2
RATIO = np.array([0.1, 0.9, 1.0, 1.5, 5.0])
SAMPLER = jnp.log(jnp.array([0.5, 0.3, 0.2, 0.4, 0.1]))
LOGP = SAMPLER + jnp.log(RATIO)
ADVANTAGE = jnp.array([1.0, -2.0, 0.5, -1.0, 3.0])


def gradient(objective: Any, logp: jax.Array, sampler: jax.Array, *, limit: float) -> np.ndarray:
    def total(logp: jax.Array) -> jax.Array:
        return jnp.sum(corrected(objective, logp, sampler, ADVANTAGE, clip=CLIP, limit=limit))

    return np.asarray(jax.grad(total)(logp))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_gradient_is_the_advantage_times_the_truncated_ratio(name: str) -> None:
    """Whatever the objective does with ratios: clipped at 0.8 and 1.2, two would have none."""
    found = gradient(load_objective(name), LOGP, SAMPLER, limit=LIMIT)
    np.testing.assert_allclose(found, -np.minimum(RATIO, LIMIT) * ADVANTAGE, rtol=1e-5)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_what_the_newest_weights_sampled_weighs_one(name: str) -> None:
    objective = load_objective(name)
    own = gradient(objective, LOGP, LOGP, limit=0.0)
    np.testing.assert_array_equal(gradient(objective, LOGP, LOGP, limit=LIMIT), own)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_without_a_limit_the_loss_is_the_objectives_own(name: str) -> None:
    objective = load_objective(name)
    own = objective.loss(LOGP, SAMPLER, ADVANTAGE, CLIP)
    found = corrected(objective, LOGP, SAMPLER, ADVANTAGE, clip=CLIP, limit=0.0)
    np.testing.assert_array_equal(found, own)
    assert figures("token", LOGP, SAMPLER, jnp.ones(5, bool), limit=0.0) == {}


@pytest.mark.parametrize(("limit", "is_exact"), [(10.0, True), (1.1, False)])
def test_the_expected_gradient_is_that_of_the_newest_policy(limit: float, is_exact: bool) -> None:
    """Over all actions of a bandit, each as often as an older policy draws it."""
    objective, reward_A = load_objective("reinforce"), jnp.array([1.0, -0.5, 0.3])
    old_A = jax.nn.log_softmax(jnp.array([1.0, 0.0, -1.0]))
    newest_A = jnp.array([0.2, 0.1, 0.5])

    def off_policy(logits_A: jax.Array) -> jax.Array:
        logp_A = jax.nn.log_softmax(logits_A)
        loss_A = corrected(objective, logp_A, old_A, reward_A, clip=CLIP, limit=limit)
        return jnp.sum(jnp.exp(old_A) * loss_A)

    def on_policy(logits_A: jax.Array) -> jax.Array:
        return -jnp.sum(jax.nn.softmax(logits_A) * reward_A)

    found, expected = jax.grad(off_policy)(newest_A), jax.grad(on_policy)(newest_A)
    assert np.allclose(found, expected, rtol=1e-5) == is_exact


def test_figures_are_of_what_counts() -> None:
    """The largest ratio of all is masked out."""
    mask = jnp.array([True, True, False, True, False])
    found = figures("token", LOGP, SAMPLER, mask, limit=1.2)
    assert found["importance/token_mean"] == pytest.approx((0.1 + 0.9 + 1.5) / 3, rel=1e-5)
    assert found["importance/token_max"] == pytest.approx(1.5, rel=1e-5)
    assert found["importance/token_truncated"] == pytest.approx(1 / 3)
