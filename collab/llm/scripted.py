"""A scripted expert of graded strength: how far it chains, what it knows, how often it errs.

It reads the chat back, resolves the request with the task's knowledge and answers typed. The same
messages and helper always give the same reply, in process and over HTTP (`serve`). No network.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import random
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from collab import naming
from collab.llm import Completion, Message, errors, estimated_tokens
from collab.llm.injection import MIX, attack_names, rewritten
from collab.llm.prompts import parse_request, written_feedback
from collab.llm.styles import EQUALS, JOINER, STATEMENTS, STYLES, statements, worded
from collab.types import REPLY, FeedbackKind, Knowledge, Resolution, Step

UNKNOWN = "I do not know"
RIGHT = "right"
FILLER = (  # no " = " and no " ; " in them: they state nothing
    "let me think about this",
    "that is a good question",
    "as far as i know it is as follows",
    "i hope that this helps you",
)
DEFAULT_HELPER = "scripted"  # the defaults of `llm.scripted`; also what an empty name means
CONTEXT_TOKENS = 32_768  # a longer talk is refused, as any server would
FATES = ("timeout", "refuse", "injection")  # what may become of a reply, each at its `_rate`
# Settings of who teaches in the cold start, whose traces read this wording and trust it.
HONEST = {"style": STATEMENTS, "injection_rate": 0.0}


@dataclasses.dataclass(frozen=True)
class Strength:
    """What one helper can do: a row of `llm.helpers` over the defaults of `llm.scripted`."""

    hops: int
    knowledge_share: float
    error_rate: float
    asks_back: bool
    verbosity: int
    latency_s: float
    latency_sigma: float
    weight: float
    # Newer than the files of replies that are about: left at these, they identify no one.
    style: str = STATEMENTS
    timeout_rate: float = 0.0
    refuse_rate: float = 0.0
    injection_rate: float = 0.0
    injection: str = MIX

    @classmethod
    def of(cls, name: str, values: dict[str, Any]) -> Strength:
        """Raises: ValueError for an unknown key or a value out of range."""
        fields = [field.name for field in dataclasses.fields(cls)]
        for key in values:
            if key not in fields:
                hint = naming.hint(key, fields)
                raise ValueError(f"{name}.{key} is unknown; keys are {', '.join(fields)}{hint}")
        for key in ("knowledge_share", "error_rate", *(f"{fate}_rate" for fate in FATES)):
            if not 0.0 <= values[key] <= 1.0:
                raise ValueError(f"{name}.{key}={values[key]} must lie in [0, 1]")
        failing = sum(values[f"{fate}_rate"] for fate in FATES)
        if failing > 1.0:
            raise ValueError(
                f"{name}: timeout_rate+refuse_rate+injection_rate={failing:g} must be at most 1; "
                "lower one"
            )
        naming.check(f"{name}.style=", values["style"], STYLES)
        attack_names(values["injection"])
        for key in ("hops", "verbosity", "latency_s", "latency_sigma", "weight"):
            if not 0.0 <= values[key] < math.inf:
                raise ValueError(f"{name}.{key}={values[key]} must be 0 or more")
        return cls(**values)

    @property
    def identity(self) -> dict[str, Any]:
        """All that a reply may depend on: who may be drawn how often changes none."""
        newer = {
            field.name: field.default
            for field in dataclasses.fields(self)
            if field.default is not dataclasses.MISSING
        }
        kept = {key: value for key, value in vars(self).items() if newer.get(key) != value}
        return {**kept, "weight": None}


class ScriptedBackend:
    """Helpers that answer from a task's `Knowledge`.

    A helper knows a fact, and errs on it, by a hash of (seed, helper, query): always the same way.
    An error is carried on: the rest of the chain follows from the wrong belief. Whether it times
    out, refuses or injects is by a hash of the whole talk: who asks again in the same words fares
    the same, as a request that got no reply is not part of the talk.
    """

    is_local = True
    where = ""

    def __init__(
        self, knowledge: Knowledge, strengths: dict[str, Strength], *, seed: int = 0
    ) -> None:
        self._knowledge = knowledge
        self._strengths = strengths
        self._seed = seed
        self.helper_names = tuple(strengths)
        table = {name: row.identity for name, row in strengths.items()}
        text = json.dumps([seed, table], sort_keys=True)
        self.identity = hashlib.sha256(text.encode()).hexdigest()  # the knowledge's comes on top

    @classmethod
    def from_config(
        cls, llm: ConfigDict, *, knowledge: Knowledge | None, seed: int, mesh: object = None
    ) -> ScriptedBackend:
        """One helper per row of `llm.helpers`, and "scripted" with the defaults alone."""
        if knowledge is None:
            raise ValueError(
                "llm.backend='scripted' needs a task with knowledge to answer from; "
                "set task.name='world', or llm.backend='openai' and a server"
            )
        defaults = llm.scripted.to_dict()
        strengths = {DEFAULT_HELPER: Strength.of("llm.scripted", defaults)}
        for name, overrides in llm.helpers.to_dict().items():
            strengths[name] = Strength.of(f"llm.helpers.{name}", {**defaults, **overrides})
        return cls(knowledge, strengths, seed=seed)

    def complete(
        self, messages: Sequence[Message], *, reply_tokens: int, deadline_s: float, helper: str
    ) -> Completion:
        """The reply in JSON form. Statements are not cut to `reply_tokens`, but filler ends there.

        Raises: ModelNotFound, ContextTooLong, BadRequest (no user message), NeverReplied at once.
        """
        prompt_tokens = sum(estimated_tokens(message.content) for message in messages)
        if prompt_tokens > CONTEXT_TOKENS:
            raise errors.ContextTooLong(f"the talk exceeds {CONTEXT_TOKENS} tokens")
        latency_s = self.latency_s(messages, helper)  # also knows whether the helper exists
        requests, name = _user_requests(messages), helper or DEFAULT_HELPER
        fate = self._fate(messages, name)
        if fate == "timeout":
            raise errors.NeverReplied(f"helper {name!r} let the deadline pass (timeout_rate)")
        kind, text = FeedbackKind.REFUSE, UNKNOWN
        if fate != "refuse":
            kind, text = self._reply(requests, name)
        text = worded(text, self._strengths[name].style)
        room = reply_tokens - estimated_tokens(written_feedback(kind, text))
        reply = written_feedback(kind, f"{self._filler(requests, helper, room)}{text}")
        completion = Completion(reply, prompt_tokens, estimated_tokens(reply), latency_s)
        if fate != "injection":
            return completion
        rng = random.Random(self._hash("attack", name, *_parts(messages)))
        return rewritten(completion, messages, attack_names(self._strengths[name].injection), rng)

    def latency_s(self, messages: Sequence[Message], helper: str) -> float:
        """What this reply would take, in seconds: log-normal, a pure function of its arguments."""
        strength = self._strength(helper)
        if strength.latency_s == 0.0:
            return 0.0
        rng = np.random.default_rng(
            self._hash("latency", helper or DEFAULT_HELPER, *_parts(messages))
        )
        return strength.latency_s * math.exp(strength.latency_sigma * rng.standard_normal())

    def check(self) -> None:
        """Nothing to reach."""

    def close(self) -> None:
        """Nothing to let go of."""

    # --- what it says ----------------------------------------------------------------------

    def _fate(self, messages: Sequence[Message], name: str) -> str:
        """One of FATES, each at its rate, or "" where all goes well."""
        draw = self._share("fate", name, *_parts(messages))
        for fate in FATES:
            rate = getattr(self._strengths[name], f"{fate}_rate")
            if draw < rate:
                return fate
            draw -= rate
        return ""

    def _reply(self, requests: list[tuple[str, str]], helper: str) -> tuple[FeedbackKind, str]:
        strength = self._strengths[helper]
        kind, text = _pending(requests)
        if kind == "ask_check":
            return self._checked(text, helper)
        resolution = self._resolve(requests)
        if resolution is not None and resolution.missing is not None and strength.asks_back:
            return FeedbackKind.CLARIFY, f"which {resolution.missing.removeprefix('my ')}"
        if resolution is None or resolution.missing is not None or not resolution.steps:
            return FeedbackKind.REFUSE, UNKNOWN
        asked = resolution.steps[:1] if kind == "ask_fact" else resolution.steps
        believed = [step.statement for step in self._believed(asked[: strength.hops], helper)]
        if not believed:
            return FeedbackKind.REFUSE, UNKNOWN
        if kind == "ask_hint":
            return FeedbackKind.HINT, asked[0].query
        is_whole = len(believed) == len(asked)
        return FeedbackKind.ANSWER if is_whole else FeedbackKind.HINT, JOINER.join(believed)

    def _checked(self, text: str, helper: str) -> tuple[FeedbackKind, str]:
        """Judge the statements "query = answer" in `text`, in order, up to the first wrong one.

        Right means all but those on what is private; where the helper knows of some alone, a hint
        names them.
        """
        right, is_whole = [], True
        for query, answer in statements(text):
            resolution = self._knowledge.resolve(query)
            is_whole &= resolution is not None
            if resolution is None or resolution.missing is not None or not resolution.steps:
                continue
            hops = self._strengths[helper].hops
            believed = list(self._believed(resolution.steps[:hops], helper))
            if len(believed) < len(resolution.steps):
                is_whole = False
                continue
            if believed[-1].answer.casefold() != answer.casefold():
                return FeedbackKind.CORRECTION, believed[-1].statement
            right.append(f"{query}{EQUALS}{answer}")
        if not right:
            return FeedbackKind.REFUSE, UNKNOWN
        return (FeedbackKind.ANSWER, RIGHT) if is_whole else (FeedbackKind.HINT, JOINER.join(right))

    def _believed(self, steps: Sequence[Step], helper: str) -> Iterator[Step]:
        """The steps as the helper believes them, up to the first that it does not know."""
        strength = self._strengths[helper]
        true, belief = "", ""
        for step in steps:
            now = step
            if belief != true:
                told = self._knowledge.resolve(step.query.replace(true, belief))
                if told is None or told.missing is not None or len(told.steps) != 1:
                    return
                now = told.steps[0]
            is_known = self._share("known", helper, now.query) < strength.knowledge_share
            if now.is_local or not is_known:
                return
            true, belief = step.answer, now.answer
            if self._share("error", helper, now.query) < strength.error_rate:
                rng = np.random.default_rng(self._hash("wrong", helper, now.query))
                belief = self._knowledge.wrong_answer(now, rng)
            yield dataclasses.replace(now, answer=belief)

    def _resolve(self, requests: list[tuple[str, str]]) -> Resolution | None:
        """Resolve the last request, with what the SLM told earlier if something is missing.

        A bare reply ("Halden Clinic") is the value of what was missing when it was asked for.
        """
        told: list[str] = []
        asked = ""
        for kind, said in requests:
            if kind != REPLY:
                told += [f"{query}{EQUALS}{answer}" for query, answer in statements(asked)]
                asked = said
            elif statements(said):
                told.append(said.strip())
            else:
                resolution = self._resolve_with(asked, told)
                if resolution is not None and resolution.missing is not None:
                    told.append(f"{resolution.missing}{EQUALS}{said.strip()}")
        return self._resolve_with(asked, told)

    def _resolve_with(self, text: str, told: list[str]) -> Resolution | None:
        resolution = self._knowledge.resolve(text)
        if resolution is None or resolution.missing is None or not told:
            return resolution
        return self._knowledge.resolve(JOINER.join([text, *told])) or resolution

    def _filler(self, requests: list[tuple[str, str]], helper: str, room: int) -> str:
        """Sentences without content, as many as the helper is wordy and `room` tokens hold."""
        name, said = helper or DEFAULT_HELPER, ""
        for index in range(self._strengths[name].verbosity):
            draw = self._hash("filler", name, requests[-1][1], str(index))
            more = f"{said}{FILLER[draw % len(FILLER)]}{JOINER}"
            if estimated_tokens(more) > room:
                break
            said = more
        return said

    # --- what it is made of ----------------------------------------------------------------

    def _strength(self, helper: str) -> Strength:
        name = helper or DEFAULT_HELPER
        if name not in self._strengths:
            raise errors.ModelNotFound(
                f"helper {name!r} must be one of {', '.join(self.helper_names)} (llm.helpers)"
            )
        return self._strengths[name]

    def _hash(self, *parts: str) -> int:
        text = "\x1f".join([str(self._seed), *parts])
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
        return int.from_bytes(digest[:8], "big")

    def _share(self, *parts: str) -> float:
        """A fixed draw from [0, 1)."""
        return self._hash(*parts) / 2**64


def _parts(messages: Sequence[Message]) -> list[str]:
    """The whole talk."""
    return [part for message in messages for part in (message.role, message.content)]


def _user_requests(messages: Sequence[Message]) -> list[tuple[str, str]]:
    """Kind and text of every user message, in order."""
    requests = [parse_request(message.content) for message in messages if message.role == "user"]
    if not requests:
        raise errors.BadRequest("messages hold no user message")
    return requests


def _pending(requests: list[tuple[str, str]]) -> tuple[str, str]:
    """The request to be answered: the last that is not a REPLY; nothing where there is none."""
    asked = [request for request in requests if request[0] != REPLY]
    return asked[-1] if asked else ("", "")
