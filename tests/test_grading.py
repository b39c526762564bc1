"""Answer grading: worked examples of every rule."""

from collections.abc import Callable, Sequence
from fractions import Fraction

import pytest

from collab.tasks import grading

Score = Callable[[str, Sequence[str]], float]

NORMALISED = [
    ("The 1,000 Men", "1000 men"),
    ("1000 men", "1000 men"),
    ("$12.00", "12"),
    ("12 apples", "12 apples"),
    ("20%", "20"),
    ("0.50", "0.5"),
    (".5", "0.5"),
    ("-5", "-5"),
    ("goals - 5", "goals 5"),
    ("at $ 5: 6.5 or 7", "at 5 6.5 or 7"),
    ("-$5", "-5"),
    ("$-5", "-5"),
    ("-0", "0"),
    ("35-75 lb", "35 75 lb"),
    ("2019–2023", "2019 2023"),
    ("Covid-19", "covid19"),
    ("The U.S.A.", "usa"),
    ("  A   man, an APPLE;\nthe end. ", "man apple end"),
    ("Theatre", "theatre"),
    ("“Seven”", "seven"),
    ("", ""),
    ("the", ""),
    ("１２", "12"),  # full-width digits
]


@pytest.mark.parametrize(("text", "expected"), NORMALISED)
def test_normalise(text: str, expected: str) -> None:
    assert grading.normalise(text) == expected


@pytest.mark.parametrize(("text", "expected"), NORMALISED)
def test_normalise_twice_changes_nothing(text: str, expected: str) -> None:
    assert grading.normalise(expected) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("3 + 4 = 7 apples", Fraction(7)),
        ("It costs $1,234.50!", Fraction(2469, 2)),
        ("x = 1/2", Fraction(1, 2)),
        ("-1/2", Fraction(-1, 2)),
        ("2/0", Fraction(0)),
        ("5 - 3", Fraction(3)),
        ("so -3.", Fraction(-3)),
        ("none", None),
    ],
)
def test_last_number(text: str, expected: Fraction | None) -> None:
    assert grading.last_number(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("$1,000.0", Fraction(1000)),
        ("12 apples", None),
        ("10:30", None),
        ("1, 2", None),
        ("", None),
    ],
)
def test_as_number(text: str, expected: Fraction | None) -> None:
    assert grading.as_number(text) == expected


@pytest.mark.parametrize(
    ("prediction", "answers", "expected"),
    [
        ("the Eiffel Tower.", ("Eiffel tower",), 1.0),
        ("Eiffel Tower in Paris", ("Eiffel tower",), 0.0),
        ("Paris", ("London", "paris"), 1.0),
        # numeric answers: the last number decides
        ("12 apples", ("12",), 1.0),
        ("He has 12 apples and eats 5", ("12",), 0.0),
        ("so 10 + 2 = 12.0", ("12",), 1.0),
        ("$1,000", ("1000",), 1.0),
        ("-12", ("12",), 0.0),
        ("twelve", ("12",), 0.0),
        ("", ("12",), 0.0),
        # an answer that merely holds a number is text
        ("12 pears", ("12 apples",), 0.0),
        # lists: any order, every part, no more
        ("y; x", ("x; y",), 1.0),
        ("Ann: 3; Bob: 4", ("Bob: 4; Ann: 3",), 1.0),
        ("x", ("x; y",), 0.0),
        ("x; y; z", ("x; y",), 0.0),
        ("x; x; y", ("x; y; y",), 0.0),
        ("", ("",), 1.0),
    ],
)
def test_exact_match(prediction: str, answers: tuple[str, ...], expected: float) -> None:
    assert grading.exact_match(prediction, answers) == expected


@pytest.mark.parametrize(
    ("prediction", "answers", "expected"),
    [
        ("red blue", ("red green",), 0.5),
        ("red", ("red green blue",), 0.5),
        ("red red", ("red",), 2 / 3),
        ("red", ("green", "red"), 1.0),
        ("red", ("green",), 0.0),
        ("12 apples", ("12",), 1.0),
        ("13 apples", ("12",), 0.0),
        ("yes it is", ("yes",), 0.0),
        ("yes", ("no",), 0.0),
        ("yes", ("Yes.",), 1.0),
        ("y; x", ("x; y; z",), 0.8),
        ("", ("red",), 0.0),
        ("the", ("a",), 1.0),
    ],
)
def test_f1(prediction: str, answers: tuple[str, ...], expected: float) -> None:
    assert grading.f1(prediction, answers) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("prediction", "answer", "expected"),
    [
        ("Ann is 3 and Bob is 5", "Ann: 3; Bob: 4", 0.75),
        ("Ann is 30", "Ann: 3", 0.5),
        ("The hobbits are Frodo, Sam", "Frodo; Sam; Pippin; Merry", 0.5),
        ("I think it was Patricia", "Pat", 0.0),
        ("population 1,428,627,663", "1428627663", 1.0),
        ("", "Ann", 0.0),
    ],
)
def test_loose_accuracy(prediction: str, answer: str, expected: float) -> None:
    assert grading.loose_accuracy(prediction, (answer,)) == expected


def test_answer_parts_splits_at_the_last_colon() -> None:
    assert grading.answer_parts("Squid Game: Season 1: 9; Dark: 8") == (
        ("Squid Game: Season 1", "9"),
        ("Dark", "8"),
    )


@pytest.mark.parametrize("score", [grading.exact_match, grading.f1, grading.loose_accuracy])
def test_no_accepted_answer_is_an_error(score: Score) -> None:
    with pytest.raises(ValueError, match="at least one"):
        score("x", ())


@pytest.mark.parametrize("score", [grading.exact_match, grading.f1, grading.loose_accuracy])
@pytest.mark.parametrize(
    "text", ["9" * 5000, "\x00\ud800", "1/" * 900, "-" * 5000, "; " * 500, "0." + "0" * 5000]
)
def test_any_text_is_graded(score: Score, text: str) -> None:
    assert 0.0 <= score(text, ("12", "a; b")) <= 1.0
    assert score(text, (text or "x",)) in (0.0, 1.0)


@pytest.mark.parametrize(
    ("value", "expected"),
    [(Fraction(12), "12"), (Fraction(1, 4), "0.25"), (Fraction(1, 3), "0.333333")],
)
def test_canonical_number(value: Fraction, expected: str) -> None:
    assert grading.canonical_number(value) == expected
