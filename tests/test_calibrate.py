"""Calibration: the search on made-up curves, the sweep of a hand-set head, when the file counts."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import ml_collections
import pytest
from hypothesis import given
from hypothesis import strategies as st

import runs
from collab import calibrate
from collab.assembly import assemble
from collab.calibrate import GRID, Found, Point, applied, best, calibrated, reach, sweep, table
from collab.config import default_config
from collab.evaluate import Evaluator
from collab.types import FIRST_REQUEST_ID

pytestmark = pytest.mark.usefixtures("quick")


def at(bias: float, asks: float, reward: float = 0.5) -> Point:
    return Point(
        bias, asks, (asks - 0.1, asks + 0.1), 0.8, (0.7, 0.9), reward, (reward, reward), 9
    )  # fmt: skip


def logistic(bias: float, *, most: float = 1.5, centre: float = 0.0) -> float:
    return most / (1.0 + math.exp(centre - bias))


# --- searching -----------------------------------------------------------------------------


@given(st.floats(0.05, 1.45), st.floats(-15.0, 15.0), st.sampled_from([0.005, 0.02, 0.1]))
def test_a_rate_within_reach_is_reached(target: float, centre: float, tolerance: float) -> None:
    found = reach(
        lambda bias: at(bias, logistic(bias, centre=centre)), target=target, tolerance=tolerance
    )
    assert found.is_reached and abs(found.chosen.asks - target) <= tolerance
    assert "met by" in found.words and len(found.points) < 20
    biases = [point.ask_bias for point in found.points]
    assert biases == sorted(biases) and 0.0 in biases


@given(st.floats(0.2, 1.3), st.integers(0, 10**6))
def test_noise_along_the_curve_does_not_matter(target: float, seed: int) -> None:
    """Asks wobble by less than the tolerance, in a way that only depends on the bias."""

    def measure(bias: float) -> Point:
        wobble = 0.01 * math.sin(seed + 1000.0 * bias)
        return at(bias, logistic(bias) + wobble)

    found = reach(measure, target=target, tolerance=0.03)
    assert found.is_reached and abs(found.chosen.asks - target) <= 0.03


def test_a_policy_that_is_there_already_is_measured_once() -> None:
    found = reach(lambda bias: at(bias, 0.75), target=0.74, tolerance=0.02)
    assert [point.ask_bias for point in found.points] == [0.0] and found.is_reached


def test_more_than_it_can_ask_is_said() -> None:
    found = reach(lambda bias: at(bias, logistic(bias)), target=2.0, tolerance=0.02)
    assert not found.is_reached
    assert found.words.startswith("2 asks a question are out of reach: at an ask bias of 32 it ask")
    assert found.words.endswith("no bias makes it ask more; the nearest is 1.500")
    assert found.chosen.asks == pytest.approx(1.5)


def test_a_jump_across_the_target_is_said_and_the_nearest_taken() -> None:
    found = reach(
        lambda bias: at(bias, 0.9 if bias > 1.3 else 0.2), target=0.4, tolerance=0.02
    )  # fmt: skip
    assert not found.is_reached and found.chosen.asks == 0.2
    assert found.words == (
        "no ask bias comes within 0.02 of 0.4 asks a question: the rate jumps across it; the "
        "nearest is 0.200"
    )
    assert len(found.points) < 15


def test_the_best_reward_is_looked_for_beside_the_grids_best() -> None:
    tried: list[float] = []

    def measure(biases: Sequence[float]) -> list[Point]:
        tried.extend(biases)
        return [at(bias, logistic(bias), reward=-abs(bias - 1.4)) for bias in biases]

    found = best(measure)
    assert sorted(tried[:11]) == sorted((0.0, *GRID)) and tried[11:] == [0.75, 1.5]
    assert found.chosen.ask_bias == 1.5
    assert found.words == "reward is best, -0.100, at 1.226 asks a question"


def test_where_the_bias_changes_nothing_none_is_chosen() -> None:
    found = best(lambda biases: [at(bias, 0.0) for bias in biases])
    assert found.chosen.ask_bias == 0.0


def test_the_best_may_lie_at_the_end_of_the_grid() -> None:
    found = best(lambda biases: [at(bias, 0.5, reward=bias) for bias in biases])
    assert found.chosen.ask_bias == 8.0


# --- on a policy ---------------------------------------------------------------------------


def small_config() -> ml_collections.ConfigDict:
    config = runs.small_config()
    config.task.validation = 12
    return config


@pytest.fixture(scope="module")
def evaluator(tmp_path_factory: pytest.TempPathFactory) -> Evaluator:
    """Random weights; the head is set so that it asks about some of the questions."""
    assembly = assemble(small_config(), str(tmp_path_factory.mktemp("calibrate")))
    params = assembly.initial_params()
    head = params["action_head"]
    params["action_head"] = {
        "kernel": 0.5 * jax.random.normal(jax.random.key(3), head["kernel"].shape),
        "bias": head["bias"].at[FIRST_REQUEST_ID:].set(-3.0),
    }
    return Evaluator(assembly, params)


@pytest.fixture(scope="module")
def points(evaluator: Evaluator) -> list[Point]:
    return sweep(evaluator, [-32.0, -1.0, 0.0, 2.0, 32.0])


def test_asks_rise_with_the_bias_from_none_to_the_limit(
    evaluator: Evaluator, points: list[Point]
) -> None:
    asks = [point.asks for point in points]
    assert asks[0] == 0.0 and asks == sorted(asks) and len(set(asks)) > 3
    assert asks[-1] == 1.0  # after one reply there is no room for another
    assert all(point.episodes == 12 for point in points)
    for point in points:
        assert point.asks_ci[0] <= point.asks <= point.asks_ci[1]
    assert evaluator.a.engine.programs() == {"admit": 1, "feed": 1, "advance": 1}


def test_a_bias_of_0_is_the_policy_as_it_was_trained(
    evaluator: Evaluator, points: list[Point]
) -> None:
    (again,) = sweep(evaluator, [0.0])
    assert again == points[2]
    alone = evaluator.sweep([2.0], "validation")[2.0]
    assert sum(outcome.asks for outcome in alone) / 12 == points[3].asks


def test_it_comes_to_the_target(evaluator: Evaluator, points: list[Point]) -> None:
    config = evaluator.config
    config.calibrate.update({"ask_rate": 0.75, "tolerance": 0.09})
    assert points[2].asks < 0.66 and points[3].asks > 0.84
    found = calibrated(evaluator)
    assert found.is_reached and abs(found.chosen.asks - 0.75) <= 0.09
    assert evaluator.a.engine.programs()["advance"] == 1
    config.calibrate.ask_rate = 0.0
    found = calibrated(evaluator)
    assert found.chosen.reward == max(point.reward for point in found.points)
    assert len(found.points) >= 12


def test_the_table_marks_what_was_chosen() -> None:
    found = Found(at(0.5, 0.7), (at(0.0, 0.6), at(0.5, 0.7)), True, "")
    lines = table(found).splitlines()
    assert lines[2].split() == (
        [">", "0.500", "0.70", "[0.60", "0.80]", "80", "[70", "90]", "0.500", "[0.500", "0.500]"]
    )  # fmt: skip
    assert lines[1].startswith("     0.000") and lines[3].startswith("9 validation questions;")


# --- the file ------------------------------------------------------------------------------


def written(folder: Path, config: Any, **changes: Any) -> None:
    found = Found(at(-0.75, 0.4), (at(-0.75, 0.4), at(0.0, 0.6)), True, "so")
    about = {"step": 7, "helper": calibrate.helper_of(config), **changes}
    calibrate.write(folder / calibrate.FILE, found, about)


def test_what_was_found_is_used_for_its_checkpoint_and_helper(tmp_path: Path) -> None:
    config = default_config()
    assert applied(config, tmp_path, step=7) == calibrate.AS_TRAINED
    written(tmp_path, config)
    content = json.loads((tmp_path / "calibration.json").read_text())
    assert content["chosen"]["asks_ci"] == [0.4 - 0.1, 0.5] and len(content["points"]) == 2
    bias = applied(config, tmp_path, step=7)
    assert (bias.ask_bias, bias.source) == (-0.75, str(tmp_path / "calibration.json"))
    assert [path.name for path in tmp_path.iterdir()] == ["calibration.json"]


def other_helper(config: Any) -> None:
    config.llm.helpers = {"new": {"hops": 3}}


@pytest.mark.parametrize(
    ("change", "step", "why"),
    [
        (lambda config: None, 8, "is for checkpoint step 7, not 8, and isn't used"),
        (other_helper, 7, "is for another helper (llm.helpers) and isn't used"),
        (
            lambda config: config.llm.update({"model": "m", "base_url": "http://x/v1"}),
            7,
            "is for another helper (llm.base_url, llm.model) and isn't used",
        ),
    ],
)
def test_for_another_checkpoint_or_helper_it_does_not_count(
    change: Callable[[Any], None], step: int, why: str, tmp_path: Path
) -> None:
    config = default_config()
    written(tmp_path, config)
    change(config)
    bias = applied(config, tmp_path, step=step)
    assert bias.ask_bias == 0.0 and why in bias.source
    assert bias.source.endswith("; calibrate again, or set evaluate.ask_bias")


def test_what_does_not_change_the_helper_may_change(tmp_path: Path) -> None:
    config = default_config()
    written(tmp_path, config)
    config.llm.update({"concurrency": 3, "deadline_s": 1.0})
    assert applied(config, tmp_path, step=7).ask_bias == -0.75


def test_a_file_that_is_older_than_a_setting_of_helpers_counts_while_it_is_at_its_default(
    tmp_path: Path,
) -> None:
    config = default_config()
    older = calibrate.helper_of(config)
    del older["scripted"]["timeout_rate"]
    written(tmp_path, config, helper=older)
    assert applied(config, tmp_path, step=7).ask_bias == -0.75
    config.llm.scripted.timeout_rate = 0.5
    bias = applied(config, tmp_path, step=7)
    assert bias.ask_bias == 0.0 and "another helper (llm.scripted)" in bias.source


@pytest.mark.parametrize("given", ["1.5", "0", "-2"])
def test_the_config_has_the_last_word(given: str, tmp_path: Path) -> None:
    config = default_config()
    written(tmp_path, config)
    config.evaluate.ask_bias = given
    bias = applied(config, tmp_path, step=7)
    assert (bias.ask_bias, bias.source) == (float(given), "evaluate.ask_bias")
    assert calibrate.given(config) == bias


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '{"ask_bias": "1", "step": 7, "helper": {}}', "7"]
)
def test_a_broken_file_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "calibration.json").write_text(text)
    with pytest.raises(ValueError, match=r"calibration\.json is no calibration; remove it, or cal"):
        applied(default_config(), tmp_path, step=7)
    (tmp_path / "calibration.json").write_text('{"ask_bias": NaN, "step": 7, "helper": {}}')
    with pytest.raises(ValueError, match="ask_bias=nan must be finite; calibrate again"):
        applied(default_config(), tmp_path, step=7)


def test_points_are_plain_numbers(points: list[Point]) -> None:
    json.dumps([dataclasses.asdict(point) for point in points], allow_nan=False)
