"""The decoder: rotary positions, causality, the cache, and every variant of the family."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from collab.config import default_config
from collab.models.presets import PRESETS, transformer_config
from collab.models.transformer import (
    REMAT,
    RopeScaling,
    Transformer,
    TransformerConfig,
    empty_cache,
    rope_frequencies,
    rotate,
)
from collab.sharding import param_shardings, put_rows
from compiling import quick_jit

BASE = TransformerConfig(
    vocabulary=48,
    width=24,
    layers=2,
    heads=4,
    kv_heads=2,
    head_channels=8,
    feed_forward=32,
)
# Every option of the family at least once, in few networks: each costs a compilation.
VARIANTS = {
    "tied": BASE,
    "untied_bias_llama3": dataclasses.replace(
        BASE, is_tied=False, has_qkv_bias=True, rope_scaling=RopeScaling("llama3", 8.0)
    ),
    "qk_norm_yarn_remat": dataclasses.replace(
        BASE, has_qk_norm=True, remat="layers", rope_scaling=RopeScaling("yarn", 4.0)
    ),
}


@pytest.fixture(params=list(VARIANTS.values()), ids=list(VARIANTS))
def config(request: pytest.FixtureRequest) -> TransformerConfig:
    return request.param


@functools.cache
def initial(config: TransformerConfig) -> Any:
    """Random parameters, norms and biases too, so that no zero or one hides a mistake."""
    dummy, random = jnp.zeros((1, 2), int), np.random.default_rng(0)
    network = Transformer(config)
    shapes = jax.eval_shape(lambda: network.init(jax.random.key(0), dummy, dummy)["params"])

    def filled(path: Any, leaf: Any) -> np.ndarray:
        noise = random.standard_normal(leaf.shape).astype(np.float32)
        return 1 + 0.1 * noise if "scale" in jax.tree_util.keystr(path) else 0.2 * noise

    return jax.tree_util.tree_map_with_path(filled, shapes)


@functools.partial(quick_jit, static_argnums=0)
def run(
    config: TransformerConfig, params: Any, tokens_BS: Any, positions_BS: Any, cache: Any = None
) -> tuple[jax.Array, Any]:
    """Logits and cache."""
    network = Transformer(config)
    hidden, cache = network.apply({"params": params}, tokens_BS, positions_BS, cache)
    return network.apply({"params": params}, hidden, method=Transformer.unembed), cache


def read(config: TransformerConfig, params: Any, tokens_BS: np.ndarray) -> np.ndarray:
    """Logits of the whole sequence, from position 0."""
    positions = np.broadcast_to(np.arange(tokens_BS.shape[1]), tokens_BS.shape)
    return np.asarray(run(config, params, tokens_BS, positions)[0])


def some_tokens(rows: int, length: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, BASE.vocabulary, (rows, length))


def test_rotation_by_hand() -> None:
    # Two pairs (0, 2) and (1, 3), with frequencies 1 and 10000 ** -0.5 = 0.01.
    config = dataclasses.replace(BASE, head_channels=4)
    x = jnp.array([1.0, 2.0, 3.0, 4.0]).reshape(1, 1, 1, 4)
    found = rotate(x, jnp.array([[5]]), config).ravel()
    c, s, c2, s2 = math.cos(5), math.sin(5), math.cos(0.05), math.sin(0.05)
    expected = [1 * c - 3 * s, 2 * c2 - 4 * s2, 3 * c + 1 * s, 4 * c2 + 2 * s2]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_linear_scaling_divides_every_frequency() -> None:
    plain, _ = rope_frequencies(BASE)
    scaled, factor = rope_frequencies(
        dataclasses.replace(BASE, rope_scaling=RopeScaling("linear", 4.0))
    )
    np.testing.assert_allclose(scaled, plain / 4.0, rtol=1e-6)
    assert factor == 1.0


def test_llama3_scaling_by_hand() -> None:
    # Context 8192, factors 1 and 4: wavelengths below 2048 stay, above 8192 are divided by 32,
    # between them the share kept is (8192 / wavelength - 1) / 3.
    config = dataclasses.replace(
        BASE, head_channels=64, rope_theta=500_000.0, rope_scaling=RopeScaling("llama3", 32.0)
    )
    found, _ = rope_frequencies(config)
    for index in (0, 10, 15, 16, 17, 25, 31):
        plain = 500_000.0 ** (-index / 32)
        wavelength = 2 * math.pi / plain
        kept = min(1.0, max(0.0, (8192 / wavelength - 1) / 3))
        assert found[index] == pytest.approx(plain * kept + plain / 32 * (1 - kept), rel=1e-5)
    assert 0 < (8192 * 500_000.0 ** (-16 / 32) / (2 * math.pi) - 1) / 3 < 1  # 16 is in between


def test_yarn_scaling_by_hand() -> None:
    config = dataclasses.replace(
        BASE, head_channels=64, rope_scaling=RopeScaling("yarn", 4.0, original_context=4096)
    )
    found, factor = rope_frequencies(config)
    # Pair that turns n times in the context: 64 ln(4096 / (2 pi n)) / (2 ln 10000):
    # n = 32 gives 10.47, n = 1 gives 22.51, so pairs up to 10 stay and those from 23 are divided.
    plain = 10_000.0 ** (-np.arange(32) / 32)
    np.testing.assert_allclose(found[:11], plain[:11], rtol=1e-5)
    np.testing.assert_allclose(found[23:], plain[23:] / 4, rtol=1e-5)
    kept = 1 - (15 - 10) / (23 - 10)
    assert found[15] == pytest.approx(plain[15] * (kept + (1 - kept) / 4), rel=1e-5)
    assert factor == pytest.approx(1 + 0.1 * math.log(4))


def test_attention_depends_on_relative_positions_only() -> None:
    params = initial(BASE)
    tokens = some_tokens(3, 8)
    positions = np.broadcast_to(np.arange(8), (3, 8))
    near, far, stretched = (
        run(BASE, params, tokens, at)[0] for at in (positions, positions + 100, positions * 7)
    )
    np.testing.assert_allclose(near, far, atol=2e-4)
    assert np.abs(near - stretched).max() > 1e-3


def test_causal_by_gradient_with_and_without_remat() -> None:
    params, tokens = initial(BASE), some_tokens(1, 6)

    def input_slopes(config: TransformerConfig) -> np.ndarray:
        """How position 3's hidden state moves with the input at each position."""

        def at_position_3(extra_SD: jax.Array) -> jax.Array:
            # Six tokens with an embedding each: adding to row i is adding to the input at i.
            table_SD = params["embed"]["embedding"][tokens[0]] + extra_SD
            changed = {**params, "embed": {"embedding": table_SD}}
            network = Transformer(dataclasses.replace(config, vocabulary=6))
            hidden, _ = network.apply({"params": changed}, jnp.arange(6)[None], jnp.arange(6)[None])
            return hidden[0, 3].sum() * 10 + (hidden[0, 3] ** 2).sum()

        return np.asarray(quick_jit(jax.grad(at_position_3))(jnp.zeros((6, config.width))))

    slope_SD = input_slopes(BASE)
    assert np.all(slope_SD[4:] == 0)
    assert np.all(np.abs(slope_SD[:4]).max(axis=1) > 1e-4)
    again_SD = input_slopes(dataclasses.replace(BASE, remat="layers"))
    np.testing.assert_allclose(slope_SD, again_SD, rtol=1e-4, atol=1e-6)


