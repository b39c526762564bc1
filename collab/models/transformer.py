"""The decoder transformer family: Llama, Qwen2/2.5, Qwen3 and SmolLM share this one network.

RMSNorm, rotary positions (half-split layout, with scaling variants), grouped-query attention,
SwiGLU, tied or untied embeddings, optional query/key/value bias and query/key norm. Parameters are
one plain tree whose layer leaves are stacked on axis 0: training scans over them, decoding unrolls
(scanning copies each layer's weights and the cache every step: 1.4-2x slower on CPU, measured).

Named shapes are in `collab.models.presets`; weights come from `collab.models.weights`.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

Cache = tuple[tuple[jax.Array, jax.Array], ...]  # per layer: key_BMTC, value_BMTC


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Stretching of rotary frequencies beyond the trained context.

    kind: "linear" (Chen et al. 2023), "llama3" (Llama 3.1 release) or "yarn" (Peng et al. 2023).
    """

    kind: str
    factor: float
    low_freq_factor: float = 1.0  # llama3
    high_freq_factor: float = 4.0  # llama3
    original_context: int = 8192  # llama3, yarn
    beta_fast: float = 32.0  # yarn
    beta_slow: float = 1.0  # yarn


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """Shape and variant of one network. Head channels times heads need not equal the width."""

    vocabulary: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_channels: int
    feed_forward: int
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    norm_epsilon: float = 1e-5
    is_tied: bool = True  # unembedding = embedding transposed
    has_qkv_bias: bool = False  # Qwen2, Qwen2.5
    has_qk_norm: bool = False  # Qwen3
    dtype: str = "float32"  # of matmuls; parameters stay float32 unless cast by the loader
    remat: bool = False  # recompute each layer in the backward pass

    def __post_init__(self) -> None:
        if self.heads % self.kv_heads:
            raise ValueError(
                f"model.heads={self.heads} must be a multiple of model.kv_heads={self.kv_heads}"
            )
        if self.head_channels % 2:
            raise ValueError(f"model.head_channels={self.head_channels} must be even (pairs turn)")


def rope_frequencies(config: TransformerConfig) -> tuple[jax.Array, float]:
    """Angular frequency of each rotary pair, f32 [C/2], and the factor on cosines and sines."""
    half = config.head_channels // 2
    frequency = 1.0 / config.rope_theta ** (jnp.arange(half, dtype=jnp.float32) / half)
    scaling = config.rope_scaling
    if scaling is None:
        return frequency, 1.0
    if scaling.kind == "linear":
        return frequency / scaling.factor, 1.0
    if scaling.kind == "llama3":
        wavelength = 2 * math.pi / frequency
        smooth = (scaling.original_context / wavelength - scaling.low_freq_factor) / (
            scaling.high_freq_factor - scaling.low_freq_factor
        )
        smooth = jnp.clip(smooth, 0.0, 1.0)
        return frequency * (smooth + (1.0 - smooth) / scaling.factor), 1.0
    if scaling.kind == "yarn":

        def pair_at(rotations: float) -> float:
            turns = scaling.original_context / (rotations * 2 * math.pi)
            return config.head_channels * math.log(turns) / (2 * math.log(config.rope_theta))

        low = max(math.floor(pair_at(scaling.beta_fast)), 0)
        high = min(math.ceil(pair_at(scaling.beta_slow)), config.head_channels - 1)
        ramp = jnp.clip((jnp.arange(half) - low) / max(high - low, 1e-3), 0.0, 1.0)
        frequency = frequency * (1.0 - ramp) + frequency / scaling.factor * ramp
        return frequency, 0.1 * math.log(scaling.factor) + 1.0
    raise ValueError(f"rope_scaling.kind={scaling.kind!r} must be linear, llama3 or yarn")


def rotate(x_BSHC: jax.Array, positions_BS: jax.Array, config: TransformerConfig) -> jax.Array:
    """Rotary position embedding on the two halves of each head. Source: Su et al. 2021."""
    frequency, factor = rope_frequencies(config)
    angle = positions_BS[..., None, None].astype(jnp.float32) * frequency
    cos, sin = jnp.cos(angle) * factor, jnp.sin(angle) * factor
    first, second = jnp.split(x_BSHC.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x_BSHC.dtype)


def _einsum_f32(spec: str, a: jax.Array, b: jax.Array) -> jax.Array:
    """Contract with f32 accumulation. XLA's CPU back end can't batch bf16 x bf16 -> f32."""
    if jax.default_backend() == "cpu":
        a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    return jnp.einsum(spec, a, b, preferred_element_type=jnp.float32)


