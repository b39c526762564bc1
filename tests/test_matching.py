"""The text index: order of matches, shares, and what counts as another subject."""

import pytest

from collab.tasks.matching import TextIndex, numbers, tokens

TEXTS = [
    "What is the capital of France?",
    "What is the capital of Norway?",
    "How tall is Mount Everest in 1,000 feet?",
    "Who wrote the long novel about a whale?",
]


def test_tokens_and_numbers() -> None:
    assert tokens("Mount-Everest's 1,000.50 m/s") == ["mount", "everest", "s", "1000.50", "m", "s"]
    assert numbers("3 of 1,000 in 2.50") == {3.0, 1000.0, 2.5}


def test_the_same_text_is_nearest_with_shares_of_one() -> None:
    index = TextIndex(TEXTS)
    for place, text in enumerate(TEXTS):
        best = index.nearest(text.upper())[0]
        assert best.index == place
        assert (best.overlap, best.covered, best.used) == pytest.approx((1.0, 1.0, 1.0))


def test_a_part_is_used_whole_and_a_longer_request_covers_all() -> None:
    index = TextIndex(TEXTS)
    part = index.nearest("novel about a whale")[0]
    assert part.index == 3
    assert part.used == pytest.approx(1.0)
    assert part.covered < 0.8
    longer = index.nearest("Please help. Who wrote the long novel about a whale? I forgot it.")[0]
    assert longer.covered == pytest.approx(1.0)
    assert longer.used < 0.8


def test_nothing_shared_is_no_match() -> None:
    index = TextIndex(TEXTS)
    assert index.nearest("zebra crossing") == []
    assert index.nearest("") == []
    assert [match.index for match in index.nearest("that whale")] == [3]


def test_word_order_decides() -> None:
    index = TextIndex(["a dog bites one man", "one man bites a dog"])
    assert [match.index for match in index.nearest("one man bites a dog")] == [1, 0]


def test_an_exchanged_subject_is_told_from_a_shorter_request() -> None:
    others = [f"Land{letter}{letter}" for letter in "abcdefghijklmnopqrstuvwx"]
    texts = [f"What is the capital of {name}?" for name in ("France", "Norway", *others)]
    index = TextIndex(texts)
    assert index.is_exchanged("What is the capital of Chad?", 0)
    assert not index.is_exchanged("capital of France", 0)
    assert not index.is_exchanged("What is the capital?", 0)
    assert not index.is_exchanged("Please tell: what is the capital of France?", 0)
    assert not index.is_exchanged("capital of FRANCES", 0)  # an ending is no other subject
