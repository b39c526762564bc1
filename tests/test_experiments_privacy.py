"""The privacy study: what its claims are made of, by hand; no run is made."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from collab import episode_log
from collab.config import default_config
from collab.outcomes import write_outcomes
from collab.report import Outcome
from experiments import trained
from experiments.fronts import Point
from experiments.privacy import __main__ as study
from experiments.privacy import requests
from experiments.study import plan

QUESTIONS = 80


def outcomes(seed: int, strategy: str, em: float, units: float) -> list[Outcome]:
    """A policy of about so much exact match and so many units a question."""
    order_Q = np.random.default_rng(seed).permutation(QUESTIONS) / QUESTIONS
    return [
        Outcome(
            strategy=strategy, task="world", helper="mixed", split="test", uid=f"q{q:02}",
            em=float(order_Q[q] < em), f1=0.0, asks=1.0, turns=1.0, leaked_units=units, usd=0.0,
            reward=0.0, leak=units / 5,
        )
        for q in range(QUESTIONS)
    ]  # fmt: skip


def point(name: str, em: float, units: float, group: str = study.SAMPLED) -> Point:
    found = [outcomes(seed, "learned", em, units) for seed in range(3)]
    return study.fronts.point(name, group, found, costs=study.COSTS)


def verdict(points: list[Point], text: str) -> dict[str, Any]:
    rows = [row for row in study.claims_of(points, [0, 1, 2]) if text in row["claim"]]
    assert len(rows) == 1, [row["claim"] for row in rows]
    return rows[0]


OPEN = point("0", 0.7, 0.5)


@pytest.mark.parametrize(
    ("em", "units", "gone", "is_kept"),
    [(0.7, 0.05, True, True), (0.6, 0.05, True, False), (0.75, 0.2, False, True)],
)
def test_each_weight_is_held_against_none(
    em: float, units: float, gone: bool, is_kept: bool
) -> None:
    points = [OPEN, point("2", em, units)]
    row = verdict(points, "leak weight 2 against 0: at least 80% fewer")
    assert row["figure"] == pytest.approx(1 - units / 0.5) and row["holds"] is gone
    assert row["ci"] == pytest.approx([row["figure"]] * 2)
    row = verdict(points, "leak weight 2 against 0: exact match")
    assert row["figure"] == pytest.approx(em - 0.7) and row["holds"] is is_kept


def test_the_goals_weight_leaks_least_of_those_that_keep_exact_match() -> None:
    points = [OPEN, point("0.1", 0.7, 0.3), point("2", 0.69, 0.05), point("8", 0.5, 0.0)]
    assert study.chosen({one.name: one for one in points}) == "2"
    assert study.chosen({"0": OPEN, "8": points[-1]}) is None
    assert verdict(points, "(weight 2): share gone")["holds"]
    for row in study.claims_of([OPEN, points[-1]], [0]):
        if "chosen on other questions" in row["claim"]:
            assert row["figure"] is None and not row["holds"]


def test_the_goals_weight_is_measured_on_questions_that_did_not_choose_it() -> None:
    """Of even questions it leaks nothing, of odd ones everything."""
    lucky = point("2", 0.7, 0.5)
    lucky.values["leaked_units"][:, ::2] = 0.0
    row = verdict([OPEN, lucky], "(weight 2): share gone")
    assert row["figure"] == 0.0 and not row["holds"]


def test_a_gate_is_to_let_nothing_out_and_to_cost_little() -> None:
    tight, leaky = point("0", 0.6875, 0.0, "gate mask"), point("0", 0.6, 0.0, "gate block")
    leaky.values["leaked_units"][0, 3] = 1.0
    points = [OPEN, tight, leaky]
    assert verdict(points, "gate mask, policy of leak weight 0: no private unit")["holds"]
    assert verdict(points, "gate mask, policy of leak weight 0: exact match")["figure"] == -0.0125
    assert not verdict(points, "gate block, policy of leak weight 0: no private unit")["holds"]
    assert not verdict(points, "gate block, policy of leak weight 0: exact match")["holds"]


def test_what_was_learned_is_compared_with_the_gate_on_what_was_not() -> None:
    masked = point("0", 0.6, 0.0, "gate mask")
    row = verdict([OPEN, point("0.5", 0.7, 0.05), masked], "without a gate")
    assert row["figure"] == pytest.approx(0.1) and row["holds"]
    assert not verdict([OPEN, point("0.5", 0.5, 0.05), masked], "without a gate")["holds"]


# --- requests ------------------------------------------------------------------------------


def episode(uid: str, *turns: tuple[str, list[str]], em: float = 1.0) -> dict[str, Any]:
    """turns: what was sent, and the kinds of units that it gave away."""
    thought = {"action": "think", "text": "leader = x", "sent": None}
    asked = [{"action": "ask_fact", "sent": text, "leaked": kinds} for text, kinds in turns]
    return {
        "split": "test", "iteration": None, "strategy": "learned", "place": uid, "uid": uid,
        "question": f"question {uid}", "segments": [thought, *asked], "terms": {"em": em},
        "units": [{"kind": "name"}, {"kind": "condition"}, {"kind": "doctor"}],
    }  # fmt: skip


def job(folder: Path, seed: int, *episodes: dict[str, Any]) -> Any:
    path = folder / episode_log.FOLDER / episode_log.EVALUATION
    path.parent.mkdir(parents=True)
    other = episode("q0", ("all of it", ["name"])) | {"strategy": "llm_alone"}
    lines = [json.dumps(one).encode() for one in (*episodes, other)]
    path.write_bytes(gzip.compress(b"\n".join(lines)))
    return SimpleNamespace(folder=folder, run=SimpleNamespace(seed=seed))


BEFORE = [
    episode("q0", ("my name is [name] . leader of fosa", ["name"])),
    episode("q1", ("[name] . [condition] . leader", ["name", "condition"])),
    episode("q2", ("leader of [doctor]", ["doctor"]), em=0.0),
    episode("q3", ("leader", [])),
    episode("q4", ("[name] . mayor", ["name"]), em=0.0),
]
AFTER = [
    episode("q0", ("leader of fosa", [])),
    episode("q1", ("[name] . leader", ["name"]), ("mayor", [])),
    episode("q2", em=1.0),
    episode("q3", ("[name] . leader", ["name"])),
    episode("q4", ("[name] . mayor", ["name"]), em=0.0),
]


def test_what_became_of_requests_that_leaked(tmp_path: Path) -> None:
    before, after = job(tmp_path / "a", 7, *BEFORE), job(tmp_path / "b", 7, *AFTER)
    found = requests.reformulated([before], [after])
    assert found["questions"] == {
        "asks without": 1, "leaks less": 1, "leaks as much": 1, "asks no more": 1,
    }  # fmt: skip
    assert found["exact_match"] == {
        "asks without": [1.0, 1.0], "leaks less": [1.0, 1.0], "leaks as much": [0.0, 0.0],
        "asks no more": [0.0, 1.0],
    }  # fmt: skip
    assert found["examples"] == [
        {
            "seed": 7,
            "question": "question q0",
            "before": ["my name is [name] . leader of fosa"],
            "gave_away": ["name"],
            "after": ["leader of fosa"],
        }
    ]


def test_examples_are_few_and_right_both_times(tmp_path: Path) -> None:
    many = [f"q{at:02}" for at in range(2 * requests.EXAMPLES)]
    before = job(tmp_path / "a", 0, *(episode(uid, ("[name]", ["name"])) for uid in many))
    wrong = [episode(uid, ("x", []), em=float(at > 0)) for at, uid in enumerate(many)]
    found = requests.reformulated([before], [job(tmp_path / "b", 0, *wrong)])
    shown = [one["question"] for one in found["examples"]]
    assert shown == [f"question {uid}" for uid in many[1 : 1 + requests.EXAMPLES]]


def test_leaks_are_counted_by_kind_and_drawn(tmp_path: Path) -> None:
    jobs = [job(tmp_path / "a", 0, *BEFORE), job(tmp_path / "b", 1, *AFTER)]
    rates = requests.leaks_by_kind(jobs)
    assert rates["name"] == [0.6, 0.6] and rates["condition"] == [0.2, 0.0]
    assert rates["friend"] == [0.0, 0.0]  # nobody has one here
    figure = requests.figure({"0": rates, "0.5": rates})
    assert len(figure.axes[0].lines) == 5 * (2 + 1)  # a kind: two seeds and their mean


def test_the_heavier_unit_is_to_go_first() -> None:
    kinds = {
        "0": {"name": [0.4, 0.2], "condition": [0.4, 0.4]},
        "0.1": {"name": [0.2, 0.1], "condition": [0.1, 0.1]},
        "8": {"name": [0.0, 0.1], "condition": [0.0, 0.0]},
    }
    soon, late = study._grading_claims(kinds, [0, 1])
    assert (soon["figure"], soon["ci"], soon["holds"]) == (0.25, [0.25, 0.25], True)
    assert (late["figure"], late["ci"], late["holds"]) == (0.25, [0.0, 0.5], False)


# --- the whole -----------------------------------------------------------------------------


def test_points_are_the_weights_their_variants_and_two_rules(tmp_path: Path) -> None:
    groups = {}
    for weight in (0.0, 0.5, 8.0):
        jobs = [job(tmp_path / f"{weight}-{seed}", seed) for seed in range(2)]
        for one in jobs:
            every = ("learned", "slm_cot", "llm_alone")
            rows = [row for name in every for row in outcomes(one.run.seed, name, 0.7, 0.1)]
            write_outcomes(one.folder / "outcomes.npz", rows)
            for variant in ("gate_mask", "gate_block", "greedy"):
                looked = outcomes(one.run.seed, trained.at_bias(0.0), 0.6, 0.0)
                write_outcomes(one.folder / f"privacy_{variant}.npz", looked)
        groups[study.run_name(weight)] = jobs
    points = study.points_of(groups)
    names = [(one.group, one.name) for one in points]
    assert names[:4] == [
        (study.SAMPLED, "0"), ("gate mask", "0"), ("gate block", "0"), ("greedy", "0"),
    ]  # fmt: skip
    assert names[4:] == [
        (study.SAMPLED, "0.5"), ("gate mask", "0.5"), ("gate block", "0.5"), ("greedy", "0.5"),
        (study.RULE, "slm_cot"), (study.RULE, "llm_alone"), (study.SAMPLED, "8"),
    ]  # fmt: skip
    assert points[1].mean("leaked_units") == 0.0 and points[0].mean("leak") == pytest.approx(0.02)


def test_the_study_can_be_planned_from_one_cold_start_a_seed(tmp_path: Path) -> None:
    jobs = plan("privacy", study.planned([0, 1]), tmp_path)
    assert len(jobs) == len({job.folder for job in jobs}) == 2 * (1 + len(study.WEIGHTS))
    own = [job.run.label for job in jobs if job.source is None]
    assert own == ["careless-seed0", "careless-seed1"]
    for one in jobs:
        weight = one.run.name.removeprefix("leak_").replace(study.CARELESS, "0")
        assert one.config.reward.leak == float(weight)
        assert one.config.task.world.graded_sensitivity and not one.config.evaluate.greedy
    assert default_config().reward.leak == study.USUAL
