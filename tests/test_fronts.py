"""Fronts: who dominates whom, what a mixture reaches, what is drawn and written; all by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from collab.report import Outcome
from experiments import fronts, statistics
from experiments.fronts import Point
from experiments.statistics import Estimate


def point(name: str, em: float, asks: float, group: str = "g", **fields: Any) -> Point:
    values = {"em": np.full((2, 4), em), "asks": np.full((2, 4), asks)}
    return Point(name, group, values, **fields)


CHEAP, MIDDLE, DEAR = point("a", 0.2, 0.0), point("b", 0.6, 1.0), point("c", 0.8, 3.0)
BEATEN, EQUAL = point("d", 0.5, 1.5), point("e", 0.6, 1.0)


def names(points: list[Point]) -> list[str]:
    return [one.name for one in points]


def test_a_point_is_dominated_by_one_that_is_nowhere_worse_and_somewhere_better() -> None:
    every = [DEAR, BEATEN, CHEAP, EQUAL, MIDDLE]
    assert [one.name for one in every if fronts.is_dominated(one, every, "asks")] == ["d"]
    assert names(fronts.front([DEAR, BEATEN, CHEAP, MIDDLE], "asks")) == ["a", "b", "c"]
    assert fronts.is_dominated(point("f", 0.6, 1.1), [MIDDLE], "asks")
    assert fronts.is_dominated(point("f", 0.5, 1.0), [MIDDLE], "asks")
    assert not fronts.is_dominated(point("f", 0.7, 1.1), [MIDDLE], "asks")


def test_a_bound_is_on_no_front_and_beats_nobody() -> None:
    oracle = point("oracle", 1.0, 0.5, is_bound=True)
    assert names(fronts.front([CHEAP, MIDDLE, oracle], "asks")) == ["a", "b"]


@pytest.mark.parametrize(
    ("most", "em"), [(0.0, 0.2), (0.5, 0.4), (1.0, 0.6), (2.5, 0.75), (9, 0.8)]
)
def test_between_two_points_of_the_front_lies_their_mixture(most: float, em: float) -> None:
    found_SQ = fronts.quality_at([DEAR, BEATEN, CHEAP, MIDDLE], "asks", most)
    assert found_SQ is not None and found_SQ.shape == (2, 4)
    assert found_SQ == pytest.approx(em)


def test_nothing_is_to_be_had_for_less_than_the_cheapest_point() -> None:
    assert fronts.quality_at([MIDDLE, DEAR], "asks", 0.9) is None


def test_only_runs_with_every_seed_are_compared() -> None:
    def of(*seeds: int) -> list[Any]:
        return [SimpleNamespace(run=SimpleNamespace(seed=seed)) for seed in seeds]

    groups = {"world": of(0, 1), "price": of(0, 1), "failed": of(1)}
    assert fronts.complete(groups, like="world").keys() == {"world", "price"}
    assert fronts.complete(groups, like="failed").keys() == {"failed"}
    assert fronts.complete(groups, like="none") == {}


def test_a_point_is_read_off_the_outcomes_of_its_runs() -> None:
    by_seed = [
        [
            Outcome("learned", "w", "h", "test", f"q{q}", em, em, 2.0 * seed, 1, 0, 0.5, 0.0)
            for q, em in enumerate((1.0, 0.0))
        ]
        for seed in (0, 1)
    ]
    one = fronts.point("n", "g", by_seed, costs=("asks", "usd"))
    assert (one.mean("em"), one.mean("asks"), one.mean("usd")) == (0.5, 1.0, 0.5)
    assert one.values["asks"].tolist() == [[0.0, 0.0], [2.0, 2.0]]


def test_verdicts_are_of_the_interval_or_of_the_figure() -> None:
    wide, narrow = Estimate(0.1, (-0.1, 0.3)), Estimate(0.1, (0.05, 0.2))
    assert statistics.is_above(narrow, 0.0) and not statistics.is_above(wide, 0.0)
    assert fronts.reaches(wide, 0.1) and not fronts.reaches(wide, 0.11)
    for unknown in (Estimate(None, None), Estimate(0.1, None)):
        assert not statistics.is_above(unknown, 0.0)
    assert not fronts.reaches(Estimate(None, None), 0.0)


def test_rows_say_on_which_fronts_a_point_stands() -> None:
    usd = {"em": np.full((2, 4), 0.5), "usd": np.full((2, 4), 0.00012345678)}
    every = [CHEAP, MIDDLE, BEATEN, Point("u", "h", usd)]
    found = fronts.rows(every, ("asks", "usd"))
    assert [row["on_front_of"] for row in found] == [["asks"], ["asks"], [], ["usd"]]
    assert found[1] == {
        "point": "b", "group": "g", "em": 0.6, "em_ci": [0.6, 0.6], "asks": 1.0,
        "asks_ci": [1.0, 1.0], "on_front_of": ["asks"],
    }  # fmt: skip
    assert found[3]["usd"] == 0.00012346  # dollars are small


def test_each_cost_has_a_panel_with_the_points_that_know_it() -> None:
    usd = {"em": np.full((2, 4), 0.5), "usd": np.full((2, 4), 0.1)}
    every = [CHEAP, MIDDLE, point("+1", 0.7, 2.0, "dial"), Point("u", "h", usd)]
    figure = fronts.draw(every, ("asks", "usd"), joined=("dial",))
    asks, dollars = figure.axes
    assert asks.get_xlabel() == "asks a question" and dollars.get_xlabel() == "dollars a question"
    assert {text.get_text() for text in asks.texts} == {"a", "b"}  # a dial's are not named
    assert {text.get_text() for text in dollars.texts} == {"u"}
