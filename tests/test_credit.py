"""Credit: which tokens and decisions of a group of episodes get which advantage, by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from collab.config import default_config
from collab.rewards import score
from collab.rl import OBJECTIVES, load_objective
from collab.rl.batch import Batch, collate
from collab.rl.credit import assign, earned_by_step
from collab.rollout.state import FEATURES
from collab.types import Episode, PrivateUnit, Status
from episodes import NAMES, WRITTEN, answer, ask, make_episode, make_problem, think

WEIGHTS = {**default_config().reward.to_dict(), "turn": 0.2, "think": 0.0, "leak": 0.5}
PRIVATE = make_problem([PrivateUnit("Elm Clinic", "clinic")])
LEAK, CLEAN = "boss of Elm Clinic", "leader"


def credited(
    episodes: Sequence[Episode],
    *,
    samples: int,
    objective: str = "grpo",
    reward: Mapping[str, Any] | None = None,
    **options: Any,
) -> tuple[Batch, dict[str, float]]:
    """The batch of the episodes with the advantages written into it. reward: other weights."""
    batch = collate(
        [episode.trace for episode in episodes],
        rows=len(episodes),
        capacity=128,
        decisions=8,
        actions=len(NAMES),
        features=len(FEATURES),
    )
    metrics = assign(
        batch,
        episodes,
        [score(episode, {**WEIGHTS, **(reward or {})}) for episode in episodes],
        samples=samples,
        objective=load_objective(objective),
        leak_weight=WEIGHTS["leak"],
        **{"standardise": False, **options},
    )
    return batch, metrics


def by_segment(batch: Batch, row: int) -> list[float]:
    """Advantage of each segment's tokens, which must be one number."""
    advantage_KW = batch.advantage_BN[row][batch.written_BN[row]].reshape(-1, WRITTEN)
    assert (advantage_KW == advantage_KW[:, :1]).all()
    return advantage_KW[:, 0].tolist()


def by_decision(batch: Batch, row: int) -> list[float]:
    return batch.decision_advantage_BK[row][batch.choice_BK[row]].tolist()


def near(values: Sequence[float]) -> Any:
    return pytest.approx(values, abs=1e-6)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("standardise", [False, True])
def test_an_all_wrong_group_is_not_taught_by_its_calls(objective: str, standardise: bool) -> None:
    """0, 1 and 3 calls, all wrong: exactly nothing to learn."""
    group = [make_episode(think(), *[ask(cost_usd=1.0)] * n, answer("Bo")) for n in (0, 1, 3)]
    batch, metrics = credited(group, samples=3, objective=objective, standardise=standardise)
    assert not batch.advantage_BN.any()
    assert not batch.decision_advantage_BK.any()
    assert metrics["zero_variance_groups"] == 1.0


def test_additive_costs_teach_an_all_wrong_group_to_ask_less() -> None:
    """Rewards 0, -0.2 and -0.6 around -0.8 / 3: what the gate is for."""
    group = [make_episode(think(), *[ask()] * n, answer("Bo")) for n in (0, 1, 3)]
    batch, metrics = credited(group, samples=3, reward={"gated": False})
    for row, advantage in enumerate((0.8 / 3, 0.2 / 3, -1.0 / 3)):
        assert by_decision(batch, row) == near([advantage] * batch.choice_BK[row].sum())
    assert metrics["zero_variance_groups"] == 0.0


def test_a_whole_episode_is_credited_with_its_quality_and_calls() -> None:
    """Rewards 1, 1 - 0.2 and 0 around their mean 0.6; two groups do not mix."""
    group = [
        make_episode(think(), answer()),
        make_episode(think(), ask(), answer()),
        make_episode(think(), answer("Bo")),
    ]
    easy = [make_episode(think(), answer())] * 3
    batch, metrics = credited([*easy, *group], samples=3)
    assert [by_segment(batch, 3 + i) for i in range(3)] == [
        near([0.4, 0.4]),
        near([0.2, 0.2, 0.2]),
        near([-0.6, -0.6]),
    ]
    assert [by_decision(batch, 3 + i) for i in range(3)] == [
        near([0.4, 0.4]),
        near([0.2, 0.2, 0.2]),
        near([-0.6, -0.6]),
    ]
    assert not batch.advantage_BN[:3].any()
    assert metrics["zero_variance_groups"] == 0.5


def test_a_leak_is_charged_to_its_request_and_to_the_decision_to_ask() -> None:
    """All wrong, so only the leak counts: 0.5 * 1 on the request that sent the one unit."""
    # Tokens: against the mean request, (1 + 0 + 0) / 3. Decisions: against not asking.
    group = [
        make_episode(think(), ask(CLEAN), think(), ask(LEAK), answer("Bo"), problem=PRIVATE),
        make_episode(think(), ask(CLEAN), answer("Bo"), problem=PRIVATE),
    ]
    batch, metrics = credited(group, samples=2)
    assert by_segment(batch, 0) == near([0, 0.5 / 3, 0, -0.5 * 2 / 3, 0])
    assert by_segment(batch, 1) == near([0, 0.5 / 3, 0])
    assert by_decision(batch, 0) == near([0, 0, 0, -0.5, 0])
    assert by_decision(batch, 1) == near([0, 0, 0])
    assert metrics["zero_variance_groups"] == 0.0


