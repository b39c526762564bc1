"""How an answer is graded: normalisation, exact match, token F1 and loose list accuracy.

Every function takes the predicted text and all accepted answers and returns the best score in
[0, 1]. An accepted answer of several parts is one string, parts joined by `PART`, a part that has
a name written "name: value" (see `answer_parts`). Tasks choose the answers; rewards and evaluation
call these functions.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from fractions import Fraction

PART = "; "  # between the parts of a list answer
PAIR = ": "  # between a part's name and its value

# At most 200 digits, so that no generated text can make arithmetic slow or overflow a float.
_DIGITS = r"(?:\d{1,3}(?:,\d{3}){1,60}|\d{1,200})(?:\.\d{1,100})?|\.\d{1,100}"
# A sign counts only where no word or digit stands before it: "35-75" is a range.
_NUMBER = re.compile(rf"(?<![\w.])(?:(?<![\w%)])([-\u2212]))?(?:[$£€¥]\s?)?([-\u2212])?({_DIGITS})")
_FRACTION = re.compile(rf"((?<![\w%)])[-\u2212])?({_DIGITS})\s?/\s?({_DIGITS})(?![\d/])")
_ARTICLE = re.compile(r"\b(?:a|an|the)\b")
_RANGE = re.compile(r"(?<=\d)\s?[-\u2013\u2014]\s?(?=[\d$£€¥])")
_BOOLEAN = frozenset({"yes", "no", "noanswer"})


def canonical_number(value: Fraction) -> str:
    """Shortest decimal form: "12", "0.25"; a fraction without one is rounded to 6 places."""
    if value.denominator == 1:
        return str(value.numerator)
    return f"{float(value):.6f}".rstrip("0").rstrip(".")


def _strip_punctuation(text: str) -> str:
    """Drop Unicode punctuation and symbols, as SQuAD does for ASCII ones."""
    return "".join(char for char in text if unicodedata.category(char)[0] not in "PS")


def _value(match: re.Match[str]) -> Fraction:
    """The number of one `_NUMBER` match."""
    value = Fraction(match[3].replace(",", ""))
    return -value if match[1] or match[2] else value


def normalise(text: str) -> str:
    """Lower case, no articles, no punctuation, single spaces; numbers in one form.

    "The 1,000 Men" and "1000 men" agree, so do "$12.00" and "12" or "20%" and "20"; a minus sign
    survives, "12 apples" is not "12".
    Source: Rajpurkar et al. 2016 (SQuAD); the rule for numbers is our choice, because generated
    numbers differ in form only.
    """
    text = _RANGE.sub(" ", unicodedata.normalize("NFKC", text).lower())
    pieces: list[str] = []
    end = 0
    for match in _NUMBER.finditer(text):
        pieces.append(_strip_punctuation(text[end : match.start()]))
        pieces.append(canonical_number(_value(match)))
        end = match.end()
    pieces.append(_strip_punctuation(text[end:]))
    return " ".join(_ARTICLE.sub(" ", "".join(pieces)).split())


def last_number(text: str) -> Fraction | None:
    """The last number a text states ("3 + 4 = 7 apples" gives 7), "1/2" read as a half."""
    text = _RANGE.sub(" ", unicodedata.normalize("NFKC", text))
    matches = list(_NUMBER.finditer(text))
    if not matches:
        return None
    value = _value(matches[-1])
    for fraction in _FRACTION.finditer(text):
        if fraction.end() == matches[-1].end() and value:
            value = Fraction(fraction[2].replace(",", "")) / value
            value = -value if fraction[1] else value
    return value


def as_number(text: str) -> Fraction | None:
    """The value of a text that is nothing but a number (after normalisation), else None."""
    match = _NUMBER.search(unicodedata.normalize("NFKC", text))
    if match is None:
        return None
    value = _value(match)
    return value if normalise(text) == canonical_number(value) else None


def answer_parts(answer: str) -> tuple[tuple[str, ...], ...]:
    """Parts of a canonical answer: "a: 1; b: 2" gives (("a", "1"), ("b", "2")).

    A name may itself hold ": " (film titles do), a value may not.
    """
    return tuple(tuple(part.rsplit(PAIR, 1)) for part in answer.split(PART) if part.strip())


def _best(score: Callable[[str, str], float], prediction: str, answers: Sequence[str]) -> float:
    if not answers:
        raise ValueError("answers is empty; a graded problem needs at least one accepted answer")
    return max(score(prediction, answer) for answer in answers)


def _exact(prediction: str, answer: str) -> float:
    number = as_number(answer)
    if number is not None:
        return float(last_number(prediction) == number)
    if PART in answer:
        parts = (
            Counter(normalise(part) for part in text.split(PART.strip()) if part.strip())
            for text in (prediction, answer)
        )
        return float(next(parts) == next(parts))
    return float(normalise(prediction) == normalise(answer))


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """1.0 where the prediction equals an accepted answer after normalisation.

    A numeric answer is compared with the last number of the prediction, the usual rule for
    grade-school mathematics (Cobbe et al. 2021). A list answer matches in any order.
    """
    return _best(_exact, prediction, answers)


def _f1(prediction: str, answer: str) -> float:
    if as_number(answer) is not None:
        return _exact(prediction, answer)
    predicted, expected = normalise(prediction), normalise(answer)
    if predicted == expected:
        return 1.0
    if {predicted, expected} & _BOOLEAN:
        return 0.0
    predicted_tokens, expected_tokens = predicted.split(), expected.split()
    shared = (Counter(predicted_tokens) & Counter(expected_tokens)).total()
    if not shared:
        return 0.0
    return 2.0 * shared / (len(predicted_tokens) + len(expected_tokens))


def f1(prediction: str, answers: Sequence[str]) -> float:
    """Token F1, the best over the accepted answers. Never below exact match.

    A number is right or wrong, so a numeric answer scores its exact match; "yes" and "no" earn
    nothing inside a longer text.
    Source: Rajpurkar et al. 2016; yes and no as Yang et al. 2018 (HotpotQA).
    """
    return _best(_f1, prediction, answers)


def _loose(prediction: str, answer: str) -> float:
    pieces = (normalise(piece) for part in answer_parts(answer) for piece in part)
    wanted = [piece for piece in pieces if piece]
    text = f" {normalise(prediction)} "
    return sum(f" {piece} " in text for piece in wanted) / len(wanted) if wanted else 0.0


def loose_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Share of the answer's strings (names and values) that stand in the prediction as whole words.

    Source: Zhu et al. 2024 (FanOutQA), "loose accuracy"; words are not lemmatised here, so that no
    language model is needed: a plural for a singular counts as missing.
    """
    return _best(_loose, prediction, answers)
