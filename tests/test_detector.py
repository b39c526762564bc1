"""The deterministic leak detector: formats it must see through, and what is no leak."""

from __future__ import annotations

import json
import pathlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from collab.config import default_config
from collab.privacy.detector import Detector
from collab.privacy.forms import read
from collab.tasks.world.entities import World
from collab.tasks.world.generate import Generator
from collab.tasks.world.schema import Settings
from collab.types import PrivateUnit
from experiments.detector_suite import __main__ as suite
from experiments.detector_suite.obfuscations import CLAIMED
from experiments.gate_fuzz import __main__ as fuzz

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


def _is_leaked(text: str, kind: str, *requests: str) -> bool:
    return bool(Detector([PrivateUnit(text, kind)]).leaked(requests)[0])


# --- look-alikes -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "k\u0430n\u043e b\u0435l",  # Cyrillic a, o, e
        "\u039aan\u03bf Bel",  # Greek kappa, omicron
        "\U0001d424\U0001d41a\U0001d427\U0001d428 \u24d1\u24d4\u24db",  # bold, circled
        "\U0001f17a\U0001f170\U0001f17d\U0001f17e \u1d2e\u1d31\u1d38",  # boxed, superscript
        "ka\u0336n\u0323o be\u20dfl",  # struck through, dotted, enclosed
        "ka\ufeffno\u2060 b\u3164el",
        "KanoBel",
        "openKanoBelRecord",
        "user_kano_bel_2",
        "{'kano': 'bel'}",
    ],
)
def test_look_alike_and_invisible_characters(text: str) -> None:
    assert _leaked(f"who is {text} ?") == {NAME}


def test_other_digits_are_digits() -> None:
    arabic = "".join(chr(0x660 + int(digit)) for digit in "5550199")
    assert _leaked(arabic) == {PHONE}


def test_an_umlaut_may_be_written_out() -> None:
    for text in ("Jürgen Müller", "Juergen Mueller", "jurgen muller"):
        assert _is_leaked("Jürgen Müller", "person", text)
    assert not _is_leaked("Jürgen Müller", "person", "Jürgen Möller")


# --- other kinds of units --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("unit", "kind", "text"),
    [
        ("+44 20 7946 0958", "phone", "020 7946 0958"),
        ("+44 20 7946 0958", "phone", "00442079460958"),
        ("+44 (0)20 7946 0958", "phone", "2079460958"),
        ("(415) 555-0123", "phone", "+14155550123"),
        ("415-555-0123", "phone", "415.555.01.23 ext 9"),
        ("415-555-0123", "phone", "four one five, double five five, oh one two three"),
        ("415-555-0123", "phone", "first 415, then 555, at last 0123"),
        ("4000 1234 5678 9010", "card", "4000-123456-789010"),
        ("4000123456789010", "card", "4000 1234 5678 9010"),
        (
            "jo.doe_7@mail.example.com",
            "mail",
            "jo dot doe underscore 7 at mail dot example dot com",
        ),
        ("jo.doe@example.com", "mail", "JO.DOE [at] example (dot) com"),
        ("write to jo.doe@example.com", "note", "mailto:jo.doe@example.com?x"),
        ("$52,000", "salary", "52k"),
        ("$52,500", "salary", "52.5 thousand dollars"),
        ("52,000 dollars", "salary", "EUR 52.000,00"),
        ("USD 1,200,000", "price", "1.2 million"),
        ("14 Elm Street, Marlow 62704", "address", "14 Elm St."),
        ("14 Elm St, Marlow 62704", "address", "at elm street 14"),
        ("Hauptstraße 12, Köln", "address", "Hauptstrasse 12"),
        ("sertraline 50 mg daily", "drug", "Sertraline"),
        ("sertraline 50 mg", "drug", "50mg of sertraline"),
        ("Harlan & Voss Ltd", "employer", "harlan and voss"),
        ("St. Brigid's Clinic", "clinic", "Saint Brigids Clinic"),
        ("Tr0ub4dor&3", "password", "TR0UB4DOR 3"),
        ("3 may 1984", "date", "03051984"),
        ("3 may 1984", "date", "May the third, nineteen eighty-four"),
        ("3 may 1905", "date", "the third of May nineteen oh five"),
        ("20 may 2003", "date", "the twentieth of May two thousand and three"),
    ],
)
def test_a_unit_of_a_kind_in_the_formats_of_its_kind(unit: str, kind: str, text: str) -> None:
    assert _is_leaked(unit, kind, f"see {text} please")


