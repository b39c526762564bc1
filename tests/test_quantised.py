"""What decodes with rounded weights: how far they are off, how large they are, what corrects it."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

import runs
from collab import sharding
from collab.metrics import read_jsonl
from collab.models.decoding import GATE_UP, QUERY_KEY_VALUE, TRANSPOSED, TRANSPOSED_SCALE
from collab.models.policy import Policy, init_params, unstacked
from collab.models.projection import SCALE
from collab.models.quantised import HIGHEST, quantise
from collab.models.transformer import Transformer, TransformerConfig, empty_cache
from collab.planning import memory, programs
from compiling import quick_jit
from test_lora import ADAPTED, by_path, noisy
from test_rollout import EchoClient, make_engine, make_jobs, on_mesh

pytestmark = pytest.mark.usefixtures("quick")

F = 7
TIED = TransformerConfig(
    vocabulary=48, width=32, layers=2, heads=4, kv_heads=2, head_channels=8, feed_forward=64
)
UNTIED = TransformerConfig(
    **{**vars(TIED), "is_tied": False, "has_qkv_bias": True, "dtype": "bfloat16"}
)
NETWORKS = {"tied": TIED, "untied_bias_bfloat16": UNTIED}


@functools.cache
def made(network: TransformerConfig) -> Any:
    return noisy(quick_jit(lambda key: init_params(Policy(network, 5), key, F))(jax.random.key(0)))


def logits(network: TransformerConfig, lm: Any) -> np.ndarray:
    """Through the cache, as rows decode."""
    tokens = np.random.default_rng(2).integers(0, network.vocabulary, (2, 7))
    positions = np.broadcast_to(np.arange(7), tokens.shape)

    @quick_jit
    def read(lm: Any) -> jax.Array:
        cache = empty_cache(network, rows=2, capacity=8)
        hidden, _ = Transformer(network).apply({"params": lm}, tokens, positions, cache)
        return Transformer(network).apply({"params": lm}, hidden, method=Transformer.unembed)

    return np.asarray(read(lm))


@pytest.mark.parametrize("inputs", [1, 2])
def test_a_matrix_is_off_by_half_a_step_of_its_channel(inputs: int) -> None:
    """Channels of a thousandfold size keep their own precision; one of zeros stays zero."""
    random = np.random.default_rng(0)
    kernel = random.standard_normal((6, 5, 4)).astype(np.float32)
    outputs = kernel.shape[inputs:]
    kernel *= np.logspace(-3, 3, int(np.prod(outputs))).reshape(outputs)
    kernel[..., 1] = 0.0
    whole, scale = quantise(jnp.asarray(kernel), inputs=inputs)
    assert (whole.dtype, whole.shape, scale.shape) == (jnp.int8, kernel.shape, outputs)
    off = np.abs(np.asarray(whole, np.float32) * scale - kernel)
    assert (off <= 0.5001 * np.asarray(scale)).all()
    largest = np.abs(whole.astype(np.int32)).max(axis=tuple(range(inputs)))
    assert set(np.unique(largest)) == {0, HIGHEST}
    assert not off[..., 1].any()


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
@pytest.mark.parametrize("is_joined", [False, True])
def test_rounded_weights_say_nearly_the_same(network: TransformerConfig, is_joined: bool) -> None:
    params = made(network)
    exact = logits(network, unstacked(params, network, is_joined=is_joined)["lm"])
    spread = exact.std()
    for weights, most in (("bfloat16", 0.02), ("int8", 0.03)):
        copy = unstacked(params, network, weights=weights, is_joined=is_joined)
        off = np.sqrt(np.mean((logits(network, copy["lm"]) - exact) ** 2))
        assert off < most * spread, weights
        assert off > 1e-4 * spread or weights == network.dtype


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_the_copy_holds_matrices_in_that_type(network: TransformerConfig) -> None:
    """And what is no matrix as it was: norms, scales and heads in f32, biases as they are added."""
    params = made(network)
    by_weights = {
        weights: by_path(unstacked(params, network, weights=weights, is_joined=True))
        for weights in ("", "bfloat16", "int8")
    }
    for weights, leaves in by_weights.items():
        for path, leaf in leaves.items():
            if "lm/" not in path or path.endswith(("/scale", SCALE, TRANSPOSED_SCALE)):
                assert leaf.dtype == jnp.float32, path
            elif weights == "int8" and path.endswith(("/kernel", TRANSPOSED)):
                assert leaf.dtype == jnp.int8, path
            else:
                wanted = "bfloat16" if weights == "bfloat16" else network.dtype
                assert leaf.dtype == jnp.dtype(wanted), path
    layer, whole = "lm/layers/1/", by_weights["int8"]
    assert whole[f"{layer}{QUERY_KEY_VALUE}/{SCALE}"].shape == (8, 8)
    assert whole[f"{layer}{GATE_UP}/{SCALE}"].shape == (128,)
    assert whole[f"{layer}out/{SCALE}"].shape == whole[f"{layer}down/{SCALE}"].shape == (32,)
    assert whole[f"lm/{TRANSPOSED}"].shape == (32, 48)
    assert not any("unembedding" in path for path in whole)
    matrices = [path for path in by_weights[""] if "layers" in path and path.endswith("/kernel")]
    items = sum(by_weights[""][path].size for path in matrices)
    assert sum(whole[path].nbytes for path in matrices) == items


def test_adapters_are_merged_before_they_are_rounded() -> None:
    params = noisy(quick_jit(lambda k: init_params(Policy(ADAPTED, 5), k, F))(jax.random.key(1)))
    exact = logits(ADAPTED, unstacked(params, ADAPTED)["lm"])
    found = logits(ADAPTED, unstacked(params, ADAPTED, weights="int8")["lm"])
    assert 0 < np.abs(found - exact).max() < 0.1 * exact.std()


def test_a_step_reads_the_matrices_rounded() -> None:
    """They are not made wide once before a loop over steps: then each step would read all of it."""
    copy = unstacked(made(TIED), TIED, weights="int8", is_joined=True)["lm"]

    def steps(lm: Any) -> jax.Array:
        def one(tokens_B: jax.Array) -> jax.Array:
            cache = empty_cache(TIED, rows=2, capacity=8)
            positions = jnp.zeros((2, 1), jnp.int32)
            hidden, _ = Transformer(TIED).apply({"params": lm}, tokens_B[:, None], positions, cache)
            read = Transformer(TIED).apply({"params": lm}, hidden, method=Transformer.unembed)
            return read[:, 0].argmax(-1)

        return jax.lax.while_loop(lambda t_B: t_B[0] > 3, one, jnp.array([5, 6]))

    text = jax.jit(steps).lower(copy).compile().as_text()
    (loop,) = (line for line in text.splitlines() if " while(" in line and "ENTRY" not in line)
    carried = loop.split(" while(")[0]
    assert carried.count("s8[") >= 4 * TIED.layers + 1
    assert f"f32[{TIED.width},{TIED.vocabulary}]" not in carried


def test_episodes_do_not_depend_on_the_mesh(tiny_config: Any, mesh_config: dict[str, int]) -> None:
    tiny_config.rollout.weights = "int8"
    alone, params = make_engine(
        on_mesh(tiny_config.copy_and_resolve_references(), {}), EchoClient()
    )
    expected = alone.run(params, make_jobs(4), temperature=1.0)
    engine, params = make_engine(on_mesh(tiny_config, mesh_config), EchoClient())
    for a, b in zip(expected, engine.run(params, make_jobs(4), temperature=1.0), strict=True):
        assert np.array_equal(a.trace.tokens_S, b.trace.tokens_S)
        np.testing.assert_allclose(a.trace.logp_S, b.trace.logp_S, atol=1e-4)


# --- a run ---------------------------------------------------------------------------------


def small_config(weights: str) -> ml_collections.ConfigDict:
    config = runs.small_config()
    config.rollout.weights = weights
    config.cold_start.steps, config.rl.iterations = 2, 2
    return config


@pytest.mark.parametrize("weights", ["", "int8"])
def test_a_run_corrects_for_the_weights_that_sampled(weights: str, tmp_path: Path) -> None:
    """What is trained is not rounded; the gap is no alarm."""
    _, trainer = runs.train(small_config(weights), tmp_path)
    assert {leaf.dtype for leaf in jax.tree.leaves(trainer.state.params)} == {jnp.dtype("float32")}
    written = read_jsonl(tmp_path / "metrics.jsonl")
    lines = [line for line in written if line["stage"] == "policy_gradient"]
    assert len(lines) == 2
    for line in lines:
        corrected = {name for name in line if name.startswith("importance/")}
        assert len(corrected) == (6 if weights else 0)
        assert 0 < line["sampler_gap_mean"] <= line["sampler_gap"]
        assert (line["sampler_gap_mean"] > 1e-4) == bool(weights)
        if weights:
            assert 0.9 < line["importance/token_mean"] < 1.1
            assert line["importance/token_max"] > 1.0001


def test_a_plan_holds_the_rounded_copy() -> None:
    sizes = {}
    for weights in ("", "int8"):
        config = small_config(weights)
        plan = programs.planned(config, sharding.make_mesh(config.mesh))
        sizes[weights] = memory.shard_bytes(plan.inputs["advance"])
    assert sizes["int8"] < 0.55 * sizes[""]  # a table for look-ups stays wide
    programs.compiled("advance", plan.lower["advance"])
