"""Objectives: advantages and losses by hand, and a contract for every line of the table."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from collab.rl import OBJECTIVES, group_scale, load_objective
from collab.rl.dapo import Dapo
from collab.rl.dr_grpo import DrGrpo
from collab.rl.grpo import Grpo
from collab.rl.reinforce import Reinforce

REWARDS = np.array([[1.0, 0.0, 0.0, 1.0], [2.0, 2.0, 2.0, 6.0]])


def test_reinforce_leaves_one_out() -> None:
    """Siblings' means: 1/3, 2/3, 2/3, 1/3 and 10/3, 10/3, 10/3, 2."""
    advantage_PG = Reinforce().advantages(REWARDS, standardise=False)
    expected = [[2 / 3, -2 / 3, -2 / 3, 2 / 3], [-4 / 3, -4 / 3, -4 / 3, 4.0]]
    np.testing.assert_allclose(advantage_PG, expected)


def test_grpo_centres_on_the_group() -> None:
    """Means 1/2 and 3."""
    advantage_PG = Grpo().advantages(REWARDS, standardise=False)
    np.testing.assert_allclose(advantage_PG, [[0.5, -0.5, -0.5, 0.5], [-1, -1, -1, 3]])


def test_standardised_advantages() -> None:
    """Deviations 1/2 and sqrt((1 + 1 + 1 + 9) / 4) = sqrt(3)."""
    grpo, root = Grpo().advantages(REWARDS, standardise=True), math.sqrt(3)
    np.testing.assert_allclose(grpo, [[1, -1, -1, 1], [-1 / root] * 3 + [root]], rtol=1e-6)
    reinforce = Reinforce().advantages(REWARDS, standardise=True)
    np.testing.assert_allclose(reinforce, grpo * 4 / 3, rtol=1e-6)


def test_a_small_deviation_is_not_blown_up() -> None:
    """Deviation 0.01 counts as 0.05: 0.01 / 0.05."""
    np.testing.assert_allclose(group_scale(np.array([[0.02, 0.0]]), standardise=True), [[20.0]])
    advantage_PG = Grpo().advantages(np.array([[0.02, 0.0]]), standardise=True)
    np.testing.assert_allclose(advantage_PG, [[0.2, -0.2]], rtol=1e-6)


def test_reinforce_loss_knows_no_sampler() -> None:
    logp, advantage = jnp.array([-0.5, -2.0]), jnp.array([3.0, -1.0])
    loss = Reinforce().loss(logp, jnp.array([-9.0, -9.0]), advantage, 0.2)
    np.testing.assert_allclose(loss, [1.5, -2.0])


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected", "slope"),
    [
        # loss = -min(ratio * advantage, clipped * advantage), its slope in log(ratio)
        (1.1, 2.0, -2.2, -2.2),
        (1.5, 2.0, -2.4, 0.0),  # clipped at 1.2: no more to gain
        (1.5, -2.0, 3.0, 3.0),  # went the wrong way: pulled back
        (0.5, 2.0, -1.0, -1.0),
        (0.5, -2.0, 1.6, 0.0),  # clipped at 0.8
    ],
)
def test_grpo_loss(ratio: float, advantage: float, expected: float, slope: float) -> None:
    sampler_logp = jnp.float32(-1.0)

    def loss_of(logp: jax.Array) -> jax.Array:
        return Grpo().loss(logp, sampler_logp, jnp.float32(advantage), 0.2)

    loss, gradient = jax.value_and_grad(loss_of)(sampler_logp + math.log(ratio))
    assert loss == pytest.approx(expected, rel=1e-5)
    assert gradient == pytest.approx(slope, rel=1e-5)


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected", "slope"),
    [
        (1.25, 2.0, -2.5, -2.5),  # GRPO would have clipped it at 1.2
        (1.5, 2.0, -2.56, 0.0),  # clipped at 1 + 1.4 * 0.2
        (1.5, -2.0, 3.0, 3.0),
        (0.5, -2.0, 1.6, 0.0),  # clipped at 0.8, as ever
    ],
)
def test_dapo_clips_higher(ratio: float, advantage: float, expected: float, slope: float) -> None:
    def loss_of(logp: jax.Array) -> jax.Array:
        return Dapo().loss(logp, jnp.float32(-1.0), jnp.float32(advantage), 0.2)

    loss, gradient = jax.value_and_grad(loss_of)(jnp.float32(-1.0 + math.log(ratio)))
    assert loss == pytest.approx(expected, rel=1e-5)
    assert gradient == pytest.approx(slope, rel=1e-5)


