"""Rows of a benchmark, worked by hand."""

from __future__ import annotations

import pytest

from experiments.bench import records

REPEATS = (
    {"ours": {"wall_s": 1.0}, "theirs": {"wall_s": 3.0}},
    {"ours": {"wall_s": 2.0}, "theirs": {"wall_s": 4.0}},
    {"ours": {"wall_s": 4.0}, "theirs": {"wall_s": 12.0}},
)


def test_a_row_holds_the_spread_and_the_ratio_within_repeats(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The median of the ratios 3, 2, 3, not the ratio of the medians, which is 2."""
    ours, theirs = records.rows_of(REPEATS, ours="ours", batch=8, of=" of a step")
    assert (ours["value"], ours["min"], ours["max"], ours["ratio_to_ours"]) == (2.0, 1.0, 4.0, 1.0)
    assert theirs == {
        "system": "theirs", "batch": 8, "metric": "wall_s of a step",
        "value": 4.0, "min": 3.0, "max": 12.0, "ratio_to_ours": 3.0,
    }  # fmt: skip
    records.show([ours, theirs])
    first = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert first == ["system", "ours", "theirs"]


def test_of_what_takes_nothing_the_ratio_to_itself_is_one() -> None:
    (row,) = records.rows_of([{"ours": {"wait_s": 0.0}}] * 3, ours="ours", batch=8)
    assert (row["value"], row["ratio_to_ours"]) == (0.0, 1.0)
