"""Statistics, rows, the JSON file and the table of an evaluation."""

import dataclasses
import json
import pathlib
import re
import subprocess

import numpy as np
import pytest

from collab import report
from collab.config import default_config
from collab.report import Outcome

BASE = Outcome(
    strategy="learned",
    task="world",
    helper="one_hop",
    split="test",
    uid="u0",
    em=1.0,
    f1=1.0,
    asks=1.0,
    turns=1.0,
    leaked_units=0.0,
    usd=0.001,
    reward=0.8,
)


def outcomes(strategy: str, rewards: list[float], **changes: object) -> list[Outcome]:
    return [
        dataclasses.replace(BASE, strategy=strategy, uid=f"u{i}", reward=reward, **changes)
        for i, reward in enumerate(rewards)
    ]


# --- intervals -------------------------------------------------------------------------------


def test_bootstrap_interval_is_deterministic_and_holds_the_mean() -> None:
    values = np.random.default_rng(0).normal(3.0, 1.0, 200)
    first = report.bootstrap_interval(values, resamples=500, seed=1)
    assert first == report.bootstrap_interval(values, resamples=500, seed=1)
    assert first != report.bootstrap_interval(values, resamples=500, seed=2)
    assert first[0] < values.mean() < first[1]


def test_bootstrap_interval_of_two_values_by_hand() -> None:
    # Means of two draws from {0, 1}: 0, 1/2, 1 with probability 1/4, 1/2, 1/4.
    assert report.bootstrap_interval([0.0, 1.0], resamples=4000, seed=0) == (0.0, 1.0)
    narrow = report.bootstrap_interval([0.0, 1.0], resamples=4000, seed=0, confidence=0.2)
    assert narrow == (0.5, 0.5)
    assert report.bootstrap_interval([2.5], resamples=10, seed=0) == (2.5, 2.5)


def test_bootstrap_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(300):
        low, high = report.bootstrap_interval(
            rng.exponential(2.0, 60), resamples=300, seed=trial, confidence=0.9
        )
        hits += low <= 2.0 <= high
    # 0.9 less the known shortfall of the percentile method for 60 skewed values, +- 3 deviations
    assert 0.81 <= hits / 300 <= 0.94


def test_bootstrap_width_agrees_with_the_normal_interval() -> None:
    values = np.random.default_rng(0).normal(0.0, 2.0, 400)
    low, high = report.bootstrap_interval(values, resamples=4000, seed=0)
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.05)


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.arange(50.0)
    whole = report.bootstrap_interval(values, resamples=100, seed=3)
    monkeypatch.setattr(report, "_CHUNK", 50 * 7)
    assert report.bootstrap_interval(values, resamples=100, seed=3) == whole


@pytest.mark.parametrize("values", [[], [1.0, float("nan")], [[1.0], [2.0]]])
def test_bad_values_are_named(values: list) -> None:
    with pytest.raises(ValueError, match="finite numbers in one axis"):
        report.bootstrap_interval(values, resamples=10, seed=0)


@pytest.mark.parametrize(("resamples", "confidence"), [(0, 0.95), (10, 1.0), (10, 0.0)])
def test_bad_parameters_are_named(resamples: int, confidence: float) -> None:
    with pytest.raises(ValueError, match="resamples="):
        report.bootstrap_interval([1.0], resamples=resamples, seed=0, confidence=confidence)


def test_paired_difference_pairs_by_question() -> None:
    a = outcomes("a", [1.0, 2.0, 3.0, 9.0])
    b = list(reversed(outcomes("b", [0.5, 1.5, 2.5])))
    difference = report.paired_difference(a, b, metric="reward", resamples=200, seed=0)
    assert difference == (0.5, (0.5, 0.5))  # constant over questions, though rewards vary widely
    assert report.paired_difference(a, [], metric="reward", resamples=9, seed=0) is None


# --- rows ------------------------------------------------------------------------------------


def test_summarise_by_hand() -> None:
    known = {"drafts_known": 4, "asked_known": 1, "drafts_unknown": 2, "asked_unknown": 2}
    learned = outcomes("learned", [0.8, 0.6, 0.4], **known)
    other = outcomes("slm_cot", [0.2, 0.0, -0.2], em=0.0)
    rows = report.summarise([*other, *learned], resamples=200, seed=0)
    assert [row["strategy"] for row in rows] == ["slm_cot", "learned"]
    slm, policy = rows
    assert policy["reward"] == pytest.approx(0.6)
    assert (policy["ask_rate_known"], policy["ask_rate_unknown"]) == (0.25, 1.0)
    assert "reward_minus_learned" not in policy
    assert (slm["ask_rate_known"], slm["ask_rate_unknown"]) == (None, None)
    assert slm["reward_minus_learned"] == pytest.approx(-0.6)
    assert slm["reward_minus_learned_ci"] == pytest.approx([-0.6, -0.6])
    assert (slm["em"], slm["em_ci"]) == (0.0, [0.0, 0.0])


