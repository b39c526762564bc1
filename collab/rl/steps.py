"""The jitted steps of training, each compiled once, with the learner's layout on the mesh pinned.

Optimiser and schedule differ between imitation and the policy gradient; the state is laid out alike
in both, so that one checkpoint fits all. What the steps compute is in `update` and `imitation`.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import optax

from collab import sharding
from collab.models.lora import split
from collab.models.policy import Policy
from collab.rl import load_objective
from collab.rl.imitation import decision_hidden, fit_head
from collab.rl.update import Learner, make_optimizer
from collab.types import Params


class Steps:
    """param_shapes: parameters without their values. is_barred_V: tokens that are never written."""

    def __init__(
        self,
        config: Any,
        policy: Policy,
        mesh: jax.sharding.Mesh,
        *,
        param_shapes: Params,
        is_barred_V: np.ndarray,
    ) -> None:
        self._mesh, whole = mesh, sharding.replicated(mesh)
        cold, rl = cold_learner(config, policy, is_barred_V), _learner(config, policy, is_barred_V)
        self._shapes = jax.eval_shape(cold.start, param_shapes)
        self._layout = layout = sharding.param_shardings(self._shapes, mesh)
        self.start_cold = jax.jit(cold.start, out_shardings=layout)
        self.start_rl = jax.jit(rl.start, out_shardings=layout)
        self.imitate = jax.jit(
            lambda state, batch: cold.imitate(state, batch, config.cold_start.decision_weight),
            donate_argnums=0,
            out_shardings=(layout, whole),
        )
        objective, weights = load_objective(config.rl.objective), config.rl.to_dict()
        self.policy_gradient = jax.jit(
            lambda state, reference, batch: rl.policy_gradient(
                state, reference, batch, objective=objective, weights=weights
            ),
            donate_argnums=0,
            out_shardings=(layout, whole),
        )
        trained, _ = split(layout.params)
        self.copy = jax.jit(  # of what is trained
            lambda params: jax.tree.map(lambda leaf: leaf.copy(), split(params)[0]),
            out_shardings=trained,
        )
        self.hidden = jax.jit(
            lambda params, batch: decision_hidden(policy, params, batch, config.rl.chunk_rows)
        )
        self.fit_head = jax.jit(
            lambda params, hidden, batch, target, labelled: fit_head(
                policy, params, hidden, batch, target, labelled,
                steps=config.cold_start.label_steps,
                learning_rate=config.cold_start.label_learning_rate,
            ),
            out_shardings=(layout.params, whole),
        )  # fmt: skip

    def checkpoint_layout(self) -> dict[str, Any]:
        """Shapes and shardings of what a checkpoint holds."""

        def laid_out(shapes: Any, layout: Any) -> Any:
            return jax.tree.map(
                lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
                shapes,
                layout,
            )

        return {
            "learner": laid_out(self._shapes, self._layout),
            "reference": laid_out(split(self._shapes.params)[0], split(self._layout.params)[0]),
        }

    def programs(self) -> dict[str, int]:
        """Compiled programs of the two updates."""
        return {name: getattr(self, name)._cache_size() for name in ("imitate", "policy_gradient")}


def cold_learner(config: Any, policy: Policy, is_barred_V: np.ndarray) -> Learner:
    """The imitation's. Its head learns no faster: it would pull the trunk away from copying."""
    cold = config.cold_start
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, cold.learning_rate, cold.warmup, max(cold.steps, cold.warmup + 1)
    )
    optimizer = make_optimizer(
        schedule, clip_norm=config.rl.clip_norm, head_rate=1.0, feature_rate=1.0
    )
    return Learner(policy, optimizer, is_barred_V, 1.0, config.rl.chunk_rows)


def _learner(config: Any, policy: Policy, is_barred_V: np.ndarray) -> Learner:
    """Of the policy gradient."""
    rl = config.rl
    updates = max(rl.iterations * rl.updates, rl.warmup + 1)
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, rl.learning_rate, rl.warmup, updates, end_value=rl.final_learning_rate
    )
    optimizer = make_optimizer(
        schedule, clip_norm=rl.clip_norm, head_rate=rl.head_rate, feature_rate=rl.feature_rate
    )
    is_off_policy = bool(config.rollout.max_staleness or config.rollout.weights)
    return Learner(
        policy,
        optimizer,
        is_barred_V,
        config.rollout.temperature,
        rl.chunk_rows,
        importance_limit=rl.importance_limit if is_off_policy else 0.0,
    )
