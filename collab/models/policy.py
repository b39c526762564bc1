"""The policy: the language model, the discrete help-action head, its feature weights, a critic.

The head reads the last hidden state of the context and a few features of the segment just written
(`collab.types.FEATURES`): linearly, and both through one hidden layer, since how sure a draft is
counts for little where the SLM's memory is stale, so their sum alone would not do. What the hidden
layer learns does not move the trunk: the imitation would make it less able. The features have
direct weights, because these learn at a rate of their own: with one rate the features, which start
at zero, are found too late and the policy becomes a learned constant.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from collab.models.decoding import TRANSPOSED_SCALE, unstack_layers
from collab.models.projection import SCALE
from collab.models.quantised import quantised
from collab.models.transformer import Cache, Transformer, TransformerConfig
from collab.types import Params


class Policy(nn.Module):
    """Parameters: `lm` (the transformer) and those of `HEAD`.

    All heads start at zero, but for `head_layer`. head_width: its width; 0: it is not there, nor
    its output. has_value: there is a `value_head`, too.
    action_tokens: where not empty, an action's logit is that of this token in the vocabulary, and
    there are no other heads. unseen: places of features that no head is told. Both are ablations.
    """

    config: TransformerConfig
    actions: int
    head_width: int = 0
    has_value: bool = False
    action_tokens: tuple[int, ...] = ()
    unseen: tuple[int, ...] = ()

    def setup(self) -> None:
        self.lm = Transformer(self.config)
        if not self.action_tokens:
            if self.head_width:
                self.head_layer = nn.Dense(self.head_width)
                self.head_output = nn.Dense(
                    self.actions, use_bias=False, kernel_init=nn.initializers.zeros
                )
            self.action_head = nn.Dense(self.actions, kernel_init=nn.initializers.zeros)
            self.feature_head = nn.Dense(
                self.actions, use_bias=False, kernel_init=nn.initializers.zeros
            )
        if self.has_value:
            self.value_head = nn.Dense(1, kernel_init=nn.initializers.zeros)

    def __call__(
        self, tokens_BS: jax.Array, positions_BS: jax.Array, cache: Cache | None = None
    ) -> tuple[jax.Array, Cache | None]:
        """Hidden states [B, S, D] and the cache, as `Transformer`."""
        return self.lm(tokens_BS, positions_BS, cache)

    def token_logits(self, hidden: jax.Array) -> jax.Array:
        """[..., D] -> f32 [..., V]."""
        return self.lm.unembed(hidden)

    def action_logits(self, hidden: jax.Array, features: jax.Array) -> jax.Array:
        """[..., D], [..., F] -> f32 [..., A], before the mask of legal actions."""
        if self.action_tokens:
            return self.token_logits(hidden)[..., jnp.array(self.action_tokens)]
        with jax.named_scope("help_head"):
            seen, told = hidden.astype(jnp.float32), self._told(features)
            logits = self.action_head(seen) + self.feature_head(told)
            if self.head_width:
                read = jax.lax.stop_gradient(jnp.concatenate([seen, told], axis=-1))
                logits += self.head_output(nn.gelu(self.head_layer(read)))
            return logits

    def value(self, hidden: jax.Array, features: jax.Array) -> jax.Array:
        """[..., D], [..., F] -> f32 [...]: the reward expected from this decision on.

        It teaches the trunk nothing: what is learned there does not depend on how credit is given.
        """
        with jax.named_scope("value_head"):
            read = jnp.concatenate([hidden.astype(jnp.float32), self._told(features)], axis=-1)
            return self.value_head(jax.lax.stop_gradient(read))[..., 0]

    def _told(self, features: jax.Array) -> jax.Array:
        """Features without those that are kept from the heads."""
        if not self.unseen:
            return features
        return features.at[..., jnp.array(self.unseen)].set(0.0)

    def everything(self, tokens_BS: jax.Array, features_BF: jax.Array) -> jax.Array:
        """Touch every parameter once; for `init` only."""
        positions_BS = jnp.broadcast_to(jnp.arange(tokens_BS.shape[1]), tokens_BS.shape)
        hidden, _ = self.lm(tokens_BS, positions_BS)
        self.token_logits(hidden)
        if self.has_value:
            self.value(hidden[:, -1], features_BF)
        return self.action_logits(hidden[:, -1], features_BF)


# Parameters that decide, where they exist.
HEAD = ("action_head", "feature_head", "head_layer", "head_output")
CRITIC = "value_head"  # parameters that only judge


def init_params(policy: Policy, key: jax.Array, features: int) -> Params:
    """Random parameters; run it under `jax.jit` with out_shardings to create them sharded."""
    tokens_BS = jnp.zeros((1, 2), jnp.int32)
    features_BF = jnp.zeros((1, features))
    return policy.init(key, tokens_BS, features_BF, method=Policy.everything)["params"]


def unstacked(
    params: Params,
    network: TransformerConfig,
    *,
    rows: int = 1,
    weights: str = "",
    is_joined: bool = False,
) -> Params:
    """The policy's parameters for decoding: `unstack_layers`, and matrices in the matmuls' dtype.

    No number moves by that: each would be cast where it is used. rows: that are decoded at once.
    weights: `config.rollout.weights`, by which numbers move. is_joined: as there; on CPU what is
    joined is also turned, in the matmuls' dtype.
    """
    lm = unstack_layers(
        params["lm"],
        is_joined=is_joined,
        is_turned=is_joined and not weights and jax.default_backend() == "cpu",
        rows=rows,
        lora=network.lora,
    )
    if weights == "int8":
        lm = quantised(lm)
    dtype = "bfloat16" if weights == "bfloat16" else network.dtype

    def cast(path: Any, leaf: jax.Array) -> jax.Array:
        name = jax.tree_util.keystr(path[-1:], simple=True)
        is_kept = leaf.dtype == jnp.int8 or name in ("scale", SCALE, TRANSPOSED_SCALE)
        return leaf if is_kept else leaf.astype(dtype)

    return {**params, "lm": jax.tree_util.tree_map_with_path(cast, lm)}
