"""The study of ingredients: its plan, what it claims and how it grades; no run is made."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from collab.config import default_config, flatten
from collab.outcomes import FILE, write_outcomes
from experiments.ablations import __main__ as study
from experiments.ablations.ingredients import BASE, VARIANTS, WHEN
from experiments.main.__main__ import planned as main_planned
from experiments.study import plan
from test_variants import REWARDS, outcomes

FOUND = {BASE: {seed: outcomes(REWARDS, seed=seed) for seed in (0, 1, 2)}}


def claims(name: str, known: float, unknown: float, reward: float) -> dict[str, Any]:
    """Those about one variant that got this, by their text, beside that about the default."""
    ours = {
        seed: outcomes({**REWARDS, "learned": reward}, known, unknown, seed) for seed in (0, 1, 2)
    }
    found = {**FOUND, name: ours}
    made = study.claims_of(found, study.tabled(found))
    assert made[0]["claim"].startswith("the default: the policy is no learned constant")
    assert made[0]["holds"] is True
    return {row["claim"]: row for row in made[1:]}


def test_a_constant_without_labels_is_a_claim_that_holds() -> None:
    constant, worth = claims("no_labels", 1.0, 1.0, 0.5).values()
    assert constant["claim"].startswith("no labels: the policy is a learned constant")
    assert constant["figure"] == 0.0 and constant["holds"] is True
    assert worth["claim"] == "no labels: lowers the reward of the default"
    assert worth["figure"] == pytest.approx(-0.1) and worth["holds"] is True
    assert worth["seeds"] == [0, 1, 2]


def test_claims_fail_where_an_ingredient_is_not_missed() -> None:
    held = [row["holds"] for row in claims("no_labels", 0.1, 0.9, 0.6).values()]
    assert held == [False, False]
    held = [row["holds"] for row in claims("linear", 1.0, 1.0, 0.6).values()]
    assert held == [False, False]


@pytest.mark.parametrize(("reward", "holds"), [(0.5, True), (0.6, True), (0.7, False)])
def test_an_alternative_is_held_against_the_default(reward: float, holds: bool) -> None:
    (row,) = claims("no_kl", 0.1, 0.9, reward).values()
    assert row["claim"] == (
        "no KL to the cold start: is not shown to raise the reward of the default"
    )
    assert row["holds"] is holds


def test_what_is_not_there_is_not_claimed() -> None:
    assert study.claims_of({}, study.tabled({})) == []
    found = {**FOUND, "tokens": FOUND[BASE]}  # but nothing that it is compared with
    rows = study.tabled(found)
    assert list(rows) == [BASE, "tokens"]
    assert len(study.claims_of(found, rows)) == 2


def test_a_run_with_an_additive_reward_is_graded_by_the_gated_one(tmp_path: Path) -> None:
    """As `collab.rewards` does: efficiency of a wrong answer costs nothing, a leak always does."""
    wrong, right = (dataclasses.replace(row, reward=-9.0) for row in outcomes({"learned": 0.0})[:2])
    write_outcomes(tmp_path / FILE, [wrong, right])
    weights = default_config().reward
    job: Any = SimpleNamespace(folder=tmp_path, config=SimpleNamespace(reward=weights))
    assert study.outcomes(job) == [wrong, right]  # trained and graded alike
    weights.gated = False
    terms = {"quality": 0.0, "efficiency": 0.6, "leak": 0.5, "cut": 1}
    logged = [
        {"strategy": "learned", "uid": wrong.uid, "terms": terms},
        {"strategy": "learned", "uid": right.uid, "terms": {**terms, "quality": 1.0, "cut": 0}},
    ]
    found = study.regraded([wrong, right], logged, weights)
    assert [row.reward for row in found] == pytest.approx([-0.5 * 0.5 - 0.05, 0.6 - 0.5 * 0.5])
    assert found[0] == dataclasses.replace(wrong, reward=found[0].reward)
    with pytest.raises(ValueError, match=r"lacks 2 of 2 test episodes; set log\.test_episodes"):
        study.outcomes(job)


def test_the_study_can_be_planned_and_shares_the_base_with_main(tmp_path: Path) -> None:
    jobs = {job.run.label: job for job in plan("ablations", study.planned([0, 1]), tmp_path)}
    assert len(jobs) == 2 * (1 + len(VARIANTS))
    assert len({job.folder for job in jobs.values()}) == len(jobs)
    (base,) = (job for job in plan("main", main_planned([1]), tmp_path) if job.run.name == BASE)
    assert jobs["world-seed1"].folder == base.folder
    own = [one.name for one in VARIANTS if not jobs[f"{one.name}-seed1"].source]
    assert own == ["linear", "tokens", "uninformed"]


def test_every_variant_differs_in_one_thing_from_what_it_is_held_against(tmp_path: Path) -> None:
    """One thing may take a few keys, all of the variant's own table."""
    jobs = {job.run.name: job for job in plan("ablations", study.planned([0]), tmp_path)}
    ignored = {*study.SHARED, "cold_start.from_run"}
    for one in VARIANTS:
        ours, theirs = (flatten(jobs[name].config) for name in (one.name, one.against))
        changed = {key for key in ours if ours[key] != theirs[key]} - ignored
        assert changed and changed <= one.overrides.keys(), one.name
        assert len(changed) <= 2, (one.name, changed)


def test_the_corners_of_labels_and_features_are_there() -> None:
    names = {one.name for one in WHEN}
    assert {"no_labels", "no_features", "no_labels_features"} <= names
    assert {"linear", "bare", "bare_no_labels"} <= names


def test_logged_are_as_many_episodes_as_there_are_questions(tmp_path: Path) -> None:
    jobs = {job.run.name: job for job in plan("ablations", study.planned([0]), tmp_path)}
    config = jobs["additive"].config
    assert config.log.test_episodes == config.task.test