def test_leak_and_quality_are_scaled_alike() -> None:
    """Rewards 1 - 0.2 - 0.5 and 0: deviation 0.15, so everything by 1 / 0.15."""
    # Without the leak 0.8 and 0: +-0.4. The only request is the mean request.
    group = [
        make_episode(think(), ask(LEAK), answer(), problem=PRIVATE),
        make_episode(think(), answer("Bo"), problem=PRIVATE),
    ]
    batch, _ = credited(group, samples=2, standardise=True)
    assert by_segment(batch, 0) == near([0.4 / 0.15] * 3)
    assert by_decision(batch, 0) == near([0.4 / 0.15, (0.4 - 0.5) / 0.15, 0.4 / 0.15])
    assert by_decision(batch, 1) == near([-0.4 / 0.15] * 2)


def test_an_opening_request_is_charged_to_no_decision() -> None:
    """Its leak is in the group's mean request, 1 / 2, but no token of ours wrote it."""
    group = [
        make_episode(
            think(),
            ask(CLEAN),
            answer("Bo"),
            opening=ask(LEAK, action="ask_solve"),
            problem=PRIVATE,
        ),
        make_episode(think(), answer("Bo"), problem=PRIVATE),
    ]
    batch, _ = credited(group, samples=2)
    assert by_segment(batch, 0) == near([0, 0.25, 0])
    assert by_decision(batch, 0) == near([0, 0, 0])


def test_each_step_has_earned_its_leaks_and_cuts_and_the_last_one_the_task() -> None:
    """A right answer after two turns, 1 - 0.4; the sum is the reward without the opening's leak."""
    units = [PrivateUnit("Elm Clinic", "clinic"), PrivateUnit("Vera Stone", "doctor")]
    episode = make_episode(
        think(is_cut=True),
        ask(LEAK),
        think(),
        answer(is_cut=True),
        opening=ask("Vera Stone", action="ask_solve"),
        problem=make_problem(units),
    )
    terms = score(episode, {**WEIGHTS, "format": 0.1})
    earned_K = earned_by_step(episode, terms, leak_weight=0.5)
    assert earned_K.tolist() == near([-0.1, -0.25, 0.0, 0.6 - 0.1])
    assert earned_K.sum() == pytest.approx(terms.reward + 0.25)


def test_the_batch_holds_what_was_earned() -> None:
    """Whatever the objective does with it; of an episode that says nothing, nothing."""
    group = [
        make_episode(think(), ask(LEAK), answer(), problem=PRIVATE),
        make_episode(think(), answer(), status=Status.LLM_FAILED),
    ]
    batch, _ = credited(group, samples=2, standardise=True)
    assert batch.reward_BK[0, :3].tolist() == near([0.0, -0.5, 0.8])
    assert batch.decided_BK.sum(axis=1).tolist() == [3, 0]
    assert not batch.reward_BK[0, 3:].any() and not batch.reward_BK[1].any()


# --- episodes that say nothing of the policy -----------------------------------------------


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("standardise", [False, True])
@pytest.mark.parametrize("status", [Status.LLM_FAILED, Status.CONTEXT_FULL])
def test_siblings_are_credited_as_if_a_failed_episode_were_not_there(
    objective: str, standardise: bool, status: Status
) -> None:
    """Its reward and its leaks count for nothing, and its own rows are masked out."""
    failed = make_episode(think(), ask(LEAK), answer(), problem=PRIVATE, status=status)
    siblings = [
        make_episode(think(), ask(LEAK), answer(), problem=PRIVATE),
        make_episode(think(), ask(CLEAN), answer(), problem=PRIVATE),
        make_episode(think(), answer("Bo"), problem=PRIVATE),
    ]
    options = {"objective": objective, "standardise": standardise}
    with_failed, _ = credited([siblings[0], failed, *siblings[1:]], samples=4, **options)
    without, _ = credited(siblings, samples=3, **options)
    assert without.advantage_BN.any()
    for row, place in enumerate((0, 2, 3)):
        assert by_segment(with_failed, place) == by_segment(without, row)
        assert by_decision(with_failed, place) == by_decision(without, row)
    assert not with_failed.written_BN[1].any()
    assert not with_failed.choice_BK[1].any()
    assert with_failed.written_BN[[0, 2, 3]].sum() == without.written_BN.sum()


def test_a_lone_episode_has_no_baseline() -> None:
    """Only what it leaked is held against it: 0.5, against not asking."""
    failed = make_episode(think(), answer(), status=Status.LLM_FAILED)
    lone = make_episode(think(), ask(LEAK), answer(), problem=PRIVATE)
    batch, _ = credited([failed, lone], samples=2)
    assert not batch.advantage_BN.any()
    assert by_decision(batch, 1) == near([0, -0.5, 0])


def test_an_unfinished_answer_is_trained_on() -> None:
    """Rewards 1 and 0 around 1/2."""
    group = [
        make_episode(think(), answer()),
        make_episode(think(), answer(""), status=Status.NO_ANSWER),
    ]
    batch, _ = credited(group, samples=2)
    assert by_segment(batch, 1) == near([-0.5, -0.5])


def test_groups_without_variance_are_counted() -> None:
    """All right alike, nobody left, same leaks; only the last two teach: 2 / 4."""
    right, wrong = make_episode(think(), answer()), make_episode(think(), answer("Bo"))
    failed = make_episode(think(), answer(), status=Status.LLM_FAILED)
    leaky = make_episode(think(), ask(LEAK), answer("Bo"), problem=PRIVATE)
    groups = [[right, right], [failed, failed], [leaky, leaky], [right, wrong]]
    _, metrics = credited([episode for group in groups for episode in group], samples=2)
    assert metrics == {"zero_variance_groups": 0.5}
