"""The study of helper strength: its runs, and what a request brings, by hand; no run is made."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from collab.config import load_config
from experiments.levels import Values
from experiments.llm_scaling import __main__ as study
from experiments.study import Run, plan
from scaling import QUESTIONS, Figures, groups

HOPS = study.AXES[0]
ALONE: Figures = (0.2, 0.0, 0.0, 0.0)
ORACLE: Figures = (0.9, 0.5, 0.0, 1.0)


def values(tmp_path: Path, **learned: Figures) -> Values:
    return Values(
        groups(
            tmp_path,
            {
                name: {"learned": figures, "slm_cot": ALONE, "oracle": ORACLE}
                for name, figures in learned.items()
            },
        )
    )


def bits(found: Values) -> list[float]:
    return study.bits_of_questions(Run(study.WORLD, study.CONFIG), found.questions()).tolist()


def test_an_answer_is_worth_the_bits_of_its_type(tmp_path: Path) -> None:
    found = bits(values(tmp_path, hops_1=(0.5, 0.5, 0.0, 1.0)))
    world = load_config(study.CONFIG).task.world
    counts = (world.people, world.cities, world.countries, world.organisations)
    assert len(found) == QUESTIONS and set(found) == {math.log2(count) for count in counts}


def test_fewer_and_richer_requests_make_the_claims_hold(tmp_path: Path) -> None:
    found = values(
        tmp_path, hops_1=(0.8, 1.0, 0, 1), hops_2=(0.8, 0.8, 0, 1), hops_3=(0.9, 0.6, 0, 1)
    )
    bits_Q = bits(found)
    claims = study.claims_of(HOPS, found, bits_Q)
    assert [row["holds"] for row in claims] == [True] * 4
    per_request = study.curves(HOPS, found, bits_Q)["bits per request"]
    gained = [(found.of(n, "learned", "em") - found.of(n, "slm_cot", "em")) @ bits_Q
              for n in HOPS.levels]  # fmt: skip
    by_hand = [
        sum(one) / len(one) / QUESTIONS / asks
        for one, asks in zip(gained, (1.0, 0.8, 0.6), strict=True)
    ]
    assert [one.figure for one in per_request] == pytest.approx(by_hand)
    assert claims[-1]["figure"] == pytest.approx(by_hand[2] - by_hand[0], abs=1e-3)


def test_more_turns_or_poorer_replies_fail(tmp_path: Path) -> None:
    found = values(
        tmp_path, hops_1=(0.9, 0.5, 0, 1), hops_2=(0.8, 0.8, 0, 1), hops_3=(0.8, 1.0, 0, 1)
    )
    assert not any(row["holds"] for row in study.claims_of(HOPS, found, bits(found)))


def test_a_helper_that_is_never_asked_has_no_rate(tmp_path: Path) -> None:
    found = values(
        tmp_path, hops_1=(0.2, 0.0, 0, 0), hops_2=(0.8, 0.8, 0, 1), hops_3=(0.9, 0.6, 0, 1)
    )
    _, rise, rate, ends = study.claims_of(HOPS, found, bits(found))
    assert not rise["holds"]  # from no turn to many
    assert rate["figure"] is None and ends["figure"] is None and not ends["holds"]


def test_the_study_can_be_planned(tmp_path: Path) -> None:
    jobs = plan("llm_scaling", study.planned([0, 1], [*study.AXES], tmp_path), tmp_path)
    worlds = [job for job in jobs if job.run.name == study.WORLD]
    others = [job for job in jobs if job.source is not None]
    assert len(worlds) == 2 and len(others) == 20
    assert all(job.source.run.seed == job.run.seed for job in others if job.source)
    assert {*study.HELPERS, *study.LOCAL} == {name for axis in study.AXES for name in axis.levels}
    assert all(list(axis.levels.values()) == sorted(axis.levels.values()) for axis in study.AXES)


def test_one_axis_can_be_run_alone(tmp_path: Path) -> None:
    names = [run.name for run in study.planned([0], [HOPS], tmp_path)]
    assert names == [study.WORLD, *HOPS.levels]
