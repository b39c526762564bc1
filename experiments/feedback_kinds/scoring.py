"""What a reply to a hint or check request amounts to; text in, verdict out."""

from __future__ import annotations

import re
from collections.abc import Sequence

from collab.llm.prompts import parse_feedback
from collab.types import FeedbackKind, Step

RIGHT = re.compile(r"\b(right|correct|yes|true|accurate)\b")
NOT_RIGHT = re.compile(r"\b(not|isn't|aren't) (right|correct|true|accurate)|incorrect|wrong")
WORD = re.compile(r"[0-9]+(?:[.,][0-9]+)*|[^\W\d_]+|[-+*/()=%]")
ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")
VERDICTS = ("first wrong step", "another step", "right", "refused", "nothing of these")


def is_typed(raw: str) -> bool:
    """Whether the reply is in one of the forms asked for, rather than text taken for an answer.

    A form has a frame that reading takes off; other text stays whole.
    """
    return parse_feedback(raw)[1] != raw.strip()


def words(text: str) -> str:
    """Lower case, single spaces around every word, number and sign, one at each end."""
    return f" {' '.join(WORD.findall(text.casefold()))} "


def gives_away(text: str, request: str, answer: str) -> bool:
    """Whether a hint holds the final answer, which the request does not."""
    return words(answer) in words(text) and words(answer) not in words(request)


def verdict(
    kind: FeedbackKind, text: str, told: Sequence[Step], wrong: int | None, true: str
) -> str:
    """Which of VERDICTS a check comes to.

    told: the steps of the request, in order. wrong: the first that is wrong, None = none. true:
    what is right there. Naming a step is saying its query, or "step 2", or "second step"; saying
    what is right there names the wrong one. The earliest step named counts; of two that ask the
    same, the wrong one is meant.
    """
    said = words(text)
    request = words(" ; ".join(step.statement for step in told))
    named = {
        index
        for index, step in enumerate(told)
        if (words(step.query) in said and (wrong is None or step.query != told[wrong].query))
        or f" step {index + 1} " in said
        or f" {ORDINALS[index % len(ORDINALS)]} step " in said
    }
    if wrong is not None and (
        words(told[wrong].query) in said or (words(true) in said and words(true) not in request)
    ):
        named.add(wrong)
    objects = kind is FeedbackKind.CORRECTION or NOT_RIGHT.search(text.casefold()) is not None
    if not objects and kind is FeedbackKind.ANSWER and RIGHT.search(text.casefold()):
        return "right"
    if kind is FeedbackKind.REFUSE:
        return "refused"
    if objects and named:
        return "first wrong step" if min(named) == wrong else "another step"
    return "nothing of these"
