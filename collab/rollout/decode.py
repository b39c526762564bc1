"""The jitted rollout: admit prompts into rows, advance all rows, feed replies into waiting rows.

`advance` is one while_loop over decode steps with a state machine per row:

    DECIDE --head samples an action, its control token is written--> WRITE
    WRITE  --THINK ends--> DECIDE    --request or REPLY ends--> WAIT    --ANSWER ends--> DONE
    WAIT   --feed--> DECIDE

Every step reads one token a row (the last of its context), so decisions cost what tokens cost and
consecutive THINK steps never touch the host. Nothing is prefilled twice. All functions are pure and
unjitted; `collab.rollout.engine` jits them once. Randomness (`collab.models.sampling`) is a
function of the row's key and the position, hence of nothing that timing could change.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from collab import strategies
from collab.models.policy import Policy
from collab.models.sampling import inverse_cdf, row_key, token_logp, two_uniforms
from collab.models.transformer import empty_cache
from collab.rollout.state import (
    DECIDE,
    DONE,
    FEATURE_CEILING,
    WAIT,
    WRITE,
    Admission,
    Draft,
    Limits,
    Replies,
    Rows,
    Rule,
    Work,
    hash_next,
    legal_actions,
)
from collab.types import ANSWER_ID, FIRST_REQUEST_ID, REPLY_ID, THINK_ID, Params


@dataclasses.dataclass(frozen=True)
class Decoder:
    """The static side of a rollout: network, limits, control tokens, rules.

    action_token_A: control token of each action. is_barred_V: never sampled by the language model.
    temperature: whose log-probabilities greedy decoding reports, so that the head's features mean
    the same in training and in use.
    """

    policy: Policy
    limits: Limits
    action_token_A: np.ndarray
    is_barred_V: np.ndarray
    end_id: int
    temperature: float
    rules: Mapping[str, Any]

    def admit(self, params: Params, rows: Rows, new: Admission) -> Rows:
        """Prefill each prompt once and copy it into the rows that take it."""
        P, S = new.prompts_PS.shape
        with jax.named_scope("admit"):
            positions_PS = jnp.broadcast_to(jnp.arange(S), (P, S))
            cache = empty_cache(self.policy.config, rows=P, capacity=S)
            _, cache = self.policy.apply({"params": params}, new.prompts_PS, positions_PS, cache)
            is_new_B = new.source_B >= 0
            source_B = jnp.maximum(new.source_B, 0)

            def place(kept: jax.Array, fresh: jax.Array) -> jax.Array:
                """Overwrite admitted rows with `fresh` [B, ...]."""
                mask = is_new_B.reshape(-1, *[1] * (kept.ndim - 1))
                return jnp.where(mask, fresh, kept)

            def place_prefix(kept: jax.Array, fresh: jax.Array) -> jax.Array:
                """The same for keys or values of the first S positions; fresh is [P, M, S, C]."""
                return kept.at[:, :, :S].set(place(kept[:, :, :S], fresh[source_B]))

            blank = jax.tree.map(jnp.zeros_like, dataclasses.replace(rows, cache=()))
            B, T = rows.tokens_BT.shape
            blank = dataclasses.replace(
                blank,
                tokens_BT=blank.tokens_BT.at[:, :S].set(new.prompts_PS[source_B]),
                length_B=new.length_P[source_B],
                phase_B=new.phase_B,
                start_B=jnp.full(B, T, jnp.int32),
                previous_start_B=jnp.full(B, T, jnp.int32),
                key_BU=jax.vmap(row_key)(new.identity_BI),
                asks_B=new.asks_B,
                rule=new.rule,
                gold_BH=new.gold_BH,
                gold_is_local_BH=new.gold_is_local_BH,
                helper_BE=new.helper_BE,
            )
            placed = jax.tree.map(place, dataclasses.replace(rows, cache=()), blank)
            return dataclasses.replace(placed, cache=jax.tree.map(place_prefix, rows.cache, cache))

    def feed(self, params: Params, rows: Rows, replies: Replies) -> Rows:
        """Append replies through the cache; those rows decide next."""
        T = rows.tokens_BT.shape[1]
        with jax.named_scope("feed"):
            row_F = replies.row_F
            length_F = rows.length_B.at[row_F].get(mode="clip")
            # The row's last token is not in the cache yet; the reply's last one stays out of it.
            last_F = rows.tokens_BT.at[row_F, length_F - 1].get(mode="clip")
            read_FR = jnp.concatenate([last_F[:, None], replies.tokens_FR[:, :-1]], axis=1)
            at_FR = jnp.where(_is_real(rows, replies), _places(rows, replies) - 1, T)
            cache = jax.tree.map(lambda leaf: leaf.at[row_F].get(mode="clip"), rows.cache)
            _, cache = self.policy.apply({"params": params}, read_FR, at_FR, cache)
            return dataclasses.replace(
                self.append(rows, replies), cache=jax.tree.map(_put(row_F), rows.cache, cache)
            )

    def append(self, rows: Rows, replies: Replies) -> Rows:
        """`feed` in all but the cache."""
        put, T = _put(replies.row_F), rows.tokens_BT.shape[1]
        length_F = rows.length_B.at[replies.row_F].get(mode="clip")
        write_FR = jnp.where(_is_real(rows, replies), _places(rows, replies), T)
        return dataclasses.replace(
            rows,
            tokens_BT=rows.tokens_BT.at[replies.row_F[:, None], write_FR].set(
                replies.tokens_FR, mode="drop"
            ),
            length_B=put(rows.length_B, length_F + replies.count_F),
            phase_B=put(rows.phase_B, DECIDE),
            features_BF=put(rows.features_BF, 0.0),
            is_drafted_B=put(rows.is_drafted_B, False),
            is_asked_back_B=put(rows.is_asked_back_B, replies.is_asked_back_F),
            helper_BE=put(rows.helper_BE, replies.helper_FE),
        )

    def advance(
        self,
        params: Params,
        rows: Rows,
        temperature: jax.Array,
        steps: jax.Array,
        idle: jax.Array,
        is_help_open: jax.Array,
        *,
        live: int,
    ) -> tuple[Rows, Work]:
        """Decode until `steps` are done, `idle` rows can't go on, or none can.

        temperature: f32 scalar, of tokens; 0 takes the most likely token and action.
        is_help_open: bool scalar; False makes requests illegal, as the trace records.
        live: tokens that attention looks at; no active row may come to have more in `steps`.
        """
        whole = rows.cache
        if live < self.limits.capacity:
            part = jax.tree.map(lambda kept: kept[:, :, :live], whole)
            rows = dataclasses.replace(rows, cache=part)

        def goes_on(carry: tuple[Rows, Work]) -> jax.Array:
            rows, work = carry
            is_active_B = (rows.phase_B == DECIDE) | (rows.phase_B == WRITE)
            return (work.steps < steps) & jnp.any(is_active_B) & (jnp.sum(~is_active_B) < idle)

        def body(carry: tuple[Rows, Work]) -> tuple[Rows, Work]:
            rows, work = carry
            return self.step(params, rows, temperature, is_help_open), work.and_step(rows)

        with jax.named_scope("advance"):
            rows, work = jax.lax.while_loop(goes_on, body, (rows, Work.none()))
        if live < self.limits.capacity:
            put = functools.partial(jax.lax.dynamic_update_slice_in_dim, start_index=0, axis=2)
            rows = dataclasses.replace(rows, cache=jax.tree.map(put, whole, rows.cache))
        return rows, work

    def step(
        self, params: Params, rows: Rows, temperature: jax.Array, is_help_open: jax.Array
    ) -> Rows:
        """Read every active row's last token; then decide, or write one token."""
        B, T = rows.tokens_BT.shape
        row_B = jnp.arange(B)
        is_deciding_B, is_writing_B = rows.phase_B == DECIDE, rows.phase_B == WRITE
        is_active_B = is_deciding_B | is_writing_B
        last_B = rows.tokens_BT[row_B, rows.length_B - 1]
        at_B = jnp.where(is_active_B, rows.length_B - 1, T)
        with jax.named_scope("read"):
            hidden_B1D, cache = self.policy.apply(
                {"params": params}, last_B[:, None], at_B[:, None], rows.cache
            )
        hidden_BD = hidden_B1D[:, 0]
        rows = dataclasses.replace(rows, cache=cache)
        uniform_B2 = jax.vmap(two_uniforms)(rows.key_BU, rows.length_B)
        with jax.named_scope("decide"):
            decided, action_B = self._decide(
                params, rows, hidden_BD, uniform_B2[:, 0], temperature, is_help_open
            )
        with jax.named_scope("write"):
            written, token_B = self._write(params, rows, hidden_BD, uniform_B2[:, 1], temperature)

        def merge(kept: Any, by_deciding: Any, by_writing: Any) -> jax.Array:
            shape = (-1, *[1] * (kept.ndim - 1))
            kept = jnp.where(is_deciding_B.reshape(shape), by_deciding, kept)
            return jnp.where(is_writing_B.reshape(shape), by_writing, kept)

        merged = jax.tree.map(merge, *(_light(x) for x in (rows, decided, written)))
        token_B = jnp.where(is_deciding_B, jnp.asarray(self.action_token_A)[action_B], token_B)
        write_B = jnp.where(is_active_B, rows.length_B, T)
        return dataclasses.replace(
            merged,
            cache=cache,
            tokens_BT=rows.tokens_BT.at[row_B, write_B].set(token_B, mode="drop"),
            sampled_BT=written.sampled_BT,
            logp_BT=written.logp_BT,
            length_B=rows.length_B + is_active_B,
        )

    def legal_actions(self, rows: Rows, is_help_open: jax.Array) -> jax.Array:
        """bool [B, A], never empty: what may be chosen now."""
        return legal_actions(
            self.limits,
            length_B=rows.length_B,
            asks_B=rows.asks_B,
            decisions_B=rows.decisions_B,
            is_drafted_B=rows.is_drafted_B,
            is_asked_back_B=rows.is_asked_back_B,
            is_help_open=is_help_open,
        )

    def features(self, rows: Rows) -> jax.Array:
        """The head's features f32 [B, F] at this boundary."""
        asks_B = rows.asks_B / self.limits.max_asks
        segments_B = rows.decisions_B / self.limits.max_segments
        return jnp.concatenate(
            [rows.features_BF[:, :-2], asks_B[:, None], segments_B[:, None], rows.helper_BE],
            axis=-1,
        )

    def _decide(
        self,
        params: Params,
        rows: Rows,
        hidden_BD: jax.Array,
        uniform_B: jax.Array,
        temperature: jax.Array,
        is_help_open: jax.Array,
    ) -> tuple[Rows, jax.Array]:
        """Choose an action in every row (used where the phase is DECIDE)."""
        legal_BA, features_BF = self.legal_actions(rows, is_help_open), self.features(rows)
        head_BA = self.policy.apply(
            {"params": params}, hidden_BD, features_BF, method=Policy.action_logits
        )
        boundary = strategies.Boundary(
            head_logits_BA=head_BA,
            legal_BA=legal_BA,
            features_BF=features_BF,
            is_drafted_B=rows.is_drafted_B,
            is_draft_local_B=rows.is_draft_local_B,
            is_draft_true_B=rows.is_draft_true_B,
            kind_B=rows.rule.kind,
            threshold_B=rows.rule.threshold,
        )
        B = hidden_BD.shape[0]
        row_B = jnp.arange(B)
        scores_RBA = jnp.stack([rule.scores(boundary) for rule in self.rules.values()])
        open_BA = legal_BA & _unforced(rows.rule, rows.decisions_B, self.limits.actions)
        open_BA = jnp.where(jnp.any(open_BA, axis=-1, keepdims=True), open_BA, legal_BA)
        scores_BA = jnp.where(open_BA, scores_RBA[rows.rule.index, row_B], -1e30)
        logp_BA = jax.nn.log_softmax(scores_BA, axis=-1)
        always_samples_R = jnp.array([rule.is_sampled for rule in self.rules.values()])
        is_greedy_B = (temperature == 0.0) & ~always_samples_R[rows.rule.index]
        action_B = jnp.where(
            is_greedy_B, jnp.argmax(logp_BA, axis=-1), inverse_cdf(logp_BA, uniform_B)
        )
        k_B = rows.decisions_B
        decided = dataclasses.replace(
            rows,
            phase_B=jnp.full(B, WRITE),
            action_B=action_B,
            start_B=rows.length_B + 1,
            previous_start_B=jnp.where(rows.is_drafted_B, rows.start_B, rows.previous_start_B),
            draft=Draft.empty(B),
            is_drafted_B=jnp.zeros(B, bool),
            is_asked_back_B=jnp.zeros(B, bool),
            asks_B=rows.asks_B + (action_B >= REPLY_ID),
            decisions_B=k_B + 1,
            decided_at_BK=rows.decided_at_BK.at[row_B, k_B].set(rows.length_B - 1),
            action_BK=rows.action_BK.at[row_B, k_B].set(action_B),
            action_logp_BK=rows.action_logp_BK.at[row_B, k_B].set(logp_BA[row_B, action_B]),
            action_logp_BKA=rows.action_logp_BKA.at[row_B, k_B].set(logp_BA),
            legal_BKA=rows.legal_BKA.at[row_B, k_B].set(legal_BA),
            features_BKF=rows.features_BKF.at[row_B, k_B].set(features_BF),
        )
        return decided, action_B

    def _write(
        self,
        params: Params,
        rows: Rows,
        hidden_BD: jax.Array,
        uniform_B: jax.Array,
        temperature: jax.Array,
    ) -> tuple[Rows, jax.Array]:
        """Sample the next token of every row (used where the phase is WRITE)."""
        B, T = rows.tokens_BT.shape
        row_B = jnp.arange(B)
        logits_BV = self.policy.apply({"params": params}, hidden_BD, method=Policy.token_logits)
        scale = jnp.where(temperature == 0.0, self.temperature, temperature)
        logp_BV = token_logp(logits_BV, jnp.asarray(self.is_barred_V), scale)
        token_B = jnp.where(
            temperature == 0.0, jnp.argmax(logp_BV, axis=-1), inverse_cdf(logp_BV, uniform_B)
        )
        limit_B = jnp.asarray(self.limits.segment_tokens)[rows.action_B]
        offset_B = rows.length_B - rows.start_B
        is_cut_B = (offset_B >= limit_B - 1) & (token_B != self.end_id)
        token_B = jnp.where(is_cut_B, self.end_id, token_B)
        logp_B = jnp.where(is_cut_B, 0.0, logp_BV[row_B, token_B])
        entropy_B = -jnp.sum(jnp.exp(logp_BV) * jnp.maximum(logp_BV, -1e4), axis=-1)
        is_end_B = token_B == self.end_id
        previous_B = rows.tokens_BT.at[row_B, rows.previous_start_B + offset_B].get(
            mode="fill", fill_value=-1
        )
        draft = Draft(
            nll_sum=rows.draft.nll_sum - logp_B,
            nll_max=jnp.maximum(rows.draft.nll_max, -logp_B),
            entropy_sum=rows.draft.entropy_sum + entropy_B,
            entropy_max=jnp.maximum(rows.draft.entropy_max, entropy_B),
            repeated=rows.draft.repeated + (previous_B == token_B),
            hash=jnp.where(is_end_B, rows.draft.hash, hash_next(rows.draft.hash, token_B)),
        )
        is_think_B, is_answer_B = rows.action_B == THINK_ID, rows.action_B == ANSWER_ID
        after_B = jnp.where(is_think_B, DECIDE, jnp.where(is_answer_B, DONE, WAIT))
        is_drafted_B = is_end_B & is_think_B
        is_gold_BH = (draft.hash[:, None] == rows.gold_BH) & is_drafted_B[:, None]
        is_writing_B = rows.phase_B == WRITE
        k_B = jnp.maximum(rows.decisions_B - 1, 0)
        write_B = jnp.where(is_writing_B, rows.length_B, T)
        written = dataclasses.replace(
            rows,
            sampled_BT=rows.sampled_BT.at[row_B, write_B].set(~is_cut_B, mode="drop"),
            logp_BT=rows.logp_BT.at[row_B, write_B].set(logp_B, mode="drop"),
            phase_B=jnp.where(is_end_B, after_B, WRITE),
            draft=draft,
            features_BF=jnp.where(
                is_drafted_B[:, None], _draft_features(draft, offset_B + 1), rows.features_BF
            ),
            is_drafted_B=is_drafted_B,
            is_draft_true_B=jnp.any(is_gold_BH, axis=-1),
            is_draft_local_B=jnp.any(is_gold_BH & rows.gold_is_local_BH, axis=-1),
            is_cut_BK=rows.is_cut_BK.at[row_B, k_B].max(is_cut_B),
        )
        return written, token_B