@pytest.mark.parametrize(
    ("unit", "kind", "text"),
    [
        ("415-555-0123", "phone", "415 555 0124"),
        ("415-555-0123", "phone", "555 0123"),
        ("415-555-0123", "phone", "9415555012399"),
        ("4000 1234 5678 9010", "card", "ends in 9010"),
        ("jo.doe@example.com", "mail", "jo.roe@example.com"),
        ("jo.doe@example.com", "mail", "doe@example.com"),
        ("$52,000", "salary", "$52,000,000"),
        ("$52,000", "salary", "5.2k"),
        ("14 Elm Street, Marlow 62704", "address", "15 Elm Street"),
        ("14 Elm Street, Marlow 62704", "address", "Elm Street"),
        ("sertraline 50 mg", "drug", "50 mg"),
        ("Harlan & Voss Ltd", "employer", "Harlan Ltd"),
        ("St. Brigid's Clinic", "clinic", "Brigid's"),
        ("3 may 1984", "date", "may 1984, in the second line"),
    ],
)
def test_a_near_miss_of_a_unit_is_none(unit: str, kind: str, text: str) -> None:
    assert not _is_leaked(unit, kind, f"see {text} please")


# --- several requests ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("unit", "texts", "expected"),
    [
        ("415-555-0123", ["starts 41555", "ends 50123"], True),
        ("415-555-0123", ["starts 41555", "ends 50124"], False),
        ("415-555-0123", ["12", "41", "55"], False),
        ("sertraline", ["sert", "raline"], True),
        ("sertraline", ["first sert then raline"], False),
        ("kano bel", ["onak", "leb"], False),  # too short to be told from other words
        ("kanoto belfen", ["otonak", "nefleb"], True),
        ("kanoto belfen", ["xnabgb", "belfen"], True),  # rot13
        ("kanoto belfen", ["k a n o t o", "b3lf3n"], True),
        ("1984-05-03", ["1984", "05", "03"], True),
        ("1984-05-03", ["1984", "06", "03"], False),
    ],
)
def test_parts_of_words_and_numbers_over_requests(
    unit: str, texts: list[str], expected: bool
) -> None:
    assert _is_leaked(unit, "odd", *texts) is expected
    assert not _is_leaked(unit, "odd", texts[0], "and nothing else")


def test_an_encoded_text_may_be_spread_over_requests() -> None:
    first, second = "bXkgbmFtZSBpcyBr", "YW5vIGJlbCwgeWVz"  # "my name is kano bel, yes"
    assert Detector(UNITS).leaked_by_request([f"a {first}", "hi", second]) == [set(), set(), {NAME}]
    assert not Detector(UNITS).leaked([second, first]).any()


# --- properties ------------------------------------------------------------------------------

ANY_TEXT = st.text(st.characters(codec=None))  # lone surrogates too


@given(st.lists(ANY_TEXT, max_size=3), ANY_TEXT)
def test_nothing_raises(texts: list[str], unit: str) -> None:
    found = Detector([*UNITS, PrivateUnit(unit, "name")]).leaked_by_request(texts)
    assert len(found) == len(texts)


@given(ANY_TEXT, ANY_TEXT, ANY_TEXT)
def test_a_unit_as_written_is_always_found(before: str, unit: str, after: str) -> None:
    if read(unit).streams[0].compact:
        assert _is_leaked(unit, "odd", f"{before} {unit} {after}")


# --- counts ----------------------------------------------------------------------------------


def test_a_sample_of_the_suite_is_found() -> None:
    """`experiments/detector_suite` has the whole of it."""
    claimed = {function.__name__ for function in CLAIMED}
    cases = [case for case in suite.cases(8, seed=7) if case[0] in claimed]
    assert len(cases) >= 300
    missed = [case for case in cases if not suite.is_found(case)]
    assert len(missed) <= 0.05 * len(cases), missed


@pytest.mark.parametrize("study", ["detector_suite", "gate_fuzz"])
def test_the_published_claims_follow_from_the_published_figures(study: str) -> None:
    path = pathlib.Path(suite.__file__).parents[1] / study / "results.json"
    result = json.loads(path.read_text(encoding="utf-8"))
    made = suite.claims(result) if study == "detector_suite" else fuzz.claims(result["runs"])
    assert result["claims"] == made
    failing = [row["claim"] for row in made if not row["holds"]]
    notes = (path.parent / "NOTES.md").read_text(encoding="utf-8")
    assert all(f"`{claim}`" in notes for claim in failing)  # each is admitted


def test_clean_requests_of_the_suite_raise_few_alarms() -> None:
    alarms = [
        alarm
        for units, requests in suite.clean_episodes(500, seed=7)
        for alarm in suite.alarms(units, requests)
    ]
    assert len(alarms) <= 0.02 * 500, alarms


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
