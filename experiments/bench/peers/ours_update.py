"""Our step of the policy gradient on SmolLM2-135M's shape, as configs/smollm2.py has it."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from collab import sharding
from collab.assembly import make_policy
from collab.config import request_names
from collab.models.policy import init_params
from collab.rl import load_objective
from collab.rl.batch import Batch, collate
from collab.rl.steps import cold_learner
from collab.rl.update import Learner
from collab.types import FEATURES, Params, Trace, action_names
from experiments.bench.peers import PROMPT
from experiments.bench.shapes import configured

VOCABULARY = 49152


class GivenReference(Learner):
    """The reference's log-probabilities come with the batch, as tunix's and TRL's do."""

    def _logp(self, params: Params, batch: Batch[jax.Array]) -> tuple[jax.Array, jax.Array]:
        return batch.sampler_logp_BN, jnp.zeros(batch.legal_BKA.shape)


class Updates:
    """The learner's state and compiled steps. Its schedule is imitation's, which costs alike."""

    def __init__(self) -> None:
        self.config = config = configured("smollm2")
        self.actions = len(action_names(request_names(config)))
        tokens = tuple(range(VOCABULARY - self.actions, VOCABULARY))
        policy = make_policy(
            config, sharding.make_mesh(config.mesh), vocabulary=VOCABULARY, action_tokens=tokens
        )
        is_barred_V = np.zeros(VOCABULARY, bool)
        is_barred_V[list(tokens)] = True
        self.learner = cold_learner(config, policy, is_barred_V)
        make: Any = jax.jit(functools.partial(init_params, policy, features=len(FEATURES)))
        self.state = jax.jit(self.learner.start)(make(jax.random.key(0)))
        self.reference = make(jax.random.key(0))
        self.made: dict[tuple[int, int, bool], tuple[Any, Batch]] = {}

    def step(self, batch: int, length: int, *, has_reference: bool) -> None:
        step, episodes = self._made(batch, length, has_reference)
        self.state, metrics = step(self.state, self.reference, episodes)
        if not np.isfinite(float(metrics["loss"])):
            raise RuntimeError(f"the loss is {metrics['loss']}")

    def temporary_gb(self, batch: int, length: int, *, has_reference: bool) -> float:
        step, _ = self._made(batch, length, has_reference)
        return float(step.memory_analysis().temp_size_in_bytes) / 1e9

    def _made(self, batch: int, length: int, has_reference: bool) -> tuple[Any, Batch]:
        key = (batch, length, has_reference)
        if key not in self.made:
            values = {f.name: getattr(self.learner, f.name) for f in dataclasses.fields(Learner)}
            learner = (Learner if has_reference else GivenReference)(**values)
            rl = self.config.rl
            objective, weights = load_objective(rl.objective), rl.to_dict()
            jitted = jax.jit(
                lambda state, reference, batch: learner.policy_gradient(
                    state, reference, batch, objective=objective, weights=weights
                ),
                donate_argnums=0,
            )
            episodes = jax.device_put(self._episodes(batch, length))
            step = jitted.lower(self.state, self.reference, episodes).compile()
            self.made[key] = (step, episodes)
        return self.made[key]

    def _episodes(self, batch: int, length: int) -> Batch:
        """Rows that fill the context, with as many decisions as the config allows."""
        rng, K = np.random.default_rng(0), self.config.rollout.max_segments
        A, F = self.actions, len(FEATURES)
        likely = np.float32(-np.log(VOCABULARY))
        traces = [
            Trace(
                tokens_S=rng.integers(100, VOCABULARY - A, length).astype(np.int32),
                sampled_S=np.arange(length) >= PROMPT,
                logp_S=np.full(length, likely),
                decided_at_K=np.linspace(PROMPT - 1, length - 2, K).astype(np.int32),
                action_K=rng.integers(0, A, K).astype(np.int32),
                action_logp_K=np.full(K, -np.log(A), np.float32),
                action_logp_KA=np.full((K, A), -np.log(A), np.float32),
                legal_KA=np.ones((K, A), bool),
                features_KF=rng.random((K, F), np.float32),
            )
            for _ in range(batch)
        ]
        made = collate(traces, rows=batch, capacity=length, decisions=K, actions=A, features=F)
        made.advantage_BN[:] = made.decision_advantage_BK[:] = 1.0
        made.advantage_BN[1::2] = made.decision_advantage_BK[1::2] = -1.0
        return made
