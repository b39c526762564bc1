"""The decoder transformer family: Llama, Qwen2/2.5, Qwen3 and SmolLM share this one network.

RMSNorm, rotary positions (half-split layout, with scaling variants), grouped-query attention,
SwiGLU, tied or untied embeddings, optional query/key/value bias and query/key norm. Parameters are
one plain tree whose layer leaves are stacked on axis 0. Training scans over them. Decoding unrolls,
and best reads a subtree a layer (`unstack_layers`): scanning, and slices of stacked leaves, copy
each layer's weights at every step.

Named shapes are in `collab.models.presets`; weights come from `collab.models.weights`.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from collab.models.decoding import (
    GATE_UP,
    QUERY_KEY_VALUE,
    TRANSPOSED,
    TRANSPOSED_SCALE,
    layer_of,
)
from collab.models.lora import Lora
from collab.models.projection import Projection, linear, widened
from collab.types import Params

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
    remat: str = ""  # a row of REMAT: what the backward pass computes again
    lora: Lora | None = None  # adapters, which are trained in place of the matrices
    # Of activations without a cache, rows first: on several devices a layer's weights are gathered
    # where its rows are. None leaves it to the compiler, which may gather the rows instead.
    row_sharding: jax.sharding.NamedSharding | None = None

    def __post_init__(self) -> None:
        if self.heads % self.kv_heads:
            raise ValueError(f"heads={self.heads} must be a multiple of kv_heads={self.kv_heads}")
        if self.head_channels % 2:
            raise ValueError(f"head_channels={self.head_channels} must be even (pairs turn)")


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
    kv_heads = key_BMTC.shape[1]
    groups = heads // kv_heads
    # Heads that share a key are rows of one matmul, and the division comes after the values: both
    # for XLA's CPU, where the textbook order takes 5x as long forward (measured).
    query = (query_BSHC * channels**-0.5).reshape(batch, length, kv_heads, groups, channels)
    query_BMRC = query.transpose(0, 2, 3, 1, 4).reshape(batch, kv_heads, -1, channels)
    hidden_BST = jnp.where(visible_BST, 0.0, -1e30)
    score_BMRT = _einsum_f32("bmrc,bmtc->bmrt", query_BMRC, key_BMTC)
    score_BMRT = score_BMRT + jnp.tile(hidden_BST, (1, groups, 1))[:, None]
    highest = jax.lax.stop_gradient(score_BMRT.max(axis=-1, keepdims=True))
    weight_BMRT = jnp.exp(score_BMRT - highest)
    total = weight_BMRT.sum(axis=-1, keepdims=True)
    out = _einsum_f32("bmrt,bmtc->bmrc", weight_BMRT.astype(value_BMTC.dtype), value_BMTC) / total
    out = out.reshape(batch, kv_heads, groups, length, channels).transpose(0, 3, 1, 2, 4)
    return out.reshape(batch, length, heads, channels).astype(query_BSHC.dtype)


@jax.custom_vjp
def look_up(table_VD: jax.Array, tokens_BS: jax.Array) -> jax.Array:
    """Rows of an embedding table, [B, S, D].

    The gradient of a small table is a matmul with one-hot tokens, not a scatter: XLA's CPU scatter
    took 5x the rest of the backward pass at 8,192 tokens (measured).
    """
    return table_VD[tokens_BS]


def _look_up_forward(table_VD: jax.Array, tokens_BS: jax.Array) -> tuple[jax.Array, Any]:
    return look_up(table_VD, tokens_BS), (table_VD, tokens_BS)


def _look_up_backward(kept: Any, gradient_BSD: jax.Array) -> tuple[jax.Array, None]:
    table_VD, tokens_BS = kept
    vocabulary = table_VD.shape[0]
    if vocabulary > ONE_HOT_VOCABULARY:
        zero_VD = jnp.zeros(table_VD.shape, gradient_BSD.dtype)
        return zero_VD.at[tokens_BS].add(gradient_BSD).astype(table_VD.dtype), None
    one_hot_BSV = jax.nn.one_hot(tokens_BS, vocabulary, dtype=gradient_BSD.dtype)
    sum_VD = _einsum_f32("bsv,bsd->vd", one_hot_BSV, gradient_BSD)
    return sum_VD.astype(table_VD.dtype), None


look_up.defvjp(_look_up_forward, _look_up_backward)
ONE_HOT_VOCABULARY = 4096  # above it the one-hot matmul costs more than a layer
CPU_LAYER_ROWS = 2  # that a layer reads at once on a CPU, where it is computed again


def by_rows(x: jax.Array, config: TransformerConfig, *, last: Any = None) -> jax.Array:
    """`x` with its rows, axis 0, where `config.row_sharding` has them, if they divide by it.

    last: how its last axis is split, None = it is whole.
    """
    if config.row_sharding is None:
        return x
    rows, mesh = config.row_sharding.spec[0], config.row_sharding.mesh
    if x.shape[0] % math.prod(mesh.shape[axis] for axis in rows):
        return x
    spec = jax.sharding.PartitionSpec(rows, *[None] * (x.ndim - 2), last)
    return jax.lax.with_sharding_constraint(x, jax.sharding.NamedSharding(mesh, spec))


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last axis, computed in f32. Source: Zhang & Sennrich 2019."""

    epsilon: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        wide = x.astype(jnp.float32)
        wide = wide * jax.lax.rsqrt(jnp.mean(wide**2, axis=-1, keepdims=True) + self.epsilon)
        return (wide * scale).astype(x.dtype)


