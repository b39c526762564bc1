"""Our rollout as it stands in training: admit, then advance with head, features and log-probs.

Our step of the policy gradient is in `ours_update`.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from collab import strategies
from collab.models.policy import Policy, init_params, unstacked
from collab.models.presets import PRESETS
from collab.models.transformer import TransformerConfig
from collab.rollout.decode import Decoder
from collab.rollout.state import DECIDE, Admission, Limits, Rule, empty_rows
from collab.types import FEATURES, Params
from experiments.bench.peers.ours_update import VOCABULARY, Updates

END, CONTROLS = 2, 5  # ids; controls of actions follow
STEPS = 4  # known solution steps that a row can hold


class Ours:
    """Every row writes its answer at once: the first decision is forced, and nothing ends early."""

    def __init__(self) -> None:
        self.config = TransformerConfig(vocabulary=VOCABULARY, **PRESETS["smollm2_135m"])
        self.policy = Policy(self.config, actions=5)
        self.made: dict[tuple[int, int, int], Any] = {}

    @functools.cached_property
    def trained(self) -> Params:
        make = jax.jit(functools.partial(init_params, self.policy, features=len(FEATURES)))
        return make(jax.random.key(0))

    @functools.cached_property
    def updates(self) -> Updates:
        return Updates()

    def generate(self, *, batch: int, prompt: int, new: int, greedy: bool) -> None:
        """The control token of the answer is the last one of the prompt."""
        capacity = prompt + 128 * -(-new // 128)
        key = (batch, prompt, capacity)
        if key not in self.made:
            self.made[key] = (self._laid_out(batch), *self._programs(batch, prompt, capacity))
        params, admit, advance, empty, new_rows = self.made[key]
        rows = admit(params, empty(), new_rows)
        rows, _ = advance(
            params,
            rows,
            jnp.float32(0.0 if greedy else 1.0),
            jnp.int32(new + 1),
            jnp.int32(batch + 1),
            jnp.bool_(False),
        )
        length_B = np.asarray(rows.length_B)
        if not (length_B == prompt + new).all():
            raise RuntimeError(f"rows have {length_B} tokens, not {prompt + new}")

    def _laid_out(self, rows: int) -> Any:
        """Parameters as once a rollout."""
        return jax.jit(
            functools.partial(unstacked, network=self.config, rows=rows, is_joined=True)
        )(self.trained)

    def update(self, *, batch: int, length: int, has_reference: bool) -> None:
        self.updates.step(batch, length, has_reference=has_reference)

    def temporary_gb(self, *, batch: int, length: int, has_reference: bool) -> float:
        """What the step's program holds at its peak beside its arguments and outputs."""
        return self.updates.temporary_gb(batch, length, has_reference=has_reference)

    def _programs(self, batch: int, prompt: int, capacity: int) -> tuple[Any, Any, Any, Admission]:
        limits = Limits(
            capacity=capacity,
            max_segments=1,
            max_asks=1,
            think_tokens=8,
            request_tokens=8,
            answer_tokens=capacity - prompt,
            reply_tokens=8,
            draft_first=False,
            actions=5,
        )
        rules = {"learned": strategies.load("learned")}
        is_barred_V = np.zeros(VOCABULARY, bool)
        is_barred_V[: CONTROLS + 5] = True
        decoder = Decoder(
            policy=self.policy,
            limits=limits,
            action_token_A=np.arange(CONTROLS, CONTROLS + 5, dtype=np.int32),
            is_barred_V=is_barred_V,
            end_id=END,
            temperature=1.0,
            rules=rules,
        )
        rng = np.random.default_rng(0)
        zero_B = jnp.zeros(batch, jnp.int32)
        admission = Admission(
            prompts_PS=jnp.asarray(rng.integers(100, VOCABULARY, (batch, prompt)), jnp.int32),
            length_P=jnp.full(batch, prompt - 1, jnp.int32),
            source_B=jnp.arange(batch, dtype=jnp.int32),
            identity_BI=jnp.asarray(rng.integers(0, 1000, (batch, 3)), jnp.uint32),
            phase_B=jnp.full(batch, DECIDE, jnp.int32),
            asks_B=zero_B,
            rule=Rule(zero_B, zero_B, jnp.zeros(batch), zero_B - 1, jnp.zeros(batch, bool)),
            gold_BH=jnp.zeros((batch, STEPS), jnp.uint32),
            gold_is_local_BH=jnp.zeros((batch, STEPS), bool),
            helper_BE=jnp.zeros((batch, 0)),
        )
        make = functools.partial(empty_rows, self.config, limits, rows=batch, steps=STEPS)
        empty: Any = jax.jit(make)
        advance: Any = jax.jit(functools.partial(decoder.advance, live=capacity), donate_argnums=1)
        admit: Any = jax.jit(decoder.admit, donate_argnums=1)
        return admit, advance, empty, admission