def test_loss_and_gradient_do_not_depend_on_what_is_recomputed() -> None:
    """And the less is kept, the fewer of a layer's values the backward pass is handed."""
    params, tokens = initial(BASE), some_tokens(6, 8)
    positions = np.broadcast_to(np.arange(8), tokens.shape)
    found, kept = {}, {}
    for remat in ("", *REMAT):
        network = Transformer(dataclasses.replace(BASE, remat=remat))

        def loss(params: Any, network: Transformer = network) -> jax.Array:
            hidden, _ = network.apply({"params": params}, tokens, positions)
            return (hidden**2 * jnp.arange(1.0, BASE.width + 1)).sum()

        found[remat] = quick_jit(jax.value_and_grad(loss))(params)
        _, backward = jax.vjp(loss, params)
        kept[remat] = sum(leaf.size for leaf in jax.tree.leaves(backward))
    value, gradient = found[""]
    for other, other_gradient in found.values():
        np.testing.assert_allclose(other, value, rtol=1e-5)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max()),
            other_gradient,
            gradient,
        )
    assert kept["layers"] < kept["dots"] < kept[""]


def test_sequences_of_a_row_see_nothing_of_each_other() -> None:
    """Each as if it stood alone, bit for bit whatever the others are; what has no position, too."""
    params, tokens, lengths = initial(BASE), some_tokens(1, 16), (5, 1, 7)
    positions = np.concatenate([*map(np.arange, lengths), np.full(3, -1)])[None]
    together = np.asarray(run(BASE, params, tokens, positions)[0])
    assert np.isfinite(together).all()
    for start, length in zip((0, 5, 6), lengths, strict=True):
        own = (np.arange(16) >= start) & (np.arange(16) < start + length)
        alone = read(BASE, params, tokens[:, own])
        np.testing.assert_allclose(together[:, own], alone, atol=2e-5)
        others = np.where(own, tokens, (tokens + 7) % BASE.vocabulary)
        changed = np.asarray(run(BASE, params, others, positions)[0])
        np.testing.assert_array_equal(changed[:, own], together[:, own])


