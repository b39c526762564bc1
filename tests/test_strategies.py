"""Strategies: a contract for every line of the table, and what each rule does at a boundary."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from collab import strategies
from collab.rollout.state import FEATURES
from collab.strategies import STRATEGIES, Boundary, LearnedRates, Setting
from collab.types import ANSWER_ID, FIRST_REQUEST_ID, REPLY_ID, THINK_ID
from episodes import NAMES

A, F = len(NAMES), len(FEATURES)
KINDS = range(FIRST_REQUEST_ID, A)
ASK_FACT, ASK_SOLVE = KINDS
RATES = LearnedRates(asks_per_draft=0.3, kind=ASK_SOLVE, surprises=(0.1, 2.0))
# Prefers to request, then to think.
HEAD = [1.0, 0.0, -1.0, 2.0, 3.0]
NO_REPLY = [True, True, False, True, True]


def boundary(*rows: dict[str, Any]) -> Boundary:
    """One row per dict, each a draft that is neither local nor true unless it says otherwise."""
    usual = {
        "head_logits_BA": HEAD,
        "legal_BA": NO_REPLY,
        "features_BF": [0.0] * F,
        "is_drafted_B": True,
        "is_draft_local_B": False,
        "is_draft_true_B": False,
        "kind_B": ASK_FACT,
        "threshold_B": 0.0,
    }
    columns = {key: np.array([{**usual, **row}[key] for row in rows]) for key in usual}
    return Boundary(**{key: jnp.asarray(column) for key, column in columns.items()})


def probabilities(name: str, at: Boundary) -> np.ndarray:
    """What the rollout samples from: the scores under the mask of legal actions, [B, A]."""
    scores_BA = strategies.load(name).scores(at)
    return np.asarray(jax.nn.softmax(jnp.where(at.legal_BA, scores_BA, -1e30), axis=-1))


def choice(name: str, **row: Any) -> int:
    """The one action that the rule takes at this boundary, greedily."""
    return int(probabilities(name, boundary(row))[0].argmax())


# --- every line of the table ---------------------------------------------------------------


@pytest.fixture(params=list(STRATEGIES))
def strategy(request: pytest.FixtureRequest) -> Any:
    return strategies.load(request.param)


def test_contract_of_attributes(strategy: Any) -> None:
    assert strategy.mode in ("rows", "opening", "llm", "composed")
    assert isinstance(strategy.is_sampled, bool)
    assert type(strategy).__doc__


def test_contract_of_settings(strategy: Any) -> None:
    """At least one, none twice, and only request kinds that there are; one kind is enough."""
    for kinds in (KINDS, range(FIRST_REQUEST_ID, FIRST_REQUEST_ID + 1)):
        settings = list(strategy.settings(kinds, LearnedRates(0.3, kinds[-1], (0.1, 2.0))))
        assert settings
        assert len(set(settings)) == len(settings)
        assert {setting.kind for setting in settings} <= set(kinds)
        assert np.isfinite([setting.threshold for setting in settings]).all()


def random_boundary(rng: np.random.Generator, setting: Setting, rows: int = 64) -> Boundary:
    legal_BA = rng.random((rows, A)) < 0.5
    legal_BA[:, ANSWER_ID] |= ~legal_BA.any(axis=1)
    # The rollout's mask is never without an action that asks nobody.
    legal_BA[:, THINK_ID] |= ~legal_BA[:, :REPLY_ID].any(axis=1)
    return Boundary(
        head_logits_BA=jnp.asarray(10.0 * rng.normal(size=(rows, A)), jnp.float32),
        legal_BA=jnp.asarray(legal_BA),
        features_BF=jnp.asarray(4.0 * rng.random((rows, F)), jnp.float32),
        is_drafted_B=jnp.asarray(rng.random(rows) < 0.7),
        is_draft_local_B=jnp.asarray(rng.random(rows) < 0.3),
        is_draft_true_B=jnp.asarray(rng.random(rows) < 0.5),
        kind_B=jnp.full(rows, setting.kind, jnp.int32),
        threshold_B=jnp.full(rows, setting.threshold, jnp.float32),
    )


def test_contract_of_scores(strategy: Any) -> None:
    """f32 [B, A], no NaN, finite where legal, and some legal action is possible in every row."""
    rng = np.random.default_rng(0)
    extremes = [Setting(ASK_FACT, 0.0), Setting(ASK_SOLVE, 1.0)]
    for setting in [*strategy.settings(KINDS, RATES), *extremes]:
        at = random_boundary(rng, setting)
        scores_BA = np.asarray(strategy.scores(at))
        assert scores_BA.shape == at.legal_BA.shape and scores_BA.dtype == np.float32
        assert np.isfinite(scores_BA[at.legal_BA]).all() and not np.isnan(scores_BA).any()
        assert (np.where(at.legal_BA, scores_BA, -np.inf).max(axis=1) > -1e29).all()


def test_contract_of_rows(strategy: Any) -> None:
    """A row's scores depend on that row alone: the same without its neighbours."""
    at = random_boundary(np.random.default_rng(1), Setting(ASK_SOLVE, 0.4))
    scores_BA = strategy.scores(at)
    for b in range(8):
        alone_1A = strategy.scores(jax.tree.map(lambda leaf, b=b: leaf[b : b + 1], at))
        np.testing.assert_allclose(alone_1A[0], scores_BA[b], rtol=1e-6)


