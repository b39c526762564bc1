"""Episodes as JSON lines: what a line holds and hides, and a file that stays whole and small."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from collab import episode_log
from collab.config import default_config
from collab.episode_log import append_training, read, record, write_evaluation
from collab.rewards import score
from collab.types import Episode, PrivateUnit
from episodes import NAMES, answer, ask, make_episode, make_problem, think

UNITS = [PrivateUnit("Vera Stone", "doctor"), PrivateUnit("5 March 1984", "birthday", 2.0, True)]
PROBLEM = make_problem(
    UNITS,
    question="where does Vera Stone work ?",
    answers=("Stone Vera Clinic",),
    notes="Vera Stone is my doctor . I was born on 5 March 1984 .",
)
EPISODE = make_episode(
    think("doctor = Vera Stone"),
    dataclasses.replace(ask("Vera Stone", text="at Lom, \ud83d says vera stone"), sent="[name 1]"),
    ask("born 1984-03-05", text="so"),
    answer("Lom"),
    problem=PROBLEM,
    helper="two_hops",
)


def make_record(episode: Episode = EPISODE, **fields: Any) -> dict[str, Any]:
    given = {"show_private": False, "strategy": "learned", "split": "test", "place": 0} | fields
    terms = score(episode, default_config().reward)
    return record(episode, terms, names=NAMES, **given)


def make_config(**log: Any) -> Any:
    config = default_config()
    config.log.update(log)
    return config


def append(folder: Path, iteration: int, *episodes: Episode, **log: Any) -> None:
    config = make_config(**log)
    terms = [score(episode, config.reward) for episode in episodes]
    append_training(folder, episodes, terms, names=NAMES, config=config, iteration=iteration)


def training(folder: Path) -> Path:
    return folder / episode_log.FOLDER / episode_log.TRAINING


# --- a line --------------------------------------------------------------------------------


def test_private_units_are_masked_in_every_text() -> None:
    found = make_record()
    line = json.dumps(found).lower()
    assert not [part for part in ("vera", "stone", "1984", "march") if part in line]
    assert found["notes"] == "[doctor] is my doctor . I was born on [birthday] ."
    assert found["answers"] == ["[private]"]  # the name in another order
    assert [segment["text"] for segment in found["segments"]] == [
        "doctor = [doctor]", "[doctor]", "[private]", "Lom",
    ]  # fmt: skip
    assert found["units"][1] == {
        "text": None, "kind": "birthday", "sensitivity": 2.0, "is_needed": True,
    }  # fmt: skip


def test_private_units_are_kept_on_demand() -> None:
    found = make_record(show_private=True)
    assert found["is_private"] and found["notes"] == PROBLEM.notes
    assert [unit["text"] for unit in found["units"]] == [unit.text for unit in UNITS]


def test_what_left_and_which_units_were_in_it() -> None:
    """The gate had masked the first request; the second gave a date away in another format."""
    _, first, second, last = make_record()["segments"]
    assert (first["sent"], first["leaked"], first["leak"]) == ("[name 1]", [], 0.0)
    assert (second["sent"], second["leaked"]) == ("[private]", ["birthday"])
    assert second["leak"] == pytest.approx(2 / 3)
    assert first["feedback"]["kind"] == "hint" and first["feedback"]["failure"] is None
    assert last["sent"] is None and last["feedback"] is None and "leaked" not in last


def test_what_a_judge_finds_has_left_too() -> None:
    judged = dataclasses.replace(EPISODE, judged=(frozenset({0, 1}), None))
    _, first, second, _ = make_record(judged)["segments"]
    assert (first["leaked"], second["leaked"]) == (["doctor", "birthday"], [])


def test_probabilities_are_those_of_the_legal_actions() -> None:
    legal_KA = np.ones((4, len(NAMES)), bool)
    legal_KA[2, 1:3] = False
    trace = dataclasses.replace(EPISODE.trace, legal_KA=legal_KA)
    found = make_record(dataclasses.replace(EPISODE, trace=trace))["segments"]
    assert list(found[0]["probabilities"]) == list(NAMES)
    assert list(found[2]["probabilities"]) == ["think", "ask_fact", "ask_solve"]
    for k, segment in enumerate(found):
        chosen = segment["probabilities"][segment["action"]]
        assert chosen == pytest.approx(np.exp(trace.action_logp_K[k]), abs=1e-6)
    assert sum(found[0]["probabilities"].values()) == pytest.approx(1.0, abs=1e-5)


def test_a_request_that_no_boundary_decided_has_no_probabilities() -> None:
    opened = make_episode(answer(), opening=ask("all of it"))
    first, last = make_record(opened)["segments"]
    assert first["probabilities"] is None
    assert last["probabilities"]["answer"] == pytest.approx(np.exp(-0.1), abs=1e-6)


# --- the files -----------------------------------------------------------------------------


def test_an_evaluation_replaces_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / episode_log.FOLDER / episode_log.EVALUATION
    for limit, kept in ((2, 2), (5, 3), (0, 0)):
        by_strategy = {"learned": [EPISODE] * 3, "slm_cot": [EPISODE] * 3}
        config = make_config(test_episodes=limit)
        write_evaluation(tmp_path, by_strategy, names=NAMES, config=config)
        found = read(path)
        assert [(one["strategy"], one["place"]) for one in found] == [
            (name, place) for name in by_strategy for place in range(kept)
        ]
    assert [one.name for one in path.parent.iterdir()] == [path.name]


def test_a_packed_file_that_is_spoilt_is_named(tmp_path: Path) -> None:
    config = make_config()
    write_evaluation(tmp_path, {"learned": [EPISODE]}, names=NAMES, config=config)
    path = tmp_path / episode_log.FOLDER / episode_log.EVALUATION
    whole = path.read_bytes()
    for spoilt in (whole[:-9], b"no gzip", whole[:40] + b"xxxx" + whole[44:]):
        path.write_bytes(spoilt)
        with pytest.raises(ValueError, match=r"evaluation.jsonl.gz is spoilt .*; remove it"):
            read(path)


def test_a_line_that_a_kill_cut_short_spoils_only_itself(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    append(tmp_path, 0, EPISODE, EPISODE)
    path = training(tmp_path)
    whole = path.read_bytes()
    for end in (len(whole) - 1, len(whole) // 2 + 40, 20):
        path.write_bytes(whole[:end])
        before = len(read(path))
        append(tmp_path, 7, EPISODE)
        found = read(path)
        assert len(found) == before + 1 and found[-1]["iteration"] == 7
    assert "1 unreadable lines left out" in caplog.text
    assert read(tmp_path / "absent") == []


@pytest.mark.parametrize("spoilt", [b"\xff\xfe", b"[1]", b"7", b"{}", b"\0\0\0"])
def test_what_is_no_episode_is_left_out(tmp_path: Path, spoilt: bytes) -> None:
    append(tmp_path, 0, EPISODE)
    with training(tmp_path).open("ab") as file:
        file.write(b"\n" + spoilt)
    append(tmp_path, 1, EPISODE)
    assert [one["iteration"] for one in read(training(tmp_path))] == [0, 1]


def test_a_repeated_iteration_stands_once(tmp_path: Path) -> None:
    append(tmp_path, 0, EPISODE, EPISODE)
    append(tmp_path, 20, EPISODE)
    append(tmp_path, 20, make_episode(answer("again")))
    found = read(training(tmp_path))
    assert [(one["iteration"], one["place"]) for one in found] == [(0, 0), (0, 1), (20, 0)]
    assert found[-1]["answer"] == "again"


def test_only_so_many_of_an_iteration_are_kept(tmp_path: Path) -> None:
    append(tmp_path, 0, *[EPISODE] * 3, train_episodes=2)
    append(tmp_path, 1, *[EPISODE] * 3, train_episodes=0)
    assert [(one["iteration"], one["place"]) for one in read(training(tmp_path))] == [
        (0, 0), (0, 1),
    ]  # fmt: skip


def test_the_file_of_a_long_training_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(episode_log, "TRAINING_BYTES", 20_000)
    for iteration in range(40):
        append(tmp_path, iteration, EPISODE)
        assert training(tmp_path).stat().st_size <= 20_000
    iterations = [one["iteration"] for one in read(training(tmp_path))]
    assert iterations == list(range(iterations[0], 40)) and len(iterations) >= 4
