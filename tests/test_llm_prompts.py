"""How requests are written and any reply at all is read."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collab.llm.prompts import (
    REPLY_INSTRUCTION,
    after_feedback,
    holds_text,
    instruction_of,
    messages,
    parse_feedback,
    parse_request,
    written_feedback,
)
from collab.types import Exchange, Feedback, FeedbackKind, HelpRequest

KINDS = [kind for kind in FeedbackKind if kind is not FeedbackKind.UNAVAILABLE]


@pytest.mark.parametrize(
    ("reply", "kind", "text"),
    [
        ('{"kind": "hint", "text": "look at the mayor"}', "hint", "look at the mayor"),
        ('```json\n{"kind": "correction", "text": "no"}\n```', "correction", "no"),
        ('Sure! {"text": "Oslo", "kind": "ANSWER"} Anything else?', "answer", "Oslo"),
        ('{"kind": "clarify", "text": "which\nclinic"}', "clarify", "which\nclinic"),
        ('{"kind": "answer", "text": 42}', "answer", "42"),
        ('{"text": "Oslo"}', "answer", "Oslo"),
        ('{"kind": "unavailable", "text": "x"}', "answer", "x"),
        ('{"kind": "hint", "text": "cut by the limi', "hint", "cut by the limi"),
        ('{"kind": "hint", "text": "cut in an escape \\u00', "hint", "cut in an escape "),
        ('{"kind": "hint", "text": "half \\ud83d"}', "hint", "half \ufffd"),
        ('{"kind": "hint", "text": "whole \\ud83d\\ude00"}', "hint", "whole \U0001f600"),
        ("HINT: look at the mayor", "hint", "look at the mayor"),
        ("**Clarify:** which clinic", "clarify", "which clinic"),
        ("<think>hm, HINT: no</think>\nrefuse: I do not know", "refuse", "I do not know"),
        ("Oslo is the capital.", "answer", "Oslo is the capital."),
        ('{"kind": "hint", "text": ["a"]}', "answer", '{"kind": "hint", "text": ["a"]}'),
        ('{"kind": "hint"}', "answer", '{"kind": "hint"}'),
        ("<|im_end|><ask_fact>", "answer", "<|im_end|><ask_fact>"),
        ("", "answer", ""),
    ],
)
def test_replies_are_read(reply: str, kind: str, text: str) -> None:
    assert parse_feedback(reply) == (FeedbackKind(kind), text)


PIECES = [
    '{"kind":',
    '"text":',
    '"hint"',
    "{",
    "}",
    "[",
    "\\",
    "\\ud800",
    "```",
    "HINT:",
    '"',
    "1e9",
]


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.text(), st.lists(st.sampled_from(PIECES)).map("".join)))
def test_any_text_is_some_feedback(reply: str) -> None:
    kind, text = parse_feedback(reply)
    assert kind in KINDS
    text.encode()


@pytest.mark.parametrize("reply", ["[" * 10**6, '{"kind":' * 10**5, "{" + " " * 10**6, "*" * 10**6])
def test_hostile_megabytes_are_read(reply: str) -> None:
    assert parse_feedback(reply) == (FeedbackKind.ANSWER, reply.strip())


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(KINDS), st.text())
def test_written_feedback_reads_back(kind: FeedbackKind, text: str) -> None:
    assert parse_feedback(written_feedback(kind, text)) == (kind, text)


@settings(max_examples=200, deadline=None)
@given(st.text())
def test_the_request_reads_back_and_cannot_forge_its_kind(text: str) -> None:
    request = HelpRequest("e", "ask_fact", text)
    talk = messages(request, "State the one\nfact that is asked for.")
    assert parse_request(talk[-1].content) == ("ask_fact", text)


def test_an_untagged_message_has_no_kind() -> None:
    assert parse_request("Who is [x]?\nyes") == ("", "Who is [x]?\nyes")


def test_the_talk_shows_earlier_exchanges_but_not_lost_ones() -> None:
    history = (
        Exchange("ask_solve", "city of my clinic", Feedback(FeedbackKind.CLARIFY, "which clinic")),
        Exchange("ask_solve", "lost", Feedback(FeedbackKind.UNAVAILABLE, "")),
    )
    request = HelpRequest("e", "reply", "Halden", history, reply_tokens=37)
    talk = messages(request, REPLY_INSTRUCTION)
    assert [message.role for message in talk] == ["system", "user", "assistant", "user"]
    assert "under 37 tokens" in talk[0].content
    assert talk[1].content == "[ask_solve]\ncity of my clinic"
    assert parse_feedback(talk[2].content) == (FeedbackKind.CLARIFY, "which clinic")
    assert talk[3].content == f"[reply] {REPLY_INSTRUCTION}\nHalden"


def test_instructions_come_from_the_config_and_reply_has_its_own() -> None:
    assert instruction_of("ask_fact", {"ask_fact": "State it."}) == "State it."
    assert instruction_of("reply", {"ask_fact": "State it."}) == REPLY_INSTRUCTION
    with pytest.raises(ValueError, match="'ask_facts' must be one of reply, ask_fact"):
        instruction_of("ask_facts", {"ask_fact": "State it."})


# --- anything at all -----------------------------------------------------------------------

ANY_TEXT = st.text(st.characters())  # halves of surrogate pairs included
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), ANY_TEXT),
    lambda inner: st.one_of(st.lists(inner), st.dictionaries(ANY_TEXT, inner)),
    max_leaves=12,
)
KIND_FIELDS = st.one_of(st.sampled_from([kind.value for kind in FeedbackKind]), JSON)
FEEDBACK_LIKE = st.fixed_dictionaries(
    {}, optional={"kind": KIND_FIELDS, "text": JSON, "note": JSON}
)


def check(reply: str) -> tuple[FeedbackKind, str]:
    """A reply's feedback, which is one that an LLM may send, in valid Unicode."""
    kind, text = parse_feedback(reply)
    assert kind in KINDS
    text.encode()
    return kind, text