def test_only_the_oracle_sees_what_is_true() -> None:
    at = random_boundary(np.random.default_rng(3), Setting(ASK_FACT, 0.5))
    lied_to = dataclasses.replace(at, is_draft_true_B=~at.is_draft_true_B)
    seeing = {
        name
        for name in STRATEGIES
        if not np.array_equal(probabilities(name, at), probabilities(name, lied_to))
    }
    assert seeing == {"oracle"}


def test_load_all_keeps_the_tables_order() -> None:
    assert list(strategies.load_all()) == list(STRATEGIES)


def test_unknown_strategy() -> None:
    with pytest.raises(ValueError, match="'no_such' is unknown; the table has learned, slm_cot"):
        strategies.load("no_such")


# --- what each rule asks -------------------------------------------------------------------


def test_learned_follows_the_head() -> None:
    """Softmax of 1, 0, 2, 3 without the illegal reply."""
    weight_A = np.exp(HEAD) * NO_REPLY
    expected_A = weight_A / weight_A.sum()
    np.testing.assert_allclose(probabilities("learned", boundary({}))[0], expected_A, rtol=1e-5)


def test_learned_asks_more_with_a_bias_and_else_keeps_its_odds() -> None:
    """exp(2) and exp(3) of the requests count e times as much; thinking and answering as before."""
    weight_A = np.exp(HEAD) * NO_REPLY
    weight_A[FIRST_REQUEST_ID:] *= np.e
    biased_A = probabilities("learned", boundary({"threshold_B": 1.0}))[0]
    np.testing.assert_allclose(biased_A, weight_A / weight_A.sum(), rtol=1e-5)
    assert choice("learned", threshold_B=-1.9) == ASK_SOLVE
    assert choice("learned", threshold_B=-2.1) == THINK_ID
    only_alone = [True, True, False, False, False]
    assert choice("learned", threshold_B=9.0, legal_BA=only_alone) == THINK_ID
    # An answer to the helper's question is no request.
    asked_back = {"legal_BA": [True] * A, "head_logits_BA": [1.0, 0.0, 1.5, 2.0, 2.0]}
    assert choice("learned", threshold_B=-9.0, **asked_back) == REPLY_ID


def test_learned_without_a_bias_is_the_head_bit_for_bit() -> None:
    at = random_boundary(np.random.default_rng(4), Setting())
    np.testing.assert_array_equal(strategies.load("learned").scores(at), at.head_logits_BA)


@pytest.mark.parametrize("name", ["slm_cot", "ask_first"])
def test_never_asks_and_else_follows_the_head(name: str) -> None:
    """Softmax of 1 and 0: the head's odds of thinking and answering."""
    odds_A = probabilities(name, boundary({"kind_B": ASK_SOLVE}))[0]
    np.testing.assert_allclose(odds_A, [np.e / (1 + np.e), 1 / (1 + np.e), 0, 0, 0], atol=1e-6)


ASKERS = ("ask_every_hop", "ask_chain", "best_constant", "oracle", "step_cascade", "random_rate")
SURE_TO_ASK = {"step_cascade": -1.0, "random_rate": 1.0}


@pytest.mark.parametrize("name", ASKERS)
def test_rules_ask_about_drafts_with_their_own_kind(name: str) -> None:
    row = {"threshold_B": SURE_TO_ASK.get(name, 0.0)}
    for kind in KINDS:
        asked_A = probabilities(name, boundary({**row, "kind_B": kind}))[0]
        np.testing.assert_allclose(asked_A, np.arange(A) == kind, atol=1e-6)
    assert choice(name, **row, is_drafted_B=False) == THINK_ID
    only_answer = [False, True, False, False, False]
    assert choice(name, **row, legal_BA=only_answer) == ANSWER_ID
    without_its_kind = [True, True, False, False, True]
    assert choice(name, **row, legal_BA=without_its_kind) == THINK_ID


