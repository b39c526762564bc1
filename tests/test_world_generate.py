"""Generated problems of the world task: steps, notes, private units, and splits apart."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from collab.config import default_config
from collab.privacy.detector import Detector
from collab.tasks.splits import SPLITS
from collab.tasks.world.entities import World
from collab.tasks.world.generate import Generator
from collab.tasks.world.paths import split_compositions
from collab.tasks.world.schema import Settings
from collab.types import Problem
from worlds import EACH, problems_of, world_steps


def _settings(**world: Any) -> Settings:
    config = default_config()
    config.task.world.update(world)
    return Settings.of(config)


@pytest.fixture(scope="module")
def world() -> World:
    return World(_settings())


@pytest.fixture(scope="module")
def problems(world: World) -> list[Problem]:
    return problems_of(world)


def _facts(problem: Problem) -> set[tuple[str, ...]]:
    return {tuple(step.query.split(" of ", 1)) for step in world_steps(problem)}


def _composition(problem: Problem) -> tuple[str, ...]:
    """Head entity and path of the world part, read off the steps."""
    steps = [step.query.split(" of ", 1) for step in world_steps(problem)]
    return (steps[0][1], *(relation for relation, _ in steps))


# --- problems ------------------------------------------------------------------------------


def test_steps_follow_from_each_other_and_end_in_the_answer(
    world: World, problems: list[Problem]
) -> None:
    for problem in problems:
        for step, following in zip(problem.steps, problem.steps[1:], strict=False):
            assert following.query.endswith(f" of {step.answer}")
        for step in world_steps(problem):
            relation, subject = step.query.split(" of ", 1)
            assert world.facts[relation, subject] == step.answer
        assert problem.answers == (problem.steps[-1].answer,)


def test_notes_are_short_and_tell_every_unit_and_every_local_step(problems: list[Problem]) -> None:
    for problem in problems:
        assert len(problem.notes.split()) <= 60
        assert Detector(problem.units).leaked([problem.notes]).all()
        assert all(step.answer in problem.notes for step in problem.steps if step.is_local)


def test_units_are_the_users_own_and_one_other_person_with_the_stated_weights(
    problems: list[Problem],
) -> None:
    own, others = {"name": 1.0, "birth date": 1.0, "condition": 2.0}, {"doctor": 1.0, "friend": 0.5}
    met = set()
    for problem in problems:
        weights = {unit.kind: unit.sensitivity for unit in problem.units}
        (person,) = weights.keys() - own.keys()
        assert weights == {**own, person: others[person]}
        met.add(person)
    assert met == others.keys()


def test_graded_units_weigh_twice_the_next_lower_and_are_else_the_same(
    problems: list[Problem],
) -> None:
    graded = problems_of(World(_settings(graded_sensitivity=True)))
    weights = {unit.kind: unit.sensitivity for problem in graded for unit in problem.units}
    ranked = sorted(weights, key=lambda kind: weights[kind])
    assert ranked == ["friend", "name", "doctor", "birth date", "condition"]
    assert [weights[kind] for kind in ranked] == [0.5, 1.0, 2.0, 4.0, 8.0]
    for problem, before in zip(graded, problems, strict=True):
        units = zip(problem.units, before.units, strict=True)
        same = [dataclasses.replace(unit, sensitivity=old.sensitivity) for unit, old in units]
        assert dataclasses.replace(problem, units=tuple(same)) == before


def test_data_that_was_prepared_before_units_could_be_graded_is_found_again() -> None:
    assert _settings().digest == "a7dce63ef91064e2"
    assert _settings(graded_sensitivity=True).digest != _settings().digest


def test_a_unit_heads_the_world_part_in_the_set_share_of_questions_and_is_nowhere_else(
    problems: list[Problem],
) -> None:
    needed = 0
    for problem in problems:
        leaked = Detector(problem.units).leaked_by_request(
            [step.query for step in world_steps(problem)]
        )
        needed += bool(leaked[0])
        assert leaked[0] == {at for at, unit in enumerate(problem.units) if unit.is_needed}
        assert len(leaked[0]) <= 1
        assert not any(leaked[1:])
    assert needed / len(problems) == pytest.approx(0.2, abs=0.05)


def test_every_number_of_hops_occurs(problems: list[Problem]) -> None:
    hops = {(len(p.steps) - len(world_steps(p)), len(world_steps(p))) for p in problems}
    assert hops == {(local, far) for local in range(3) for far in range(1, 4)}


def test_hop_limits_of_the_config_are_kept() -> None:
    settings = _settings(max_local_hops=1, max_world_hops=2)
    generator = Generator(World(settings))
    made = [generator.problem("train", index) for index in range(100)]
    assert {len(world_steps(p)) for p in made} == {1, 2}
    assert {len(p.steps) - len(world_steps(p)) for p in made} == {0, 1}


# --- splits --------------------------------------------------------------------------------


def test_no_composition_stands_in_two_splits(world: World, problems: list[Problem]) -> None:
    keys = {
        split: {(item.head, item.relations) for item in members}
        for split, members in split_compositions(world).items()
    }
    assert all(keys.values())
    for one, other in (("train", "validation"), ("train", "test"), ("validation", "test")):
        assert not keys[one] & keys[other]
    assert not any(item.is_held_out for item in split_compositions(world)["train"])
    for problem in problems:
        head, *relations = _composition(problem)
        assert (head, tuple(relations)) in keys[problem.uid.split("-")[1]]


def test_training_never_touches_a_held_out_fact_and_half_the_others_do(
    world: World, problems: list[Problem]
) -> None:
    assert len(world.held_out) / len(world.facts) == pytest.approx(0.2, abs=0.02)
    touching = dict.fromkeys(SPLITS, 0)
    for problem in problems:
        touching[problem.uid.split("-")[1]] += bool(_facts(problem) & world.held_out)
    assert touching["train"] == 0
    assert touching["validation"] / EACH == pytest.approx(0.5, abs=0.12)
    assert touching["test"] / EACH == pytest.approx(0.5, abs=0.12)


def test_a_world_without_held_out_facts_still_has_new_compositions() -> None:
    world = World(_settings(held_out_share=0.0))
    generator = Generator(world)
    seen = {_composition(generator.problem("train", index)) for index in range(300)}
    assert not seen & {_composition(generator.problem("test", index)) for index in range(100)}
