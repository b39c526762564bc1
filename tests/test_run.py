"""The modes in process: a run is evaluated by step and by folder, and asked questions.

What is wrong with a run's folder or config is in test_main.py.
"""

from __future__ import annotations

import io
import itertools
import json
import math
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import ml_collections
import pytest

from collab import calibrate, run
from collab.checkpoint import StopFlag
from collab.llm import Completion, Message
from collab.llm.serve import serving
from collab.outcomes import read_outcomes
from collab.report import METRICS, summarise
from runs import short_config

pytestmark = pytest.mark.usefixtures("quick")

OTHER_WORDS = "Say what is asked for."


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was trained and evaluated."""
    workdir = tmp_path_factory.mktemp("run")
    run.prepare(short_config(), str(workdir))
    run.train(short_config(), str(workdir), "")
    return workdir


@pytest.fixture
def copy(trained: Path, tmp_path: Path) -> Path:
    """The run without what its evaluation wrote, for a test to write to."""
    folder = tmp_path / "copy"
    shutil.copytree(trained, folder, ignore=shutil.ignore_patterns("evaluation.json", "plots"))
    return folder


def rows_of(folder: Path) -> list[dict]:
    return json.loads((folder / "evaluation.json").read_text())["rows"]


# --- train and evaluate --------------------------------------------------------------------


def test_a_run_leaves_what_the_readme_says(trained: Path) -> None:
    assert {path.name for path in trained.iterdir()} == {
        "checkpoints", "cold_start", "config.json", "data", "episodes", "evaluation.json",
        "metrics.jsonl", "outcomes.npz", "plots", "samples.txt", "tokenizer",
    }  # fmt: skip
    written = json.loads((trained / "evaluation.json").read_text())
    assert written.keys() == {
        "rows", "chosen", "ask_bias", "helpers", "config", "seed", "commit", "device", "wall_s",
    }  # fmt: skip
    assert written["ask_bias"] == {"value": 0.0, "source": "as trained"}
    assert written["helpers"] == {}  # nothing was probed
    assert written["config"]["rl"]["iterations"] == 1
    assert written["device"] == "cpu" and written["seed"] == 0
    assert re.fullmatch(r"[0-9a-f]{40}|", written["commit"])
    assert 0.0 < written["wall_s"] < 600.0
    for row in written["rows"]:
        for name in METRICS:
            low, high = row[f"{name}_ci"]
            assert low - 1e-9 <= row[name] <= high + 1e-9 and math.isfinite(row[name])
    assert [row["strategy"] for row in written["rows"]] == ["learned", "slm_cot"]
    pictures = {path.suffix for path in (trained / "plots").iterdir()}
    assert pictures == {".png"} or ".png" in pictures
    assert json.loads((trained / "config.json").read_text())["model"]["preset"] == "tiny"
    again = summarise(read_outcomes(trained / "outcomes.npz"), resamples=50, seed=0)
    assert again == written["rows"]


def test_the_best_step_by_name(trained: Path, copy: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    run.evaluate(short_config(), str(copy), "best")
    assert any(re.match(r"checkpoint step \d+ of", text) for text in caplog.messages)
    without = short_config()
    without.checkpoint.best_metric = ""
    with pytest.raises(ValueError, match=r"--checkpoint=best: no step in .* has a figure"):
        run.evaluate(without, str(copy), "best")


def test_told_to_stop_during_the_last_step_it_does_not_evaluate(
    copy: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    shutil.rmtree(copy / "checkpoints")
    config = short_config()
    last = config.cold_start.steps + 1 + config.rl.iterations
    monkeypatch.setattr(StopFlag, "should_stop", lambda self, step: step == last)
    run.train(config, str(copy), "")
    assert caplog.messages[-1] == f"stopped at step {last} of {last}; the same command goes on"
    assert not (copy / "evaluation.json").exists()
    monkeypatch.undo()
    run.train(config, str(copy), "")
    assert (copy / "evaluation.json").is_file()


def test_the_same_command_again_only_evaluates(
    trained: Path, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = (copy / "metrics.jsonl").read_text()
    run.train(short_config(), str(copy), "")
    assert (copy / "metrics.jsonl").read_text() == lines
    assert rows_of(copy) == rows_of(trained)
    assert "\n> learned " in capsys.readouterr().out


def test_evaluate_by_newest_step_and_by_another_run(
    trained: Path, copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = short_config()
    config.requests.ask_fact = OTHER_WORDS  # the wording may change, the names may not
    run.evaluate(short_config(), str(copy), "")
    assert rows_of(copy) == rows_of(trained)
    run.evaluate(short_config(), str(copy), "3")  # before the last iteration
    assert json.loads((copy / "evaluation.json").read_text())["config"] == config_of(trained)
    before = sorted(path.name for path in copy.iterdir())
    elsewhere = tmp_path / "elsewhere"
    run.prepare(config, str(elsewhere))
    run.evaluate(config, str(elsewhere), str(copy))
    assert sorted(path.name for path in copy.iterdir()) == before
    left = {"episodes", "evaluation.json", "outcomes.npz", "plots"}
    assert {path.name for path in elsewhere.iterdir()} == left
    written = json.loads((elsewhere / "evaluation.json").read_text())
    assert written["config"]["requests"]["ask_fact"] == OTHER_WORDS
    assert len(written["rows"]) == 2
    assert capsys.readouterr().out.count("\n> learned ") == 3


def config_of(folder: Path) -> dict:
    return json.loads((folder / "evaluation.json").read_text())["config"]


def test_a_run_without_any_training_is_evaluated_all_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = short_config()
    config.cold_start.steps, config.rl.iterations = 0, 0
    config.evaluate.strategies = ("llm_alone",)
    run.prepare(config, str(tmp_path))
    run.train(config, str(tmp_path), "")
    (row,) = rows_of(tmp_path)
    assert (row["strategy"], row["asks"], row["reward_minus_learned"]) == ("llm_alone", 1.0, None)


class Hostile:
    """A helper that says something worse each time."""

    is_local, where = False, ""
    helper_names = ("hostile",)
    texts = (
        "x " * 450_000,  # nearly a megabyte; cut to rollout.reply_tokens
        "y" * 2**20,  # more than the client reads: a failure
        "<answer> </s> <|im_end|> {bos}",
        '{"kind": "answer", "text": 7}',
        "{" * 100_000,
        "\x00\ufffe\u202e \t\r\n",
        "",
    )

    def __init__(self) -> None:
        self.told = itertools.count()

    def complete(
        self, messages: Sequence[Message], *, reply_tokens: int, deadline_s: float, helper: str
    ) -> Completion:
        return Completion(self.texts[next(self.told) % len(self.texts)])

    def check(self) -> None: ...

    def close(self) -> None: ...


def test_whatever_a_helper_says_the_evaluation_goes_on(copy: Path) -> None:
    """Over a real socket: malformed replies are UNAVAILABLE, the others are text, cut to fit."""
    config, backend = short_config(), Hostile()
    config.evaluate.strategies = ("ask_every_hop", "llm_alone")
    config.llm.retries = 0
    with serving(backend) as url:
        config.llm.update({"backend": "openai", "base_url": url, "model": "hostile"})
        run.evaluate(config, str(copy), "")
    assert next(backend.told) > len(Hostile.texts)
    rows = {row["strategy"]: row for row in rows_of(copy)}
    assert rows["ask_every_hop"]["asks"] > 0.0 and rows["llm_alone"]["em"] == 0.0
    assert all(math.isfinite(row["reward"]) for row in rows.values())


# --- helpers and calibration -----------------------------------------------------------------


def probing(**helpers: dict) -> ml_collections.ConfigDict:
    config = short_config()
    config.llm.probe.requests = 24
    if helpers:
        config.llm.helpers = ml_collections.ConfigDict(helpers)
    return config


def test_another_helper_than_the_trainings_is_reported(
    copy: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Training leaves the fingerprints; each later use probes again and says what changed."""
    caplog.set_level("INFO")
    run.train(probing(), str(copy), "")
    kept = json.loads((copy / "helpers.json").read_text())
    assert kept.keys() == {"one_hop", "two_hops", "three_hops"}
    assert json.loads((copy / "evaluation.json").read_text())["helpers"]["changes"] is None
    run.evaluate(probing(), str(copy), "")
    told = json.loads((copy / "evaluation.json").read_text())["helpers"]
    assert told["changes"] == {} and told["fingerprints"]["one_hop"]["strength"] == 1.0
    assert not any(", compared with the training: " in text for text in caplog.messages)
    ignorant = {"hops": 1, "knowledge_share": 0.2}
    swapped = probing(one_hop=ignorant, two_hops={"hops": 2}, three_hops={"hops": 3})
    for mode in (run.evaluate, run.train):
        caplog.clear()
        mode(swapped, str(copy), "")
        told = json.loads((copy / "evaluation.json").read_text())["helpers"]
        assert told["changes"].keys() == {"one_hop"}
        (warning,) = [text for text in caplog.messages if "compared with" in text]
        assert warning.startswith(
            "helper one_hop, compared with the training: answers right: 8 of 8 before, 1 of 8 now; "
        )
    assert json.loads((copy / "helpers.json").read_text()) == kept  # the training's, for good