def _unforced(rule: Rule, decisions_B: jax.Array, actions: int) -> jax.Array:
    """bool [B, A]: what a row may do that is forced here to ask, or not to; all, elsewhere."""
    is_request_A = jnp.arange(actions) >= FIRST_REQUEST_ID
    is_forced_B1 = (decisions_B == rule.forced_at)[:, None]
    return ~is_forced_B1 | (is_request_A == rule.is_asking[:, None])


def _light(rows: Rows) -> Rows:
    """Rows without the big arrays, which `step` writes in place."""
    nothing = jnp.zeros((rows.length_B.shape[0],))
    return dataclasses.replace(
        rows, cache=(), tokens_BT=nothing, sampled_BT=nothing, logp_BT=nothing
    )


def _put(row_F: jax.Array) -> Callable[[jax.Array, Any], jax.Array]:
    """Writes values of F rows among all; those of unused places nowhere."""
    return lambda kept, value: kept.at[row_F].set(value, mode="drop")


def _places(rows: Rows, replies: Replies) -> jax.Array:
    """Where the tokens of a reply go in their row, i32 [F, R]."""
    length_F = rows.length_B.at[replies.row_F].get(mode="clip")
    return length_F[:, None] + jnp.arange(replies.tokens_FR.shape[1])


def _is_real(rows: Rows, replies: Replies) -> jax.Array:
    """Which tokens of the replies there are, bool [F, R]."""
    offset_R = jnp.arange(replies.tokens_FR.shape[1])
    is_used_F = replies.row_F < len(rows.length_B)
    return (offset_R < replies.count_F[:, None]) & is_used_F[:, None]


def _draft_features(draft: Draft, count_B: jax.Array) -> jax.Array:
    """Features of the segment just written, the two budget places left at zero."""
    columns = [
        draft.nll_max,
        draft.nll_sum / count_B,
        draft.entropy_max,
        draft.entropy_sum / count_B,
    ]
    columns = [jnp.minimum(column, FEATURE_CEILING) for column in columns]
    zero = jnp.zeros_like(draft.nll_max)
    return jnp.stack([*columns, draft.repeated / count_B, zero, zero], axis=-1)
