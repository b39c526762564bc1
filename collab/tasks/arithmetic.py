"""Arithmetic in running text: find expressions, evaluate them exactly, read worked equations.

No `eval`: a small recursive-descent parser over + - * / and brackets, on fractions. Units between
numbers and operators are skipped ("32 girls x 2 boys/girl" is 32 * 2).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from fractions import Fraction

_NUMBER = r"(?:[$£€¥]\s?)?(?:\d{1,3}(?:,\d{3}){1,6}|\d{1,18})(?:\.\d{1,20})?%?"
# "boys/girl", "fourth-grade", the "/share" of "$80/share"; but no product sign. Quantifiers are
# possessive: requests are generated text, and backtracking over a long word takes minutes.
_UNIT = r"(?:\s*+/?+(?!x\b)[^\W\d_]++(?:[-'/.][^\W\d_]++)*+'?+)"
_OPERAND = rf"[(\s]{{0,8}}-?{_NUMBER}\){{0,8}}{_UNIT}{{0,6}}+[)\s]{{0,8}}"
_OPERATOR = r"(?:[-+*/×÷−–]|x(?![^\W\d_]))|(?=\()"  # nothing before a bracket: a product
_EXPRESSION = re.compile(rf"(?<![\w.])(?:{_OPERAND}(?:{_OPERATOR})){{1,24}}{_OPERAND}")
_VALUE = re.compile(rf"\s*(-?)({_NUMBER})(?:\s?/\s?(\d{{1,9}})(?!\d))?")
_SPELLED = str.maketrans({"×": "*", "x": "*", "÷": "/", "−": "-", "–": "-"})
_TOKEN = re.compile(r"\d+(?:\.\d+)?|\.\d+|[-+*/()]")
_MAX_DEPTH = 32  # of brackets; deeper text is no arithmetic anyone wrote
_DIGITS = re.compile(r"\d+(?:\.\d+)?")
_INNERMOST = re.compile(r"\(([^()]*)\)")


class _Parser:
    """Recursive descent: sum -> product -> signed -> number or bracket."""

    def __init__(self, text: str) -> None:
        self._tokens = _TOKEN.findall(text)
        if "".join(self._tokens) != "".join(text.split()):
            raise ValueError("an expression holds only numbers, + - * / and brackets")
        self._at = 0
        self._depth = 0

    def _peek(self) -> str:
        return self._tokens[self._at] if self._at < len(self._tokens) else ""

    def _take(self) -> str:
        token = self._peek()
        self._at += 1
        return token

    def whole(self) -> Fraction:
        value = self._sum()
        if self._peek():
            raise ValueError(f"an expression can't go on with {self._peek()!r}")
        return value

    def _sum(self) -> Fraction:
        value = self._product()
        while self._peek() in ("+", "-"):
            value = value + self._product() if self._take() == "+" else value - self._product()
        return value

    def _product(self) -> Fraction:
        value = self._signed()
        while self._peek() in ("*", "/"):
            if self._take() == "*":
                value *= self._signed()
                continue
            divisor = self._signed()
            if not divisor:
                raise ValueError("an expression divides by zero")
            value /= divisor
        return value

    def _signed(self) -> Fraction:
        token = self._take()
        if token == "-" and self._peek() != "-":
            return -self._signed()
        if token == "(":
            self._depth += 1
            if self._depth > _MAX_DEPTH:
                raise ValueError(f"an expression nests more than {_MAX_DEPTH} brackets")
            value = self._sum()
            self._depth -= 1
            if self._take() != ")":
                raise ValueError("an expression lacks a closing bracket")
            return value
        if not token or token in "+-*/)":
            raise ValueError("an expression lacks a number")
        return Fraction(token)


def evaluate(expression: str) -> Fraction:
    """The exact value of "2 * (3 + 4.5)".

    Raises: ValueError for anything that is not arithmetic on decimals, and for a zero divisor.
    """
    return _Parser(expression).whole()


def is_expression(text: str) -> bool:
    """Whether a text is arithmetic and nothing else, in the form that `evaluate` reads."""
    try:
        evaluate(text)
    except ValueError:
        return False
    return True


def spell(text: str) -> str:
    """Arithmetic in one spelling: "$32 girls x 2(3)" becomes "32 * 2 * (3)"; units are dropped."""
    text = re.sub(r"[$£€¥,%]", "", text.replace(" x ", " * "))
    text = re.sub(r"(?<=[\d)\s])x(?=[\s(\d])", "*", text)
    text = re.sub(_UNIT, " ", text).translate(_SPELLED)
    text = re.sub(r"(?<=[\d)])\s*(?=\()", "*", text)
    text = re.sub(r"\s*([-+*/])\s*", r" \1 ", text.strip())
    text = re.sub(r"(^|[(*/+-] ?) - (?=[\d(.])", r"\1-", text)
    return re.sub(r"\(\s+", "(", re.sub(r"\s+\)", ")", text)).strip()


def find_expressions(text: str) -> list[tuple[str, Fraction]]:
    """Every expression of two or more numbers in a text, in `spell` form, with its exact value.

    What can't be evaluated ("6 / 0") is left out.
    """
    found = []
    for match in _EXPRESSION.finditer(text):
        expression = _balanced(spell(match[0]))
        try:
            found.append((expression, evaluate(expression)))
        except ValueError:
            continue
    return found


def take_apart(expression: str) -> list[tuple[str, Fraction]]:
    """Evaluate bracket by bracket, innermost first: "(2 + 3) * 4" is 2 + 3 = 5, 5 * 4 = 20.

    Equal brackets are one step, a bracket around a lone number none. An expression that has a
    bracket below zero, or without a short decimal value (1/3), stays whole.
    Raises: ValueError as `evaluate`.
    """
    value, rest = evaluate(expression), expression
    steps: list[tuple[str, Fraction]] = []
    while match := _INNERMOST.search(rest):
        result = evaluate(match[1])
        written = _decimal(result)
        if written is None:
            return [(expression, value)]
        if not _TOKEN.fullmatch(match[1].strip()):
            steps.append((match[1].strip(), result))
        rest = rest.replace(match[0], written)
    return [*steps, (rest, value)]


def _decimal(value: Fraction) -> str | None:
    """Exact decimal form with at most six places of a value of 0 or more, else None."""
    scaled = value * 10**6
    if scaled.denominator != 1 or value < 0:
        return None
    digits = f"{scaled.numerator:07d}"
    return f"{digits[:-6]}.{digits[-6:]}".rstrip("0").rstrip(".")


def nest(expressions: Sequence[tuple[str, str]]) -> str:
    """One expression for a chain of (expression, its value): the last, earlier ones in brackets.

    "2 + 3" = 5, then "5 * 4" = 20 gives "(2 + 3) * 4". A number that equals an earlier value is
    taken for it, which changes no result.
    """
    origin: dict[Fraction, str] = {}
    nested = ""
    for expression, value in expressions:
        nested = _DIGITS.sub(
            lambda match: f"({found})" if (found := origin.get(Fraction(match[0]))) else match[0],
            expression,
        )
        origin.setdefault(Fraction(value), nested)
    return nested


def _balanced(expression: str) -> str:
    """Without the brackets of the sentence around it: "(3 + 4" and "3 + 4)" are 3 + 4."""
    while expression.count("(") > expression.count(")") and "(" in expression:
        expression = expression.replace("(", "", 1)
    while expression.count(")") > expression.count("("):
        expression = expression[: expression.rindex(")")] + expression[expression.rindex(")") + 1 :]
    return expression.strip()


@dataclasses.dataclass(frozen=True)
class Equation:
    """One "left = value" of a worked solution.

    left: the expression in `spell` form where it is arithmetic that gives `value`; else the text.
    """

    left: str
    value: Fraction
    is_arithmetic: bool


def read_equation(sentence: str) -> Equation | None:
    """The last equation of a sentence whose right side starts with a number; None without one."""
    parts = sentence.split("=")
    for at in range(len(parts) - 1, 0, -1):
        match = _VALUE.match(parts[at])
        if not match:
            continue
        value = Fraction(re.sub(r"[^\d.]", "", match[2])) / (int(match[3] or 1) or 1)
        value = -value if match[1] else value
        for expression, result in _trailing(parts[at - 1]):
            # Solutions write rounded decimals ("12.3333"), hence the tolerance.
            if abs(result - value) <= abs(value) * Fraction(1, 10**6):
                return Equation(expression, value, is_arithmetic=True)
        return Equation("=".join(parts[:at]).strip(), value, is_arithmetic=False)
    return None


def _trailing(text: str) -> list[tuple[str, Fraction]]:
    """The expression that ends where the text ends; with percents, also read as hundredths."""
    last = None
    for match in _EXPRESSION.finditer(text):
        last = match[0] if not text[match.end() :].strip(" .") else None
    if last is None:
        return []
    readings = [last, re.sub(r"(\d[\d.]*)%", r"(\1/100)", last)] if "%" in last else [last]
    return [found for reading in readings for found in find_expressions(reading)[:1]]