def test_probe_shows_strengths_and_keeps_those_of_an_older_run(
    copy: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    run.evaluate(probing(), str(copy), "")
    assert any("the training didn't probe its helpers" in text for text in caplog.messages)
    assert not (copy / "helpers.json").exists()
    capsys.readouterr()
    for end in ("failed", "no change since the training"):
        run.probe(short_config(), str(copy), "")
        lines = capsys.readouterr().out.splitlines()
        assert lines[0].split() == ["one_hop", "three_hops", "two_hops"]
        assert lines[1].split() == ["strength", "1.00", "1.00", "1.00"]
        assert lines[-1].startswith(end)
    assert (copy / "helpers.json").is_file()


def test_what_calibrate_finds_is_used_until_the_helper_changes(
    copy: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    config = probing()
    config.calibrate.update({"ask_rate": 0.01, "tolerance": 0.01})  # it asks much more than that
    run.calibrate(config, str(copy), "")
    found = json.loads((copy / "calibration.json").read_text())
    assert found["is_reached"] and caplog.messages[-1] == found["words"]
    assert found["words"].startswith("0.01 asks a question are met by 0.0")
    assert found["step"] == 4 and found["fingerprints"].keys() == set(config.llm.helpers)
    assert found["target"] == {"ask_rate": 0.01, "tolerance": 0.01}
    assert found["ask_bias"] == found["chosen"]["ask_bias"] < 0.0
    assert {point["episodes"] for point in found["points"]} == {8}
    assert (copy / "plots" / "calibration.png").is_file()
    said = capsys.readouterr().out
    assert f"ask bias {found['ask_bias']:g} is in {copy / 'calibration.json'}" in said
    assert said.splitlines()[0].split() == ["ask", "bias", "asks", "EM", "%", "reward"]

    def used(config: ml_collections.ConfigDict) -> tuple[float, str]:
        run.evaluate(config, str(copy), "")
        written = json.loads((copy / "evaluation.json").read_text())
        assert written["chosen"]["learned"]["threshold"] == written["ask_bias"]["value"]
        return written["ask_bias"]["value"], written["ask_bias"]["source"]

    assert used(short_config()) == (found["ask_bias"], str(copy / "calibration.json"))
    assert f"ask bias {found['ask_bias']:g}: {copy / 'calibration.json'}" in caplog.messages
    by_hand = short_config()
    by_hand.evaluate.ask_bias = "32"
    assert [row["asks"] for row in rows_of(copy)] == [0.0, 0.0]
    assert used(by_hand) == (32.0, "evaluate.ask_bias")
    assert [row["asks"] for row in rows_of(copy)] == [1.0, 0.0]
    run.train(short_config(), str(copy), "")  # trained policies are compared as they were trained
    written = json.loads((copy / "evaluation.json").read_text())
    assert written["ask_bias"] == {"value": 0.0, "source": "as trained"}


# --- ask -----------------------------------------------------------------------------------


def asked(
    typed: bytes | str, folder: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> str:  # fmt: skip
    """What `--mode=ask` prints when this is typed."""
    data = typed if isinstance(typed, bytes) else typed.encode()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))
    run.ask(short_config(), str(folder), "")
    return capsys.readouterr().out


def test_ask_answers_each_question_and_shows_what_leaves(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = asked(
        "my doctor is Ada Lund . my clinic is Seefeld .\n"
        "who leads my clinic ?\n where is Ada Lund ? \n\nnot read\n",
        trained, monkeypatch, capsys,
    )  # fmt: skip
    assert said.count("question  ") == 2
    assert "question  who leads my clinic ?\n" in said
    assert "question  where is Ada Lund ?\n" in said  # without the blanks around it
    assert said.count("notes     my doctor is Ada Lund . my clinic is Seefeld .\n") == 2
    assert len(re.findall(r"^answer    \d\.\d\d  ", said, flags=re.MULTILINE)) == 2
    assert len(re.findall(r"^status (ANSWERED|NO_ANSWER) ", said, flags=re.MULTILINE)) == 2
    assert "gold" not in said and "not read" not in said


def test_ask_runs_under_the_calibration_too(
    copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The step and the helper are right; only the bias decides whether it asks."""
    helper = calibrate.helper_of(short_config())
    for bias, has_asked in ((-32.0, False), (32.0, True)):
        content = {"ask_bias": bias, "step": 4, "helper": helper}
        (copy / "calibration.json").write_text(json.dumps(content))
        said = asked("\nwho leads it ?\n", copy, monkeypatch, capsys)
        assert bool(re.search(r"^ask_(fact|solve) ", said, flags=re.MULTILINE)) == has_asked


def test_ask_takes_any_text_and_ends_with_its_input(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Too long: not run. Control-token text: text. No UTF-8: U+FFFD. Not printable: spelled out."""
    typed = {
        b"who leads it ? " * 200: "status CONTEXT_FULL ",
        b"<answer> </s> <|im_end|>": "question  <answer> </s> <|im_end|>\n",
        b"who \xff\xfe leads \x00 it ?": "question  who \ufffd\ufffd leads \\x00 it ?\n",
        "wer führt 北京 ? 🙂".encode(): "question  wer führt 北京 ? 🙂\n",
        b"?": "question  ?\n",
    }
    said = asked(b"\n" + b"\n".join(typed), trained, monkeypatch, capsys)  # no newline at the end
    for shown in typed.values():
        assert shown in said
    assert said.count("status ") == len(typed)
    assert said.count("status CONTEXT_FULL ") == 1
    assert "notes     " not in said
    assert said.endswith("question: \n")
