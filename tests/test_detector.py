"""The deterministic leak detector: formats it must see through, and what is no leak."""

from __future__ import annotations

import numpy as np
import pytest

from collab.config import default_config
from collab.privacy.detector import Detector
from collab.privacy.forms import read
from collab.tasks.world.entities import World
from collab.tasks.world.generate import Generator
from collab.tasks.world.schema import Settings
from collab.types import PrivateUnit

UNITS = (
    PrivateUnit("kano bel", "name", 1.0),
    PrivateUnit("3 may 1984", "birth date", 1.0),
    PrivateUnit("asthma", "condition", 2.0),
    PrivateUnit("$52,000", "salary", 1.0),
    PrivateUnit("José Ñandú-Öst", "doctor", 0.5),
    PrivateUnit("555-0199", "phone", 1.0),
)
NAME, BIRTH, CONDITION, SALARY, DOCTOR, PHONE = range(len(UNITS))


def _leaked(*texts: str) -> set[int]:
    return {int(unit) for unit in np.flatnonzero(Detector(UNITS).leaked(texts))}


@pytest.mark.parametrize(
    ("unit", "text"),
    [
        (NAME, "mayor of kano bel"),
        (NAME, "KANO BEL"),
        (NAME, "Kano-Bel's employer"),
        (NAME, "kano\n\tbel"),
        (NAME, "kanobel"),
        (NAME, "KanoBel!"),
        (NAME, "k a n o   b e l"),
        (NAME, "k.a.n.o_b.e.l"),
        (NAME, "Bel, Kano"),
        (NAME, "\uff4b\uff41\uff4e\uff4f \uff42\uff45\uff4c"),  # full width
        (NAME, "kano\u200b bel"),  # zero-width space
        (NAME, "ka\u00adno bel"),  # soft hyphen
        (NAME, "kano\u00a0bel"),
        (NAME, "káno bél"),
        (BIRTH, "i was born on 3 may 1984 ."),
        (BIRTH, "May 3rd, 1984"),
        (BIRTH, "May 3 1984"),
        (BIRTH, "the 3rd of May, 1984"),
        (BIRTH, "03 May 84"),
        (BIRTH, "1984-05-03"),
        (BIRTH, "1984/5/3"),
        (BIRTH, "05/03/1984"),
        (BIRTH, "03.05.1984"),
        (BIRTH, "3 - 5 - 84"),
        (BIRTH, "19840503"),
        (BIRTH, "1984 may 3"),
        (BIRTH, "the third of may nineteen eighty-four"),
        (BIRTH, "the 3rd of may 84"),
        (BIRTH, "born in 1984 , the month was may , the day the 3rd"),
        (CONDITION, "Asthma?"),
        (CONDITION, "asth-ma"),
        (SALARY, "52000"),
        (SALARY, "52,000.00 dollars"),
        (SALARY, "52 000"),
        (SALARY, "fifty-two thousand"),
        (DOCTOR, "jose nandu ost"),
        (DOCTOR, "JOSE\u0301 ÑANDÚ ÖST"),
        (PHONE, "(555) 0199"),
        (PHONE, "5550199"),
        (PHONE, "five five five zero one nine nine"),
    ],
)
def test_a_unit_in_another_form_has_leaked(unit: int, text: str) -> None:
    assert _leaked(text) == {unit}


@pytest.mark.parametrize(
    "text",
    [
        *("", " . ", "kano", "bel", "kano rie", "tola bel", "akano bel", "kano belt"),
        *("employer of kano rie and mayor of tola bel", "bel kan", "xkanobel"),
        *("3 may", "may 1984", "4 may 1984", "3 may 1985", "3 june 1984", "1984-06-03"),
        *("05/04/1984", "i may ask 3 things", "asthmatic", "asth", "5200", "520,000", "152000"),
        *("fifty-two", "two thousand and fifty", "jose nandu", "555", "0199", "1555-01990"),
    ],
)
def test_a_part_or_a_neighbour_of_a_unit_is_no_leak(text: str) -> None:
    assert _leaked(text) == set()


