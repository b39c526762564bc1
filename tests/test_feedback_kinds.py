"""The verdicts of experiments/feedback_kinds, on replies written by hand."""

from __future__ import annotations

import pytest

from collab.types import FeedbackKind, Step
from experiments.feedback_kinds.scoring import gives_away, is_typed, verdict

TOLD = (Step("36 + 17", "53"), Step("53 - 9", "40"), Step("40 * 2", "80"))  # 53 - 9 = 44


@pytest.mark.parametrize(
    ("kind", "text", "expected"),
    [
        (FeedbackKind.CORRECTION, "53 - 9 = 44", "first wrong step"),
        (FeedbackKind.ANSWER, "Step 2 is wrong.", "first wrong step"),
        (FeedbackKind.ANSWER, "No, it is incorrect: that makes 44", "first wrong step"),
        (FeedbackKind.CORRECTION, "36+17 is 54, and 53 - 9 = 44", "another step"),
        (FeedbackKind.CORRECTION, "the third step", "another step"),
        (FeedbackKind.CORRECTION, "something is off", "nothing of these"),
        (FeedbackKind.ANSWER, "36 + 17 = 53 ; 53 - 9 = 40", "nothing of these"),
        (FeedbackKind.ANSWER, "Right", "right"),
        (FeedbackKind.ANSWER, "That is not right", "nothing of these"),
        (FeedbackKind.HINT, "36 + 17 = 53 is right", "nothing of these"),
        (FeedbackKind.REFUSE, "I do not know", "refused"),
    ],
)
def test_what_a_check_comes_to(kind: FeedbackKind, text: str, expected: str) -> None:
    assert verdict(kind, text, TOLD, 1, "44") == expected


def test_of_a_right_solution_no_step_is_the_first_wrong_one() -> None:
    assert verdict(FeedbackKind.CORRECTION, "53 - 9 = 44", TOLD, None, "") == "another step"
    assert verdict(FeedbackKind.ANSWER, "Yes, all correct", TOLD, None, "") == "right"


def test_of_two_steps_that_ask_the_same_the_wrong_one_is_meant() -> None:
    twice = (Step("2 * 3", "6"), Step("2 * 3", "7"))
    assert verdict(FeedbackKind.CORRECTION, "2 * 3 = 6", twice, 1, "6") == "first wrong step"


def test_a_hint_gives_away_what_the_request_does_not_hold() -> None:
    assert gives_away("subtract 9, that is 44.", "What is 36 + 17 - 9?", "44")
    assert not gives_away("take 9 off 440", "What is 36 + 17 - 9?", "44")
    assert not gives_away("36 + 17", "What is 36 + 17 - 17?", "36")
    assert gives_away("It is KANO Bel!", "director of Star Fall", "Kano bel")


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ('{"kind": "hint", "text": "x"}', True),
        ('Sure: {"kind": "hint", "text": "x"}', True),
        ("HINT: x", True),
        ("The next step is x.", False),
        ("", False),
    ],
)
def test_which_replies_are_typed(raw: str, expected: bool) -> None:
    assert is_typed(raw) is expected
