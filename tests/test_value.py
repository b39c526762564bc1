"""The value head's credit by hand: estimates, what tokens get, and what the head is fitted to."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from collab.models.policy import Policy, init_params
from collab.models.transformer import TransformerConfig
from collab.rl.batch import Batch, collate
from collab.rl.grpo import Grpo
from collab.rl.ppo import Ppo
from collab.rl.update import Learner
from collab.rl.value import credited, estimate, of_tokens
from collab.rollout.state import FEATURES
from collab.types import ANSWER_ID, FIRST_REQUEST_ID, THINK_ID, Params
from compiling import quick_jit
from episodes import NAMES, WRITTEN, make_trace

REWARD = jnp.array([[0.0, -0.5, 1.0, 0.0], [0.25, 9.0, 9.0, 9.0]])
VALUE = jnp.array([[0.5, 0.25, 0.75, 7.0], [0.5, 7.0, 7.0, 7.0]])
DECIDED = jnp.array([[True, True, True, False], [True, False, False, False]])
WEIGHTS = {"gae_lambda": 1.0, "standardise": False}


@pytest.mark.parametrize(
    ("gae_lambda", "expected"),
    [
        # To go: 0.5, 0.5, 1 and 0.25; less 0.5, 0.25, 0.75 and 0.5.
        (1.0, [[0.0, 0.25, 0.25, 0.0], [-0.25, 0.0, 0.0, 0.0]]),
        # One step and the next value: 0.25 - 0.5, -0.5 + 0.75 - 0.25, 1 - 0.75.
        (0.0, [[-0.25, 0.0, 0.25, 0.0], [-0.25, 0.0, 0.0, 0.0]]),
        # -0.25 + 0 / 2 + 0.25 / 4, 0 + 0.25 / 2, 0.25.
        (0.5, [[-0.1875, 0.125, 0.25, 0.0], [-0.25, 0.0, 0.0, 0.0]]),
    ],
)
def test_estimates(gae_lambda: float, expected: list[list[float]]) -> None:
    """What stands at decisions that were not made is not read."""
    np.testing.assert_allclose(estimate(REWARD, VALUE, DECIDED, gae_lambda), expected, atol=1e-7)


def make_batch() -> Batch[np.ndarray]:
    """Think, ask, answer; answer alone. Rewards as in REWARD."""
    traces = [make_trace([THINK_ID, FIRST_REQUEST_ID, ANSWER_ID]), make_trace([ANSWER_ID])]
    batch = collate(
        traces, rows=8, capacity=64, decisions=4, actions=len(NAMES), features=len(FEATURES)
    )
    batch.reward_BK[:2] = np.where(DECIDED, REWARD, 0.0)
    return batch


def padded(value_BK: jax.Array) -> jax.Array:
    return jnp.pad(value_BK, ((0, 6), (0, 0)))


def test_advantages_are_centred_on_the_batch() -> None:
    """0, 1/4, 1/4 and -1/4, whose mean is 1/16; the error is squared, over four decisions."""
    advantage_BK, metrics = credited(make_batch(), padded(VALUE), WEIGHTS)
    expected = np.array([[0.0, 0.25, 0.25], [-0.25, 0.0, 0.0]]) - 1 / 16
    np.testing.assert_allclose(advantage_BK[0, :3], expected[0], atol=1e-7)
    np.testing.assert_allclose(advantage_BK[1, 0], expected[1, 0], atol=1e-7)
    assert not advantage_BK[0, 3] and not advantage_BK[1, 1:].any() and not advantage_BK[2:].any()
    assert metrics["value_loss"] == pytest.approx(3 * 0.25**2 / 4)
    # Targets 0.5, 0.5, 1, 0.25 vary by 0.0742, what is left by 3/64 - 1/256.
    assert metrics["value_explained"] == pytest.approx(
        1 - (3 / 64 - 1 / 256) / 0.07421875, rel=1e-4
    )


def test_standardised_advantages_have_deviation_1() -> None:
    """Over the decisions that were made; where all went as expected, the floor keeps them small."""
    batch = make_batch()
    advantage_BK, _ = credited(batch, padded(VALUE), {**WEIGHTS, "standardise": True})
    made = np.asarray(advantage_BK)[batch.decided_BK]
    assert made.mean() == pytest.approx(0.0, abs=1e-6)
    assert made.std() == pytest.approx(1.0, rel=1e-5)
    as_expected_BK = estimate(batch.reward_BK, jnp.zeros((8, 4)), batch.decided_BK, 1.0)
    advantage_BK, metrics = credited(batch, as_expected_BK, {**WEIGHTS, "standardise": True})
    assert not advantage_BK.any()
    assert metrics["value_loss"] == 0.0 and metrics["value_explained"] == 1.0


def test_the_head_is_pulled_to_what_was_earned_and_advantages_are_constants() -> None:
    """The slope of the mean squared error: 2 * (value - target) / 4, at the decisions made."""
    batch = make_batch()

    def loss_of(value_BK: jax.Array) -> jax.Array:
        advantage_BK, metrics = credited(batch, value_BK, WEIGHTS)
        return metrics["value_loss"] + 100.0 * (advantage_BK**2).sum()

    slope_BK = jax.grad(loss_of)(padded(VALUE))
    expected = -np.array([[0.0, 0.25, 0.25, 0.0], [-0.25, 0.0, 0.0, 0.0]]) / 2
    np.testing.assert_allclose(slope_BK[:2], expected, atol=1e-7)
    assert not slope_BK[2:].any()


def test_tokens_have_the_advantage_of_the_decision_they_follow() -> None:
    batch = make_batch()
    advantage_BK = jnp.arange(32.0).reshape(8, 4) + 1.0
    advantage_BN = np.asarray(of_tokens(advantage_BK, batch))
    for row, expected in ((0, [1.0, 2.0, 3.0]), (1, [5.0])):
        written = advantage_BN[row][batch.written_BN[row]]
        assert written.tolist() == np.repeat(expected, WRITTEN).tolist()


# --- in the update -------------------------------------------------------------------------

NETWORK = TransformerConfig(
    vocabulary=64, width=16, layers=1, heads=2, kv_heads=1, head_channels=8, feed_forward=32
)
CRITIC = Policy(NETWORK, len(NAMES), has_value=True)
# Its state is the last gradient as it was.
LEARNER = Learner(CRITIC, optax.trace(decay=0.0), np.zeros(NETWORK.vocabulary, bool), 1.0)
LOSS_WEIGHTS = {
    **WEIGHTS,
    "clip_ratio": 0.2,
    "head_clip_ratio": 0.2,
    "decision_weight": 0.0,
    "kl_weight": 0.0,
    "entropy_weight": 0.0,
    "value_weight": 0.5,
}


@functools.cache
def make_params() -> Params:
    return quick_jit(lambda key: init_params(CRITIC, key, len(FEATURES)))(jax.random.key(0))


@functools.cache
def make_step(objective: type[Grpo]) -> Callable[..., Any]:
    return quick_jit(
        lambda batch, params, weights: LEARNER.policy_gradient(
            LEARNER.start(params), params, batch, objective=objective(), weights=weights
        )
    )


def gradient_step(objective: type[Grpo], **weights: float) -> tuple[dict[str, Any], Params]:
    """Metrics and gradient on the batch above, in which siblings have nothing to say."""
    state, metrics = make_step(objective)(make_batch(), make_params(), {**LOSS_WEIGHTS, **weights})
    return jax.device_get((metrics, state.optimizer.trace))


def test_the_head_starts_at_zero_and_its_loss_is_the_returns() -> None:
    """Squares of 0.5, 0.5, 1 and 0.25; half of their mean is the loss, and moves the head alone."""
    metrics, gradient = gradient_step(Grpo)
    assert metrics["value_loss"] == pytest.approx((0.25 + 0.25 + 1.0 + 0.0625) / 4)
    assert metrics["loss"] == pytest.approx(metrics["value_loss"] / 2)
    assert gradient["value_head"]["bias"] == pytest.approx(-(0.5 + 0.5 + 1.0 + 0.25) / 4)
    assert gradient["value_head"]["kernel"].any()
    assert not any(leaf.any() for leaf in jax.tree.leaves({**gradient, "value_head": {}}))


def test_decisions_are_credited_by_the_head_and_tokens_only_with_a_critic() -> None:
    """The trunk learns from its decisions under either; from its tokens under PPO alone."""
    for objective in (Grpo, Ppo):
        _, gradient = gradient_step(objective, decision_weight=1.0)
        assert gradient["action_head"]["kernel"].any()
        _, gradient = gradient_step(objective, decision_weight=0.0)
        assert not gradient["action_head"]["kernel"].any()
        learns = any(leaf.any() for leaf in jax.tree.leaves(gradient["lm"]))
        assert learns == (objective is Ppo)