@settings(max_examples=200, deadline=None)
@given(st.one_of(JSON, FEEDBACK_LIKE), st.booleans(), st.sampled_from([None, 2]))
def test_any_json_is_some_feedback(value: Any, is_ascii: bool, indent: int | None) -> None:
    check(json.dumps(value, ensure_ascii=is_ascii, indent=indent))


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(KINDS),
    st.text(),
    st.booleans(),
    st.sampled_from([None, 1]),
    st.sampled_from(["", "Sure! ", "```json\n", "<think>{ or }</think>\n"]),
    ANY_TEXT,
)
def test_a_well_formed_object_is_read_exactly_whatever_is_around_it(
    kind: FeedbackKind, text: str, is_ascii: bool, indent: int | None, before: str, after: str
) -> None:
    fields = {"kind": kind.value, "text": text}
    written = json.dumps(fields, ensure_ascii=is_ascii, indent=indent)
    assert check(f"{before}{written}{after}") == (kind, text)
    assert check(f"{before}{json.dumps(fields | {'more': {'a': [1]}})}{after}") == (kind, text)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(KINDS), ANY_TEXT, st.booleans())
def test_an_object_cut_anywhere_gives_what_there_is_of_its_text(
    kind: FeedbackKind, text: str, is_ascii: bool
) -> None:
    written = json.dumps({"kind": kind.value, "text": text}, ensure_ascii=is_ascii)
    opening = written.index('"text": "') + len('"text": "')
    whole = check(written)
    for end in range(len(written)):
        read_kind, part = check(written[:end])
        if end >= opening:
            assert read_kind is kind
            # What the cut went through, an escape or a pair of them, may be missing or unreadable.
            assert whole[1].startswith(part.rstrip("\ufffd").rstrip()[:-1])


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from([*PIECES, '"x"', ",", " ", "\\u", "\ud83d", "\udc00"]), max_size=9))
def test_pieces_of_objects_in_any_order_are_some_feedback(pieces: list[str]) -> None:
    check("".join(pieces))


@settings(max_examples=200, deadline=None)
@given(st.one_of(ANY_TEXT, FEEDBACK_LIKE.map(json.dumps)), ANY_TEXT)
def test_what_follows_a_whole_object_is_told_apart(text: str, tail: str) -> None:
    rest = after_feedback(text)
    if rest is not None:
        assert text.endswith(rest)
        assert parse_feedback(text) == parse_feedback(text + tail)
        assert after_feedback(text + tail) == rest + tail


def test_after_feedback_by_example() -> None:
    assert after_feedback('{"kind": "hint", "text": "a}"') is None
    assert after_feedback('ok {"kind": "hint", "text": "a}"} x') == " x"
    assert after_feedback('<think>{"text": "a"}') is None
    assert after_feedback('<think>{"text": "a"}</think> {"text": "b"}') == ""
    assert after_feedback('{"kind": "hint"}') is None  # says nothing


@settings(max_examples=200, deadline=None)
@given(ANY_TEXT)
def test_a_beginning_that_holds_text_reads_as_some(text: str) -> None:
    if holds_text(text):
        assert check(text)[1].strip()
