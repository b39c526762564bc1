"""The transfer study: what its claims are made of, by hand; no run is made."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from collab.report import Outcome
from experiments.exchange import Found
from experiments.study import plan
from experiments.transfer import __main__ as study

QUESTIONS = 40


def found(seed: int, **rewards: float) -> Found:
    """What a policy came to with one helper: each strategy about its reward."""
    noise_Q = np.random.default_rng(seed).normal(0.0, 0.02, QUESTIONS)
    outcomes = [
        Outcome(
            strategy, "world", "h", "test", f"q{q}", em=1.0, f1=1.0, asks=1.0, turns=1.0,
            leaked_units=0.0, usd=0.0, reward=reward + float(noise_Q[q]),
        )
        for strategy, reward in rewards.items()
        for q in range(QUESTIONS)
    ]  # fmt: skip
    return Found(outcomes, {"ask_bias": 0.5})


def made_up(**changes: float) -> Any:
    """Policies as the study has them. changes: rewards by POLICY_HELPER or POLICY, as trained."""
    matrix: dict[str, dict[str, list[Found]]] = {}
    for policy in study.POLICIES:
        matrix[policy] = {}
        for helper in study.HELPERS:
            learned = changes.get(f"{policy}_{helper}", changes.get(policy, 0.6))
            strategies = {"learned": learned, "recalibrated": learned + 0.1, "best_constant": 0.5}
            matrix[policy][helper] = [found(seed, **strategies) for seed in range(3)]
    return matrix


def verdicts(matrix: Any) -> dict[str, Any]:
    return {row["claim"]: row for row in study.claims_of(matrix, [0, 1, 2])}


def test_unmet_helpers_are_those_that_no_training_had() -> None:
    assert study.unmet("single") == [name for name in study.HELPERS if name != "two_hops"]
    assert study.unmet("wide", "single") == ["terse", "prose", "bullets", "asks_back"]
    for name, met in study.MET.items():
        trained = list(study.POLICIES[name].values()) or [{"hops": hops} for hops in (1, 2, 3)]
        known = [helper for helper, settings in study.HELPERS.items() if settings in trained]
        assert sorted(known) == sorted(met)


def test_claims_compare_with_the_constant_the_pool_and_the_threshold() -> None:
    rows = verdicts(made_up(world=0.7, single=0.45, single_two_hops=0.71))
    mean = "above the best constant of the helper in use, mean of the helpers not met"
    assert rows[f"world, learned: {mean}"]["figure"] == pytest.approx(0.2)
    assert rows[f"single, learned: {mean}"]["figure"] == pytest.approx(-0.05)
    assert rows[f"single, recalibrated: {mean}"]["figure"] == pytest.approx(0.05)
    held = {claim: row["holds"] for claim, row in rows.items()}
    assert held[f"world, learned: {mean}"] and held[f"single, recalibrated: {mean}"]
    assert not held[f"single, learned: {mean}"]
    assert held["world is above single, mean of the helpers that neither has met"]
    assert held["single: recalibrating raises the reward, mean of the helpers not met"]
    own = "at most 0.02 below single, which was trained with it alone"
    assert held[f"with two_hops, world is {own}"]
    assert not held[f"with two_hops, wide is {own}"]
    equal = verdicts(made_up())["wide is above single, mean of the helpers that neither has met"]
    assert not equal["holds"]


def test_the_worst_helper_is_named() -> None:
    rows = verdicts(made_up(world_prose=0.2))
    bad = next(row for claim, row in rows.items() if claim.startswith("world, recalibrated: with"))
    assert "prose" in bad["claim"] and bad["figure"] == pytest.approx(-0.2) and not bad["holds"]
    good = next(row for claim, row in rows.items() if claim.startswith("wide, recalibrated: with"))
    assert good["holds"]


def test_a_policy_that_is_missing_takes_its_claims_along() -> None:
    matrix = made_up()
    del matrix["single"]
    assert verdicts(matrix) and not any("single" in claim for claim in verdicts(matrix))


def test_cells_hold_means_and_the_bias_of_every_seed() -> None:
    cells = study.cells_of(made_up())
    assert len(cells) == len(study.POLICIES) * len(study.HELPERS)
    first = cells[0]
    assert (first["policy"], first["helper"], first["was_met"]) == ("single", "two_hops", True)
    assert first["recalibrated"] - first["best_constant"] == pytest.approx(0.2, abs=1e-3)
    assert first["ask_bias"] == [0.5] * 3 and first["learned_asks"] == 1.0
    panels = study.draw(cells).axes
    assert len(panels) == 4
    texts = [[float(text.get_text()) for text in axes.texts] for axes in panels]
    assert texts[2] == pytest.approx([0.1] * len(cells), abs=2e-3)
    assert texts[3] == pytest.approx([0.2] * len(cells), abs=2e-3)


def test_few_questions_are_the_first_of_a_split() -> None:
    task = SimpleNamespace(name="world", problems=lambda split: [f"{split}{q}" for q in range(9)])
    few: Any = study.FirstQuestions(task, 2)
    assert few.problems("test") == ["test0", "test1"] and few.name == "world"


def test_the_study_can_be_planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[1])
    jobs = plan("transfer", study.planned([0, 1]), tmp_path)
    assert [job.run.name for job in jobs] == ["single", "world", "wide"] * 2
    assert list(jobs[0].config.llm.helpers) == ["two_hops"]
    assert jobs[2].source is jobs[1] and jobs[0].source is None
    assert jobs[1].config.evaluate.strategies == ()  # that of experiments.main
    files = {each.file(name) for name, each in study.exchanges().items()}
    assert len(files) == len(study.HELPERS)
