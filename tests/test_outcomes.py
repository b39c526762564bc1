"""Outcomes on disk: they come back as they were, and what is no such file says so."""

from __future__ import annotations

import math
import pathlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collab.outcomes import read_outcomes, write_outcomes
from collab.report import Outcome

TEXTS = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), max_size=8)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
COUNTS = st.none() | st.integers(0, 1000)
OUTCOMES = st.builds(
    Outcome,
    **dict.fromkeys(("strategy", "task", "helper", "split", "uid"), TEXTS),
    **dict.fromkeys(("em", "f1", "asks", "turns", "leaked_units", "usd", "reward"), NUMBERS),
    **dict.fromkeys(("failures", "tokens", "leak"), NUMBERS),
    **dict.fromkeys(("drafts_known", "asked_known", "drafts_unknown", "asked_unknown"), COUNTS),
)


@settings(max_examples=50, deadline=None)
@given(outcomes=st.lists(OUTCOMES, max_size=5))
def test_outcomes_come_back_as_they_were(
    outcomes: list[Outcome], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "outcomes.npz"
    write_outcomes(path, outcomes)
    assert read_outcomes(path) == outcomes


def test_figures_that_are_newer_than_a_file_are_nan(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "outcomes.npz"
    write_outcomes(path, [Outcome("learned", "world", "mixed", "test", "q0", *[1.0] * 7)])
    with np.load(path) as file:
        columns = {name: file[name] for name in file if name not in ("tokens", "leak")}
    np.savez(path, **columns)
    (old,) = read_outcomes(path)
    assert math.isnan(old.tokens) and math.isnan(old.leak)
    assert (old.uid, old.reward, old.failures) == ("q0", 1.0, 0.0)
    np.savez(path, **{name: column for name, column in columns.items() if name != "em"})
    with pytest.raises(ValueError, match="holds no outcomes"):
        read_outcomes(path)


def test_a_file_that_holds_none_is_named_with_the_fix(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "outcomes.npz"
    with pytest.raises(ValueError, match=rf"{path} holds no outcomes \(FileNotFoundError\)"):
        read_outcomes(path)
    np.savez(path, strategy=np.array(["learned"]))
    with pytest.raises(ValueError, match="--mode=evaluate writes it"):
        read_outcomes(path)
    path.write_bytes(b"PK\x03\x04 cut short")
    with pytest.raises(ValueError, match="holds no outcomes"):
        read_outcomes(path)
