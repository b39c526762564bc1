"""What a run will take, before it starts: episodes, tokens, requests, minutes.

Lengths are those of worked solutions of the task, written with the SLM's own tokenizer; counts are
the config's. An SLM that writes more than the solution does takes longer, so these are estimates
for planning, and no claim rests on them.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from collab import strategies, tasks, tokenizers
from collab.config import request_names
from collab.llm import make_backend
from collab.llm.client import Client
from collab.privacy.gate import Gate
from collab.rl.traces import Synthesiser
from collab.rollout.state import Limits
from collab.strategies import LearnedRates
from collab.strategies.constant import constant_rules
from collab.types import FIRST_REQUEST_ID, TeachableTask, action_names
from experiments.real_slm.scales import Speeds

TRACES = 64
DRAWS = 200  # of as many traces as a batch holds, for the longest of them


@dataclasses.dataclass(frozen=True)
class Lengths:
    """Tokens of worked solutions, i64 [N] each, and requests in them."""

    whole_N: np.ndarray
    written_N: np.ndarray
    asks_N: np.ndarray

    def longest(self, rows: int) -> float:
        """Mean length of the longest of `rows` drawn ones, to which a batch is padded."""
        drawn = np.random.default_rng(0).choice(self.whole_N, (DRAWS, rows))
        return float(drawn.max(1).mean())


@dataclasses.dataclass(frozen=True)
class Work:
    """Of one run. episodes: rollouts. Tokens as in `Speeds`; trained ones with the padding."""

    episodes: int
    read: int
    written: int
    trained: int
    requests: int
    seconds: float


def lengths(config: Any, data_dir: str) -> Lengths:
    """Write some traces of the config's task. Raises: ValueError where hardly any fits."""
    task = tasks.make_task(config, data_dir)
    assert isinstance(task, TeachableTask)
    names = action_names(request_names(config))
    backend = make_backend("scripted", config.llm, knowledge=task.knowledge, seed=0)
    client, gate = Client(backend, config.llm, config.requests), Gate("off")
    synthesiser = Synthesiser(
        task=task,
        tokenizer=tokenizers.make_tokenizer(config, corpus=task.corpus),
        names=names,
        limits=Limits.of(config.rollout, len(names)),
        settings=config.cold_start.to_dict() | {"batch": TRACES},
        teacher=lambda request: client.submit(gate.screen(request, ())).result(),
        helpers=[""],
    )
    traces, _ = synthesiser.batch(task.problems("train"), np.random.default_rng(0))
    client.close()
    return Lengths(
        np.array([len(trace.tokens_S) for trace in traces]),
        np.array([trace.sampled_S.sum() for trace in traces]),
        np.array([(trace.action_K >= FIRST_REQUEST_ID).sum() for trace in traces]),
    )


def work(config: Any, found: Lengths, speeds: Speeds) -> Work:
    """What the config asks for, at these lengths and speeds."""
    cold, rl = config.cold_start, config.rl
    kinds = range(FIRST_REQUEST_ID, FIRST_REQUEST_ID + len(config.requests))
    batch = rl.problems * rl.samples
    episodes = (
        cold.label_problems * cold.label_samples
        + rl.constant_problems * len(constant_rules(kinds))
        + rl.iterations * batch
        + _evaluated(config, kinds)
    )
    trained = cold.steps * cold.batch * found.longest(cold.batch)
    trained += rl.iterations * rl.updates * batch * found.longest(batch)
    written = episodes * float(found.written_N.mean())
    read = episodes * float(found.whole_N.mean()) - written
    seconds = read / speeds.read + written / speeds.written + trained / speeds.trained
    return Work(
        episodes=episodes,
        read=round(read),
        written=round(written),
        trained=round(trained),
        requests=round(episodes * float(found.asks_N.mean())),
        seconds=speeds.start_s + seconds,
    )


def _evaluated(config: Any, kinds: range) -> int:
    """Episodes of an evaluation: every candidate on validation, what was chosen on test."""
    wanted = config.evaluate.strategies or tuple(strategies.STRATEGIES)
    rates = LearnedRates(0.5, FIRST_REQUEST_ID, tuple(map(float, range(1000))))
    rolled = [name for name in wanted if strategies.load(name).mode in ("rows", "opening")]
    candidates = sum(len(strategies.load(name).settings(kinds, rates)) for name in rolled)
    on_both_weights = 2 * (candidates + ("learned" not in rolled))
    validation, test = config.task.validation, config.task.test
    return on_both_weights * validation + len(rolled) * test