@pytest.mark.parametrize("name", [name for name in ASKERS if name != "oracle"])
def test_rules_never_ask_about_what_the_notes_say(name: str) -> None:
    row = {"threshold_B": SURE_TO_ASK.get(name, 0.0), "is_draft_local_B": True}
    assert choice(name, **row) == THINK_ID


def test_best_constant_may_be_never() -> None:
    assert choice("best_constant", threshold_B=1.0) == THINK_ID


def test_step_cascade_asks_above_its_threshold() -> None:
    """Of the largest surprise, the first feature; the others don't matter."""
    for surprise, asked in ((0.5, False), (0.51, True)):
        features = [surprise] + [9.0 * (not asked)] * (F - 1)
        got = choice("step_cascade", features_BF=features, threshold_B=0.5)
        assert got == (ASK_FACT if asked else THINK_ID)
    assert FEATURES[0] == "max_nll"


def test_oracle_asks_where_the_draft_is_false() -> None:
    assert choice("oracle", is_draft_true_B=False) == ASK_FACT
    assert choice("oracle", is_draft_true_B=True) == THINK_ID
    assert choice("oracle", is_draft_true_B=True, is_draft_local_B=True) == THINK_ID


def test_random_rate_asks_with_its_probability() -> None:
    """Else the head's best action that asks nobody, not its odds: think."""
    for rate in (0.0, 0.3, 1.0):
        odds_A = probabilities("random_rate", boundary({"threshold_B": rate}))[0]
        np.testing.assert_allclose(odds_A, [1 - rate, 0, 0, rate, 0], atol=1e-6)
    assert strategies.load("random_rate").is_sampled


# --- settings ------------------------------------------------------------------------------


def test_learned_runs_under_its_own_bias() -> None:
    rates = dataclasses.replace(RATES, ask_bias=-0.5)
    assert strategies.load("learned").settings(KINDS, rates) == [Setting(threshold=-0.5)]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("learned", [Setting()]),
        ("slm_cot", [Setting()]),
        ("llm_alone", [Setting(ASK_SOLVE)]),
        ("ask_first", [Setting(ASK_SOLVE)]),
        ("ask_every_hop", [Setting(ASK_FACT)]),
        ("ask_chain", [Setting(ASK_SOLVE)]),
        ("random_rate", [Setting(ASK_SOLVE, 0.3)]),  # the learned policy's
        ("best_constant", [Setting(threshold=1.0), Setting(ASK_FACT), Setting(ASK_SOLVE)]),
        ("oracle", [Setting(ASK_FACT), Setting(ASK_SOLVE)]),
    ],
)
def test_settings(name: str, expected: list[Setting]) -> None:
    assert list(strategies.load(name).settings(KINDS, RATES)) == expected


def test_step_cascade_tunes_from_always_to_never_in_steps_of_equally_many_drafts() -> None:
    surprises = np.exp(np.random.default_rng(0).uniform(-7.0, np.log(4.0), 300))
    rates = dataclasses.replace(RATES, surprises=tuple(surprises))
    settings = strategies.load("step_cascade").settings(KINDS, rates)
    for kind in KINDS:
        grid = [setting.threshold for setting in settings if setting.kind == kind]
        assert grid == sorted(grid)
        asked = [np.mean(surprises > threshold) for threshold in grid]
        assert asked[0] == 1.0 and asked[-1] == 0.0
        assert max(-np.diff(asked)) < 0.06


def test_step_cascade_without_any_draft_has_something_to_try() -> None:
    rates = dataclasses.replace(RATES, surprises=())
    assert strategies.load("step_cascade").settings(KINDS, rates)


def test_step_cascade_reaches_to_the_next_surprise_on_either_side() -> None:
    rule = strategies.load("step_cascade")
    features_KF = np.zeros((4, F), np.float32)
    features_KF[:, 0] = (0.0, 0.5, 2.0, 1.0)
    assert rule.reach(0.7, features_KF) == (0.5, 1.0)
    assert rule.reach(0.5, features_KF) == (0.5, 1.0)  # not above it, so not asked
    assert rule.reach(2.0, features_KF) == (2.0, np.inf)
    assert rule.reach(-1.0, features_KF) == (-np.inf, 0.0)
    assert rule.reach(0.1, features_KF[:0]) == (-np.inf, np.inf)
