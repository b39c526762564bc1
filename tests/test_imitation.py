"""Labels of when to ask from what the SLM got right, and the head's fit to them, by hand."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from collab import sharding
from collab.models.policy import Policy, init_params
from collab.models.presets import transformer_config
from collab.rl.batch import Batch, collate
from collab.rl.imitation import decision_hidden, fit_head, label_decisions, pad_labels
from collab.rollout.state import FEATURES
from collab.types import ANSWER_ID, FIRST_REQUEST_ID, THINK_ID, Params, Step
from episodes import NAMES, answer, ask, make_episode, make_problem, think

STEPS = (
    Step("my film", "Star Fall", is_local=True),
    Step("director of Star Fall", "Kano Bel"),
)
ASK = [0.0, 0.0, 0.0, 0.5, 0.5]  # either request kind


def one_hot(action: int) -> list[float]:
    return [float(index == action) for index in range(len(NAMES))]


def test_a_true_draft_is_kept_and_a_false_one_asked_about() -> None:
    problem = make_problem(steps=STEPS)
    right = make_episode(
        think("my film = Star Fall"), think("director of Star Fall = Kano Bel"), answer(),
        problem=problem,
    )  # fmt: skip
    target_KA, is_labelled_K = label_decisions(right)
    assert is_labelled_K.tolist() == [False, True, True]
    assert target_KA[1:].tolist() == [one_hot(THINK_ID), one_hot(ANSWER_ID)]
    wrong = make_episode(
        think("my film = Star Fall"), think("director of Star Fall = Mira Len"), answer("Mira Len"),
        problem=problem,
    )  # fmt: skip
    assert label_decisions(wrong)[0][1:].tolist() == [one_hot(THINK_ID), ASK]


def test_a_draft_off_the_known_path_has_no_label() -> None:
    episode = make_episode(
        think("my film = Moon Rise"), think("director of Moon Rise = Mira Len"), answer("Mira Len"),
        problem=make_problem(steps=STEPS),
    )  # fmt: skip
    _, is_labelled_K = label_decisions(episode)
    assert is_labelled_K.tolist() == [False, True, False]


def test_the_answer_is_judged_as_the_task_grades_it() -> None:
    problem = make_problem(answers=("12",))
    episode = make_episode(think("3 * 4"), answer("12 apples"), problem=problem)
    assert label_decisions(episode)[0][1:].tolist() == [one_hot(ANSWER_ID)]


def test_without_matching_steps_the_answer_judges_every_draft() -> None:
    right = make_episode(think("some prose"), think("more of it"), answer("Kano Bel"))
    assert label_decisions(right)[0][1:].tolist() == [one_hot(THINK_ID), one_hot(ANSWER_ID)]
    wrong = make_episode(think("some prose"), think("more of it"), answer("Mira Len"))
    assert label_decisions(wrong)[0][1:].tolist() == [ASK, ASK]


def test_after_a_reply_what_was_done_is_kept_unless_it_asked_again() -> None:
    episode = make_episode(
        think("director of Star Fall = Mira Len"), ask(), answer(),
        problem=make_problem(steps=STEPS),
    )  # fmt: skip
    target_KA, is_labelled_K = label_decisions(episode)
    assert target_KA[1].tolist() == ASK
    assert target_KA[2].tolist() == one_hot(ANSWER_ID)
    assert is_labelled_K.tolist() == [False, True, True]


def test_a_forced_decision_has_no_label() -> None:
    episode = make_episode(think("some prose"), answer("Mira Len"))
    legal_KA = np.ones((2, len(NAMES)), bool)
    legal_KA[1] = np.arange(len(NAMES)) == ANSWER_ID
    trace = dataclasses.replace(episode.trace, legal_KA=legal_KA)
    assert not label_decisions(dataclasses.replace(episode, trace=trace))[1].any()


def test_the_fit_moves_the_head_alone_and_towards_the_labels(
    tiny_config: Any, mesh: jax.sharding.Mesh
) -> None:
    """The head learns from the features which drafts are false; the trunk stays bit for bit."""
    problem = make_problem(steps=STEPS)
    episodes = []
    for index in range(8):
        is_true = index % 2 == 0
        said = "Kano Bel" if is_true else "Mira Len"
        made = make_episode(think(f"director of Star Fall = {said}"), answer(said), problem=problem)
        features_KF = np.zeros((2, len(FEATURES)), np.float32)
        features_KF[1, 0] = 0.1 if is_true else 3.0
        trace = dataclasses.replace(made.trace, features_KF=features_KF)
        episodes.append(dataclasses.replace(made, trace=trace))
    policy = Policy(transformer_config(tiny_config.model, 64), len(NAMES))
    params = init_params(policy, jax.random.key(0), len(FEATURES))
    batches = [
        collate(
            [episode.trace for episode in episodes], rows=8, capacity=64, decisions=2,
            actions=len(NAMES), features=len(FEATURES), shards=shards,
        )
        for shards in (1, sharding.row_parts(mesh))
    ]  # fmt: skip
    batch = batches[0]
    target, labelled = pad_labels([label_decisions(e) for e in episodes], 8, 2)

    @jax.jit
    def fit(params: Params, batch: Batch, target: Any, labelled: Any) -> Any:
        hidden = decision_hidden(policy, params, batch)
        fitted, loss = fit_head(
            policy, params, hidden, batch, target, labelled, steps=200, learning_rate=0.05
        )
        return fitted, loss, hidden

    placed = jax.device_put(params, sharding.param_shardings(params, mesh))
    fitted, loss, hidden = sharding.fetch(
        fit(placed, *sharding.put_rows((batches[1], target, labelled), mesh))
    )
    for found, expected in zip(
        jax.tree.leaves(fitted), jax.tree.leaves(fit(params, batch, target, labelled)[0]),
        strict=True,
    ):  # fmt: skip
        np.testing.assert_allclose(found, expected, atol=1e-4)
    jax.tree.map(np.testing.assert_array_equal, fitted["lm"], params["lm"])
    logits_BKA = policy.apply(
        {"params": fitted}, hidden, batch.features_BKF, method=Policy.action_logits
    )
    chosen_B = jnp.argmax(logits_BKA[:, 1], axis=-1)
    assert (chosen_B[::2] == ANSWER_ID).all()
    assert (chosen_B[1::2] >= FIRST_REQUEST_ID).all()
    assert float(loss) < 0.6  # ln 2 for the two request kinds in half the labels, and the pull
