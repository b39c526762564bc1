"""Trends along a strength: levels, the claims of a fall and of a rise, what a figure shows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from experiments import levels
from experiments.levels import Axis, Values
from experiments.statistics import Estimate
from scaling import SEEDS, groups

AXIS = Axis("strength", "facts known", {"weak": 0.2, "middle": 0.5, "strong": 0.8})


def asks(*means: float) -> np.ndarray:
    """Three levels, two seeds, 40 questions, with a little noise that the questions share."""
    noise_Q = np.random.default_rng(0).normal(0.0, 0.05, 40)
    return np.array(means)[:, None, None] + np.tile(noise_Q, (3, 2, 1))


def test_a_fall_at_every_level_is_claimed_by_trend_and_by_step() -> None:
    trend, rise = levels.falls(AXIS, "asks", asks(0.9, 0.6, 0.5), SEEDS)
    assert trend["figure"] < -0.9 and trend["holds"] and trend["seeds"] == list(SEEDS)
    assert rise["figure"] == pytest.approx(-0.1) and rise["holds"]
    assert trend["claim"].startswith("strength: asks falls with facts known")


def test_a_turn_on_the_way_is_seen_though_the_ends_fall() -> None:
    trend, rise = levels.falls(AXIS, "asks", asks(0.9, 0.3, 0.5), SEEDS)
    assert trend["figure"] < 0 and rise["figure"] == pytest.approx(0.2) and not rise["holds"]
    trend, rise = levels.falls(AXIS, "asks", asks(0.3, 0.6, 0.9), SEEDS)
    assert trend["figure"] > 0.9 and not trend["holds"] and not rise["holds"]


def test_a_rise_may_be_of_a_rate() -> None:
    gained, per = asks(0.5, 0.6, 0.7), asks(1.0, 2.0, 3.0)
    assert levels.rises(AXIS, "gain", gained, SEEDS)["holds"]
    rate = levels.rises(AXIS, "gain per request", gained, SEEDS, per)
    assert rate["figure"] < -0.9 and not rate["holds"]
    unknown = levels.rises(AXIS, "gain per request", gained, SEEDS, 0.0 * per)
    assert unknown["figure"] is None and not unknown["holds"]


def test_values_are_read_along_an_axis(tmp_path: Path) -> None:
    figures = {"weak": 0.2, "middle": 0.4, "strong": 0.6}
    values = Values(
        groups(tmp_path, {name: {"learned": (em, 0.5, 0, 0)} for name, em in figures.items()})
    )
    em_LSQ = values.along(AXIS, "learned", "em")
    assert em_LSQ.mean((1, 2)) == pytest.approx([0.2, 0.4, 0.6]) and em_LSQ.shape == (3, 3, 60)
    assert values.seeds == list(SEEDS)
    uids = values.questions()  # in the order of Q: as text sorts, not as numbers do
    assert uids == sorted(uids) and uids[2] == "world-test-10"
    assert values.of("weak", "learned", "em")[0, 2] == 1.0


def test_a_figure_leaves_out_what_cannot_be_told() -> None:
    line = [Estimate(0.5, (0.4, 0.7)), Estimate(None, None), Estimate(0.2, None)]
    curves = {"strength": {"asks": line}}
    figure = levels.panels([AXIS], [("asks a question", {"asks": "C3"})], curves)
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.get_xticklabels()] == ["0.2", "0.5", "0.8"]
    (drawn,) = axes.containers
    assert drawn.lines[0].get_xdata().tolist() == [0.2, 0.8]
    assert levels.plain(curves)["strength"]["asks"] == [
        {"figure": 0.5, "ci": [0.4, 0.7]},
        {"figure": None, "ci": None},
        {"figure": 0.2, "ci": None},
    ]


def test_levels_at_even_distances_keep_their_names() -> None:
    axis = Axis("size", "weights", {"small": 31, "large": 553}, is_even=True)
    assert axis.places == [0.0, 1.0]
