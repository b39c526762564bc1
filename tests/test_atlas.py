"""The atlas task: real facts, one meaning a name, natural wording read back, splits, leaks."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from collab.config import default_config
from collab.tasks import grading, make_task
from collab.tasks.atlas import language
from collab.tasks.atlas.geography import (
    CITY,
    COUNTRY,
    PERSON,
    WORLD_RELATIONS,
    Atlas,
    Settings,
)
from collab.tasks.atlas.task import AtlasTask
from collab.tasks.splits import SPLITS
from collab.types import DrilledTask, PrivateUnit, Problem, Step, TeachableTask


def config_of(**atlas: Any) -> Any:
    config = default_config()
    config.task.update({"name": "atlas", "train": 150, "validation": 150, "test": 150})
    config.task.atlas.update(atlas)
    return config


@pytest.fixture(scope="module")
def task() -> AtlasTask:
    return AtlasTask(config_of(), "")


@pytest.fixture(scope="module")
def problems(task: AtlasTask) -> list[Problem]:
    return [problem for split in SPLITS for problem in task.problems(split)]


def asked_of_others(problem: Problem) -> tuple[Step, ...]:
    return tuple(step for step in problem.steps if not step.is_local)


# --- facts -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("relation", "subject", "value"),
    [
        ("country", "Paris", "France"),  # not the one in Texas
        ("country", "London", "United Kingdom"),
        ("country", "Athens", "Greece"),
        ("time zone", "Berlin", "Europe/Berlin"),
        ("capital", "Colombia", "Bogota"),
        ("capital", "Netherlands", "Amsterdam"),
        ("currency", "Japan", "Yen"),
        ("main language", "Brazil", "Portuguese"),
        ("continent", "Kenya", "Africa"),
        ("largest neighbour", "Portugal", "Spain"),
        ("largest neighbour", "Canada", "United States"),
    ],
)
def test_facts_are_true(task: AtlasTask, relation: str, subject: str, value: str) -> None:
    assert task.atlas.step(relation, subject) == Step(f"{relation} of {subject}", value)


def test_relations_are_functions_between_their_types(task: AtlasTask) -> None:
    atlas = task.atlas
    for relation in WORLD_RELATIONS:
        facts = {fact: value for fact, value in atlas.facts.items() if fact[0] == relation.name}
        assert len(facts) > 150
        for (_, subject), value in facts.items():
            assert atlas.type_of[subject] == relation.source
            assert atlas.type_of[value] == relation.target
    assert atlas.step("capital", "Paris") is None
    assert atlas.step("country", "Atlantis") is None


def test_a_name_means_one_entity(task: AtlasTask) -> None:
    atlas = task.atlas
    assert sum(map(len, atlas.entities.values())) == len(atlas.type_of)
    assert len(atlas.entities[COUNTRY]) > 240
    cities = atlas.entities[CITY]
    assert len(cities) > 500
    assert not {"Victoria", "San Jose", "Singapore", "Valencia"} & set(cities)  # of several places
    assert all(re.fullmatch(r"[A-Za-z -]+", name) for name in cities)
    assert atlas.canonical("  bogotá ") == "Bogota"
    assert atlas.spellings("Bogota") == ("Bogota", "Bogotá")
    assert atlas.spellings("Oslo") == ("Oslo",)


def test_a_lower_bar_brings_more_cities() -> None:
    few = Atlas(Settings.of(config_of(min_population=10**9)))
    assert len(few.entities[CITY]) == len([fact for fact in few.facts if fact[0] == "capital"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_local_hops": 3}, r"task\.atlas\.max_local_hops=3 must be in \[0, 2\]; try 2"),
        ({"max_world_hops": 0}, r"task\.atlas\.max_world_hops=0 must be in \[1, 4\]; try 1"),
        ({"held_out_share": 0.9}, r"task\.atlas\.held_out_share=0\.9 must be in"),
        ({"leak_needed_share": 1.5}, r"task\.atlas\.leak_needed_share=1\.5 must be in"),
        ({"max_local_hops": 0}, r"task\.atlas\.leak_needed_share=0\.2 needs max_local_hops >= 1"),
    ],
)
def test_settings_out_of_range_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AtlasTask(config_of(**changes), "")


# --- problems --------------------------------------------------------------------------------


def test_steps_lead_from_the_start_to_the_answer(task: AtlasTask, problems: list[Problem]) -> None:
    assert isinstance(task, TeachableTask)
    assert not isinstance(task, DrilledTask)
    for problem in problems:
        belief = ""
        for index, step in enumerate(problem.steps):
            assert task.next_step(problem, index, belief) == step
            assert step.is_known is None
            assert task.recall(step, np.random.default_rng(0)) == step.answer
            belief = step.answer
        assert task.next_step(problem, len(problem.steps), belief) is None
        assert problem.answers[0] == belief
        for step in problem.steps:
            if step.is_local:
                assert step.answer in problem.notes
                assert step.answer not in problem.question


def test_every_shape_of_question_occurs(problems: list[Problem]) -> None:
    shapes = {(len([s for s in p.steps if s.is_local]), len(asked_of_others(p))) for p in problems}
    assert shapes == {(local, hops) for local in (0, 1, 2) for hops in (1, 2, 3)}
    starts = {problem.steps[0].query for problem in problems}
    assert starts >= {language.local_query(name) for name in ("clinic", "office", "hotel")}
    assert starts >= {"my friend", "city of my home", "city of my sister"}


def test_no_path_stands_in_two_splits_and_training_avoids_what_is_held_out(
    task: AtlasTask,
) -> None:
    paths = {
        split: {
            tuple((step.query, step.answer) for step in asked_of_others(problem))
            for problem in task.problems(split)
        }
        for split in SPLITS
    }
    assert not paths["train"] & paths["validation"]
    assert not paths["train"] & paths["test"]
    assert not paths["validation"] & paths["test"]
    held_out = {f"{relation} of {subject}" for relation, subject in task.atlas.held_out}
    touched = {
        split: np.mean([any(query in held_out for query, _ in path) for path in paths[split]])
        for split in SPLITS
    }
    assert touched["train"] == 0.0
    assert 0.35 < touched["test"] < 0.65


def test_units_are_told_by_the_notes_and_lie_on_no_path_but_where_they_must(
    problems: list[Problem],
) -> None:
    needed = 0
    for problem in problems:
        kinds = [unit.kind for unit in problem.units]
        assert kinds == ["name", "birth date", "condition", "home", "sister", "friend"]
        world = " ".join(step.statement for step in asked_of_others(problem))
        named = [unit for unit in problem.units if unit.text in world]
        assert all(unit.text in problem.notes for unit in problem.units)
        assert all(unit.text not in problem.question for unit in problem.units)
        is_needed = problem.steps[0].query in ("city of my home", "city of my sister")
        assert [unit.kind for unit in named] == (
            [problem.steps[0].query.rpartition(" ")[2]] if is_needed else []
        )
        assert [unit for unit in problem.units if unit.is_needed] == named
        needed += is_needed
    assert 0.1 < needed / len(problems) < 0.3


def test_only_what_is_told_by_name_is_mentioned(task: AtlasTask, problems: list[Problem]) -> None:
    for problem in problems:
        mentions = task.mentions(problem)
        assert bool(mentions) != problem.steps[0].is_local
        for mention in mentions:
            assert mention.sort == "place"
            assert task.atlas.type_of[mention.text] in (CITY, COUNTRY)
            assert problem.question.count(mention.text) == 1


def test_problems_do_not_depend_on_the_size_of_a_split(task: AtlasTask) -> None:
    config = config_of()
    config.task.train = 5
    small = make_task(config, "")
    assert list(small.problems("train")) == list(task.problems("train"))[:5]
    with pytest.raises(ValueError, match="split='dev'"):
        task.problems("dev")


def test_a_problem_by_hand(task: AtlasTask) -> None:
    rng = np.random.default_rng(0)
    values = {"name": "Mara Novak", "friend": "Noor Byrne", "home": "Lyon", "clinic": "Oslo"}
    notes = language.note_lines(values, "Lima", rng)
    assert sorted(re.split(r"(?<=\.) ", notes)) == [
        "I live in Lyon.",
        "My clinic stands in Oslo.",
        "My friend is Noor Byrne.",
        "My name is Mara Novak.",
        "Noor Byrne lives in Lima.",
    ]
    asked = {language.question(task.atlas, "Oslo", "clinic", ("country",), rng) for _ in range(60)}
    assert "What is the country of the city where my clinic stands?" in asked
    assert "Tell me the nation of the city where my clinic stands." in asked
    assert len(asked) == 8  # four openers, two wordings
    named = {
        language.question(task.atlas, "Oslo", None, ("country", "capital"), rng) for _ in range(99)
    }
    assert "What is the capital of Oslo's country?" in named
    assert "What is the capital of the country of Oslo?" in named


def test_corpus_holds_training_texts_only(task: AtlasTask) -> None:
    corpus = set(task.corpus())
    for problem in task.problems("train"):
        assert {problem.question, problem.notes} <= corpus
    assert not any(problem.notes in corpus for problem in task.problems("test"))


# --- requests --------------------------------------------------------------------------------


def test_every_question_with_its_notes_reads_as_its_solution(
    task: AtlasTask, problems: list[Problem]
) -> None:
    for problem in problems:
        for text in (
            f"{problem.notes} {problem.question}",
            f"{problem.question} {problem.notes}",
            f"{problem.question} {problem.notes}".upper(),
            f"{problem.question} {problem.notes}".replace("'", "\u2019"),
        ):
            resolution = task.knowledge.resolve(text)
            assert resolution is not None, text
            assert resolution.steps == asked_of_others(problem), text


def test_without_the_notes_the_reference_is_missing(
    task: AtlasTask, problems: list[Problem]
) -> None:
    for problem in problems:
        resolution = task.knowledge.resolve(problem.question)
        assert resolution is not None
        first = problem.steps[0]
        missing = first.query.removeprefix("city of ") if first.is_local else None
        assert resolution.missing == missing


@pytest.mark.parametrize(
    ("text", "answers"),
    [
        ("country of Munich", ["Germany"]),
        ("What's Munich's country?", ["Germany"]),
        ("currency of country of Kyoto", ["Japan", "Yen"]),
        ("Which is the capital of the nation of the city where my sister lives? "
         "My sister lives in Recife.", ["Brazil", "Brasilia"]),
        ("country of city of my clinic ; city of my clinic = Oslo", ["Norway"]),
        ("country of the town where I live. I live in Oslo.", ["Norway"]),
        ("country of home of Noor Byrne ; home of Noor Byrne = Oslo", ["Norway"]),
        ("the country of the city where my friend lives. My friend is Noor Byrne. "
         "Noor Byrne lives in Oslo.", ["Norway"]),
        ("biggest neighbour of Portugal", ["Spain"]),
    ],
)  # fmt: skip
def test_resolve(task: AtlasTask, text: str, answers: list[str]) -> None:
    resolution = task.knowledge.resolve(text)
    assert resolution is not None
    assert [step.answer for step in resolution.steps] == answers
    assert resolution.missing is None


@pytest.mark.parametrize(
    ("text", "missing"),
    [
        ("country of city of my clinic", "my clinic"),
        ("country of the city where my friend lives", "my friend"),
        ("country of the city where my friend lives. My friend is Noor Byrne.",
         "home of Noor Byrne"),
    ],
)  # fmt: skip
def test_what_is_missing_is_named(task: AtlasTask, text: str, missing: str) -> None:
    resolution = task.knowledge.resolve(text)
    assert resolution is not None
    assert resolution.missing == missing


@pytest.mark.parametrize(
    "text", ["", "hello", "country of Atlantis", "capital of Lyon", "Lyon", "currency of Euro"]
)
def test_not_understood(task: AtlasTask, text: str) -> None:
    assert task.knowledge.resolve(text) is None


def test_beliefs_are_carried_on_in_any_spelling(task: AtlasTask) -> None:
    steps = (
        Step("city of my clinic", "Lyon", is_local=True),
        Step("country of Lyon", "France"),
        Step("capital of France", "Paris"),
    )
    problem = Problem("p", "?", ("Paris",), units=(PrivateUnit("Lyon", "home"),), steps=steps)
    assert task.next_step(problem, 1, "bogotá") == Step("country of Bogota", "Colombia")
    assert task.next_step(problem, 2, "Japan") == Step("capital of Japan", "Tokyo")
    assert task.next_step(problem, 2, "Lyon") is None
    assert task.chain_request(problem, 1, "Lyon") == "capital of country of Lyon"
    assert task.chain_request(problem, 1, "") == "capital of country of Lyon"
    assert task.chain_request(problem, 2, "japan") == "capital of Japan"


def test_wrong_answers_are_of_the_right_type(task: AtlasTask, problems: list[Problem]) -> None:
    rng = np.random.default_rng(0)
    for problem in problems[:100]:
        for step in asked_of_others(problem):
            wrong = task.knowledge.wrong_answer(step, rng)
            assert wrong != step.answer
            assert task.atlas.type_of[wrong] == task.atlas.type_of[step.answer]


def test_accents_are_not_asked_for(problems: list[Problem]) -> None:
    accented = [problem for problem in problems if len(problem.answers) > 1]
    assert accented
    for problem in accented:
        assert all(grading.exact_match(answer, problem.answers) for answer in problem.answers)


def test_people_are_made_up_and_live_in_the_notes_only(task: AtlasTask) -> None:
    people = set(task.atlas.entities[PERSON])
    assert not any(subject in people for _, subject in task.atlas.facts)
