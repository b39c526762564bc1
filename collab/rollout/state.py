"""Device records of a rollout: the rows in flight, their limits.

B rows, T capacity, K decisions, A actions, F features, E of them about the helper, H known solution
steps. A row's context is
`tokens_BT[b, :length_B[b]]`, right-padded; the last token of it is the only one whose keys and
values are not in the cache yet. Pure code; what happens to the rows is in `collab.rollout.decode`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from collab.models.transformer import Cache, TransformerConfig, empty_cache
from collab.types import ANSWER_ID, FEATURES, FIRST_REQUEST_ID, REPLY_ID, THINK_ID

# Phases of a row.
FREE, DECIDE, WRITE, WAIT, DONE = 0, 1, 2, 3, 4

GOLD_STEPS = 8  # known solution steps a row can hold, for the oracle
FEATURE_CEILING = 4.0  # of the first four of FEATURES


@dataclasses.dataclass(frozen=True)
class Limits:
    """Static bounds of an episode, in tokens or counts. Segment limits include the end token."""

    capacity: int
    max_segments: int
    max_asks: int
    think_tokens: int
    request_tokens: int
    answer_tokens: int
    reply_tokens: int
    draft_first: bool
    actions: int
    helper_features: int = 0

    @classmethod
    def of(cls, rollout: Mapping[str, Any], actions: int, *, helper_features: int = 0) -> Limits:
        """From `config.rollout`. helper_features: E, figures that the head has of a helper."""
        given: dict[str, Any] = {"actions": actions, "helper_features": helper_features}
        names = [field.name for field in dataclasses.fields(cls) if field.name not in given]
        return cls(**{name: rollout[name] for name in names}, **given)

    @property
    def features(self) -> int:
        """F, all that the head reads beside the hidden state."""
        return len(FEATURES) + self.helper_features

    @property
    def answer_room(self) -> int:
        """Tokens that must stay free for the answer: its control token and its text."""
        return 1 + self.answer_tokens

    @functools.cached_property
    def segment_tokens(self) -> np.ndarray:
        """Length limit of the segment each action opens, i32 [A]."""
        limit_A = np.full(self.actions, self.request_tokens, np.int32)
        limit_A[[THINK_ID, ANSWER_ID]] = self.think_tokens, self.answer_tokens
        return limit_A

    @functools.cached_property
    def room_needed(self) -> np.ndarray:
        """Free tokens an action needs so that the answer still fits behind it, i32 [A]."""
        room_A = 1 + self.segment_tokens + self.answer_room
        room_A[REPLY_ID] += self.reply_tokens
        room_A[FIRST_REQUEST_ID:] += self.reply_tokens
        room_A[ANSWER_ID] = self.answer_room
        return room_A


def legal_actions(
    limits: Limits,
    *,
    length_B: Any,
    asks_B: Any,
    decisions_B: Any,
    is_drafted_B: Any,
    is_asked_back_B: Any,
    is_help_open: Any = True,
) -> Any:
    """bool [B, A], never empty: what may be chosen. Takes numpy as well as device arrays.

    When `draft_first`, a request must follow a draft, and the first action is one. REPLY follows a
    CLARIFY; nothing may take the room of the answer, which is forced when all else is illegal.
    is_help_open: bool scalar; False masks requests and REPLY in every row (the budget is spent).
    """
    action_A = np.arange(limits.actions)
    is_request_A = action_A >= FIRST_REQUEST_ID
    has_ask_B = (asks_B < limits.max_asks) & is_help_open
    may_ask_B, may_answer_B = has_ask_B, decisions_B >= 0
    if limits.draft_first:
        may_ask_B, may_answer_B = has_ask_B & is_drafted_B, decisions_B > 0
    may_reply_B = has_ask_B & is_asked_back_B
    is_early_B = decisions_B < limits.max_segments - 1
    fits_BA = limits.room_needed <= (limits.capacity - length_B)[:, None]
    others_BA = (
        (is_request_A & may_ask_B[:, None])
        | ((action_A == REPLY_ID) & may_reply_B[:, None])
        | (action_A == THINK_ID)
    )
    others_BA = others_BA & fits_BA & is_early_B[:, None]
    answer_B = (may_answer_B & is_early_B) | ~others_BA.any(axis=-1)
    return others_BA | ((action_A == ANSWER_ID) & answer_B[:, None])


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Draft:
    """Running statistics of the segment being written, each [B]."""

    nll_sum: jax.Array
    nll_max: jax.Array
    entropy_sum: jax.Array
    entropy_max: jax.Array
    repeated: jax.Array  # tokens equal to the previous draft's at the same place
    hash: jax.Array  # uint32, of the token ids, end token left out

    @classmethod
    def empty(cls, rows: int) -> Draft:
        zero = jnp.zeros(rows)
        return cls(zero, zero, zero, zero, zero, jnp.zeros(rows, jnp.uint32))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rule:
    """Who decides in each row: index into the strategies' table and its setting, each [B].

    At its decision number `forced_at` the row has to ask (`is_asking`), or not to; -1 = never.
    """

    index: jax.Array
    kind: jax.Array  # action index of the request that the rule makes
    threshold: jax.Array
    forced_at: jax.Array
    is_asking: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rows:
    """All episodes in flight. Everything but the cache goes to the host in one transfer."""

    cache: Cache
    tokens_BT: jax.Array
    sampled_BT: jax.Array
    logp_BT: jax.Array
    length_B: jax.Array
    phase_B: jax.Array
    action_B: jax.Array  # that opened the segment being written, or written last
    start_B: jax.Array  # position of the first token of that segment's text
    previous_start_B: jax.Array  # the same of the draft before, or the capacity
    key_BU: jax.Array  # uint32 [B, 2], raw
    rule: Rule
    gold_BH: jax.Array  # uint32, hash of each true statement; 0 = none
    gold_is_local_BH: jax.Array
    draft: Draft
    features_BF: jax.Array  # FEATURES of the last draft; the two of the budget come when read
    helper_BE: jax.Array  # features of the helper that a request would go to now
    is_drafted_B: jax.Array  # the last segment was a draft
    is_draft_true_B: jax.Array  # it equals a true statement
    is_draft_local_B: jax.Array  # one that the private notes hold
    is_asked_back_B: jax.Array  # the last reply was CLARIFY
    asks_B: jax.Array
    decisions_B: jax.Array
    decided_at_BK: jax.Array
    action_BK: jax.Array
    action_logp_BK: jax.Array
    action_logp_BKA: jax.Array  # of every action, about -1e30 where it is illegal
    legal_BKA: jax.Array
    features_BKF: jax.Array
    is_cut_BK: jax.Array  # the segment that decision k opened hit its length limit


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Work:
    """What a call of `advance` did, i32 scalars.

    steps: of the loop. row_steps: in which a row decoded. empty_row_steps: in which it was free or
    finished. context_read: tokens that the decoding rows attended to.
    """

    steps: jax.Array
    row_steps: jax.Array
    empty_row_steps: jax.Array
    context_read: jax.Array

    @classmethod
    def none(cls) -> Work:
        zero = jnp.int32(0)
        return cls(zero, zero, zero, zero)

    def and_step(self, rows: Rows) -> Work:
        """With one more step, which these rows are about to do."""
        is_active_B = (rows.phase_B == DECIDE) | (rows.phase_B == WRITE)
        return Work(
            steps=self.steps + 1,
            row_steps=self.row_steps + jnp.sum(is_active_B),
            empty_row_steps=self.empty_row_steps
            + jnp.sum((rows.phase_B == FREE) | (rows.phase_B == DONE)),
            context_read=self.context_read + jnp.sum(jnp.where(is_active_B, rows.length_B, 0)),
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Admission:
    """What enters free rows. P prompts of at most S tokens; row b takes prompt source_B[b].

    source_B: -1 leaves the row as it is. identity_BI: uint32 [B, 3] (seed, problem, sample), all
    that a row's randomness depends on. phase_B: DECIDE, or WAIT when the prompt ends in a request
    that was written for the row (then asks_B is 1).
    """

    prompts_PS: jax.Array
    length_P: jax.Array
    source_B: jax.Array
    identity_BI: jax.Array
    phase_B: jax.Array
    asks_B: jax.Array
    rule: Rule
    gold_BH: jax.Array
    gold_is_local_BH: jax.Array
    helper_BE: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Replies:
    """Replies for at most F waiting rows. row_F: row index, or B for an unused place.

    tokens_FR: feedback control token, text, end token, padding; count_F of them are real.
    """

    row_F: jax.Array
    tokens_FR: jax.Array
    count_F: jax.Array
    is_asked_back_F: jax.Array
    helper_FE: jax.Array  # features of the helper whose turn is next


def empty_rows(config: TransformerConfig, limits: Limits, *, rows: int, steps: int) -> Rows:
    """All rows free. steps: H, the number of known solution steps a row can hold."""
    T, K, A, F = limits.capacity, limits.max_segments, limits.actions, limits.features

    def ints(*shape: int) -> jax.Array:
        return jnp.zeros((rows, *shape), jnp.int32)

    def floats(*shape: int) -> jax.Array:
        return jnp.zeros((rows, *shape), jnp.float32)

    def bools(*shape: int) -> jax.Array:
        return jnp.zeros((rows, *shape), bool)

    def words(*shape: int) -> jax.Array:
        return jnp.zeros((rows, *shape), jnp.uint32)

    return Rows(
        cache=empty_cache(config, rows=rows, capacity=T),
        tokens_BT=ints(T),
        sampled_BT=bools(T),
        logp_BT=floats(T),
        length_B=ints() + 1,
        phase_B=ints(),
        action_B=ints(),
        start_B=ints(),
        previous_start_B=ints() + T,
        key_BU=words(2),
        rule=Rule(ints(), ints(), floats(), ints(), bools()),
        gold_BH=words(steps),
        gold_is_local_BH=bools(steps),
        draft=Draft.empty(rows),
        features_BF=floats(len(FEATURES)),
        helper_BE=floats(limits.helper_features),
        is_drafted_B=bools(),
        is_draft_true_B=bools(),
        is_draft_local_B=bools(),
        is_asked_back_B=bools(),
        asks_B=ints(),
        decisions_B=ints(),
        decided_at_BK=ints(K),
        action_BK=ints(K),
        action_logp_BK=floats(K),
        action_logp_BKA=floats(K, A),
        legal_BKA=bools(K, A),
        features_BKF=floats(K, F),
        is_cut_BK=bools(K),
    )


def hash_tokens(ids: Any) -> np.uint32:
    """Hash of a token sequence as `Draft.hash` accumulates it; never 0 for a non-empty one."""
    value = 0
    for token in ids:
        value = (value * 1_000_003 + int(token) + 1) & 0xFFFFFFFF
    return np.uint32(value)


def hash_next(value_B: jax.Array, token_B: jax.Array) -> jax.Array:
    """One step of `hash_tokens` on the device."""
    return value_B * jnp.uint32(1_000_003) + token_B.astype(jnp.uint32) + jnp.uint32(1)
