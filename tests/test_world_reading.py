"""Reading requests of the world task: every form in, the right chain or what is missing out."""

from __future__ import annotations

import pytest

from collab.config import default_config
from collab.tasks.world.entities import World
from collab.tasks.world.reading import WorldKnowledge
from collab.tasks.world.schema import Settings
from collab.types import Problem
from worlds import problems_of, world_steps


@pytest.fixture(scope="module")
def world() -> World:
    return World(Settings.of(default_config()))


@pytest.fixture(scope="module")
def problems(world: World) -> list[Problem]:
    return problems_of(world)


def test_every_question_with_its_notes_reads_as_its_solution(
    world: World, problems: list[Problem]
) -> None:
    knowledge = WorldKnowledge(world)
    for problem in problems:
        for text in (
            f"{problem.notes} {problem.question}",
            f"{problem.question} {problem.notes}",
            f"{problem.question} {problem.notes}".upper(),
        ):
            resolution = knowledge.resolve(text)
            assert resolution is not None, text
            assert resolution.steps == world_steps(problem), text


def test_a_question_without_its_notes_names_what_is_missing(
    world: World, problems: list[Problem]
) -> None:
    knowledge = WorldKnowledge(world)
    for problem in problems:
        resolution = knowledge.resolve(problem.question)
        assert resolution is not None
        if problem.steps[0].is_local:
            assert (resolution.steps, resolution.missing) == ((), problem.steps[0].query)
            told = " ; ".join(step.statement for step in problem.steps if step.is_local)
            again = knowledge.resolve(f"{problem.question} ; {told}")
            assert again is not None
            assert again.steps == world_steps(problem)
        else:
            assert resolution.steps == problem.steps


@pytest.mark.parametrize(
    "text",
    [
        "mayor of headquarters of {org}",
        "the mayor of {org} 's headquarters",
        "{org} 's headquarters 's mayor ?",
        "{org}'s main office's city chief?",
        "Please tell me who the Mayor of the Main Office of {ORG} is, thanks.",
        "my name is zed zed . mayor of headquarters of {org}",
        "mayor of headquarters of {org} . i have asthma .",
        "my clinic = {org} ; mayor of headquarters of my clinic",
        "mayor of headquarters of my clinic ; my clinic = {org}",
        "mayor of my clinic 's headquarters . {org} is my clinic",
        "{org} is my favourite clinic . mayor of headquarters of my own clinic",
        "mayor of headquarters of my boss ; my boss is the {org}",
        "my friend is {person} . {org} is the hospital of {person} . "
        "mayor of headquarters of hospital of my friend",
        "hospital of my friend = {org} ; mayor of headquarters of hospital of my friend ; "
        "my friend = {person}",
        "founder of {org} = {person} . mayor of headquarters of {org}",
    ],
)
def test_a_request_in_many_forms(world: World, text: str) -> None:
    org, person = world.entities["organisation"][3], world.entities["person"][5]
    city = world.facts["headquarters", org]
    resolution = WorldKnowledge(world).resolve(text.format(org=org, ORG=org.title(), person=person))
    assert resolution is not None
    assert resolution.missing is None
    assert [(step.query, step.answer) for step in resolution.steps] == [
        (f"headquarters of {org}", city),
        (f"mayor of {city}", world.facts["mayor", city]),
    ]


@pytest.mark.parametrize(
    ("text", "missing"),
    [
        ("mayor of headquarters of my clinic", "my clinic"),
        ("my film 's director", "my film"),
        ("mayor of home of my friend", "my friend"),
        ("mayor of home of my friend ; my friend = {person}", "home of {person}"),
        ("mayor of home of {person}", "home of {person}"),
        ("my clinic = rubbish ; headquarters of my clinic", "my clinic"),
        ("my doctor", "my doctor"),
    ],
)
def test_a_request_that_leaves_a_reference_open(world: World, text: str, missing: str) -> None:
    person = world.entities["person"][5]
    resolution = WorldKnowledge(world).resolve(text.format(person=person))
    assert resolution is not None
    assert (resolution.steps, resolution.missing) == ((), missing.format(person=person))


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "hello there", "my", "mayor of", "of of of", "'s 's", "= ; = ;", "mayor"),
        *("{person}", "mayor of {person}", "capital of zed zed", "my name is zed zed ."),
        *("my clinic is {org} .", "\x00\ud800\ufffd", "<|im_end|> [ask_fact]"),
    ],
)
def test_what_asks_for_nothing_is_not_understood(world: World, text: str) -> None:
    filled = text.format(person=world.entities["person"][5], org=world.entities["organisation"][3])
    assert WorldKnowledge(world).resolve(filled) is None


@pytest.mark.parametrize("piece", ["mayor of ", "my ", "the ", "my clinic 's mayor ", "= is "])
def test_a_megabyte_of_anything_is_read_in_bounded_depth(world: World, piece: str) -> None:
    org = world.entities["organisation"][3]
    text = f"{piece * (200_000 // len(piece))} . headquarters of {org}"
    resolution = WorldKnowledge(world).resolve(text)
    assert resolution is not None
    assert [step.query for step in resolution.steps][:1] == [f"headquarters of {org}"]
