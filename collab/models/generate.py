"""Replies of a language model: rows that each continue a prompt of their own, through a KV cache.

`read` appends a piece of a prompt to some rows, `advance` writes tokens in all rows that are under
way. Both have one shape whatever the prompts' lengths, so a server compiles two programs. Pure and
unjitted; who waits for which row is its user's business (`collab.llm.batcher`).
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from collab.models.sampling import inverse_cdf, token_logp, two_uniforms
from collab.models.transformer import Cache, Transformer, TransformerConfig, empty_cache
from collab.types import Params


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Replies:
    """B rows of at most T tokens, prompt and reply.

    length_B: tokens that stand in a row; the last of them may not be in the cache yet. limit_B: the
    length at which a row ends. key_BU: raw random key. is_done_B: the end token or the limit came.
    """

    tokens_BT: jax.Array
    length_B: jax.Array
    limit_B: jax.Array
    key_BU: jax.Array
    is_done_B: jax.Array
    cache: Cache


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Piece:
    """The next C tokens, right-padded, of at most F prompts.

    row_F: the row of each, or B for an unused place. count_F: real tokens, at least 1. first_F:
    what stands in the row before them, 0 for the first piece. limit_F, key_FU: of the whole row.
    """

    tokens_FC: jax.Array
    row_F: jax.Array
    first_F: jax.Array
    count_F: jax.Array
    limit_F: jax.Array
    key_FU: jax.Array


@dataclasses.dataclass(frozen=True)
class Generator:
    """The static side: network, end token, tokens that are never written (bool [V]).

    temperature: 0 takes the most likely token.
    """

    config: TransformerConfig
    end_id: int
    is_barred_V: np.ndarray
    temperature: float

    def empty(self, *, rows: int, capacity: int) -> Replies:
        """Rows with nothing in them, done."""
        return Replies(
            tokens_BT=jnp.zeros((rows, capacity), jnp.int32),
            length_B=jnp.ones(rows, jnp.int32),
            limit_B=jnp.ones(rows, jnp.int32),
            key_BU=jnp.zeros((rows, 2), jnp.uint32),
            is_done_B=jnp.ones(rows, bool),
            cache=empty_cache(self.config, rows=rows, capacity=capacity),
        )

    def read(self, params: Params, rows: Replies, piece: Piece) -> Replies:
        """Append the piece; what a row held behind `first_F` is overwritten before it is seen."""
        B, T = rows.tokens_BT.shape
        C = piece.tokens_FC.shape[1]
        with jax.named_scope("read"):
            row_F, offset_C = piece.row_F, jnp.arange(C)
            is_real_FC = (offset_C < piece.count_F[:, None]) & (row_F < B)[:, None]
            at_FC = jnp.where(is_real_FC, piece.first_F[:, None] + offset_C, T)
            cache = jax.tree.map(lambda leaf: leaf.at[row_F].get(mode="clip"), rows.cache)
            network = Transformer(self.config)
            _, cache = network.apply({"params": params}, piece.tokens_FC, at_FC, cache)

            def put(kept: jax.Array, value: jax.Array | bool) -> jax.Array:
                return kept.at[row_F].set(value, mode="drop")

            return Replies(
                tokens_BT=rows.tokens_BT.at[row_F[:, None], at_FC].set(
                    piece.tokens_FC, mode="drop"
                ),
                length_B=put(rows.length_B, piece.first_F + piece.count_F),
                limit_B=put(rows.limit_B, piece.limit_F),
                key_BU=put(rows.key_BU, piece.key_FU),
                is_done_B=put(rows.is_done_B, False),
                cache=jax.tree.map(put, rows.cache, cache),
            )

    def advance(
        self, params: Params, rows: Replies, is_live_B: jax.Array, steps: jax.Array
    ) -> Replies:
        """Write up to `steps` tokens in each row that is live and not done; stop where none is."""

        def goes_on(carry: tuple[jax.Array, Replies]) -> jax.Array:
            step, rows = carry
            return (step < steps) & jnp.any(is_live_B & ~rows.is_done_B)

        def body(carry: tuple[jax.Array, Replies]) -> tuple[jax.Array, Replies]:
            step, rows = carry
            return step + 1, self._write(params, rows, is_live_B & ~rows.is_done_B)

        with jax.named_scope("advance"):
            return jax.lax.while_loop(goes_on, body, (jnp.int32(0), rows))[1]

    def _write(self, params: Params, rows: Replies, is_active_B: jax.Array) -> Replies:
        """Read every active row's last token and write the next one."""
        B, T = rows.tokens_BT.shape
        row_B = jnp.arange(B)
        last_B = rows.tokens_BT[row_B, rows.length_B - 1]
        at_B = jnp.where(is_active_B, rows.length_B - 1, T)
        network, variables = Transformer(self.config), {"params": params}
        hidden_B1D, cache = network.apply(variables, last_B[:, None], at_B[:, None], rows.cache)
        logits_BV = network.apply(variables, hidden_B1D[:, 0], method=Transformer.unembed)
        token_B = self._chosen(logits_BV, rows)
        length_B = rows.length_B + is_active_B
        is_end_B = (token_B == self.end_id) | (length_B >= rows.limit_B)
        return dataclasses.replace(
            rows,
            tokens_BT=rows.tokens_BT.at[row_B, jnp.where(is_active_B, rows.length_B, T)].set(
                token_B, mode="drop"
            ),
            length_B=length_B,
            is_done_B=rows.is_done_B | (is_active_B & is_end_B),
            cache=cache,
        )

    def _chosen(self, logits_BV: jax.Array, rows: Replies) -> jax.Array:
        """A token per row; what is drawn depends on the row's key and the position alone."""
        is_greedy = self.temperature == 0.0
        scale = jnp.float32(1.0 if is_greedy else self.temperature)
        logp_BV = token_logp(logits_BV, jnp.asarray(self.is_barred_V), scale)
        if is_greedy:
            return jnp.argmax(logp_BV, axis=-1).astype(jnp.int32)
        uniform_B = jax.vmap(two_uniforms)(rows.key_BU, rows.length_B)[:, 1]
        return inverse_cdf(logp_BV, uniform_B)
