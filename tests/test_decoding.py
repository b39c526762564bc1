"""The layout of parameters for decoding: the same numbers from other arrays."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from collab.models.decoding import unstack_layers
from collab.models.projection import FEW, TURNED, linear
from collab.models.transformer import Transformer, empty_cache
from networks import TINY, random_params


@pytest.mark.parametrize("rows", [1, 3, FEW + 1])
def test_a_turned_kernel_gives_the_product(rows: int) -> None:
    random = np.random.default_rng(0)
    x, kernel_FD = random.standard_normal((rows, 2, 5)), random.standard_normal((7, 5))
    found = jax.jit(linear)(jnp.asarray(x, jnp.float32), jnp.asarray(kernel_FD, jnp.float32))
    np.testing.assert_allclose(found, x @ kernel_FD.T, atol=1e-5)


def read(params: Any, config: Any, rows: int) -> np.ndarray:
    """Logits of some tokens a row, read through a cache."""
    model, tokens = Transformer(config), jnp.arange(rows * 4).reshape(rows, 4)
    at = jnp.broadcast_to(jnp.arange(4), tokens.shape)
    cache = empty_cache(config, rows=rows, capacity=8)
    hidden, _ = model.apply({"params": params}, tokens, at, cache)
    return np.asarray(model.apply({"params": params}, hidden, method=Transformer.unembed))


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("variant", [{}, {"has_qkv_bias": True, "is_tied": False}])
def test_every_layout_reads_alike(rows: int, variant: dict[str, bool]) -> None:
    config = dataclasses.replace(TINY, **variant)
    params = random_params(config)
    for layout in ({}, {"is_joined": True}, {"is_joined": True, "is_turned": True, "rows": rows}):
        found = read(unstack_layers(params, **layout), config, rows)
        np.testing.assert_allclose(found, read(params, config, rows), rtol=1e-4, atol=1e-5)


def test_what_is_turned_suits_the_rows() -> None:
    def turned(rows: int) -> set[str]:
        layout = unstack_layers(random_params(TINY), is_joined=True, is_turned=True, rows=rows)
        return {name for name, parts in layout["layers"]["0"].items() if TURNED in parts}

    assert turned(1) == {"out", "down"}
    assert turned(8) == {"query_key_value", "out", "gate_up", "down"}
