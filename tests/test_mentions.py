"""What a question names, by its spelling and by what the world knows."""

from __future__ import annotations

import pathlib

import pytest

from collab.config import default_config
from collab.tasks import make_task, mentions
from collab.tasks.mentions import NAME, NUMBER, Mention, NamingTask, spelled_mentions
from collab.tasks.world import WorldTask


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("Ann has 23 pears and 5 figs.", [Mention("23", NUMBER)]),
        ("Ann has 23 pears and Bob 23 more.", [Mention("Bob", NAME)]),
        ("It costs $50, 1,200 or 3.25, 10% off, at 10:30, in 20/30 or 12-ounce cans.", []),
        ("Where is Mount Everest? Where is K2?", [Mention("Mount Everest", NAME)]),
        ("Who won? Ann Bell? She beat Bob's aunt.", [Mention("Bob", NAME)]),
        ("Is the Nile or the 40 km path of Destiny's Child longer?", []),
        ("the UK or Jean-Luc O'Neil", [Mention("Jean-Luc O'Neil", NAME)]),
        ("", []),
    ],
)
def test_numbers_and_names_are_told_by_their_spelling(
    question: str, expected: list[Mention]
) -> None:
    assert spelled_mentions(question) == expected


def test_the_world_knows_what_its_questions_begin_from(tmp_path: pathlib.Path) -> None:
    config = default_config()
    config.task.update({"train": 300, "validation": 1, "test": 1})
    task = make_task(config, str(tmp_path))
    assert isinstance(task, WorldTask)
    assert isinstance(task, NamingTask)
    sorts = {"person": mentions.PERSON, "city": mentions.PLACE, "country": mentions.PLACE}
    sorts["organisation"] = mentions.ORGANISATION
    found = []
    for problem in task.problems("train"):
        named = task.mentions(problem)
        if problem.steps[0].is_local:
            assert not named
        for mention in named:
            assert problem.question.count(mention.text) == 1
            assert mention.sort == sorts[task.world.type_of[mention.text]]
            found.append(mention.sort)
    assert set(found) == set(sorts.values())
