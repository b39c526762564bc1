"""Fingerprints: figures by hand, exact tests against another's, noise is no change."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from collab.llm.fingerprint import (
    FALSE_ALARMS,
    OPEN,
    Fingerprint,
    Reply,
    changes,
    fisher_exact,
    load,
    pool_changes,
    save,
    sign_test,
)


def reply(index: int, hops: int, **fields: Any) -> Reply:
    usual = {"relation": "mayor", "kind": "clarify" if hops == OPEN else "answer"}
    usual |= {"is_right": hops != OPEN, "is_statement": hops != OPEN, "tokens": 10}
    usual |= {"latency_s": 0.2, "usd": 1e-4}
    return Reply(id=f"{hops}-{index}", hops=hops, **{**usual, **fields})


def helper(each: int = 9, **fields: Any) -> Fingerprint:
    """Right about everything, asks back, unless `fields` says otherwise for all replies."""
    levels = (1, 2, 3, OPEN)
    return Fingerprint("a", tuple(reply(i, hops, **fields) for i in range(each) for hops in levels))


def one_hop(each: int = 9) -> Fingerprint:
    replies = (
        dataclasses.replace(one, is_right=one.hops == 1, kind="hint" if one.hops > 1 else one.kind)
        for one in helper(each).replies
    )
    return Fingerprint("b", tuple(replies))


# --- figures -------------------------------------------------------------------------------


def test_the_summary_by_hand() -> None:
    replies = (
        reply(0, 1, relation="mayor", latency_s=0.1, tokens=4),
        reply(1, 1, relation="home", is_right=False, kind="refuse", is_statement=False),
        reply(0, 2, is_right=False, kind="hint", latency_s=0.9, tokens=12),
        reply(0, OPEN, latency_s=0.3, tokens=6),
        reply(1, OPEN, kind="unavailable", failure="timeout", latency_s=30.0),
    )
    found = Fingerprint("a", replies)
    assert found.strength == pytest.approx(1 / 3)
    assert found.summary() == {
        "strength": 0.3333,
        "right_by_hops": {"1": [1, 2], "2": [0, 1]},
        "right_by_relation": {"home": [0, 1], "mayor": [1, 1]},
        "asks_back": [1, 1],
        "refuses": [1, 3],
        "states": [2, 3],
        "kinds": {"answer": 1, "hint": 1, "clarify": 1, "refuse": 1},
        "tokens_median": 8.0,
        "latency_median_s": 0.25,
        "latency_p90_s": 0.9,
        "usd_per_request": 1e-4,
        "failed": 1,
    }


def test_who_answers_nothing_has_no_strength_and_a_summary_all_the_same() -> None:
    silent = helper(kind="unavailable", failure="timeout")
    assert silent.strength == 0.0 and silent.summary()["latency_p90_s"] is None
    assert changes(helper(), silent) == [
        "answered none of the probe requests now (timeout)"
    ]  # fmt: skip
    assert changes(silent, helper()) == ["answered none of the probe requests before (timeout)"]


def test_it_goes_through_json(tmp_path: Path) -> None:
    found = {"a": helper(2), "": one_hop(1)}
    save(tmp_path / "helpers.json", found)
    assert load(tmp_path / "helpers.json") == found
    assert json.loads((tmp_path / "helpers.json").read_text())["a"]["summary"]["strength"] == 1.0
    assert [path.name for path in tmp_path.iterdir()] == ["helpers.json"]


@pytest.mark.parametrize("text", ["{", "[]", '{"a": {}}', '{"a": {"helper": "a", "replies": [1]}}'])
def test_a_file_of_something_else_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "helpers.json").write_text(text)
    with pytest.raises(ValueError, match=r"helpers\.json holds no fingerprints of helpers; remove"):
        load(tmp_path / "helpers.json")


# --- changes -------------------------------------------------------------------------------


def test_a_helper_is_what_it_is() -> None:
    for same in (helper(), one_hop(), helper(kind="refuse", is_right=False)):
        assert changes(same, same) == []


def test_another_strength_is_told_with_its_counts() -> None:
    assert changes(helper(), one_hop()) == [
        "answers right: 27 of 27 before, 9 of 27 now",
        "answers right at 2 hops: 9 of 9 before, 0 of 9 now",
        "answers right at 3 hops: 9 of 9 before, 0 of 9 now",
    ]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"kind": "refuse"}, "refuses: 0 of 27 before, 27 of 27 now"),
        ({"kind": "refuse"}, "asks back where a reference is left open: 9 of 9 before, 0 of 9 now"),
        ({"is_statement": False}, 'writes "query = answer": 27 of 27 before, 0 of 27 now'),
        ({"tokens": 16}, "replies have 10 tokens before, 16 now (medians)"),
        ({"usd": 1e-3}, "costs $0.0001 a request before, $0.001 now"),
        ({"latency_s": 2.0}, "takes 0.2 s a request before, 2 s now (medians)"),
    ],
)
def test_each_kind_of_change_in_words(fields: dict[str, Any], words: str) -> None:
    assert words in changes(helper(), helper(**fields))


@pytest.mark.parametrize(
    "fields", [{"latency_s": 0.9}, {"latency_s": 0.0}, {"tokens": 13}, {"usd": 1.4e-4}], ids=str
)
def test_what_drifts_from_day_to_day_is_no_change(fields: dict[str, Any]) -> None:
    assert changes(helper(), helper(**fields)) == []


def test_failures_are_no_wrong_answers_but_many_are_said() -> None:
    """A third lost leaves all shares as they were."""
    replies = [
        dataclasses.replace(one, failure="timeout", kind="unavailable", is_right=False)
        if index % 3 == 0
        else one
        for index, one in enumerate(helper().replies)
    ]
    assert changes(helper(), Fingerprint("a", tuple(replies))) == [
        "fails: 0 of 36 before, 12 of 36 now"
    ]  # fmt: skip


def test_sets_of_different_size_meet_in_what_both_hold() -> None:
    assert changes(helper(9), helper(3)) == []
    assert changes(helper(12), one_hop(9)) == changes(helper(9), one_hop(9))
    other = tuple(dataclasses.replace(one, id=f"x{one.id}") for one in helper().replies)
    (words,) = changes(helper(), Fingerprint("a", other))
    assert "nothing can be compared" in words


def drawn(rng: np.random.Generator, right: float, asks: float) -> Fingerprint:
    """A helper that is right, and asks back, at random, with replies of random length."""
    replies = []
    for one in helper().replies:
        is_right = bool(rng.random() < right) and one.hops != OPEN
        kind = "clarify" if one.hops == OPEN and rng.random() < asks else "answer"
        tokens = int(rng.integers(2, 40))
        replies.append(dataclasses.replace(one, is_right=is_right, kind=kind, tokens=tokens))
    return Fingerprint("a", tuple(replies))


def test_noise_is_reported_as_rarely_as_promised() -> None:
    rng = np.random.default_rng(0)
    alarms = [
        bool(changes(drawn(rng, right, 0.5), drawn(rng, right, 0.5)))
        for right in (0.3, 0.5, 0.7, 0.9)
        for _ in range(100)
    ]
    assert np.mean(alarms) <= FALSE_ALARMS  # the tests are exact, so it is well below


def test_a_large_difference_is_found_through_noise() -> None:
    rng = np.random.default_rng(1)
    told = [bool(changes(drawn(rng, 0.9, 0.5), drawn(rng, 0.25, 0.5))) for _ in range(50)]
    assert np.mean(told) > 0.9


def test_a_pool_is_compared_by_name_then_by_likeness() -> None:
    before = {"weak": one_hop(), "strong": helper()}
    assert pool_changes(before, before) == {}
    found = pool_changes(before, {"weak": helper(), "new": helper(), "third": one_hop()})
    assert found["weak"][0] == "answers right: 9 of 27 before, 27 of 27 now"
    assert found["new"] == ["new, nearest is helper strong, no change found"]
    assert found["third"] == ["new, nearest is helper weak, no change found"]
    assert found["strong"] == ["no longer in the pool"]


# --- exact tests ---------------------------------------------------------------------------

COUNTS = st.integers(0, 20)


@given(COUNTS, COUNTS, COUNTS, COUNTS)
def test_fisher_agrees_with_scipys(a: int, not_a: int, b: int, not_b: int) -> None:
    expected = stats.fisher_exact([[a, not_a], [b, not_b]]).pvalue
    assert fisher_exact(a, a + not_a, b, b + not_b) == pytest.approx(float(expected))


@given(COUNTS, COUNTS)
def test_the_sign_test_agrees_with_scipys(more: int, less: int) -> None:
    expected = stats.binomtest(more, more + less).pvalue if more + less else 1.0
    assert sign_test(more, less) == pytest.approx(float(expected))