def test_rows_have_exactly_the_documented_keys() -> None:
    names = ("em", "f1", "asks", "turns", "tokens", "leaked_units", "leak", "usd", "reward")
    expected = {"strategy", "task", "helper", "split", "episodes", "failures", *names}
    expected |= {f"{name}_ci" for name in names} | {"ask_rate_known", "ask_rate_unknown"}
    rows = report.summarise(
        outcomes("learned", [1.0]) + outcomes("oracle", [1.0]), resamples=5, seed=0
    )
    assert set(rows[0]) == expected
    assert set(rows[1]) == expected | {"reward_minus_learned", "reward_minus_learned_ci"}


def test_groups_are_kept_apart_and_compare_with_their_own_learned() -> None:
    mixed = [
        *outcomes("learned", [1.0, 1.0], helper="weak"),
        *outcomes("learned", [3.0, 3.0], helper="strong"),
        *outcomes("oracle", [2.0, 2.0], helper="weak"),
        *outcomes("oracle", [2.0, 2.0], helper="none"),
    ]
    rows = report.summarise(mixed, resamples=20, seed=0)
    assert [row["episodes"] for row in rows] == [2, 2, 2, 2]
    assert rows[2]["reward_minus_learned"] == 1.0
    assert rows[3]["reward_minus_learned"] is None
    assert rows[3]["reward_minus_learned_ci"] is None


def test_repeats_of_a_question_do_not_narrow_the_interval() -> None:
    once = outcomes("learned", [0.0, 1.0, 0.0, 1.0, 1.0])
    (row,) = report.summarise(once, resamples=300, seed=0)
    (repeated,) = report.summarise(once * 20, resamples=300, seed=0)
    assert repeated["episodes"] == 100
    assert repeated["reward_ci"] == row["reward_ci"]


def test_no_ask_rate_without_drafts() -> None:
    counts = {"drafts_known": 0, "asked_known": 0, "drafts_unknown": 1, "asked_unknown": 0}
    (row,) = report.summarise(outcomes("learned", [1.0], **counts), resamples=5, seed=0)
    assert (row["ask_rate_known"], row["ask_rate_unknown"]) == (None, 0.0)


def test_a_number_that_is_not_finite_names_its_question() -> None:
    with pytest.raises(ValueError, match=r"usd=nan of strategy 'learned', question 'u0'"):
        report.summarise(outcomes("learned", [1.0], usd=float("nan")), resamples=5, seed=0)


# --- file ------------------------------------------------------------------------------------