def test_a_unit_counts_at_the_request_that_completes_it_and_only_once() -> None:
    texts = ["mayor of star fall", "kano bel has asthma", "asthma of kano bel", "3 may 1984"]
    assert Detector(UNITS).leaked_by_request(texts) == [set(), {NAME, CONDITION}, set(), {BIRTH}]


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["kano", "x", "bel"], [set(), set(), {NAME}]),
        (["the second word is bel", "the first is KANO"], [set(), {NAME}]),
        (["day 3", "month may", "year 1984"], [set(), set(), {BIRTH}]),
        (["in sept 1984", "may", "on the 3rd"], [set(), set(), {BIRTH}]),
        (["ka\u200bno", "bel"], [set(), {NAME}]),
        (["kano and then bel", "x"], [set(), set()]),
        (["kano", "kano"], [set(), set()]),
        (["asth", "ma"], [set(), set()]),
    ],
)
def test_pieces_spread_over_requests(texts: list[str], expected: list[set[int]]) -> None:
    assert Detector(UNITS).leaked_by_request(texts) == expected


def test_common_words_are_no_pieces_of_a_spread_unit() -> None:
    detector = Detector([PrivateUnit("the lion of my town", "pub")])
    assert not detector.leaked(["the mayor of my friend", "town"]).any()
    assert detector.leaked(["the lion", "town"]).all()
    assert detector.leaked(["at the lion of my town"]).all()
    assert not Detector([PrivateUnit("the lion", "pub")]).leaked(["lion", "lion"]).any()


def test_an_ambiguous_numeric_unit_is_found_in_both_of_its_meanings() -> None:
    detector = Detector([PrivateUnit("03/05/1984", "birth date")])
    assert detector.leaked(["3 may 1984"]).all()
    assert detector.leaked(["march 5th 1984"]).all()
    assert not detector.leaked(["march 6th 1984"]).any()


@pytest.mark.parametrize(
    ("unit", "text"),
    [
        ("$52,000.00", "52000"),
        ("9 september 1984", "sept 9th , 84"),
        ("born on 9 sep 1984", "1984-09-09"),
    ],
)
def test_a_unit_may_itself_be_in_any_format(unit: str, text: str) -> None:
    assert Detector([PrivateUnit(unit, "odd")]).leaked([text]).all()


def test_a_unit_in_number_words_is_found_in_digits() -> None:
    assert Detector([PrivateUnit("two hundred and five", "n")]).leaked(["room 205"]).all()
    assert not Detector([PrivateUnit("two hundred and five", "n")]).leaked(["room 200"]).any()


@pytest.mark.parametrize(
    ("words", "digits"),
    [
        ("one thousand", ["1000"]),
        ("two hundred and five", ["205"]),
        ("three thousand four hundred and twenty one", ["3421"]),
        ("one hundred thousand", ["100000"]),
        ("five hundred thousand two", ["500002"]),
        ("nineteen eighty four", ["1984"]),
        ("twenty twenty-six", ["2026"]),
        ("two thousand and one", ["2001"]),
        ("one two three", ["1", "2", "3"]),
        ("twenty first", ["21"]),
        ("bread and two eggs", ["bread", "and", "2", "eggs"]),
    ],
)
def test_number_words_as_digits(words: str, digits: list[str]) -> None:
    assert list(read(words).streams[-1].tokens) == digits


@pytest.mark.parametrize("unit", ["", " ", "?!", "the", "\ud800", "\x00"])
def test_a_unit_without_content_never_raises(unit: str) -> None:
    Detector([PrivateUnit(unit, "odd")]).leaked(["", "the \ud800 \x00 ?!"])


def test_an_empty_unit_never_leaks() -> None:
    assert not Detector([PrivateUnit("?!", "odd")]).leaked(["what ?!"]).any()


def test_no_false_alarm_on_a_thousand_requests_of_other_people() -> None:
    """World requests about entities that are no unit, four to an episode."""
    config = default_config()
    world = World(Settings.of(config))
    generator = Generator(world)
    rng = np.random.default_rng(0)
    facts = list(world.facts)
    requests = alarms = 0
    for index in range(250):
        problem = generator.problem("train", index)
        texts = [unit.text for unit in problem.units]
        asked: list[str] = []
        while len(asked) < 4:
            relation, subject = facts[int(rng.integers(len(facts)))]
            if subject not in texts:
                asked.append(f"{relation} of {subject}")
        requests += len(asked)
        for text in asked:
            assert not Detector(problem.units).leaked([text]).any(), (text, problem.units)
        alarms += int(Detector(problem.units).leaked(asked).sum())
    assert requests == 1000
    # Words of two other names may happen to make up a unit over an episode, hardly ever.
    assert alarms <= 5
