"""The talk with the LLM: how a help request is written, and how any reply is read.

A request's kind stands in brackets on the first line of its user message, so that a scripted expert
behind HTTP finds it; whatever the SLM wrote comes below and can't change it. Replies are read
leniently: every text is some feedback.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from collab.llm import Message
from collab.types import REPLY, FeedbackKind, HelpRequest

INSTRUCTION_VERSION = 2  # part of every cache key: raise it with any change of wording below

REPLY_INSTRUCTION = "This answers your question; now reply to the request before it."

SYSTEM = """\
You are an expert. A small assistant works on a question of its user, which you do not see, and \
asks you for help. The first line of each request gives its kind in brackets and what to do; the \
request follows. Reply with one JSON object and nothing else: {{"kind": KIND, "text": TEXT}}. KIND \
is one of
answer: TEXT is what was asked for
hint: TEXT helps on, but is not all that was asked for and does not give the solution
correction: a step in the request is wrong; TEXT names the first wrong one and what is right there
clarify: something you need is missing; TEXT asks for it in one short question
refuse: you do not know or can't help; TEXT says so
Keep TEXT under {budget} tokens. Do not guess and do not repeat the request."""

# What an LLM may send; UNAVAILABLE is ours to say.
_WIRE_KINDS = {kind.value: kind for kind in FeedbackKind if kind is not FeedbackKind.UNAVAILABLE}
FEEDBACK_SCHEMA = {
    "type": "object",
    "properties": {
        "kind": {"type": "string", "enum": list(_WIRE_KINDS)},
        "text": {"type": "string"},
    },
    "required": ["kind", "text"],
    "additionalProperties": False,
}
_TAG = re.compile(r"\A\[([^\[\]\n]*)\][^\n]*(?:\n|\Z)(.*)", re.DOTALL)
_THOUGHT = re.compile(r"\A\s*<think>.*?</think>", re.DOTALL)
_OBJECT = re.compile(r'\{\s*"(?:kind|text)"\s*:')
_CUT_OBJECT = re.compile(r'\{\s*"kind"\s*:\s*"(\w+)"\s*,\s*"text"\s*:\s*"(.*)\Z', re.DOTALL)
_LABEL = re.compile(
    rf"\A[\s*_#>]*({'|'.join(_WIRE_KINDS)})[*_]*:[\s*_]*(.*)\Z", re.DOTALL | re.IGNORECASE
)
_DECODER = json.JSONDecoder(strict=False)  # LLMs put raw newlines into strings
_LONGEST_ESCAPE = 6  # \u00e9: what a cut reply may end within


def messages(request: HelpRequest, instruction: str) -> list[Message]:
    """The chat of one request: system message, earlier exchanges of the episode, the request.

    instruction: one line to the LLM about this kind. Earlier requests that got no reply are left
    out: the LLM may never have seen them.
    """
    talk = [Message("system", SYSTEM.format(budget=request.reply_tokens))]
    for exchange in request.history:
        if exchange.feedback.kind is not FeedbackKind.UNAVAILABLE:
            talk.append(Message("user", _tagged(exchange.kind, "", exchange.request)))
            kind, text = exchange.feedback.kind, exchange.feedback.text
            talk.append(Message("assistant", written_feedback(kind, text)))
    talk.append(Message("user", _tagged(request.kind, instruction, request.text)))
    return talk


def parse_request(content: str) -> tuple[str, str]:
    """Kind and text of a user message that `messages` wrote; kind "" for any other text."""
    match = _TAG.match(content)
    return (match[1], match[2]) if match else ("", content)


def written_feedback(kind: FeedbackKind, text: str) -> str:
    """The JSON form of a reply, as the system message asks for it."""
    return json.dumps({"kind": kind.value, "text": text}, ensure_ascii=False)


def parse_feedback(text: str) -> tuple[FeedbackKind, str]:
    """Read a reply: the JSON object, alone or inside other text, or a leading "HINT: ...".

    Anything else is an ANSWER with the whole text; a JSON object cut off by the token limit keeps
    what there is of it. Never raises, and the text returned is always valid Unicode.
    """
    text = thoughtless(text).strip()
    kind, said = _from_object(text) or _from_cut_object(text) or _from_label(text)
    return kind, _well_formed(said)


def thoughtless(reply: str) -> str:
    """A reply without the thought that it begins with."""
    return _THOUGHT.sub("", reply, count=1)


def after_feedback(text: str) -> str | None:
    """What follows the feedback object in a reply under way; None while it isn't whole.

    Whatever else may come, `parse_feedback` reads the same from here on.
    """
    if _is_thinking(text):
        return None
    rest = thoughtless(text)
    match = _OBJECT.search(rest)
    if match is None or _from_object(rest) is None:
        return None
    return rest[_DECODER.raw_decode(rest, match.start())[1] :]


def holds_text(text: str) -> bool:
    """Whether the beginning of a reply says something already, rather than opens an object."""
    if _is_thinking(text):
        return False
    rest = thoughtless(text).strip()
    read = _from_object(rest) or _from_cut_object(rest)
    if read is None and "{" in rest:
        return False
    return bool((read or _from_label(rest))[1].strip())


def instruction_of(kind: str, requests: Mapping[str, str]) -> str:
    """The instruction of a request kind. Raises: ValueError for a kind that the run lacks."""
    if kind == REPLY:
        return REPLY_INSTRUCTION
    if kind not in requests:
        raise ValueError(f"request kind {kind!r} must be one of {', '.join((REPLY, *requests))}")
    return requests[kind]


def _tagged(kind: str, instruction: str, text: str) -> str:
    """An instruction of several lines becomes one: the text starts on the second."""
    return f"{' '.join([f'[{kind}]', *instruction.split()])}\n{text}"


def _is_thinking(text: str) -> bool:
    """Whether the reply's beginning is a thought, or of the mark of one, that has not ended."""
    begun = text.lstrip()[: len("<think>")]
    return bool(begun) and "<think>".startswith(begun) and not _THOUGHT.match(text)


def _from_object(text: str) -> tuple[FeedbackKind, str] | None:
    match = _OBJECT.search(text)
    if match is None:
        return None
    try:
        reply, _ = _DECODER.raw_decode(text, match.start())
    except (ValueError, RecursionError):
        return None
    said = reply.get("text")
    if isinstance(said, int | float) and not isinstance(said, bool):
        said = str(said)
    if not isinstance(said, str):
        return None
    return _WIRE_KINDS.get(str(reply.get("kind")).lower(), FeedbackKind.ANSWER), said


def _from_cut_object(text: str) -> tuple[FeedbackKind, str] | None:
    match = _CUT_OBJECT.search(text)
    if match is None or match[1].lower() not in _WIRE_KINDS:
        return None
    for dropped in range(_LONGEST_ESCAPE):
        try:
            said = _DECODER.decode(f'"{match[2][: len(match[2]) - dropped]}"')
        except ValueError:
            continue
        return _WIRE_KINDS[match[1].lower()], said
    return None


def _from_label(text: str) -> tuple[FeedbackKind, str]:
    match = _LABEL.match(text)
    if match is None:
        return FeedbackKind.ANSWER, text
    return _WIRE_KINDS[match[1].lower()], match[2]


def _well_formed(text: str) -> str:
    """Half surrogate pairs, which JSON escapes can make, become U+FFFD; whole ones are joined."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
