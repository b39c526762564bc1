"""Who decides at a boundary: the learned head, or one of the rules it is measured against.

A strategy is a file with a class and one line of the table below. Its `scores` is pure and runs
inside the decode loop; all strategies are compiled into the same program and each row names its
own, so that a whole comparison runs as one batch. What a strategy needs to know is in `Boundary`.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from collab.types import FIRST_REQUEST_ID

STRATEGIES = {
    "learned": "collab.strategies.learned:Learned",
    "slm_cot": "collab.strategies.constant:Never",
    "llm_alone": "collab.strategies.delegate:LLMAlone",
    "ask_first": "collab.strategies.delegate:AskFirst",
    "ask_every_hop": "collab.strategies.constant:EveryHop",
    "ask_chain": "collab.strategies.constant:Chain",
    "cascade": "collab.strategies.delegate:Cascade",
    "step_cascade": "collab.strategies.confidence:StepCascade",
    "random_rate": "collab.strategies.random_rate:RandomRate",
    "best_constant": "collab.strategies.constant:BestConstant",
    "oracle": "collab.strategies.oracle:Oracle",
}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Boundary:
    """What may be known when a row decides. B rows, A actions, F features (types.FEATURES)."""

    head_logits_BA: jax.Array
    legal_BA: jax.Array
    features_BF: jax.Array
    is_drafted_B: jax.Array  # the last segment was a draft (THINK)
    is_draft_local_B: jax.Array  # a draft read from the private notes, and right
    is_draft_true_B: jax.Array  # it equals a true statement: for the oracle only
    kind_B: jax.Array  # action index of the request a rule makes
    threshold_B: jax.Array


@dataclasses.dataclass(frozen=True)
class Setting:
    """One choice of a strategy's free numbers; chosen on the validation split."""

    kind: int = FIRST_REQUEST_ID
    threshold: float = 0.0


@dataclasses.dataclass(frozen=True)
class LearnedRates:
    """What the learned policy did on the validation split, for rules that are tuned to it.

    asks_per_draft: requests over drafts that are not local. kind: its commonest request.
    surprises: max_nll of each of those drafts under the weights that the rule runs on, nats.
    ask_bias: the learned policy's own threshold.
    """

    asks_per_draft: float
    kind: int
    surprises: tuple[float, ...]
    ask_bias: float = 0.0


class Strategy(Protocol):
    """`mode` says how episodes are made.

    "rows": the SLM's rollout, decided by `scores`. "opening": the same after a first request with
    the whole question. "llm": no SLM at all. "composed": from other strategies' episodes.
    is_sampled: draws its actions also when the rest is greedy.
    """

    mode: str
    is_sampled: bool

    def scores(self, boundary: Boundary) -> jax.Array:
        """Unnormalised log-probabilities f32 [B, A]; illegal actions are masked afterwards."""
        ...

    def settings(self, kinds: Sequence[int], learned: LearnedRates) -> Sequence[Setting]:
        """Candidates to tune over, at least one. kinds: action indices of the requests."""
        ...


@runtime_checkable
class ThresholdStrategy(Strategy, Protocol):
    """One that only compares figures of a boundary with its threshold: many lead to one episode."""

    def reach(self, threshold: float, features_KF: np.ndarray) -> tuple[float, float]:
        """The thresholds, low <= t < high, that lead to the episode that this one has led to.

        features_KF: the head's features at its decisions.
        """
        ...


def load(name: str) -> Any:
    """The strategy of that name. Raises: ValueError with the known names."""
    if name not in STRATEGIES:
        raise ValueError(f"strategy {name!r} is unknown; the table has {', '.join(STRATEGIES)}")
    module, _, attribute = STRATEGIES[name].partition(":")
    return getattr(importlib.import_module(module), attribute)()


def load_all() -> dict[str, Any]:
    """Every strategy of the table, in its order; a row's rule index counts along it."""
    return {name: load(name) for name in STRATEGIES}


def without_requests(boundary: Boundary) -> jax.Array:
    """The head's own preference among the actions that ask nobody, as log-probabilities."""
    is_request_A = jnp.arange(boundary.head_logits_BA.shape[-1]) >= FIRST_REQUEST_ID
    allowed_BA = boundary.legal_BA & ~is_request_A
    return jax.nn.log_softmax(jnp.where(allowed_BA, boundary.head_logits_BA, -1e30), axis=-1)


def ask_where(boundary: Boundary, is_asking_B: jax.Array) -> jax.Array:
    """Request `kind_B` where told to and legal, else the head's choice without requests."""
    A = boundary.head_logits_BA.shape[-1]
    is_kind_BA = jnp.arange(A) == boundary.kind_B[:, None]
    can_ask_B = jnp.any(is_kind_BA & boundary.legal_BA, axis=-1)
    asking_BA = jnp.where(is_kind_BA, 0.0, -1e30)
    return jnp.where((is_asking_B & can_ask_B)[:, None], asking_BA, without_requests(boundary))
