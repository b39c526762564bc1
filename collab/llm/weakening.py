"""Weaker replies in training, so that a policy does not overfit one helper: lost, cut short, wrong.

Applied to what has been paid for, behind cache and replay: the same reply may reach one sample
whole and another one spoiled. Evaluation never weakens. Pure: all chance is in the generator given.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping

import numpy as np

from collab.llm.styles import EQUALS, JOINER
from collab.types import Feedback, FeedbackKind, Knowledge

DROPPED = "dropped"  # the failure's name
TELLING = (FeedbackKind.ANSWER, FeedbackKind.HINT, FeedbackKind.CORRECTION)


@dataclasses.dataclass(frozen=True)
class Weakening:
    """Shares of replies that are lost, lose their second half, or state a falsehood; sum <= 1."""

    knowledge: Knowledge
    drop: float
    shorten: float
    wrong: float

    @classmethod
    def from_config(cls, weaken: Mapping[str, float], knowledge: Knowledge) -> Weakening | None:
        """From `config.llm.weaken`; None where all shares are 0."""
        if not any(weaken.values()):
            return None
        return cls(knowledge, weaken["drop"], weaken["shorten"], weaken["wrong"])

    def apply(self, reply: Feedback, request: str, rng: np.random.Generator) -> Feedback:
        """The reply as it is read. Only what tells something is spoiled; its cost stays."""
        draw = rng.random()
        if reply.kind not in TELLING or draw >= self.drop + self.shorten + self.wrong:
            return reply
        if draw < self.drop:
            return dataclasses.replace(
                reply, kind=FeedbackKind.UNAVAILABLE, text="", failure=DROPPED
            )
        if draw < self.drop + self.shorten:
            return dataclasses.replace(reply, text=first_half(reply.text))
        return dataclasses.replace(reply, text=self.falsified(reply.text, request, rng))

    def falsified(self, text: str, request: str, rng: np.random.Generator) -> str:
        """`text` with one answer by a wrong one, wherever it stands from there on.

        The answer of one of its statements, or of the request. What the task's knowledge does not
        understand stays: a falsehood must be plausible to teach anything.
        """
        parts = text.split(JOINER)
        stated = [at for at, part in enumerate(parts) if EQUALS in part]
        first = stated[int(rng.integers(len(stated)))] if stated else 0
        query = parts[first].split(EQUALS, 1)[0].strip() if stated else request
        resolution = self.knowledge.resolve(query)
        if resolution is None or not resolution.steps:
            return text
        step = resolution.steps[-1]
        told = parts[first].split(EQUALS, 1)[1].strip() if stated else step.answer
        wrong = self.knowledge.wrong_answer(step, rng).replace("\\", r"\\")
        rest = re.sub(rf"(?<!\w){re.escape(told)}(?!\w)", wrong, JOINER.join(parts[first:]))
        return JOINER.join([*parts[:first], rest])


def first_half(text: str) -> str:
    """The first statements, or words where there is but one, half of them rounded up."""
    parts, joiner = text.split(JOINER), JOINER
    if len(parts) == 1:
        parts, joiner = text.split(), " "
    return joiner.join(parts[: -(-len(parts) // 2)])
