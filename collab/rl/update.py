"""The one optimiser step, for imitation and for policy gradients.

    L = L_tokens (mean over policy tokens) + a * L_head (mean over decisions, own clip)
        + kl * (KL of tokens + KL of decisions) - entropy of the head
        + v * L_value, where the policy has a value head

An objective may average the tokens in its own way. The head's loss is never folded into theirs: one
decision in 200 tokens would weigh 0.5 %.
Pure and unjitted; `collab.train` jits each once with shardings and donation.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from collab.metrics import masked_mean
from collab.models.lora import completed, joined, split
from collab.models.policy import HEAD, Policy
from collab.rl import Objective, importance, reading, value
from collab.rl.batch import Batch
from collab.types import Params


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """What a checkpoint holds of the learner. step: optimiser steps taken, i32 scalar."""

    params: Params
    optimizer: Any
    step: jax.Array


def make_optimizer(
    schedule: optax.Schedule, *, clip_norm: float, head_rate: float, feature_rate: float
) -> optax.GradientTransformation:
    """Adam with a clipped norm; heads and feature weights learn faster than the trunk."""
    factors = dict.fromkeys((*HEAD, "value_head"), head_rate) | {"feature_head": feature_rate}

    def clip(gradient: Params, params: Params | None) -> Params:
        """As `optax.clip_by_global_norm`, which keeps the clipped beside what it clips on CPU."""
        limit = clip_norm / jnp.maximum(optax.tree.norm(gradient), clip_norm)
        return optax.tree.scale(limit, gradient)

    def quicken(updates: Params, params: Params | None) -> Params:
        return {
            name: optax.tree.scale(factors.get(name, 1.0), part) for name, part in updates.items()
        }

    return optax.chain(
        optax.stateless(clip),
        optax.scale_by_adam(b2=0.99),
        optax.stateless(quicken),
        optax.scale_by_learning_rate(schedule),
    )


def log_probabilities(
    policy: Policy,
    params: Params,
    batch: Batch[jax.Array],
    is_barred_V: np.ndarray,
    temperature: float,
    chunk_rows: int = 0,
) -> tuple[jax.Array, jax.Array]:
    """Teacher-forced log-probabilities, the same numbers as the sampler's.

    chunk_rows: as in `reading.hidden_states`. Returns of each written token given those before it
    f32 [B, N], and of every action at each decision f32 [B, K, A] under its legal mask.
    """
    return _read(policy, params, batch, is_barred_V, temperature, chunk_rows)[:2]


def _read(
    policy: Policy,
    params: Params,
    batch: Batch[jax.Array],
    is_barred_V: np.ndarray,
    temperature: float,
    chunk_rows: int,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`log_probabilities`, and the hidden states that the decisions read [B, K, D]."""
    hidden_QTD = reading.hidden_states(policy, params, batch, chunk_rows)
    logp_BN = reading.written_logp(policy, params, hidden_QTD, batch, is_barred_V, temperature)
    hidden_BKD = reading.at_decisions(hidden_QTD, batch)
    action_logits_BKA = policy.apply(
        {"params": params}, hidden_BKD, batch.features_BKF, method=Policy.action_logits
    )
    legal_logits_BKA = jnp.where(batch.legal_BKA, action_logits_BKA, -1e30)
    return logp_BN, jax.nn.log_softmax(legal_logits_BKA, axis=-1), hidden_BKD


