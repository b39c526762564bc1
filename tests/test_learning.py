"""The update learns: whether asking becomes more or less frequent depends on whether it pays."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import optax
import pytest

from collab.config import default_config
from collab.models.policy import Policy, init_params
from collab.models.transformer import TransformerConfig
from collab.rewards import score
from collab.rl import batch as batch_module
from collab.rl import load_objective
from collab.rl.batch import Batch, collate
from collab.rl.credit import assign
from collab.rl.update import Learner, TrainState, log_probabilities, make_optimizer
from collab.rollout.state import FEATURES
from collab.types import ANSWER_ID, FIRST_REQUEST_ID, Episode, Params
from compiling import quick_jit
from episodes import NAMES, answer, ask, make_episode, think

PROBLEMS, SAMPLES, UPDATES = 8, 8, 40
ALONE = 0.5  # share of questions that the SLM gets right without help; with help it gets all
NETWORK = TransformerConfig(
    vocabulary=64, width=16, layers=1, heads=2, kv_heads=1, head_channels=8, feed_forward=32
)
POLICY = Policy(NETWORK, len(NAMES))
TOKENS = Policy(NETWORK, len(NAMES), action_tokens=tuple(range(40, 40 + len(NAMES))))
CRITIC = Policy(NETWORK, len(NAMES), has_value=True)
CONFIG = default_config()
OPTIMIZER = make_optimizer(
    optax.constant_schedule(3e-3), clip_norm=1.0, head_rate=10.0, feature_rate=1.0
)
IS_BARRED = np.zeros(NETWORK.vocabulary, bool)


@functools.cache
def start(policy: Policy) -> tuple[Learner, TrainState]:
    params = quick_jit(lambda key: init_params(policy, key, len(FEATURES)))(jax.random.key(0))
    learner = Learner(policy, OPTIMIZER, is_barred_V=IS_BARRED, temperature=1.0)
    return learner, quick_jit(learner.start)(params)


@functools.cache
def log_probability(policy: Policy) -> Callable[[Params, Batch], Any]:
    return quick_jit(lambda params, batch: log_probabilities(policy, params, batch, IS_BARRED, 1.0))


@functools.cache
def make_step(objective: str, policy: Policy) -> Callable[..., Any]:
    rule, (learner, _) = load_objective(objective), start(policy)
    weights = {**CONFIG.rl.to_dict(), "kl_weight": 0.0, "entropy_weight": 0.0}
    return quick_jit(
        lambda state, reference, batch: learner.policy_gradient(
            state, reference, batch, objective=rule, weights=weights
        )
    )


@pytest.fixture(scope="module", autouse=True)
def one_shape() -> Iterator[None]:
    """Batches as large as can be, so that one program serves all."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(batch_module, "ROW_SHARES", 1)
        monkeypatch.setattr(batch_module, "WRITTEN_SHARES", 1)
        yield


def collated(episodes: list[Episode]) -> Batch[np.ndarray]:
    return collate(
        [episode.trace for episode in episodes],
        rows=len(episodes), capacity=64, decisions=4, actions=len(NAMES), features=len(FEATURES),
    )  # fmt: skip


def rollout(asks_B: np.ndarray, rng: np.random.Generator) -> list[Episode]:
    """A draft, then help or none; alone the answer is right half the time."""
    return [
        make_episode(think(), ask(), answer())
        if is_asked
        else make_episode(think(), answer("Kano Bel" if rng.random() < ALONE else "nobody"))
        for is_asked in asks_B
    ]


@pytest.mark.parametrize(
    ("objective", "policy"),
    [
        ("reinforce", POLICY),
        ("grpo", POLICY),
        ("dr_grpo", POLICY),
        ("dapo", POLICY),
        ("grpo", CRITIC),
        ("ppo", CRITIC),
        ("grpo", TOKENS),
    ],
    ids=["reinforce", "grpo", "dr_grpo", "dapo", "value", "ppo", "tokens"],
)
@pytest.mark.parametrize(("price", "rises"), [(0.1, True), (0.9, False)])
def test_the_ask_rate_follows_what_asking_pays(
    objective: str, policy: Policy, price: float, rises: bool
) -> None:
    """With help 1 - price, alone 0.5: asking pays below a price of a half, and not above."""
    rule, (_, state), step = load_objective(objective), start(policy), make_step(objective, policy)
    logp, params, rng = log_probability(policy), state.params, np.random.default_rng(0)
    rows = PROBLEMS * SAMPLES
    probe = collated(rollout(np.zeros(rows, bool), rng))

    def ask_rate() -> float:
        """Of the two actions at the decision after the draft."""
        logp_A = np.asarray(logp(state.params, probe)[1])[0, 1]
        ask_p, alone_p = np.exp(logp_A[[FIRST_REQUEST_ID, ANSWER_ID]])
        return float(ask_p / (ask_p + alone_p))

    before = ask_rate()
    for _ in range(UPDATES):
        episodes = rollout(rng.random(rows) < ask_rate(), rng)
        batch = collated(episodes)
        batch.choice_BK[:, [0, 2, 3]] = False  # only the decision after the draft is a choice
        batch.legal_BKA[:, 1] = np.isin(np.arange(len(NAMES)), (ANSWER_ID, FIRST_REQUEST_ID))
        sampler_BN, sampler_BKA = map(np.asarray, logp(state.params, batch))
        batch.sampler_logp_BN[:] = sampler_BN
        batch.sampler_action_logp_BK[:] = np.take_along_axis(
            sampler_BKA, batch.action_BK[..., None], axis=-1
        )[..., 0]
        terms = [score(episode, {**CONFIG.reward.to_dict(), "turn": price}) for episode in episodes]
        assign(
            batch, episodes, terms, samples=SAMPLES, objective=rule, leak_weight=0.0,
            standardise=objective != "dr_grpo",
        )  # fmt: skip
        state, _ = step(state, params, batch)
    after = ask_rate()
    assert after > before + 0.2 if rises else after < before - 0.2
