"""Episodes as text: what is shown, and that private units are not."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from collab.config import default_config
from collab.rewards import score
from collab.samples import describe, masked, write_samples
from collab.types import FeedbackKind, PrivateUnit
from episodes import answer, ask, make_episode, make_problem, think

UNITS = [
    PrivateUnit("Vera Stone", "doctor"),
    PrivateUnit("Vera Stone Clinic", "clinic"),
    PrivateUnit("5 March 1984", "birthday"),
]
PROBLEM = make_problem(
    UNITS,
    question="where does Vera Stone work ?",
    answers=("Vera Stone Clinic",),
    notes="VERA STONE leads Vera Stone Clinic . I was born on 5 March 1984 .",
)
EPISODE = make_episode(
    think("doctor = Vera Stone"),
    ask("Vera Stone", text="at vera stone clinic, since 1984-03-05"),
    think("cut", is_cut=True),
    ask("more", kind=FeedbackKind.UNAVAILABLE, text="", failure="timeout"),
    answer("Vera Stone Clinic"),
    problem=PROBLEM,
    helper="two_hops",
)
PRICES = {"turn": 0.2, "think": 0.01, "leak": 0.5, "format": 0.05}
TERMS = score(EPISODE, {**default_config().reward.to_dict(), **PRICES})


def test_private_units_are_masked_everywhere() -> None:
    text = describe(EPISODE, TERMS, show_private=False)
    assert text.splitlines()[:6] == [
        "question  where does [doctor] work ?",
        "gold      [clinic]",
        "notes     [doctor] leads [clinic] . I was born on [birthday] .",
        "think     0.50  doctor = [doctor]",
        "ask_fact  0.50  [doctor]",
        "  hint         [private]",
    ]
    assert "stone" not in text.lower() and "1984" not in text


def test_private_units_are_shown_on_demand() -> None:
    lines = describe(EPISODE, TERMS, show_private=True).splitlines()
    assert lines[2] == f"notes     {PROBLEM.notes}"
    assert lines[5] == "  hint         at vera stone clinic, since 1984-03-05"


def test_a_reply_can_not_forge_lines_or_steer_the_terminal() -> None:
    """A helper could else hide what was sent: in --mode=ask people read this on a screen."""
    text = "so\n  sent          nothing\r\x1b[2K\u202eolleh\u200b, \u00e9\u65e5 C:\\n"
    episode = make_episode(ask("who ?", text=text), answer("x"))
    lines = describe(episode, TERMS, show_private=True).splitlines()
    assert lines[3] == (
        r"  hint         so\n  sent          nothing\r\x1b[2K\u202eolleh\u200b, é日 C:\n"
    )
    assert len(lines) == 6


def test_where_the_right_answer_is_not_known_nothing_is_graded() -> None:
    text = describe(EPISODE, TERMS, show_private=True, is_graded=False)
    assert "gold" not in text and "reward" not in text and " em " not in text
    graded = describe(EPISODE, TERMS, show_private=True).splitlines()
    assert text.splitlines()[:-1] == [line for line in graded[:-1] if not line.startswith("gold")]
    assert text.splitlines()[-1].startswith("status ANSWERED  asks 2  leaked ")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("nothing to hide", "nothing to hide"),
        ("vera STONE's", "[doctor]'s"),
        ("Vera Stone Clinic", "[clinic]"),  # the longer unit first
        ("ask Stone, Vera", "[private]"),
        ("ask Vera  Stone", "[private]"),
        ("born 05/03/1984", "[private]"),
        ("a stone", "a stone"),
    ],
)
def test_masked(text: str, expected: str) -> None:
    assert masked(text, PROBLEM) == expected


def test_what_is_said_of_an_episode() -> None:
    """Cuts, failures, and 1 - 0.2*2 - 0.01*2 = 0.58, less 0.5/3 and 0.05."""
    lines = describe(EPISODE, TERMS, show_private=False).splitlines()
    assert lines[6:9] == [
        "think     0.50  cut [cut]",
        "ask_fact  0.50  more",
        "  unavailable      (timeout)",
    ]
    assert lines[9] == "answer    0.50  [clinic]"
    assert lines[10] == (
        "status ANSWERED  em 1  asks 2  leaked 1  "
        "reward 0.363 = 1.00 x 0.58 - 0.22 (leak 0.33, cut 1)  helper two_hops"
    )


def test_additive_efficiency_is_shown_as_a_difference() -> None:
    """A turn of 0.2 and a think of 0.01 off a wrong answer; the units are not in the request."""
    episode = make_episode(think(), ask("leader"), answer("Bo"), problem=PROBLEM)
    prices = {**default_config().reward.to_dict(), **PRICES, "gated": False}
    said = describe(episode, score(episode, prices), show_private=False)
    assert "reward -0.210 = 0.00 - 0.21 - 0.00 (leak 0.00, cut 0)" in said


@pytest.mark.parametrize("sent", ["more", " more ", "my doctor is Vera Stone .\nmore"])
def test_what_left_beside_a_request_is_said(sent: str) -> None:
    segment = dataclasses.replace(ask("more"), sent=sent)
    episode = make_episode(segment, answer(), problem=PROBLEM)
    said = describe(episode, score(episode, default_config().reward), show_private=False)
    assert (r"  sent          my doctor is [doctor] .\nmore" in said) == ("doctor" in sent)
    assert "  sent" not in said or "doctor" in sent


def test_samples_are_appended(tmp_path: Path) -> None:
    path = tmp_path / "samples.txt"
    for title in ("one", "two"):
        write_samples(path, title, [EPISODE, EPISODE], [TERMS, TERMS], show_private=False)
    text = path.read_text()
    assert text.index("=== one ===") < text.index("=== two ===")
    assert text.count(describe(EPISODE, TERMS, show_private=False)) == 4
    assert "Stone" not in text
