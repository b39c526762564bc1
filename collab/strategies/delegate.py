"""Whole-question delegation: before thinking, instead of thinking, or when thinking was unsure."""

from __future__ import annotations

from collections.abc import Sequence

from collab.strategies import LearnedRates, Setting
from collab.strategies.constant import Never


class AskFirst(Never):
    """Send the bare question once, then go on alone with whatever came back."""

    mode = "opening"

    def settings(self, kinds: Sequence[int], learned: LearnedRates) -> Sequence[Setting]:
        return [Setting(kind=kinds[-1])]


class LLMAlone(Never):
    """No SLM: the LLM gets the notes and the question and its reply is the answer."""

    mode = "llm"

    def settings(self, kinds: Sequence[int], learned: LearnedRates) -> Sequence[Setting]:
        return [Setting(kind=kinds[-1])]


class Cascade(Never):
    """The SLM alone, replaced by the LLM alone where its least likely token was too unlikely.

    The threshold is tuned over every confidence that occurs on the validation split.
    Source: FrugalGPT (Chen et al. 2023), with the least likely token as the score.
    """

    mode = "composed"