def test_dr_grpo_divides_by_a_constant() -> None:
    """(1 + 2 + 3 + 4) / (3 episodes * 8), though 4 tokens were written; GRPO's mean is 10 / 4."""
    loss_BN = jnp.array([[1.0, 2.0, 3.0], [4.0, 7.0, jnp.nan], [9.0, 9.0, 9.0]])
    written_BN = jnp.array([[True, True, True], [True, False, False], [False] * 3])
    assert DrGrpo().average(loss_BN, written_BN, {"episode_tokens": 8}) == pytest.approx(10 / 24)
    assert Grpo().average(loss_BN, written_BN, {}) == pytest.approx(10 / 4)


def test_a_long_episode_does_not_make_dr_grpos_tokens_lighter() -> None:
    """The slope of a token: 1 / (2 * 8) beside one other token or beside five."""
    for others in (1, 5):
        written_BN = jnp.arange(6) < jnp.array([[1], [others]])
        slope_BN = jax.grad(
            lambda loss_BN, mask=written_BN: DrGrpo().average(loss_BN, mask, {"episode_tokens": 8})
        )(jnp.ones((2, 6)))
        np.testing.assert_allclose(slope_BN, np.where(written_BN, 1 / 16, 0.0))


def test_unknown_objective() -> None:
    with pytest.raises(ValueError, match="'no_such' is unknown; the table has reinforce"):
        load_objective("no_such")


# --- every line of the table ---------------------------------------------------------------


@pytest.fixture(params=list(OBJECTIVES))
def objective(request: pytest.FixtureRequest) -> Any:
    return load_objective(request.param)


@pytest.mark.parametrize("standardise", [False, True])
def test_contract_of_advantages(objective: Any, standardise: bool) -> None:
    """They sum to 0 in a group, rank as the rewards do, and follow the samples' order."""
    reward_PG = np.random.default_rng(0).normal(size=(5, 4))
    advantage_PG = objective.advantages(reward_PG, standardise=standardise)
    assert advantage_PG.shape == reward_PG.shape
    np.testing.assert_allclose(advantage_PG.sum(axis=1), 0.0, atol=1e-6)
    assert np.array_equal(advantage_PG.argsort(axis=1), reward_PG.argsort(axis=1))
    permuted_PG = objective.advantages(reward_PG[::-1, [2, 0, 3, 1]], standardise=standardise)
    np.testing.assert_allclose(permuted_PG, advantage_PG[::-1, [2, 0, 3, 1]], rtol=1e-6)


def test_contract_of_a_group_that_agrees(objective: Any) -> None:
    """Exactly 0 where nobody earned anything."""
    zero_PG = objective.advantages(np.zeros((2, 3)), standardise=True)
    assert np.array_equal(zero_PG, np.zeros((2, 3)))
    same_PG = objective.advantages(np.full((1, 3), 0.7), standardise=True)
    np.testing.assert_allclose(same_PG, 0.0, atol=1e-12)


def test_contract_of_a_group_of_one(objective: Any) -> None:
    with pytest.raises(ValueError, match=r"rl\.samples=1 must be at least 2"):
        objective.advantages(np.ones((3, 1)), standardise=False)


def test_contract_of_the_average(objective: Any) -> None:
    """Linear in the losses of written tokens, blind to all others; nothing written gives 0."""
    weights = {"episode_tokens": 4}
    loss_BN, written_BN = (
        jnp.array([[1.0, -2.0], [3.0, 50.0]]),
        jnp.array([[True, True], [True, False]]),
    )
    average = objective.average(loss_BN, written_BN, weights)
    assert average > 0.0
    other_BN = jnp.where(written_BN, 3.0 * loss_BN, -7.0)
    np.testing.assert_allclose(objective.average(other_BN, written_BN, weights), 3.0 * average)
    assert objective.average(loss_BN, jnp.zeros((2, 2), bool), weights) == 0.0


def test_contract_of_the_loss(objective: Any) -> None:
    """Its shape is the tokens'; where the policy is the sampler, its slope is -advantage."""
    logp_BN = -jnp.arange(6.0).reshape(2, 3)
    advantage_BN = jnp.array([[1.0, -2.0, 0.0], [0.5, 3.0, -1.0]])

    def loss_of(logp_BN: jax.Array, sampler_logp_BN: jax.Array) -> jax.Array:
        return objective.loss(logp_BN, sampler_logp_BN, advantage_BN, 0.2)

    assert loss_of(logp_BN, logp_BN).shape == logp_BN.shape
    gradient_BN = jax.grad(lambda logp_BN: loss_of(logp_BN, -jnp.arange(6.0).reshape(2, 3)).sum())
    np.testing.assert_allclose(gradient_BN(logp_BN), -advantage_BN, rtol=1e-6)
