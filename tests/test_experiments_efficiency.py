"""The efficiency study: what its claims are made of, by hand; no run is made."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from collab.outcomes import write_outcomes
from collab.report import Outcome
from experiments import trained
from experiments.efficiency import __main__ as study
from experiments.fronts import Point
from experiments.main import __main__ as main_study
from experiments.study import plan

QUESTIONS = 80
COSTS = {"tokens": 40.0, "usd": 1e-4}  # an ask
ASKED = [1.0 - 0.1 * i for i in range(8)]  # by iteration


def outcomes(seed: int, **policies: tuple[float, float]) -> list[Outcome]:
    """Exact match and asks of each strategy, about so on average."""
    order_Q = np.random.default_rng(seed).permutation(QUESTIONS) / QUESTIONS
    return [
        Outcome(
            strategy=strategy, task="world", helper="mixed", split="test", uid=f"q{q:02}",
            em=float(order_Q[q] < em), f1=0.0, asks=asks, turns=asks, leaked_units=0.0,
            usd=asks * COSTS["usd"], reward=0.0, tokens=asks * COSTS["tokens"],
        )
        for strategy, (em, asks) in policies.items()
        for q in range(QUESTIONS)
    ]  # fmt: skip


def point(name: str, group: str, em: float, asks: float) -> Point:
    found = [outcomes(seed, learned=(em, asks)) for seed in range(3)]
    return study.fronts.point(name, group, found, costs=study.COSTS)


DIAL = [
    point("-1", study.TURNED, 0.25, 0.0),
    point("+0", study.TURNED, 0.75, 1.0),
    point("+1", study.TURNED, 0.8, 2.0),
]


def verdicts(*points: Point) -> dict[str, bool]:
    return {row["claim"]: row["holds"] for row in study.claims_of([*DIAL, *points], [0, 1, 2])}


def one(found: dict[str, bool], text: str) -> bool:
    (holds,) = (holds for claim, holds in found.items() if text in claim)
    return holds


def test_dearer_turns_are_to_be_taken_less_often() -> None:
    low, high = point("0.05", study.PRICE, 0.7, 1.2), point("0.8", study.PRICE, 0.6, 0.4)
    assert one(verdicts(low, point("0.2", study.PRICE, 0.7, 1.0), high), "0.8 is taken less often")
    same = point("0.8", study.PRICE, 0.6, 1.2)
    assert not one(verdicts(low, same), "0.8 is taken less often")


@pytest.mark.parametrize(
    ("em", "asks", "holds"),
    [(0.6, 0.5, False), (0.4, 0.5, True), (0.8, 3.0, True), (0.9, 3.0, False)],
)
def test_the_dial_is_compared_at_equal_asks(em: float, asks: float, holds: bool) -> None:
    """The dial has 0.5 at 0.5 asks, half-way between two of its points, and 0.8 beyond the last."""
    found = verdicts(point("0.4", study.PRICE, em, asks))
    assert one(found, "trained at a price of 0.4, the dial") is holds


def test_the_dial_fails_where_it_cannot_ask_so_little() -> None:
    found = study.claims_of([*DIAL[1:], point("target 0.3", study.TARGET, 0.4, 0.3)], [0, 1, 2])
    (row,) = (row for row in found if "the dial" in row["claim"])
    assert (row["figure"], row["ci"], row["holds"]) == (None, None, False)


def test_the_dials_own_policy_is_not_compared_with_it() -> None:
    assert not any("the dial" in claim for claim in verdicts(point("0.2", study.PRICE, 0.7, 1.0)))


@pytest.mark.parametrize(
    ("asks", "holds"), [(0.62, True), (0.52, True), (0.71, False), (0.4, False)]
)
def test_a_target_is_met_within_its_tolerance(asks: float, holds: bool) -> None:
    found = verdicts(point("target 0.6", study.TARGET, 0.5, asks))
    assert one(found, "dual ascent to 0.6 asks is off") is holds


def test_what_is_saved_is_counted_at_the_exact_match_of_the_best_constant() -> None:
    def row(constant: Point) -> dict[str, Any]:
        rows = study.claims_of([*DIAL, constant], [0, 1, 2])
        (found,) = (row for row in rows if "learned policy saves" in row["claim"])
        return found

    found = row(point("best_constant", study.RULE, 0.76, 1.5))  # 0.75 is no more than 2 points less
    assert found["figure"] == pytest.approx(0.5) and found["holds"]
    assert found["claim"].endswith(f"({study.TURNED}, +0)")
    assert not row(point("best_constant", study.RULE, 0.76, 0.9))["holds"]
    assert row(point("best_constant", study.RULE, 0.95, 1.5))["figure"] is None


def job(folder: Path, seed: int) -> Any:
    folder.mkdir(parents=True)
    policies = {"learned": (0.7, 1.0), "best_constant": (0.8, 1.4), "oracle": (0.9, 0.8)}
    write_outcomes(folder / "outcomes.npz", outcomes(seed, **policies))
    lines = [
        {"step": 1, "stage": "imitation"},
        *(
            {"step": 2 + i, "stage": "policy_gradient", "asks": asked, "turn_price": 0.2 + i}
            for i, asked in enumerate(ASKED)
        ),
    ]
    text = "".join(f"{json.dumps(line)}\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text)
    return SimpleNamespace(folder=folder, run=SimpleNamespace(seed=seed))


def groups_of(tmp_path: Path) -> dict[str, list[Any]]:
    groups: dict[str, list[Any]] = {
        name: [job(tmp_path / f"{name}{seed}", seed) for seed in range(2)]
        for name in (study.SOURCE, "price_0.4", "target_0.6")
    }
    for at, source in enumerate(groups[study.SOURCE]):
        dials = {trained.at_bias(bias): (0.5 + bias / 40, 1.0 + bias / 10) for bias in study.BIASES}
        write_outcomes(source.folder / f"{study.DIAL}.npz", outcomes(at, **dials))
    return groups


def test_points_are_the_dial_the_prices_the_targets_and_the_rules(tmp_path: Path) -> None:
    points = study.points_of(groups_of(tmp_path))
    by_name = {(one.group, one.name): one for one in points}
    assert by_name[study.PRICE, "0.2"].mean("asks") == pytest.approx(1.0)  # the dial's at 0
    assert by_name[study.PRICE, "0.4"].mean("tokens") == pytest.approx(40.0)
    assert by_name[study.TARGET, "target 0.6"].mean("em") == pytest.approx(0.7)
    assert by_name[study.TURNED, "+8"].mean("asks") == pytest.approx(1.8)
    oracle = by_name[study.RULE, "oracle"]
    assert oracle.is_bound and "tokens" not in oracle.values
    assert len(points) == len(study.BIASES) + 3 + 2
    assert study.fronts.draw(points, study.COSTS, joined=(study.TURNED,)).axes


def test_the_ascent_is_read_off_the_metrics(tmp_path: Path) -> None:
    found = study.ascents(groups_of(tmp_path))
    assert found.keys() == {"0.6"}
    assert found["0.6"]["asks"] == pytest.approx(ASKED)
    assert found["0.6"]["asks_at_the_end"] == pytest.approx(np.mean(ASKED[2:]))
    assert found["0.6"]["price_at_the_end"] == [7.2, 7.2]
    rate, price = study.dual_figure(found).axes
    assert len(rate.lines) == 2 and len(price.lines) == 1


def test_the_study_can_be_planned_and_shares_the_main_studys_runs(tmp_path: Path) -> None:
    jobs = plan("efficiency", study.planned([0, 1]), tmp_path)
    by_label = {job.run.label: job for job in jobs}
    mains = {job.run.label: job for job in plan("main", main_study.planned([0, 1]), tmp_path)}
    assert by_label["world-seed1"].folder == mains["world-seed1"].folder
    assert len(jobs) == 2 * (1 + len(study.PRICES) + len(study.TARGETS))
    assert by_label["price_0.8-seed1"].source is by_label["world-seed1"]
    assert by_label["price_0.8-seed1"].config.reward.turn == 0.8
    assert by_label["target_0.3-seed0"].config.rl.target_ask_rate == 0.3
    assert by_label["world-seed0"].config.reward.turn == study.SOURCE_PRICE
