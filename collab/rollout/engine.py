"""What a run rolls out with: limits, rules, the rows on the device and the compiled programs.

How the rows are filled, and what becomes of their requests, is in `collab.rollout.flight`.
"""

from __future__ import annotations

import collections
import functools
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from typing import Any, Protocol

import jax
import numpy as np

from collab import sharding, strategies
from collab.config import request_names
from collab.llm.pool import Pool
from collab.llm.weakening import Weakening
from collab.models.policy import Policy, unstacked
from collab.privacy.gate import Gate, Screened
from collab.rollout.decode import Decoder
from collab.rollout.episodes import Job
from collab.rollout.flight import Flight
from collab.rollout.state import GOLD_STEPS, Limits, Rows, empty_rows
from collab.stopwatch import Stopwatch
from collab.tokenizers import Tokenizer
from collab.types import Episode, Feedback, Params, action_names


class HelpClient(Protocol):
    """What the engine needs of `collab.llm.client.Client`, or of several processes' `OneAsks`."""

    @property
    def is_down(self) -> bool: ...

    @property
    def is_spent(self) -> bool: ...

    def submit(self, screened: Screened) -> Future[Feedback]: ...

    def hear(self, futures: Iterable[Future[Feedback]], timeout_s: float) -> None: ...


class Engine:
    """Runs jobs through the jitted rollout. Build one a run: it owns the compiled programs."""

    def __init__(
        self,
        policy: Policy,
        tokenizer: Tokenizer,
        client: HelpClient,
        config: Any,
        mesh: jax.sharding.Mesh,
        gate: Gate | None = None,
        pool: Pool | None = None,
    ) -> None:
        """gate: what every request goes through; by default one that is open.

        pool: what the head is told of helpers; by default nothing.
        """
        self.config, self.client, self.tokenizer, self.mesh = config, client, tokenizer, mesh
        self.gate = gate or Gate("off")
        self.names = action_names(request_names(config))
        self.pool = pool or Pool({"": 1.0})
        self.limits = Limits.of(
            config.rollout, len(self.names), helper_features=len(self.pool.features)
        )
        self.rules = row_rules()
        self.rule_index = {name: index for index, name in enumerate(self.rules)}
        is_barred_V = tokenizer.is_control_V.copy()
        is_barred_V[tokenizer.end_id] = False
        self.decoder = Decoder(
            policy=policy,
            limits=self.limits,
            action_token_A=np.array([tokenizer.control[n] for n in self.names], np.int32),
            is_barred_V=is_barred_V,
            end_id=tokenizer.end_id,
            temperature=config.rollout.temperature,
            rules=self.rules,
        )
        self.rows_count = config.rollout.rows
        make = jax.jit(
            lambda: empty_rows(policy.config, self.limits, rows=self.rows_count, steps=GOLD_STEPS),
            out_shardings=sharding.row_sharding(mesh),
        )
        self.rows: Rows = make()
        out = jax.tree.map(lambda leaf: leaf.sharding, self.rows)
        self._admit = jax.jit(self.decoder.admit, donate_argnums=1, out_shardings=out)
        self._feed = jax.jit(self.decoder.feed, donate_argnums=1, out_shardings=out)
        self._advance = jax.jit(
            self.decoder.advance,
            donate_argnums=1,
            static_argnames="live",
            out_shardings=(out, sharding.replicated(mesh)),
        )
        self._unstack: Callable[[Params], Params] | None = None  # jitted once shapes are known
        self.stopwatch = Stopwatch()
        self.counters: collections.Counter[str] = collections.Counter()  # since it was reset

    def put_whole(self, tree: Any) -> Any:
        """Host arrays to the mesh, whole on every device."""
        return jax.device_put(tree, sharding.replicated(self.mesh))

    def for_decoding(self, params: Params) -> Params:
        """What the rollout reads: with `rollout.unstack_layers` a copy, sharded alike."""
        if not self.config.rollout.unstack_layers:
            return params
        if self._unstack is None:
            copy = decoding_copy(self.config, self.decoder.policy, self.mesh)
            out = sharding.param_shardings(jax.eval_shape(copy, params), self.mesh)
            self._unstack = jax.jit(copy, out_shardings=out)
        return self._unstack(params)

    def programs(self) -> dict[str, int]:
        """Compiled programs by function."""
        return {
            name: getattr(self, f"_{name}")._cache_size() for name in ("admit", "feed", "advance")
        }

    def run(
        self,
        params: Params,
        jobs: Sequence[Job],
        *,
        temperature: float,
        on_done: Callable[[int], None] = lambda count: None,
        weakening: Weakening | None = None,
    ) -> list[Episode]:
        """Make all episodes, in the order of `jobs`. on_done: called with newly finished counts.

        temperature: 0 is greedy. A prompt too long for the capacity gives CONTEXT_FULL, unrun.
        weakening: what happens to replies before they are read.
        """
        flight = self.flight(temperature=temperature, weakening=weakening)
        batch = flight.add(jobs)
        while not flight.is_finished(batch):
            before = flight.finished
            flight.turn(params)
            if flight.finished > before:
                on_done(flight.finished - before)
        return flight.take(batch)[0]

    def flight(self, *, temperature: float, weakening: Weakening | None = None) -> Flight:
        """Rows to which jobs can be added. Nothing else may be in flight."""
        self.reset_counters()
        return Flight(self, temperature=temperature, weakening=weakening)

    def reset_counters(self) -> None:
        self.counters = collections.Counter(replies_cut=0, replies_weakened=0, tokens_prefilled=0)


def decoding_copy(
    config: Any, policy: Policy, mesh: jax.sharding.Mesh
) -> Callable[[Params], Params]:
    """What `rollout.unstack_layers` makes of the parameters, once a rollout."""
    is_joined = mesh.shape["model"] == 1
    return functools.partial(
        unstacked,
        network=policy.config,
        rows=config.rollout.rows,
        weights=config.rollout.weights,
        is_joined=is_joined,
    )


def row_rules() -> dict[str, Any]:
    """The strategies that decide in rows; a row's rule index counts along them."""
    every = strategies.load_all()
    return {name: rule for name, rule in every.items() if rule.mode in ("rows", "opening")}
