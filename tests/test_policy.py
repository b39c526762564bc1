"""The policy's parameters and outputs, with and without heads of its own."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from collab.models.policy import Policy, init_params
from collab.models.transformer import TransformerConfig

A, F, D = 4, 3, 16
CONTROL = (30, 7, 31, 12)


@functools.cache
def network(is_tied: bool) -> TransformerConfig:
    return TransformerConfig(
        vocabulary=32, width=D, layers=1, heads=2, kv_heads=1, head_channels=8, feed_forward=32,
        is_tied=is_tied,
    )  # fmt: skip


def made(is_tied: bool = True, **options: Any) -> tuple[Policy, Any]:
    policy = Policy(network(is_tied), A, **options)
    make = jax.jit(
        lambda key: init_params(policy, key, F),
        compiler_options={"xla_backend_optimization_level": 0},
    )
    return policy, make(jax.random.key(0))


def test_a_head_stands_only_where_it_is_used() -> None:
    """And whichever there are, the trunk begins alike."""
    plain = made()[1]
    assert set(plain) == {"lm", "action_head", "feature_head"}
    for options, heads in (
        ({"head_width": 3}, {"action_head", "feature_head", "head_layer", "head_output"}),
        ({"has_value": True}, {"action_head", "feature_head", "value_head"}),
        ({"action_tokens": CONTROL}, set()),
        ({"action_tokens": CONTROL, "has_value": True}, {"value_head"}),
    ):
        params = made(**options)[1]
        assert set(params) == {"lm"} | heads
        jax.tree.map(np.testing.assert_array_equal, params["lm"], plain["lm"])


def test_the_value_starts_at_zero_and_reads_the_hidden_state_and_the_features() -> None:
    """Per decision one number; the trunk gets no gradient from it."""
    policy, params = made(has_value=True)
    hidden, features = jnp.ones((2, 5, D)), jnp.ones((2, 5, F))

    def value(params: Any, hidden: jax.Array) -> jax.Array:
        return policy.apply({"params": params}, hidden, features, method=Policy.value)

    assert value(params, hidden).shape == (2, 5)
    assert not value(params, hidden).any()
    kernel = jnp.arange(D + F, dtype=jnp.float32)[:, None]
    params["value_head"] = {"kernel": kernel, "bias": jnp.array([0.5])}
    np.testing.assert_allclose(value(params, 2.0 * hidden), 2 * 120 + (16 + 17 + 18) + 0.5)
    assert not jax.grad(lambda hidden: value(params, hidden).sum())(hidden).any()


def test_the_hidden_layer_adds_to_the_linear_head_and_does_not_move_the_trunk() -> None:
    policy, params = made(head_width=3)
    keys = iter(jax.random.split(jax.random.key(2), 4))
    params |= {
        name: jax.tree.map(lambda leaf: jax.random.normal(next(keys), leaf.shape), params[name])
        for name in ("action_head", "feature_head")
    }
    hidden, features = jnp.ones((2, D)), jnp.ones((2, F))
    weight_A = jnp.arange(1.0, A + 1)

    def logits(params: Any, hidden: jax.Array) -> jax.Array:
        return policy.apply({"params": params}, hidden, features, method=Policy.action_logits)

    def pull(params: Any) -> jax.Array:
        return jax.grad(lambda hidden: (logits(params, hidden) * weight_A).sum())(hidden)

    linear = hidden @ params["action_head"]["kernel"] + params["action_head"]["bias"]
    linear += features @ params["feature_head"]["kernel"]
    np.testing.assert_allclose(logits(params, hidden), linear, rtol=1e-5)  # its output starts at 0
    curved = params | {"head_output": {"kernel": jnp.ones((3, A))}}
    assert np.abs(logits(curved, hidden) - linear).min() > 1e-3
    np.testing.assert_array_equal(pull(curved), pull(params))


@pytest.mark.parametrize("head_width", [0, 8])
def test_no_head_is_told_what_is_kept_from_it(head_width: int) -> None:
    """What the unseen feature holds changes nothing; each of the others changes every logit."""
    policy, params = made(head_width=head_width, has_value=True, unseen=(1,))
    params = jax.tree.map(lambda leaf: leaf + 0.1, params)  # the heads start at zero
    hidden, features = jnp.ones((2, D)), jnp.ones((2, F))

    def read(features: jax.Array) -> jax.Array:
        logits = policy.apply({"params": params}, hidden, features, method=Policy.action_logits)
        value = policy.apply({"params": params}, hidden, features, method=Policy.value)
        return jnp.concatenate([logits, value[:, None]], axis=-1)

    before = read(features)
    np.testing.assert_array_equal(read(features.at[:, 1].set(3.0)), before)
    for place in (0, 2):
        assert (read(features.at[:, place].set(3.0)) != before).all()


@pytest.mark.parametrize("is_tied", [True, False])
def test_action_tokens_have_the_logits_of_the_vocabulary(is_tied: bool) -> None:
    """In the actions' order, whatever the features; rows of the control tokens alone learn."""
    policy, params = made(is_tied, action_tokens=CONTROL)
    hidden = jax.random.normal(jax.random.key(1), (2, D))
    lm = params["lm"]
    kernel_DV = lm["embed"]["embedding"].T if is_tied else lm["unembedding"]["kernel"]

    def logits(params: Any) -> jax.Array:
        features = jnp.full((2, F), 9.0)
        return policy.apply({"params": params}, hidden, features, method=Policy.action_logits)

    np.testing.assert_allclose(
        logits(params), np.asarray(hidden) @ np.asarray(kernel_DV)[:, CONTROL], rtol=1e-5
    )
    gradient = jax.grad(lambda params: logits(params)[:, 1].sum())(params)["lm"]
    gradient_DV = gradient["embed"]["embedding"].T if is_tied else gradient["unembedding"]["kernel"]
    assert np.flatnonzero(np.asarray(gradient_DV).any(axis=0)).tolist() == [CONTROL[1]]
