"""Outcomes: of an episode, by hand; on disk, where they come back as they were."""

from __future__ import annotations

import math
import pathlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collab.config import default_config
from collab.outcomes import outcome, read_outcomes, write_outcomes
from collab.report import Outcome
from collab.rewards import score
from collab.types import Episode, FeedbackKind, PrivateUnit, Status, Step
from episodes import answer, answer_back, ask, half_asked, make_episode, make_problem, think

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


# --- of an episode ---------------------------------------------------------------------------

HOPS = (
    Step("my clinic", "Tidar", is_local=True),
    Step("head of Tidar", "Bel", is_known=True),
    Step("home of Bel", "Sofen", is_known=False),
)


def row_of(episode: Episode, task: str) -> Outcome:
    terms = score(episode, default_config().reward)
    return outcome("learned", episode, terms, task=task, helper="two_hops", split="test")


def test_ask_rates_count_drafts_by_what_the_memory_holds() -> None:
    episode = half_asked(HOPS, answers=("Sofen",))
    row = row_of(episode, "world")
    assert (row.drafts_known, row.asked_known) == (1, 0)
    assert (row.drafts_unknown, row.asked_unknown) == (1, 1)
    assert row.em == 1.0


def test_a_helper_that_fails_is_counted() -> None:
    episode = make_episode(think(), ask(kind=FeedbackKind.UNAVAILABLE), ask(), answer())
    assert row_of(episode, "world").failures == 1
    down = make_episode(think(), status=Status.LLM_FAILED)
    assert row_of(down, "world").failures == 1
    assert row_of(make_episode(ask(), answer()), "world").failures == 0


def test_asks_are_requests_and_turns_are_exchanges() -> None:
    episode = make_episode(think(), ask(), answer_back(), think(), answer())
    row = row_of(episode, "world")
    assert (row.asks, row.turns, row.helper) == (1, 2, "two_hops")


def test_what_was_sent_and_what_it_gave_away_is_counted() -> None:
    """Of two units that weigh 1 and 3 the first leaves."""
    units = (PrivateUnit("Elm Clinic", "clinic"), PrivateUnit("Vera Stone", "name", 3.0))
    read = {"prompt_tokens": 20, "completion_tokens": 5}
    episode = make_episode(
        ask("leader of Elm Clinic", **read),
        ask(prompt_tokens=7),
        answer(),
        problem=make_problem(units=units),
    )
    row = row_of(episode, "world")
    assert (row.tokens, row.leaked_units, row.leak) == (32, 1, 0.25)


def test_ask_rates_are_absent_where_nobody_knows_what_is_known() -> None:
    episode = make_episode(think("1 + 1 = 2"), answer("2"), problem=make_problem(answers=("2",)))
    row = row_of(episode, "gsm")
    assert row.drafts_known is None and row.asked_unknown is None
