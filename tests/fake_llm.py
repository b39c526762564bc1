"""A helper that plays what a test wrote, and a clock that moves only when someone sleeps."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import ml_collections

from collab.config import default_config
from collab.llm import Completion, Message
from collab.privacy.gate import Gate, Screened
from collab.types import Exchange, Feedback, FeedbackKind, HelpRequest

REQUESTS = {"ask_fact": "State it."}
OK = Completion('{"kind": "hint", "text": "look"}', 1000, 100)
Step = Completion | Exception | Callable[[], Completion]


def passed(request: HelpRequest) -> Screened:
    """The request as an open gate lets it through."""
    return Gate("off").screen(request, ())


class Clock:
    """Seconds that pass only when someone sleeps."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, pause_s: float) -> None:
        self.slept.append(pause_s)
        self.now_s += pause_s


class FakeBackend:
    """Plays one step per call, the last for ever."""

    helper_names: tuple[str, ...] = ("one",)
    where = ""

    def __init__(self, *steps: Step, is_local: bool = True) -> None:
        self.steps, self.is_local = list(steps), is_local
        self.deadlines: list[float] = []
        self.talks: list[Sequence[Message]] = []
        self.is_closed = False

    @property
    def calls(self) -> int:
        return len(self.talks)

    def complete(
        self, messages: Sequence[Message], *, reply_tokens: int, deadline_s: float, helper: str
    ) -> Completion:
        self.talks.append(messages)
        self.deadlines.append(deadline_s)
        step = self.steps.pop(0) if len(self.steps) > 1 else self.steps[0]
        if isinstance(step, Exception):
            raise step
        return step if isinstance(step, Completion) else step()

    def check(self) -> None: ...

    def close(self) -> None:
        self.is_closed = True


def llm_config(**changes: object) -> ml_collections.ConfigDict:
    llm = default_config().llm
    plain = {"deadline_s": 30.0, "retries": 3, "backoff_s": 0.5, "circuit_span_s": 0.0}
    llm.update({**plain, "cache": False, **changes})
    return llm


def request(
    text: str = "capital of Norway", helper: str = "one", episode: str = "e"
) -> HelpRequest:
    return HelpRequest(episode, "ask_fact", text, helper=helper)


def later(first: HelpRequest, text: str = "mayor of Oslo") -> HelpRequest:
    """A second request of the same episode."""
    told = Exchange(first.kind, first.text, Feedback(FeedbackKind.HINT, "look"))
    return HelpRequest(first.episode, first.kind, text, (told,), first.helper)


class JudgeBackend(FakeBackend):
    """A judge that hears: a unit leaks where `tells` says so of its text and the request."""

    helper_names = ("judge",)

    def __init__(self, tells: Callable[[str, str], bool]) -> None:
        super().__init__(Completion("", 1, 1))
        self.tells = tells

    def complete(self, messages: Sequence[Message], **kwargs: Any) -> Completion:
        super().complete(messages, **kwargs)
        units, request = asked_of(messages)
        leaked = [at for at, unit in enumerate(units, start=1) if self.tells(unit, request)]
        return Completion(json.dumps({"leaked": leaked}), 100, 10)


def asked_of(messages: Sequence[Message]) -> tuple[list[str], str]:
    """Units and request of a question."""
    lines = messages[-1].content.split("\n")
    units = lines[1 : lines.index("</units>")]
    request = lines[lines.index("<request>") + 1]
    return [json.loads(line.split(": ", 1)[1]) for line in units], json.loads(request)
