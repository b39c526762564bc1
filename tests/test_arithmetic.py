"""Arithmetic in running text: the parser, the finder, worked equations."""

from fractions import Fraction

import numpy as np
import pytest

from collab.tasks import arithmetic


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("2 * (3 + 4.5)", Fraction(15)),
        ("10 - 2 - 3", Fraction(5)),
        ("8 / 4 / 2", Fraction(1)),
        ("2 + 3 * 4", Fraction(14)),
        ("-(2 + 3)", Fraction(-5)),
        ("3 - -2", Fraction(5)),
        ("1 / 3", Fraction(1, 3)),
        ("0.1 + 0.2", Fraction(3, 10)),
    ],
)
def test_evaluate_is_exact(expression: str, expected: Fraction) -> None:
    assert arithmetic.evaluate(expression) == expected


@pytest.mark.parametrize(
    "expression",
    ["", "3 +", "* 3", "2 ** 3", "1 / 0", "(1 + 2", "1 + 2)", "__import__('os')", "a + 1", "1 2",
     "--1", "(" * 40 + "1" + ")" * 40],
)  # fmt: skip
def test_evaluate_refuses(expression: str) -> None:
    with pytest.raises(ValueError, match="expression"):
        arithmetic.evaluate(expression)
    assert not arithmetic.is_expression(expression)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("What is 12*8?", [("12 * 8", 96)]),
        ("She has 32 girls x 2 boys/girl left", [("32 * 2", 64)]),
        ("17 balls * $15/ball", [("17 * 15", 255)]),
        ("54 ounces/6", [("54 / 6", 9)]),
        ("3 × 4 ÷ 2", [("3 * 4 / 2", 6)]),
        ("9+2(21) minutes", [("9 + 2 * (21)", 51)]),
        ("(the sum 3 + 4)", [("3 + 4", 7)]),
        ("1,000 + 2", [("1000 + 2", 1002)]),
        ("3 + 4 and then 5 - 6", [("3 + 4", 7), ("5 - 6", -1)]),
        ("3 apples and 4 pears", []),
        ("6 / 0", []),
        ("five plus 3", []),
    ],
)
def test_find_expressions(text: str, expected: list[tuple[str, int]]) -> None:
    assert arithmetic.find_expressions(text) == expected


@pytest.mark.parametrize(
    ("sentence", "left", "value", "is_arithmetic"),
    [
        ("for a total of 11*3 = 33 minutes", "11 * 3", Fraction(33), True),
        ("he needs 5 more. 90 - 77 signatures = 13", "90 - 77", Fraction(13), True),
        ("100% - 20% = 80% of them", "100 - 20", Fraction(80), True),
        ("$1056 * 25% = $264", "1056 * (25/100)", Fraction(264), True),
        ("15/60 = 1/4 km", "15 / 60", Fraction(1, 4), True),
        ("20 / 3 = 6.6666667", "20 / 3", Fraction("6.6666667"), True),
        ("that's 0.34*60 = 20 students", "that's 0.34*60", Fraction(20), False),
        ("Karen = 438 points", "Karen", Fraction(438), False),
        ("it fell by 3 - 5 = -2", "3 - 5", Fraction(-2), True),
    ],
)
def test_read_equation(sentence: str, left: str, value: Fraction, is_arithmetic: bool) -> None:
    equation = arithmetic.read_equation(sentence)
    assert equation is not None
    assert (equation.value, equation.is_arithmetic) == (value, is_arithmetic)
    assert equation.left.replace(" ", "") == left.replace(" ", "")


@pytest.mark.parametrize("sentence", ["She has 5.", "x = y", "= ", ""])
def test_no_equation(sentence: str) -> None:
    assert arithmetic.read_equation(sentence) is None


@pytest.mark.timeout(20)  # backtracking took minutes on these before
@pytest.mark.parametrize(
    "text",
    ["(" * 5000, "1 + " * 3000, "1 " + "a" * 40 + "' ", "1 x " * 3000, "1 a-a-a " * 500,
     "9" * 6000],
)  # fmt: skip
def test_long_text_is_read_in_linear_time(text: str) -> None:
    for _, value in arithmetic.find_expressions(text * 10):
        assert isinstance(value, Fraction)


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("36 + 17", ["36 + 17 = 53"]),
        ("(36 + 17) - 9", ["36 + 17 = 53", "53 - 9 = 44"]),
        ("2 * ((1 + 2) * (4 + 5))", ["1 + 2 = 3", "4 + 5 = 9", "3 * 9 = 27", "2 * 27 = 54"]),
        ("(18 * 7) + (18 * 7)", ["18 * 7 = 126", "126 + 126 = 252"]),  # equal ones once
        ("4 * (12)", ["4 * 12 = 48"]),  # a lone number is no step
        ("(1 / 16) * 2", ["1 / 16 = 1/16", "0.0625 * 2 = 1/8"]),
        ("(1 / 3) * 3", ["(1 / 3) * 3 = 1"]),  # no decimal form
        ("4 - (3 - 5)", ["4 - (3 - 5) = 6"]),  # below zero
    ],
)
def test_take_apart(expression: str, expected: list[str]) -> None:
    found = arithmetic.take_apart(expression)
    assert [f"{part} = {value}" for part, value in found] == expected


def test_take_apart_refuses_what_is_no_arithmetic() -> None:
    with pytest.raises(ValueError, match="divides by zero"):
        arithmetic.take_apart("(1 / 0) + 1")


@pytest.mark.parametrize(
    ("chain", "expected"),
    [
        ([("2 + 3", "5")], "2 + 3"),
        ([("2 + 3", "5"), ("5 * 4", "20")], "(2 + 3) * 4"),
        ([("2 + 3", "5"), ("5 * 4", "20"), ("20 - 5.0", "15")], "((2 + 3) * 4) - (2 + 3)"),
        ([("2 + 3", "5"), ("15 * 4", "60")], "15 * 4"),  # 15 holds a 5, but is another number
    ],
)
def test_nest(chain: list[tuple[str, str]], expected: str) -> None:
    assert arithmetic.nest(chain) == expected


def test_nested_chains_have_the_chains_value_and_steps() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        chain, value = [], Fraction(int(rng.integers(1, 50)))
        for _ in range(int(rng.integers(1, 6))):
            number, sign = int(rng.integers(1, 50)), "+*"[int(rng.integers(2))]
            expression = f"{value} {sign} {number}"
            value = arithmetic.evaluate(expression)
            chain.append((expression, str(value)))
        found = arithmetic.take_apart(arithmetic.nest(chain))
        assert found[-1][1] == value
        assert {str(part) for _, part in found} <= {answer for _, answer in chain}
