"""Dual ascent: the price follows the ask rate, it is what is learned from, and outlives a stop."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np
import pytest

import runs
from collab import train as train_module
from collab.config import default_config
from collab.metrics import read_jsonl
from collab.rewards import Terms, score
from collab.rl.dual import next_multiplier, priced
from collab.train import Trainer
from collab.types import Episode, Status
from compiling import compiled_once
from episodes import answer, answer_back, ask, make_episode, think
from test_train import FIRST_RL, LAST, assert_equal, everything, lines, one_shape, small_config

REWARD = default_config().reward
SETTINGS = {"target": 0.5, "rate": 0.2, "turn_price": 0.1}


def moved(multiplier: float, *episodes: Episode, **settings: float) -> float:
    terms = [score(episode, REWARD) for episode in episodes]
    return next_multiplier(multiplier, episodes, terms, **{**SETTINGS, **settings})


# --- by hand -------------------------------------------------------------------------------


def test_the_multiplier_is_paid_by_the_turn_and_only_where_the_answer_is_right() -> None:
    right = make_episode(ask(), answer_back(), answer())
    wrong = make_episode(ask(), answer("nobody"))
    dear = priced(REWARD, 0.15)
    assert set(dear) == set(REWARD.keys()) and dear["leak"] == REWARD.leak
    assert score(right, REWARD).reward == pytest.approx(1 - 2 * 0.2)
    assert score(right, dear).reward == pytest.approx(1 - 2 * 0.35)
    assert score(wrong, dear).reward == score(wrong, REWARD).reward == 0.0
    assert score(right, priced(REWARD, -0.2)).reward == 1.0


def test_it_rises_by_what_was_asked_too_often_and_falls_by_what_was_not() -> None:
    one, none = make_episode(think(), ask(), answer()), make_episode(think(), answer())
    assert moved(0.3, one, one, one, none) == pytest.approx(0.3 + 0.2 * 0.25)
    assert moved(0.3, none) == pytest.approx(0.3 - 0.2 * 0.5)
    assert moved(0.3, one, none) == 0.3
    assert moved(0.3, make_episode(ask(), answer_back(), answer())) == pytest.approx(0.4)  # a REPLY


def test_a_turn_becomes_free_but_no_gift() -> None:
    silent = make_episode(think(), answer())
    assert moved(0.0, silent, rate=9.0) == -SETTINGS["turn_price"]
    assert moved(-0.1, silent) == -SETTINGS["turn_price"]
    assert priced({"turn": 0.1}, moved(-0.1, silent))["turn"] == 0.0


def test_episodes_that_teach_nothing_do_not_move_it() -> None:
    one = make_episode(ask(), answer())
    down = make_episode(ask(), ask(), ask(), status=Status.LLM_FAILED)
    assert moved(0.3, one, down) == moved(0.3, one)
    assert moved(0.3, down) == 0.3


# --- in training ---------------------------------------------------------------------------


@pytest.fixture(scope="module", autouse=True)
def quick(compiled: Path) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as monkeypatch, compiled_once(compiled):
        one_shape(monkeypatch)
        yield


def targeted() -> ml_collections.ConfigDict:
    """A target so far off that the price moves by much in one iteration."""
    config = small_config()
    config.rl.update({"target_ask_rate": 2.9, "dual_rate": 0.03})
    config.reward.gated = False  # so that there is something to learn without an answer
    return config


@dataclasses.dataclass(frozen=True)
class Run:
    """A run with a target, and what each of its iterations learned from."""

    workdir: Path
    trainer: Trainer
    learned_from: list[Sequence[Terms]]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory, quick: None) -> Run:
    workdir = tmp_path_factory.mktemp("targeted")
    learned_from: list[Sequence[Terms]] = []
    assign = train_module.assign

    def spied(batch: Any, episodes: Any, terms: Any, **settings: Any) -> dict[str, float]:
        learned_from.append(terms)
        return assign(batch, episodes, terms, **settings)

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(train_module, "assign", spied)
        _, trainer = runs.train(targeted(), workdir)
    return Run(workdir, trainer, learned_from)


def iterations(workdir: Path) -> list[dict[str, Any]]:
    return [
        line for line in read_jsonl(workdir / "metrics.jsonl") if line["stage"] == "policy_gradient"
    ]


def test_each_batch_moves_the_logged_multiplier(unbroken: Run) -> None:
    logged = iterations(unbroken.workdir)
    assert len(logged) == LAST - FIRST_RL and logged[0]["multiplier"] == 0.0
    found = [*(line["multiplier"] for line in logged), unbroken.trainer.multiplier]
    for line, after in zip(logged, found[1:], strict=True):
        moved = line["multiplier"] + 0.03 * (line["asks"] - 2.9)
        assert after == pytest.approx(max(-0.2, moved)) and after != line["multiplier"]
        assert line["turn_price"] == pytest.approx(0.2 + line["multiplier"])


def test_what_is_learned_from_is_priced_and_what_is_logged_is_not(unbroken: Run) -> None:
    for line, terms in zip(iterations(unbroken.workdir), unbroken.learned_from, strict=True):
        paid = np.mean([term.reward for term in terms])
        assert line["turns"] > 0
        assert paid == pytest.approx(line["reward"] - line["multiplier"] * line["turns"])


def test_a_stopped_run_goes_on_with_its_multiplier_bit_for_bit(
    unbroken: Run, tmp_path: Path
) -> None:
    """Stopped between two iterations, where the multiplier is no longer 0."""
    stop = FIRST_RL + 1
    runs.train(targeted(), tmp_path, lambda trainer, step: step == stop)
    _, trainer = runs.train(targeted(), tmp_path)
    assert trainer.multiplier == unbroken.trainer.multiplier != 0.0
    assert_equal(everything(trainer), everything(unbroken.trainer))
    assert lines(tmp_path) == lines(unbroken.workdir)


def test_without_a_target_the_price_stands_and_none_is_logged(
    unbroken: Run, tmp_path: Path
) -> None:
    """Also where the run had one before it was stopped. With one, something else is learned."""
    shutil.copytree(unbroken.workdir, tmp_path / "had_one")
    config = targeted()
    config.rl.target_ask_rate = 0.0
    _, trainer = runs.train(config, tmp_path / "had_one")
    assert trainer.multiplier == 0.0
    _, trainer = runs.train(config, tmp_path / "never")
    assert not any("multiplier" in line for line in iterations(tmp_path / "never"))
    found, other = everything(trainer), everything(unbroken.trainer)
    assert any(not np.array_equal(found[path], other[path]) for path in found)