INIT = nn.initializers.lecun_normal()
# Of what a layer adds to the residual: little, so that at first a token's own embedding is what the
# layers above read, and copying is found soon. Source: our choice, after Zhang et al. 2019
# ("Fixup"), which starts at zero.
QUIET = nn.initializers.variance_scaling(0.01, "fan_in", "truncated_normal")


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

        B, S, _ = x_BSD.shape

        def dense(
            name: str,
            outputs: tuple[int, ...],
            x: jax.Array,
            *,
            bias: bool = False,
            init: nn.initializers.Initializer = INIT,
        ) -> Any:
            """A linear map of all but two axes. Rows are flattened: twice as fast on CPU."""
            lora = config.lora if config.lora and name in config.lora.targets else None
            layer = Projection(outputs, config.dtype, init, has_bias=bias, lora=lora, name=name)
            y = layer(x.reshape(B * S, *x.shape[2:]))
            return y.reshape(B, S, *y.shape[1:])

        with jax.named_scope("attention"):
            y = RMSNorm(config.norm_epsilon, name="attention_norm")(x_BSD)
            bias = config.has_qkv_bias
            heads, kv_heads, channels = config.heads, config.kv_heads, config.head_channels
            if self.has_variable("params", QUERY_KEY_VALUE):
                joined = dense(QUERY_KEY_VALUE, (heads + 2 * kv_heads, channels), y, bias=bias)
                query, key, value = jnp.split(joined, (heads, heads + kv_heads), axis=2)
            else:
                query = dense("query", (heads, channels), y, bias=bias)
                key = dense("key", (kv_heads, channels), y, bias=bias)
                value = dense("value", (kv_heads, channels), y, bias=bias)
            if config.has_qk_norm:
                query = RMSNorm(config.norm_epsilon, name="query_norm")(query)
                key = RMSNorm(config.norm_epsilon, name="key_norm")(key)
            query, key = (rotate(z, positions_BS, config) for z in (query, key))
            if cache is None:
                key_BMTC, value_BMTC = key.swapaxes(1, 2), value.swapaxes(1, 2)
                index_S = jnp.arange(S)
                first_BS = index_S - positions_BS  # of the sequence that a token belongs to
                visible = (index_S >= first_BS[:, :, None]) & (index_S <= index_S[:, None])
            else:
                rows = jnp.arange(x_BSD.shape[0])[:, None]
                key_BMTC, value_BMTC = (
                    kept.at[rows, :, positions_BS].set(new.astype(kept.dtype), mode="drop")
                    for kept, new in zip(cache, (key, value), strict=True)
                )
                cache = (key_BMTC, value_BMTC)
                visible = jnp.arange(key_BMTC.shape[2]) <= positions_BS[:, :, None]
            y = attend(query, key_BMTC, value_BMTC, visible)
            x_BSD = x_BSD + dense("out", (config.width,), y, init=QUIET)
            if cache is None:
                x_BSD = by_rows(x_BSD, config)
        with jax.named_scope("feed_forward"):
            y = RMSNorm(config.norm_epsilon, name="mlp_norm")(x_BSD)
            if self.has_variable("params", GATE_UP):
                gate, up = jnp.split(dense(GATE_UP, (2 * config.feed_forward,), y), 2, axis=-1)
            else:
                gate, up = (dense(name, (config.feed_forward,), y) for name in ("gate", "up"))
            y = jax.nn.silu(gate) * up
            x_BSD = x_BSD + dense("down", (config.width,), y, init=QUIET)
            if cache is None:
                x_BSD = by_rows(x_BSD, config)
        return x_BSD, cache


# What a layer keeps for its backward pass, by `TransformerConfig.remat`; without a row all of it.
REMAT = {
    "layers": None,  # its input alone
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,  # results of projections, too
}