def test_write_evaluation_round_trip(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "deep" / "evaluation.json"
    rows = report.summarise(outcomes("learned", [1.0, 0.5]), resamples=20, seed=0)
    config = default_config()
    config.llm.base_url = "https://me:secret@host.example/v1"
    chosen = {"step_cascade": {"weights": "cold", "kind": "ask_fact", "threshold": 1.5}}
    for _ in range(2):  # the second replaces the first
        report.write_evaluation(
            path, rows, chosen=chosen, ask_bias={"value": 0.5, "source": "x"}, helpers={},
            config=config, seed=3, commit="abc", device="cpu", wall_s=1.5,
        )  # fmt: skip
    content = json.loads(path.read_text())
    assert content["chosen"] == chosen
    where = {"config", "seed", "commit", "device", "wall_s"}
    assert set(content) == {"rows", "chosen", "ask_bias", "helpers", *where}
    assert content["ask_bias"] == {"value": 0.5, "source": "x"}
    assert content["rows"] == rows
    assert content["config"]["task"]["world"]["stale_relations"] == ["mayor", "employer"]
    assert content["config"]["llm"]["base_url"] == "https://host.example/v1"
    assert "secret" not in path.read_text()
    assert [entry.name for entry in path.parent.iterdir()] == ["evaluation.json"]


def test_figures_of_judges_are_written_where_there_are_any(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "evaluation.json"
    for judge in ({"judge/requests": 3.0}, {}, None):
        report.write_evaluation(
            path, [], chosen={}, ask_bias={}, helpers={}, config={}, seed=0, commit="", device="",
            wall_s=0.0, judge=judge,
        )  # fmt: skip
        assert json.loads(path.read_text()).get("judge") == (judge or None)


def test_a_failed_write_keeps_the_old_file(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "evaluation.json"
    path.write_text("old")
    with pytest.raises(ValueError, match="JSON"):
        report.write_evaluation(
            path,
            [{"x": float("nan")}],
            chosen={},
            ask_bias={},
            helpers={},
            config={},
            seed=0,
            commit="",
            device="",
            wall_s=0.0,
        )
    assert path.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_full_disk_leaves_no_scraps(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(file: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(report.os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        report.write_evaluation(
            tmp_path / "e.json", [], chosen={}, ask_bias={}, helpers={}, config={}, seed=0,
            commit="", device="", wall_s=0.0,
        )  # fmt: skip
    assert list(tmp_path.iterdir()) == []


def test_git_commit_in_and_outside_a_checkout(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*arguments: str) -> None:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True)

    (tmp_path / "__init__.py").write_text("")
    monkeypatch.setattr(report, "__file__", str(tmp_path / "report.py"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert report.git_commit() == ""
    run("init", "-q")
    run("commit", "-q", "--allow-empty", "-m", "x")
    assert report.git_commit() == ""  # the package is no part of that checkout
    run("add", "__init__.py")
    run("commit", "-q", "-m", "y")
    assert re.fullmatch(r"[0-9a-f]{40}", report.git_commit())
    monkeypatch.setenv("PATH", "")
    assert report.git_commit() == ""


# --- table -----------------------------------------------------------------------------------

GOLDEN = """\
world, test split, helper one_hop, 2 episodes
---------------------------------------------------------------------------------------------------------
  strategy            EM %              asks  known/unk %      leaked units                 reward  vs >
---------------------------------------------------------------------------------------------------------
> learned    100 [100 100]  1.00 [1.00 1.00]     25 / 100  0.00 [0.00 0.00]    0.600 [0.400 0.800]
  ask_first  100 [100 100]  1.00 [1.00 1.00]        - / -  2.00 [2.00 2.00]    0.500 [0.300 0.700]  worse
  slm_cot          0 [0 0]  0.00 [0.00 0.00]        - / -  0.00 [0.00 0.00]  -0.100 [-0.200 0.000]  worse
---------------------------------------------------------------------------------------------------------
"""  # noqa: E501 (the table is wider than code)


def golden_rows() -> list[dict]:
    known = {"drafts_known": 4, "asked_known": 1, "drafts_unknown": 2, "asked_unknown": 2}
    return report.summarise(
        [
            *outcomes("slm_cot", [0.0, -0.2], em=0.0, asks=0.0),
            *outcomes("learned", [0.8, 0.4], **known),
            *outcomes("ask_first", [0.7, 0.3], leaked_units=2.0),
        ],
        resamples=400,
        seed=0,
    )


def test_table_golden() -> None:
    text = report.table(golden_rows())
    assert text.split("\n\n")[0] == GOLDEN.rstrip("\n")
    assert "95 % bootstrap interval" in text.split("\n\n")[1]


@pytest.mark.parametrize(("leaked", "asks"), [(12.0, "25.0 [25.0 25.0]"), (9e5, "25 [25 25]")])
def test_table_fits_a_terminal_when_numbers_are_large(leaked: float, asks: str) -> None:
    names = ["learned", "ask_every_hop", "best_constant", "step_cascade"]
    changes = {"drafts_known": 9, "asked_known": 9, "drafts_unknown": 9, "asked_unknown": 9}
    changes |= {"asks": 25.0, "leaked_units": leaked}
    rows = report.summarise(
        [outcome for name in names for outcome in outcomes(name, [-11.5, -12.5], **changes)],
        resamples=50,
        seed=0,
    )
    text = report.table(rows)
    assert max(len(line) for line in text.splitlines()) <= 110
    assert f" {asks} " in text


def test_table_has_one_block_per_group_best_first() -> None:
    rows = report.summarise(
        [
            *outcomes("oracle", [0.1], helper="weak"),
            *outcomes("learned", [0.5], helper="weak"),
            *outcomes("learned", [0.5, 0.6], helper=""),
        ],
        resamples=5,
        seed=0,
    )
    first, second, _ = report.table(rows).split("\n\n")
    assert first.splitlines()[0] == "world, test split, helper weak, 1 episodes"
    assert [line.split()[0] for line in first.splitlines()[4:6]] == [">", "oracle"]
    assert second.splitlines()[0] == "world, test split, 2 episodes"