def test_padding_changes_nothing(config: TransformerConfig) -> None:
    params = initial(config)
    tokens = some_tokens(3, 8)
    other = tokens.copy()
    other[0, 5:] = (other[0, 5:] + 7) % config.vocabulary
    first, second = read(config, params, tokens), read(config, params, other)
    np.testing.assert_array_equal(first[0, :5], second[0, :5])
    np.testing.assert_array_equal(first[1:], second[1:])


def test_cache_equals_full_pass_on_ragged_rows(config: TransformerConfig) -> None:
    """Prefill of 3, 5 and 1 tokens in one call, then one token a row at its own cursor."""
    params, capacity = initial(config), 8
    tokens = some_tokens(3, 8)
    full = read(config, params, tokens)
    lengths = np.array([3, 5, 1])
    positions = np.where(np.arange(5) < lengths[:, None], np.arange(5), capacity)
    cache = empty_cache(config, rows=3, capacity=capacity)
    logits, cache = run(config, params, tokens[:, :5], positions, cache)
    for row, length in enumerate(lengths):
        np.testing.assert_allclose(logits[row, :length], full[row, :length], atol=1e-5)
    for at in (lengths, lengths + 1, lengths + 2):
        given = np.take_along_axis(tokens, at[:, None], axis=1)
        logits, cache = run(config, params, given, at[:, None], cache)
        np.testing.assert_allclose(logits[:, 0], full[np.arange(3), at], atol=1e-5)


def test_positions_past_the_capacity_write_nothing() -> None:
    params, before = initial(BASE), empty_cache(BASE, rows=3, capacity=8)
    _, after = run(BASE, params, some_tokens(3, 1), np.array([[8], [2], [1000]]), before)
    for key, value in after:
        for kept in (key, value):
            assert np.all(np.asarray(kept)[[0, 2]] == 0)
            assert np.all(np.abs(np.asarray(kept)[1, :, 2]).max(axis=-1) > 1e-3)
            assert np.all(np.asarray(kept)[1, :, 3:] == 0)


def test_grouped_heads_equal_repeated_heads() -> None:
    """Two key/value heads for four query heads = four equal to those two, each twice."""
    params = initial(BASE)
    wide = dataclasses.replace(BASE, kv_heads=4)
    layers = dict(params["layers"])
    for name in ("key", "value"):
        layers[name] = {"kernel": np.repeat(layers[name]["kernel"], 2, axis=2)}
    tokens = some_tokens(3, 8)
    first, second = read(BASE, params, tokens), read(wide, {**params, "layers": layers}, tokens)
    np.testing.assert_allclose(first, second, atol=1e-5)


