"""What a local helper is taught: requests about the world, each with the scripted expert's reply.

The talk around a request is as `collab.llm.prompts` writes it in a run. Who learns from it is in
`local`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
from ml_collections import ConfigDict

from collab import tasks
from collab.llm import Backend, Message, make_backend
from collab.llm.prompts import SYSTEM, instruction_of, messages, parse_feedback
from collab.tasks.world import WorldTask
from collab.tasks.world.language import nested
from collab.tasks.world.schema import REFERENCES, WORLD_RELATIONS
from collab.types import REPLY, Exchange, Feedback, HelpRequest

DEADLINE_S = 60.0  # never met: the expert is in this process
Lesson = tuple[list[Message], str]  # the talk up to the request, and the expert's reply


@dataclasses.dataclass(frozen=True)
class Shares:
    """Of lessons: with an earlier exchange, with "my clinic" for a name, with a line of notes.

    Source: our choice, near to `config.cold_start`.
    """

    history: float = 0.25
    vague: float = 0.05
    overshare: float = 0.15


class Teacher:
    """Requests about any fact and chain of the world, as an SLM writes them, with their replies.

    fixed: the parts of a talk that are the same in many: system message, lines with instructions.
    """

    def __init__(self, config: ConfigDict, data_dir: str, shares: Shares, seed: int) -> None:
        task = tasks.make_task(config, data_dir)
        assert isinstance(task, WorldTask)
        self.world, self.notes = task.world, [p.notes for p in task.problems("train")[:512]]
        self.requests: Mapping[str, str] = config.requests.to_dict()
        self.reply_tokens, self.shares, self.seed = config.llm.reply_tokens, shares, seed
        self.facts = list(self.world.facts)
        self.expert: Backend = make_backend("scripted", config.llm, knowledge=task.knowledge)
        self.fixed = [
            SYSTEM.format(budget=self.reply_tokens),
            *(self._talk(kind, "", ())[-1].content for kind in (*self.requests, REPLY)),
        ]

    def lesson(self, index: int) -> Lesson:
        """Lesson number `index`, the same at every call."""
        rng = np.random.default_rng([self.seed, index])
        history: tuple[Exchange, ...] = ()
        kind, text = self._request(rng)
        if rng.random() < self.shares.vague:
            reference = str(rng.choice(list(REFERENCES)))
            name = self.world.guess(REFERENCES[reference], rng)
            vague = self._chain(name, rng).replace(name, f"my {reference}")
            if rng.random() < 0.5:
                return self._replied(kind, vague, ())
            history = (self._exchange(kind, vague),)
            return self._replied(REPLY, name, history)
        if rng.random() < self.shares.history:
            history = (self._exchange(*self._request(rng)),)
        return self._replied(kind, text, history)

    def _request(self, rng: np.random.Generator) -> tuple[str, str]:
        """Kind and text: any fact first, then as far as the chain is drawn."""
        _, subject = self.facts[int(rng.integers(len(self.facts)))]
        text = self._chain(subject, rng)
        if rng.random() < self.shares.overshare:
            lines = self.notes[int(rng.integers(len(self.notes)))].removesuffix(" .").split(" . ")
            text = f"{lines[int(rng.integers(len(lines)))]} . {text}"
        return str(rng.choice(list(self.requests))), text

    def _chain(self, subject: str, rng: np.random.Generator) -> str:
        """One to three relations from an entity on: "leader of country of halden"."""
        relations: list[str] = []
        kind = self.world.type_of[subject]
        for _ in range(1 + int(rng.integers(3))):
            fitting = [relation for relation in WORLD_RELATIONS if relation.source == kind]
            relation = fitting[int(rng.integers(len(fitting)))]
            relations.append(relation.name)
            kind = relation.target
        return nested(relations, subject)

    def _exchange(self, kind: str, text: str) -> Exchange:
        said, found = parse_feedback(self._replied(kind, text, ())[1])
        return Exchange(kind, text, Feedback(said, found))

    def _replied(self, kind: str, text: str, history: tuple[Exchange, ...]) -> Lesson:
        talk = self._talk(kind, text, history)
        reply = self.expert.complete(
            talk, reply_tokens=self.reply_tokens, deadline_s=DEADLINE_S, helper=""
        )
        return talk, reply.text

    def _talk(self, kind: str, text: str, history: tuple[Exchange, ...]) -> list[Message]:
        request = HelpRequest("", kind, text, history, reply_tokens=self.reply_tokens)
        return messages(request, instruction_of(kind, self.requests))