def attend(
    query_BSHC: jax.Array, key_BMTC: jax.Array, value_BMTC: jax.Array, visible_BST: jax.Array
) -> jax.Array:
    """Grouped-query attention, softmax in f32. visible_BST: bool (B or 1). Returns [B, S, H, C]."""
    batch, length, heads, channels = query_BSHC.shape
    groups = key_BMTC.shape[1]
    query = query_BSHC.reshape(batch, length, groups, heads // groups, channels)
    score = _einsum_f32("bsmgc,bmtc->bmgst", query, key_BMTC) * channels**-0.5
    score = jnp.where(visible_BST[:, None, None], score, -1e30)
    weight = jax.nn.softmax(score, axis=-1)
    out = _einsum_f32("bmgst,bmtc->bsmgc", weight.astype(value_BMTC.dtype), value_BMTC)
    return out.reshape(batch, length, heads, channels).astype(query_BSHC.dtype)


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last axis, computed in f32. Source: Zhang & Sennrich 2019."""

    epsilon: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        wide = x.astype(jnp.float32)
        wide = wide * jax.lax.rsqrt(jnp.mean(wide**2, axis=-1, keepdims=True) + self.epsilon)
        return (wide * scale).astype(x.dtype)


class Block(nn.Module):
    """One layer: attention and SwiGLU, each with a pre-norm and a residual."""

    config: TransformerConfig

    @nn.compact
    def __call__(
        self,
        x_BSD: jax.Array,
        positions_BS: jax.Array,
        cache: tuple[jax.Array, jax.Array] | None = None,
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array] | None]:
        config = self.config

        def dense(name: str, shape: Any, axis: Any = -1, bias: bool = False) -> nn.DenseGeneral:
            return nn.DenseGeneral(
                shape, axis=axis, use_bias=bias, dtype=jnp.dtype(config.dtype), name=name
            )

        with jax.named_scope("attention"):
            y = RMSNorm(config.norm_epsilon, name="attention_norm")(x_BSD)
            bias = config.has_qkv_bias
            query = dense("query", (config.heads, config.head_channels), bias=bias)(y)
            key = dense("key", (config.kv_heads, config.head_channels), bias=bias)(y)
            value = dense("value", (config.kv_heads, config.head_channels), bias=bias)(y)
            if config.has_qk_norm:
                query = RMSNorm(config.norm_epsilon, name="query_norm")(query)
                key = RMSNorm(config.norm_epsilon, name="key_norm")(key)
            query, key = (rotate(z, positions_BS, config) for z in (query, key))
            if cache is None:
                key_BMTC, value_BMTC = key.swapaxes(1, 2), value.swapaxes(1, 2)
                visible = jnp.tril(jnp.ones((1, x_BSD.shape[1], x_BSD.shape[1]), bool))
            else:
                rows = jnp.arange(x_BSD.shape[0])[:, None]
                key_BMTC, value_BMTC = (
                    kept.at[rows, :, positions_BS].set(new.astype(kept.dtype), mode="drop")
                    for kept, new in zip(cache, (key, value), strict=True)
                )
                cache = (key_BMTC, value_BMTC)
                visible = jnp.arange(key_BMTC.shape[2]) <= positions_BS[:, :, None]
            y = attend(query, key_BMTC, value_BMTC, visible)
            x_BSD = x_BSD + dense("out", config.width, axis=(-2, -1))(y)
        with jax.named_scope("feed_forward"):
            y = RMSNorm(config.norm_epsilon, name="mlp_norm")(x_BSD)
            gate = jax.nn.silu(dense("gate", config.feed_forward)(y))
            x_BSD = x_BSD + dense("down", config.width)(gate * dense("up", config.feed_forward)(y))
        return x_BSD, cache


class Transformer(nn.Module):
    """Tokens to final hidden states; `unembed` turns those into logits.

    Without a cache the whole sequence is read causally, layers scanned. With one, keys and values
    of the given tokens are written at `positions_BS` (a position at or past the capacity writes
    nothing) and each token sees what stands at positions up to its own; layers are unrolled.
    """

    config: TransformerConfig

    def setup(self) -> None:
        config = self.config
        self.embed = nn.Embed(
            config.vocabulary,
            config.width,
            embedding_init=nn.initializers.normal(0.02),
        )
        block = nn.remat(Block, prevent_cse=False) if config.remat else Block
        self.layers = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=config.layers,
        )(config)
        self.final_norm = RMSNorm(config.norm_epsilon)
        if not config.is_tied:
            self.unembedding = nn.Dense(
                config.vocabulary, use_bias=False, dtype=jnp.dtype(config.dtype)
            )

    def __call__(
        self, tokens_BS: jax.Array, positions_BS: jax.Array, cache: Cache | None = None
    ) -> tuple[jax.Array, Cache | None]:
        """Hidden states f32 or bf16 [B, S, D] after the final norm, and the updated cache."""
        x = jnp.asarray(self.embed(tokens_BS), jnp.dtype(self.config.dtype))
        if cache is None:
            x, _ = self.layers(x, positions_BS)
        else:
            stacked = self.variables["params"]["layers"]
            written = []
            for index, layer_cache in enumerate(cache):
                params = jax.tree.map(lambda leaf, index=index: leaf[index], stacked)
                block = Block(self.config, parent=None)
                step: Any = block.apply({"params": params}, x, positions_BS, layer_cache)
                x = step[0]
                written.append(step[1])
            cache = tuple(written)
        if self.is_initializing() and not self.config.is_tied:
            self.unembed(x)
        return self.final_norm(x), cache

    def unembed(self, hidden: jax.Array) -> jax.Array:
        """Logits over the vocabulary, f32."""
        with jax.named_scope("unembed"):
            if self.config.is_tied:
                kernel_VD = self.embed.embedding.astype(hidden.dtype)
                return _einsum_f32("...d,vd->...v", hidden, kernel_VD)
            return self.unembedding(hidden).astype(jnp.float32)


def empty_cache(config: TransformerConfig, *, rows: int, capacity: int) -> Cache:
    """A zeroed cache: per layer two arrays [rows, kv_heads, capacity, head_channels]."""
    shape = (rows, config.kv_heads, capacity, config.head_channels)
    dtype = jnp.dtype(config.dtype)
    return tuple(
        (jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)) for _ in range(config.layers)
    )