def test_tied_unembedding_is_the_embedding() -> None:
    params = initial(BASE)
    hidden = jnp.ones((1, 1, BASE.width))
    found = Transformer(BASE).apply({"params": params}, hidden, method=Transformer.unembed)
    np.testing.assert_allclose(found[0, 0], params["embed"]["embedding"].sum(-1), rtol=1e-4)
    assert "unembedding" not in params
    assert "unembedding" in initial(VARIANTS["untied_bias_llama3"])


def test_bfloat16_runs_through_the_cache_and_stays_near_float32() -> None:
    params, tokens = initial(BASE), some_tokens(3, 8)
    half = dataclasses.replace(BASE, dtype="bfloat16")
    exact = read(BASE, params, tokens)
    positions = np.broadcast_to(np.arange(8), (3, 8))
    found, cache = run(half, params, tokens, positions, empty_cache(half, rows=3, capacity=8))
    assert found.dtype == jnp.float32 and cache[0][0].dtype == jnp.bfloat16
    assert 0 < np.abs(found - exact).max() < 0.1 * np.abs(exact).max()


# Published totals (model cards and the sum of the published tensors' sizes), vocabulary included.
PUBLISHED_COUNTS = {
    "smollm2_135m": (49_152, 134_515_008),
    "qwen2_5_0_5b": (151_936, 494_032_768),
    "qwen2_5_1_5b": (151_936, 1_543_714_304),
    "qwen2_5_7b": (152_064, 7_615_616_512),
    "llama3_2_1b": (128_256, 1_235_814_400),
    "llama3_2_3b": (128_256, 3_212_749_824),
    "qwen3_0_6b": (151_936, 596_049_920),
    "qwen3_4b": (151_936, 4_022_468_096),
}


@pytest.mark.parametrize("preset", PUBLISHED_COUNTS)
def test_preset_has_the_published_number_of_parameters(preset: str) -> None:
    vocabulary, count = PUBLISHED_COUNTS[preset]
    model = default_config().model
    model.preset = preset
    config = transformer_config(model, vocabulary)
    dummy = jnp.zeros((1, 2), int)
    shapes = jax.eval_shape(Transformer(config).init, jax.random.key(0), dummy, dummy)
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)) == count


def test_every_preset_makes_a_network_and_keeps_the_configured_numerics() -> None:
    model = default_config().model
    model.dtype, model.remat = "bfloat16", "dots"
    for preset in PRESETS:
        model.preset = preset
        config = transformer_config(model, 64)
        assert (config.vocabulary, config.dtype, config.remat) == (64, "bfloat16", "dots")


def test_unknown_preset_names_the_fix() -> None:
    model = default_config().model
    model.preset = "tinny"
    with pytest.raises(ValueError, match=r"model\.preset='tinny' must be one of tiny, small"):
        transformer_config(model, 64)
    model.preset = ""
    with pytest.raises(ValueError, match=r"model\.preset=''"):
        transformer_config(model, 64)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kv_heads": 3}, r"heads=4 must be a multiple"),
        ({"head_channels": 7}, r"head_channels=7 must be even"),
    ],
)
def test_impossible_shapes_are_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(BASE, **change)


def test_unknown_rope_scaling_is_refused() -> None:
    config = dataclasses.replace(BASE, rope_scaling=RopeScaling("dynamic", 2.0))
    with pytest.raises(ValueError, match=r"rope_scaling\.kind='dynamic'"):
        rope_frequencies(config)


def test_logits_do_not_depend_on_the_mesh(mesh: jax.sharding.Mesh) -> None:
    """Whole sequences at once, and through the cache."""
    params, tokens = initial(BASE), some_tokens(4, 8)
    placed = jax.device_put(params, param_shardings(params, mesh))
    expected = read(BASE, params, tokens)
    np.testing.assert_allclose(read(BASE, placed, tokens), expected, atol=1e-5)
    cache: Any = empty_cache(BASE, rows=4, capacity=8)
    for at in range(8):
        where = put_rows((tokens[:, [at]], np.full((4, 1), at)), mesh)
        logits, cache = run(BASE, placed, *where, cache)
        np.testing.assert_allclose(logits[:, 0], expected[:, at], atol=1e-5)
