"""The viewer's logs, read back by Inspect itself. Skipped where the extra `view` is missing."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from collab import view
from collab.config import default_config
from collab.episode_log import append_training, write_evaluation
from collab.rewards import score
from collab.types import Episode, FeedbackKind, PrivateUnit, Status
from episodes import NAMES, answer, ask, make_episode, make_problem, think

PROBLEM = make_problem(
    [PrivateUnit("Vera Stone", "doctor", is_needed=True)],
    question="where does my doctor work ?",
    notes="Vera Stone is my doctor .",
)
RIGHT_ALONE = make_episode(think(), answer(), problem=PROBLEM)
RIGHT = make_episode(ask("leader"), answer(), problem=PROBLEM)
LEAKED = make_episode(
    dataclasses.replace(ask("boss of Vera Stone"), sent="boss of Vera Stone"),
    answer("Lom"),
    problem=PROBLEM,
)
BLOCKED = make_episode(
    dataclasses.replace(
        ask("Vera Stone", kind=FeedbackKind.UNAVAILABLE, text="", failure="blocked"), sent=""
    ),
    answer(""),
    problem=PROBLEM,
    status=Status.NO_ANSWER,
)
EPISODES = [RIGHT_ALONE, RIGHT, LEAKED, BLOCKED]


def write_run(folder: Path, episodes: list[Episode] = EPISODES, **log: Any) -> Path:
    """What a run leaves of these episodes: evaluated, and met in iteration 3."""
    config = default_config()
    config.log.update(log)
    by_strategy = {"learned": episodes, "slm_cot": episodes[:1]}
    write_evaluation(folder, by_strategy, names=NAMES, config=config)
    terms = [score(episode, config.reward) for episode in episodes]
    append_training(folder, episodes, terms, names=NAMES, config=config, iteration=3)
    return folder


def read_back(folder: Path, name: str = "test_learned") -> Any:
    """The log as any reader of the format finds it."""
    inspect_log = pytest.importorskip("inspect_ai.log")
    paths = view.write_logs(write_run(folder))
    assert {path.stem for path in paths} == {"test_learned", "test_slm_cot", "train_learned"}
    assert all(path.parent == folder / view.LOGS for path in paths)
    return inspect_log.read_eval_log(str(folder / view.LOGS / f"{name}.eval"))


# --- logs ----------------------------------------------------------------------------------


def test_scores_say_what_one_filters_by(tmp_path: Path) -> None:
    log = read_back(tmp_path)
    assert log.status == "success" and log.results.completed_samples == 4
    found = {
        name: [sample.scores[name].value for sample in log.samples]
        for name in log.samples[0].scores
    }
    assert found["right"] == [True, True, False, False]
    assert found["asked"] == [False, True, True, True]
    assert found["wrong_though_asked"] == [False, False, True, True]
    assert found["right_without_asking"] == [True, False, False, False]
    assert found["leaked"] == [False, False, True, False]
    assert found["status"] == ["answered", "answered", "answered", "no_answer"]
    assert found["actions"] == ["think answer", *["ask_fact answer"] * 3]
    terms = [score(episode, default_config().reward) for episode in EPISODES]
    assert found["reward"] == [pytest.approx(term.reward) for term in terms]
    assert found["efficiency"] == [pytest.approx(term.efficiency) for term in terms]
    means = {one.name: one.metrics["mean"].value for one in log.results.scores}
    assert means["leaked_units"] == 0.25 and means["em"] == 0.5


def test_the_viewer_knows_the_scores_under_their_own_names(tmp_path: Path) -> None:
    """Its filter has words of its own, and its columns are named by score."""
    log = read_back(tmp_path)
    scores = log.samples[0].scores.keys()
    assert not scores & {"id", "epoch", "input", "target", "answer", "error", "tokens", "limit"}
    columns = [column.id for column in log.eval.viewer.task_samples_view.columns]
    assert {f"score__{name}__{name}" for name in scores} <= set(columns)
    assert log.eval.viewer.trust_content is False


def test_messages_tell_the_episode(tmp_path: Path) -> None:
    samples = read_back(tmp_path).samples
    notes, question, asked, reply, last = samples[2].messages
    assert notes.text.endswith("⟦doctor⟧ is my doctor .")
    assert question.text == "where does my doctor work ?"
    head, text = asked.text.split("\n\n")
    assert head.startswith("▶ ask_fact   P: ask_fact 0.905  ") and "  answer 0.024" in head
    assert text == "boss of ⟦doctor⟧"
    assert asked.tool_calls[0].arguments == {
        "left the machine": "boss of ⟦doctor⟧", "private units in it": "doctor",
    }  # fmt: skip
    assert (reply.role, reply.text) == ("tool", "HINT so")
    assert last.text.endswith("\n\nLom")
    blocked = samples[3].messages
    assert blocked[2].tool_calls[0].arguments["left the machine"] == "nothing"
    assert blocked[3].text.startswith("UNAVAILABLE (blocked)")
    assert samples[0].target == ["Kano Bel"]


def test_training_episodes_say_their_iteration(tmp_path: Path) -> None:
    log = read_back(tmp_path, "train_learned")
    assert [sample.scores["iteration"].value for sample in log.samples] == [3] * 4
    assert log.samples[0].metadata["split"] == "train"
    assert len({sample.id for sample in log.samples}) == 4


def test_private_units_are_shown_marked_only_on_demand(tmp_path: Path) -> None:
    """The masked ones are nowhere in the file, which is a zip of JSON."""
    inspect_log = pytest.importorskip("inspect_ai.log")
    for is_private in (False, True):
        folder = tmp_path / str(is_private)
        folder.mkdir()
        paths = view.write_logs(write_run(folder, private=is_private))
        texts = [inspect_log.read_eval_log(str(path)).model_dump_json() for path in paths]
        assert ["Vera Stone" in text for text in texts] == [is_private] * 3
        assert all(("⟦doctor: Vera Stone⟧" if is_private else "⟦doctor⟧") in t for t in texts)
        assert all(text.count("Vera Stone") == text.count("⟦doctor: Vera Stone⟧") for text in texts)


def test_half_a_surrogate_pair_of_a_reply_can_be_written(tmp_path: Path) -> None:
    pytest.importorskip("inspect_ai.log")
    episode = make_episode(ask("x", text="so \ud83d"), answer())
    assert len(view.write_logs(write_run(tmp_path, [episode]))) == 3


def test_logs_of_an_earlier_look_go(tmp_path: Path) -> None:
    pytest.importorskip("inspect_ai.log")
    old = tmp_path / view.LOGS / "test_delegate_k.eval"
    old.parent.mkdir(parents=True)
    old.write_text("")
    view.write_logs(write_run(tmp_path))
    assert not old.exists()


def test_a_static_site_holds_viewer_and_logs(tmp_path: Path) -> None:
    pytest.importorskip("inspect_ai.log")
    write_run(tmp_path)
    for _ in range(2):  # the second replaces the first
        assert view.main([str(tmp_path), "--site"]) == 0
    site = tmp_path / view.SITE
    assert (site / "index.html").is_file()
    assert {path.name for path in (site / "logs").glob("*.eval")} == {
        path.name for path in (tmp_path / view.LOGS).iterdir()
    }
    policy = (site / "index.html").read_text()
    assert "connect-src 'self'" in policy  # the browser is told to ask nobody else


# --- the command ---------------------------------------------------------------------------


def test_help_helps_without_the_extra() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "collab.view", "--help"], capture_output=True, text=True, check=True
    )
    for word in ("RUN_DIR", "--port", "--write-only", "--site", "wrong_though_asked"):
        assert word in done.stdout


def test_a_folder_without_episodes_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert view.main([str(tmp_path / "absent"), "--write-only"]) == 2
    assert "absent has no episodes in episodes/; name the --workdir" in capsys.readouterr().err
    assert not (tmp_path / "absent").exists()


def test_without_the_extra_the_error_says_how_to_get_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "inspect_ai", None)
    monkeypatch.setitem(sys.modules, "inspect_ai.log", None)
    assert view.main([str(write_run(tmp_path)), "--write-only"]) == 2
    assert "pip install -e .[view]" in capsys.readouterr().err


def test_hooks_of_the_environment_do_not_reach_the_viewer() -> None:
    given = {"PATH": "/bin", "INSPECT_TELEMETRY": "spy.send", "INSPECT_LOG_DIR": "elsewhere"}
    assert view.own_environment(given) == {"PATH": "/bin"}
