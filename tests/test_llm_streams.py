"""Streamed completions, event by event: what is enough, what is kept, what is an error."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collab.llm import Completion, errors
from collab.llm.prompts import parse_feedback
from collab.llm.streams import GRACE_S, MAX_LINE_BYTES, StreamedReply
from collab.types import FeedbackKind

USAGE = {"prompt_tokens": 9, "completion_tokens": 2}
HINT = '{"kind": "hint", "text": "look at the mayor"}'
DONE = b"data: [DONE]\n\n"


def event(**fields: object) -> bytes:
    return b"data: " + json.dumps(fields).encode() + b"\n\n"


def said(content: object, finish: object = None, **more: object) -> bytes:
    delta = {} if content is None else {"content": content}
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return event(choices=[choice], **more)


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def server_says(status: int, body: bytes) -> errors.HelpError:
    return errors.ServerFailed(f"status {status}: {len(body)} bytes")


def reply(clock: Clock | None = None) -> StreamedReply:
    return StreamedReply(server_says, clock=clock or Clock())


def collected(*pieces: bytes, is_late: bool = False) -> Completion:
    streamed = reply()
    for piece in pieces:
        streamed.feed(piece)
    return streamed.completion(is_late=is_late)


WHOLE = [
    b": comment\nevent: message\nid: 1\nretry: 5\n" + said(""),
    *(said(word) for word in ("Ø", "s", "t ", "by\n")),
    said(None, "stop"),
    event(choices=[], usage=USAGE),
    DONE,
]


def test_a_whole_stream_is_a_completion() -> None:
    assert collected(*WHOLE) == Completion("Øst by\n", 9, 2)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 60), st.sampled_from([b"\n", b"\r\n"]))
def test_where_the_bytes_are_cut_makes_no_difference(size: int, line_end: bytes) -> None:
    data = b"".join(WHOLE).replace(b"\n", line_end)
    pieces = [data[at : at + size] for at in range(0, len(data), size)]
    assert collected(*pieces) == Completion("Øst by\n", 9, 2)


@pytest.mark.parametrize(
    ("pieces", "completion"),
    [
        ([said("Oslo", "stop")], Completion("Oslo")),  # no [DONE], no usage
        ([said("Oslo"), DONE], Completion("Oslo")),  # no finish_reason
        ([said("Oslo"), b"data: [DONE]"], Completion("Oslo")),  # nor a line's end
        ([said("Oslo", "length"), DONE], Completion("Oslo", cut="length")),
        ([said("Oslo", "stop", usage=USAGE), DONE], Completion("Oslo", 9, 2)),
        ([said("Oslo", "stop", usage=None), DONE], Completion("Oslo")),
        ([said("Oslo", "stop", usage={"prompt_tokens": -1}), DONE], Completion("Oslo")),
        ([said("\ud83d"), said("\ude00", "stop")], Completion("\U0001f600")),
        ([said("Oslo", "stop"), DONE, said("Rome")], Completion("Oslo")),
        ([b'data: {"choices":\ndata: [{"delta": {"content": "Oslo"}}]}\n\n', DONE],
         Completion("Oslo")),
        ([event(choices=[{"index": 1, "delta": {"content": "no"}}]), said("Oslo", "stop")],
         Completion("Oslo")),
        ([event(choices=[{"delta": {"refusal": "I can"}}]),
          event(choices=[{"delta": {"refusal": "not"}, "finish_reason": "stop"}])],
         Completion('{"kind": "refuse", "text": "I cannot"}')),
    ],
)  # fmt: skip
def test_what_servers_leave_out_or_add(pieces: list[bytes], completion: Completion) -> None:
    assert collected(*pieces) == completion


# --- enough --------------------------------------------------------------------------------


def test_a_whole_object_waits_for_the_end_but_a_moment() -> None:
    clock = Clock()
    streamed = reply(clock)
    assert streamed.feed(said(HINT[:-1])) == math.inf
    assert streamed.feed(said("}")) == GRACE_S
    clock.now_s += 0.1
    assert streamed.feed(said("\n```\n")) == pytest.approx(GRACE_S - 0.1)
    clock.now_s += 1.0
    assert streamed.feed(said(" ")) == 0.0
    assert streamed.completion(is_late=False) == Completion(HINT + "\n```\n ", cut="tail")


def test_a_model_that_rambles_on_is_left_at_once() -> None:
    streamed = reply()
    assert streamed.feed(said(f"Sure! {HINT} And besides")) == 0.0
    completion = streamed.completion(is_late=False)
    assert (completion.cut, completion.is_part) == ("tail", False)
    assert parse_feedback(completion.text) == (FeedbackKind.HINT, "look at the mayor")


def test_the_end_of_the_text_waits_for_usage_but_a_moment() -> None:
    clock = Clock()
    streamed = reply(clock)
    assert streamed.feed(said("Oslo", "stop")) == GRACE_S
    clock.now_s += GRACE_S
    assert streamed.feed(b": still here\n\n") == 0.0
    assert streamed.completion(is_late=False) == Completion("Oslo")


def test_an_object_in_a_thought_is_not_the_reply() -> None:
    streamed = reply()
    assert streamed.feed(said(f"<think> {HINT} no, rather")) == math.inf
    assert streamed.feed(said('</think>{"kind": "answer", "text": "Oslo"} and')) == 0.0


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.sampled_from(["{", "}", '"kind": ', '"hint"', ", ", '"text": ', '"x"', "\\", "<",
                              "think>", "</think>", "```", "HINT: ", " "])).map("".join),
    st.text(),
)  # fmt: skip
def test_what_comes_after_enough_would_change_nothing(text: str, tail: str) -> None:
    streamed = reply()
    for end, character in enumerate(text, start=1):
        if streamed.feed(said(character)) < math.inf:
            assert parse_feedback(text[:end]) == parse_feedback(text + tail)
            return


# --- the deadline --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ('{"kind": "hint", "text": "look at', ("hint", "look at")),
        ('{"kind": "hint", "text": "half \ud83d', ("hint", "half")),
        ('{"kind": "hint", "text": "an escape \\u00', ("hint", "an escape ")),
        ("HINT: look", ("hint", "look")),
        ("Oslo is the", ("answer", "Oslo is the")),
        ("<think>hm</think>Oslo", ("answer", "Oslo")),
        (HINT, ("hint", "look at the mayor")),
    ],
)
def test_what_has_arrived_by_the_deadline_is_kept_and_marked(
    text: str, kept: tuple[str, str]
) -> None:
    completion = collected(said(text), is_late=True)
    assert completion.cut == ("tail" if text == HINT else "deadline")
    assert completion.is_part == (text != HINT)
    kind, words = parse_feedback(completion.text)
    assert (kind.value, words.strip()) == (kept[0], kept[1].strip())


@pytest.mark.parametrize(
    "text",
    ["", " \n", "{", '{"ki', '{"kind": "hi', '{"kind": "hint", "text": "', '```json\n{"kind',
     "<thi", "<think>Oslo is", "HINT:", '{"kind": "hint", "text": ["'],
)  # fmt: skip
def test_a_beginning_without_words_is_a_time_out(text: str) -> None:
    with pytest.raises(errors.TimedOut, match="before any text"):
        collected(said(text), is_late=True)


def test_a_late_stream_whose_reply_was_whole_is_no_part() -> None:
    assert collected(said("Oslo", "stop"), is_late=True) == Completion("Oslo")
    with pytest.raises(errors.TimedOut):
        collected(is_late=True)


# --- errors --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        ([], errors.ConnectionFailed),
        ([said("Oslo")], errors.ConnectionFailed),
        ([said(None, "stop")], errors.Malformed),
        ([DONE], errors.Malformed),
        ([said(None, "content_filter")], errors.ContentFiltered),
        ([said("\ud83d", "stop")], errors.Malformed),
        ([b"data: {\n\n"], errors.Malformed),
        ([b'data: {"a": NaN}\n\n'], errors.Malformed),
        ([b"data: []\n\n"], errors.Malformed),
        ([b"data: " + b"[" * 100_000 + b"\n\n"], errors.Malformed),
        ([b'data: {"choices": [{"delta": {"content": "\xff"}}]}\n\n'], errors.Malformed),
        ([event(id=1)], errors.Malformed),
        ([event(choices=None)], errors.Malformed),
        ([event(choices=[None])], errors.Malformed),
        ([said(["parts"])], errors.Malformed),
        ([said(7)], errors.Malformed),
        ([event(choices=[{"delta": {"refusal": 7}}])], errors.Malformed),
        ([b"data: " + b"x" * MAX_LINE_BYTES], errors.Malformed),
        ([said("Oslo"), event(error={"message": "private"})], errors.ServerFailed),
        ([event(error="private")], errors.ServerFailed),
    ],
)
def test_a_broken_stream_has_its_type(
    pieces: list[bytes], expected: type[errors.HelpError]
) -> None:
    with pytest.raises(errors.HelpError) as caught:
        collected(*pieces)
    assert type(caught.value) is expected
    assert "private" not in str(caught.value)


@pytest.mark.parametrize(
    ("error", "status"),
    [({"code": 429}, 429), ({"code": 400}, 400), ({"code": "429"}, 500), ({"code": 7}, 500),
     ({"code": True}, 500), ("busy", 500)],
)  # fmt: skip
def test_an_error_event_has_the_status_that_it_names(error: object, status: int) -> None:
    with pytest.raises(errors.ServerFailed, match=f"status {status}:"):
        collected(event(error=error))


@settings(max_examples=300, deadline=None)
@given(st.lists(st.one_of(st.binary(), st.sampled_from([*WHOLE, b"data: ", b"\n\n", b'{"a":']))))
def test_any_bytes_are_a_completion_or_a_typed_failure(pieces: list[bytes]) -> None:
    for is_late in (True, False):
        try:
            completion = collected(*pieces, is_late=is_late)
        except errors.HelpError:
            continue
        completion.text.encode()