@dataclasses.dataclass(frozen=True)
class Learner:
    """The static side of an update: network, optimiser, objective, weights of the loss.

    chunk_rows: `config.rl.chunk_rows`; it moves no number. importance_limit: of the weights of what
    other parameters sampled; 0 = the objective's own ratio to the sampler.
    """

    policy: Policy
    optimizer: optax.GradientTransformation
    is_barred_V: np.ndarray
    temperature: float
    chunk_rows: int = 0
    importance_limit: float = 0.0

    def start(self, params: Params) -> TrainState:
        return TrainState(params, self.optimizer.init(split(params)[0]), jnp.int32(0))

    def imitate(
        self, state: TrainState, batch: Batch[jax.Array], decision_weight: float
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        """One step of cross-entropy on the batch's tokens and decisions."""

        def loss_of(params: Params) -> tuple[jax.Array, dict[str, jax.Array]]:
            logp_BN, logp_BKA = self._logp(params, batch)
            chosen_BK = _chosen(logp_BKA, batch.action_BK)
            token_loss = -masked_mean(logp_BN, batch.written_BN)
            decision_loss = -masked_mean(chosen_BK, batch.choice_BK)
            loss = token_loss + decision_weight * decision_loss
            return loss, {"token_loss": token_loss, "decision_loss": decision_loss}

        return self._apply(state, loss_of)

    def policy_gradient(
        self,
        state: TrainState,
        reference: Params,
        batch: Batch[jax.Array],
        *,
        objective: Objective,
        weights: Mapping[str, Any],
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        """One step on a batch of rollouts. Returns metrics, f32 scalars.

        reference: leaves that are trained, as they were after the cold start; the frozen ones are
        those of the state. weights: `config.rl`.
        """
        with jax.named_scope("reference"):
            reference_BN, reference_BKA = self._logp(completed(reference, state.params), batch)
        reference_BN, reference_BKA = jax.lax.stop_gradient((reference_BN, reference_BKA))

        def loss_of(params: Params) -> tuple[jax.Array, dict[str, jax.Array]]:
            with jax.named_scope("policy"):
                logp_BN, logp_BKA, hidden_BKD = self._read(params, batch)
            chosen_BK = _chosen(logp_BKA, batch.action_BK)
            advantage_BN, advantage_BK, value_metrics = self._advantages(
                params, hidden_BKD, batch, objective=objective, weights=weights
            )
            limit = self.importance_limit
            tokens = (logp_BN, batch.sampler_logp_BN)
            decisions = (chosen_BK, batch.sampler_action_logp_BK)
            loss_BN = importance.corrected(
                objective, *tokens, advantage_BN, clip=weights["clip_ratio"], limit=limit
            )
            loss_BK = importance.corrected(
                objective, *decisions, advantage_BK, clip=weights["head_clip_ratio"], limit=limit
            )
            token_loss = objective.average(loss_BN, batch.written_BN, weights)
            decision_loss = masked_mean(loss_BK, batch.choice_BK)
            gap_BN = reference_BN - logp_BN
            token_kl = masked_mean(jnp.exp(gap_BN) - gap_BN - 1.0, batch.written_BN)
            p_BKA = jnp.exp(logp_BKA)
            drift_BKA = jnp.where(batch.legal_BKA, logp_BKA - reference_BKA, 0.0)
            decision_kl = masked_mean(jnp.sum(p_BKA * drift_BKA, axis=-1), batch.choice_BK)
            surprise_BKA = jnp.where(batch.legal_BKA, -logp_BKA, 0.0)
            entropy = masked_mean(jnp.sum(p_BKA * surprise_BKA, axis=-1), batch.choice_BK)
            loss = (
                token_loss
                + weights["decision_weight"] * decision_loss
                + weights["kl_weight"] * (token_kl + decision_kl)
                - weights["entropy_weight"] * entropy
            )
            if self.policy.has_value:
                loss += weights["value_weight"] * value_metrics["value_loss"]
            token_gap_BN = jnp.where(batch.written_BN, logp_BN - batch.sampler_logp_BN, 0.0)
            head_gap_BK = jnp.where(batch.choice_BK, chosen_BK - batch.sampler_action_logp_BK, 0.0)
            return loss, {
                "token_loss": token_loss,
                "decision_loss": decision_loss,
                "kl": token_kl + decision_kl,
                "head_entropy": entropy,
                "sampler_gap": jnp.maximum(
                    jnp.max(jnp.abs(token_gap_BN)), jnp.max(jnp.abs(head_gap_BK))
                ),
                "sampler_gap_mean": masked_mean(jnp.abs(token_gap_BN), batch.written_BN),
                **importance.figures("token", *tokens, batch.written_BN, limit=limit),
                **importance.figures("decision", *decisions, batch.choice_BK, limit=limit),
                **value_metrics,
            }

        return self._apply(state, loss_of)

    def _advantages(
        self,
        params: Params,
        hidden_BKD: jax.Array,
        batch: Batch[jax.Array],
        *,
        objective: Objective,
        weights: Mapping[str, Any],
    ) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
        """Of tokens [B, N] and decisions [B, K]; and the value head's loss and figures, if any."""
        if not self.policy.has_value:
            return batch.advantage_BN, batch.decision_advantage_BK, {}
        value_BK = self.policy.apply(
            {"params": params}, hidden_BKD, batch.features_BKF, method=Policy.value
        )
        advantage_BK, metrics = value.credited(batch, value_BK, weights)
        if objective.has_critic:
            return value.of_tokens(advantage_BK, batch), advantage_BK, metrics
        return batch.advantage_BN, advantage_BK, metrics

    def _logp(self, params: Params, batch: Batch[jax.Array]) -> tuple[jax.Array, jax.Array]:
        return self._read(params, batch)[:2]

    def _read(
        self, params: Params, batch: Batch[jax.Array]
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        return _read(
            self.policy, params, batch, self.is_barred_V, self.temperature, self.chunk_rows
        )

    def _apply(self, state: TrainState, loss_of: Any) -> tuple[TrainState, dict[str, jax.Array]]:
        trained, frozen = split(state.params)

        def loss_of_trained(trained: Params) -> tuple[jax.Array, dict[str, jax.Array]]:
            return loss_of(joined(frozen, trained))

        (loss, metrics), gradient = jax.value_and_grad(loss_of_trained, has_aux=True)(trained)
        with jax.named_scope("optimizer"):
            updates, optimizer = self.optimizer.update(gradient, state.optimizer, trained)
            params = joined(frozen, optax.apply_updates(trained, updates))
        norms = {
            "gradient_norm": optax.tree.norm(gradient),
            "parameter_norm": optax.tree.norm(params),
        }
        metrics = {"loss": loss, **norms, **metrics}
        return TrainState(params, optimizer, state.step + 1), metrics


def _chosen(logp_BKA: jax.Array, action_BK: jax.Array) -> jax.Array:
    """Log-probability of the chosen action, f32 [B, K]."""
    return jnp.take_along_axis(logp_BKA, action_BK[..., None], axis=-1)[..., 0]