class Transformer(nn.Module):
    """Tokens to final hidden states; `unembed` turns those into logits.

    Without a cache rows are read causally, layers scanned. A row may hold several sequences: each
    begins where its positions do, at 0, and sees nothing of the others. With a cache, keys and
    values of the given tokens are written at `positions_BS` (a position at or past the capacity
    writes nothing) and each token sees what stands at positions up to its own; layers are unrolled.
    """

    config: TransformerConfig

    def setup(self) -> None:
        config = self.config
        self.embed = nn.Embed(
            config.vocabulary,
            config.width,
            embedding_init=nn.initializers.normal(config.width**-0.5),
        )
        block, norm = Block, RMSNorm
        if config.remat:
            block = nn.remat(Block, prevent_cse=False, policy=REMAT[config.remat])
            norm = nn.remat(RMSNorm, prevent_cse=False)
        self.layers = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=config.layers,
        )(config)
        self.final_norm = norm(config.norm_epsilon)
        if not config.is_tied:
            self.unembedding = nn.Dense(
                config.vocabulary, use_bias=False, dtype=jnp.dtype(config.dtype)
            )

    def __call__(
        self, tokens_BS: jax.Array, positions_BS: jax.Array, cache: Cache | None = None
    ) -> tuple[jax.Array, Cache | None]:
        """Hidden states f32 or bf16 [B, S, D] after the final norm, and the updated cache."""
        x = look_up(self.embed.embedding, tokens_BS).astype(jnp.dtype(self.config.dtype))
        if cache is None and self._reads_few_rows():
            x = self._few_rows_at_once(x, positions_BS)
        elif cache is None:
            x, _ = self.layers(by_rows(x, self.config), positions_BS)
        else:
            layers = self.variables["params"]["layers"]
            written = []
            for index, layer_cache in enumerate(cache):
                params = layer_of(layers, index)
                block = Block(self.config, parent=None)
                step: Any = block.apply({"params": params}, x, positions_BS, layer_cache)
                x = step[0]
                written.append(step[1])
            cache = tuple(written)
        if self.is_initializing() and not self.config.is_tied:
            self.unembed(x)
        return self.final_norm(x), cache

    def _reads_few_rows(self) -> bool:
        is_alone = self.config.row_sharding is None and jax.default_backend() == "cpu"
        return is_alone and bool(self.config.remat) and not self.is_initializing()

    def _few_rows_at_once(self, x_BSD: jax.Array, positions_BS: jax.Array) -> jax.Array:
        """What `layers` does, a layer on a few rows at a time: what it computes again is small."""
        block = Block(self.config, parent=None)

        def read(layer: Params, rows: tuple[jax.Array, jax.Array]) -> jax.Array:
            out: Any = block.apply({"params": layer}, *rows)
            return out[0]

        def split(array: jax.Array) -> jax.Array:
            rows = math.gcd(CPU_LAYER_ROWS, len(array))
            return array.reshape(-1, rows, *array.shape[1:])

        positions = split(positions_BS)
        again = jax.checkpoint(read, prevent_cse=False, policy=REMAT[self.config.remat])
        x, _ = jax.lax.scan(
            lambda x, layer: (jax.lax.map(lambda rows: again(layer, rows), (x, positions)), None),
            split(x_BSD),
            self.variables["params"]["layers"],
        )
        return x.reshape(x_BSD.shape)

    def unembed(self, hidden: jax.Array) -> jax.Array:
        """Logits over the vocabulary, f32."""
        with jax.named_scope("unembed"):
            if self.has_variable("params", TRANSPOSED):
                kernel_DV, hidden = widened(self.get_variable("params", TRANSPOSED), hidden)
                logits = _einsum_f32("...d,dv->...v", hidden, kernel_DV)
                return logits * self.get_variable("params", TRANSPOSED_SCALE)
            if self.config.is_tied:
                kernel_VD, hidden = widened(self.embed.embedding, hidden)
                if jax.default_backend() == "cpu":
                    return linear(hidden.astype(jnp.float32), kernel_VD.astype(jnp.float32))
                return _einsum_f32("...d,vd->...v", hidden, kernel_VD)
            return self.unembedding(hidden).astype(jnp.float32)


def empty_cache(config: TransformerConfig, *, rows: int, capacity: int) -> Cache:
    """A zeroed cache: per layer two arrays [rows, kv_heads, capacity, head_channels]."""
    shape = (rows, config.kv_heads, capacity, config.head_channels)
    dtype = jnp.dtype(config.dtype)
    return tuple((jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)) for _ in range(config.layers))
