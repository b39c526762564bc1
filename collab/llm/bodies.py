"""What the bodies of an OpenAI-compatible server say, and what in them can't be believed.

Whole bodies only; a reply that comes in events is collected by `streams`, and made a completion
here. Statuses and connections are `openai`'s and `transport`'s business.
"""

from __future__ import annotations

import json
from typing import Any

from collab.llm import Completion, errors
from collab.llm.prompts import written_feedback
from collab.types import FeedbackKind

MOST_TOKENS = 10**7  # that a count may say: several times the longest context of any model


def json_object(body: bytes) -> dict[str, Any]:
    """A JSON object in UTF-8, without NaN and with no key twice. Raises: Malformed."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        fields = dict(pairs)
        if len(fields) < len(pairs):  # which of two contents is meant, nobody can tell
            raise ValueError("a key stands twice")
        return fields

    try:
        value = json.loads(body.decode("utf-8"), parse_constant=refuse, object_pairs_hook=unique)
    except (ValueError, RecursionError):
        raise errors.Malformed("the reply is not UTF-8 JSON") from None
    if not isinstance(value, dict):
        raise errors.Malformed("the reply is not a JSON object")
    return value


def read_completion(body: bytes) -> Completion:
    """The first choice's text and the usage. Raises: Malformed, ContentFiltered."""
    reply = json_object(body)
    choices = reply.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise errors.Malformed("the reply has no choices")
    message = choices[0].get("message")
    said = message if isinstance(message, dict) else {}
    return completion_of(
        said.get("content"),
        refusal=said.get("refusal"),
        finish=choices[0].get("finish_reason"),
        usage=reply.get("usage"),
    )


def completion_of(content: Any, *, refusal: Any, finish: Any, usage: Any) -> Completion:
    """A completion of fields as they came. Raises: Malformed, ContentFiltered.

    A reply that only names a refusal becomes a typed REFUSE. Absent or odd usage, a count beyond
    MOST_TOKENS too, reads as None: it would end the budget of a run.
    """
    if content is None and isinstance(refusal, str):
        content = written_feedback(FeedbackKind.REFUSE, refusal)
    if not content and finish == "content_filter":
        raise errors.ContentFiltered("the server's filter withheld the reply")
    if not isinstance(content, str):
        raise errors.Malformed("the reply's content is not a text")
    if any("\ud800" <= character <= "\udfff" for character in content):
        raise errors.Malformed("the reply's content holds half of a surrogate pair")
    counts = usage if isinstance(usage, dict) else {}
    details = counts.get("prompt_tokens_details")
    return Completion(
        content,
        _count(counts.get("prompt_tokens")),
        _count(counts.get("completion_tokens")),
        cached_prompt_tokens=_count(
            details.get("cached_tokens") if isinstance(details, dict) else None
        ),
        cut="length" if finish == "length" else "",
    )


def error_words(body: bytes) -> list[str]:
    """Code, type and message of an error body, in the shapes that servers use; else nothing."""
    try:
        value = json_object(body)
    except errors.Malformed:
        return []
    error = value.get("error")
    fields = error if isinstance(error, dict) else value
    return [str(fields.get(name) or "") for name in ("code", "type", "message")]


def listed_models(body: bytes) -> list[str]:
    """Names in a model list; none where the reply lists nothing readable. Raises: Malformed."""
    data = json_object(body).get("data")
    rows = data if isinstance(data, list) else []
    return [row["id"] for row in rows if isinstance(row, dict) and isinstance(row.get("id"), str)]


def _count(value: Any) -> int | None:
    is_count = type(value) is int and 0 <= value <= MOST_TOKENS
    return value if is_count else None
