"""Which parts of a person's name are a leak, and which are words of other names."""

from __future__ import annotations

import pytest

from collab.privacy.detector import Detector
from collab.types import PrivateUnit

MARGARET = "Dr. Margaret Olivia Thornbury"


def is_leaked(text: str, kind: str, request: str) -> bool:
    return bool(Detector([PrivateUnit(text, kind)]).leaked([request])[0])


@pytest.mark.parametrize(
    "text",
    [
        *("Margaret Olivia Thornbury", "Margaret Thornbury", "Margaret O. Thornbury"),
        *("M. Thornbury", "m thornbury", "M. O. Thornbury", "MO Thornbury", "Thornbury, M."),
        *("Dr. Thornbury", "Mrs Thornbury's", "doctor thornbury", "Margaret T.", "Margaret O. T."),
        *("signed M.O.T.", "M. O. T. said", "ThornburyMargaret", "m-thornbury"),
    ],
)
def test_the_parts_of_a_name_that_give_a_person_away(text: str) -> None:
    assert is_leaked(MARGARET, "doctor", f"ask {text} today")


@pytest.mark.parametrize(
    "text",
    [
        *(
            "Margaret",
            "Thornbury",
            "Olivia",
            "the Thornbury estate",
            "Margaret Young",
            "MOT",
            "M.T.",
        ),
        *("N. Thornbury", "Thornbury, N.", "Margaret S.", "Dr. Margaret", "Olivia M.", "M. Young"),
        *("Adam's Thornbury", "Kim's M Thornburys", "thornbury margin", "Margaret Tan", "mo farah"),
    ],
)
def test_the_parts_of_a_name_that_many_bear(text: str) -> None:
    assert not is_leaked(MARGARET, "doctor", f"ask {text} today")


def test_an_initial_that_is_a_word_needs_its_full_stop() -> None:
    for text in ("A. Stone", "stone, a.", "Dr Stone", "Ann S.", "A.S."):
        assert is_leaked("Ann Stone", "person", f"who is {text} ?")
    for text in ("a stone", "the stone, a gift", "Ann said", "A.S. Byatt"):
        assert not is_leaked("Ann Stone", "person", f"what is {text} ?")
    assert not is_leaked("Uma Sand", "person", "in the U.S. today")


def test_the_middle_initial_may_be_that_of_the_last_name() -> None:
    assert is_leaked("Tomasz Zoe Zhang", "person", "is Tomasz Z. known ?")
    assert is_leaked("Tomasz Zoe Zhang", "person", "is Tomasz Z. Z. known ?")


def test_only_people_have_initials() -> None:
    assert not is_leaked("Elm Stone", "clinic", "E. Stone")
    assert is_leaked("Dr Elm Stone", "contact card", "E. Stone")
    assert is_leaked("Ludo van der Berg", "friend", "L. van der Berg")
    assert not is_leaked("Ludo van der Berg", "friend", "L. Berg")
