"""The study of SLM strength: its runs and what its claims are made of, by hand; no run is made."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from collab.config import default_config
from collab.models.presets import transformer_config
from collab.models.weights import layout
from experiments.levels import Values
from experiments.main import __main__ as main_study
from experiments.slm_scaling import __main__ as study
from experiments.study import plan
from scaling import Figures, groups

KNOWLEDGE, SIZE = study.AXES
ALONE = dict(zip(study.KNOWN, (0.1, 0.2, 0.3, 0.4, 0.5), strict=True))
ASKS = dict(zip(study.KNOWN, (0.9, 0.8, 0.7, 0.6, 0.5), strict=True))


def values(tmp_path: Path, **changes: Figures) -> Values:
    """Stronger SLMs ask less, about 90 % of what they lack. changes: of a run's learned policy."""
    figures = {
        name: {
            "learned": changes.get(name, (0.9, ASKS[name], 0.1, 0.9)),
            "slm_cot": (ALONE[name], 0.0, 0.0, 0.0),
            "oracle": (0.9, 0.5, 0.0, 1.0),
        }
        for name in study.KNOWN
    }
    return Values(groups(tmp_path, figures))


def test_claims_hold_where_the_stronger_asks_less_and_where_it_lacks(tmp_path: Path) -> None:
    alone, trend, rise, gap = study.claims_of(KNOWLEDGE, values(tmp_path))
    assert [row["holds"] for row in (alone, trend, rise, gap)] == [True] * 4
    assert alone["figure"] == 1.0 and trend["figure"] == -1.0
    assert rise["figure"] == pytest.approx(-0.1) and gap["figure"] == pytest.approx(0.8)


def test_one_level_that_asks_more_or_anywhere_is_seen(tmp_path: Path) -> None:
    found = values(tmp_path, known_70=(0.9, 1.0, 0.5, 0.5))
    _, _, rise, gap = study.claims_of(KNOWLEDGE, found)
    assert rise["figure"] == pytest.approx(0.3) and not rise["holds"]
    assert gap["figure"] == 0.0 and not gap["holds"] and "(known_70)" in gap["claim"]


def test_a_level_without_a_gap_to_tell_is_the_least(tmp_path: Path) -> None:
    found = values(tmp_path)
    for outcomes in found._outcomes["known_90"]:
        outcomes[:] = [row for row in outcomes if row.strategy != "learned"] + [
            type(row)(**{**vars(row), "drafts_known": 0})
            for row in outcomes
            if row.strategy == "learned"
        ]
    gap = study.claims_of(KNOWLEDGE, found)[-1]
    assert gap["figure"] is None and not gap["holds"]


def test_the_study_can_be_planned_and_shares_the_main_run(tmp_path: Path) -> None:
    jobs = plan("slm_scaling", study.planned([0, 1], [*study.AXES]), tmp_path)
    names = [job.run.name for job in jobs[:8]]
    assert len(jobs) == 16 and sorted(names) == sorted({*study.KNOWN, *study.SIZES})
    shares = {job.run.name: job.config.task.world.known_share for job in jobs}
    assert [shares[name] for name in study.KNOWN] == [0.1, 0.3, 0.5, 0.7, 0.9]
    assert {job.run.name: job.config.model.preset for job in jobs}["size_96x3"] == "tiny_96x3"
    main = {job.run.label: job.folder for job in plan("main", main_study.planned([0]), tmp_path)}
    assert {job.run.label: job.folder for job in jobs}["world-seed0"] == main["world-seed0"]


def test_one_axis_can_be_run_alone() -> None:
    names = [run.name for run in study.planned([0], [SIZE])]
    assert sorted(names) == sorted(study.SIZES)


def test_weights_are_counted_right() -> None:
    model, found = default_config().model, {}
    for name, preset in study.SIZES.items():
        model.preset = preset
        network = transformer_config(model, 64)
        matrices = [
            math.prod(leaf.shape)
            for path, leaf in layout.leaves(network).items()
            if path[0] == "layers" and leaf.inputs  # no norms
        ]
        found[name] = round(network.layers * sum(matrices) / 1000)
    assert found == SIZE.levels


def test_strength_is_also_taken_as_measured(tmp_path: Path) -> None:
    figures = {
        name: {"learned": (0.9, 0.9 - 0.1 * at, 0.1, 0.9), "slm_cot": (0.1 * at, 0, 0, 0)}
        for at, name in enumerate(dict.fromkeys([*study.KNOWN, *study.SIZES]))
    }
    claim = study.overall([*study.AXES], Values(groups(tmp_path, figures)))
    assert claim["figure"] == -1.0 and claim["holds"]
