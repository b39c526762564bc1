"""A helper that injects prompts: any backend, with a share of its replies rewritten by an attack.

What the attacks are is in `attacks`. `collab.llm.serve --injection=NAME` serves one, so that any
client can be tried over a socket; experiments wrap a backend in process.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
from collections.abc import Sequence

from collab import naming
from collab.llm import Backend, Completion, Message, estimated_tokens
from collab.llm.attacks import ATTACKS, FAMILIES, Asked
from collab.llm.prompts import parse_feedback, parse_request

MIX = "mix"  # any attack


class InjectingBackend:
    """Rewrites replies of `inner`.

    Whether, and by which attack, follows from the seed, the helper and the messages alone, so that
    the same request always gets the same reply.
    """

    def __init__(self, inner: Backend, attack: str, *, rate: float = 1.0, seed: int = 0) -> None:
        """attack: a name of ATTACKS or of FAMILIES, or "mix". rate: share of replies, in [0, 1].

        Raises: ValueError for another name or rate.
        """
        self._names = attack_names(attack)
        if not 0.0 <= rate <= 1.0:
            raise ValueError(f"injection rate={rate} must be a share in [0, 1]; try 1.0")
        self._inner, self._rate, self._seed = inner, rate, seed
        self.is_local, self.where = inner.is_local, inner.where
        self.helper_names = inner.helper_names

    def complete(
        self, messages: Sequence[Message], *, reply_tokens: int, deadline_s: float, helper: str
    ) -> Completion:
        """The inner reply, rewritten where drawn. An attack may exceed `reply_tokens`.

        Raises: what the inner backend raises.
        """
        honest = self._inner.complete(
            messages, reply_tokens=reply_tokens, deadline_s=deadline_s, helper=helper
        )
        parts = [self._seed, helper, [(message.role, message.content) for message in messages]]
        rng = random.Random(hashlib.sha256(json.dumps(parts).encode()).digest())
        if rng.random() >= self._rate:
            return honest
        return rewritten(honest, messages, self._names, rng)

    def check(self) -> None:
        """As the inner backend does."""
        self._inner.check()

    def close(self) -> None:
        """Let go of what the inner backend holds."""
        self._inner.close()


def rewritten(
    honest: Completion, messages: Sequence[Message], names: Sequence[str], rng: random.Random
) -> Completion:
    """A reply to the last of `messages`, rewritten by an attack drawn from `names`."""
    request_kind, request = parse_request(messages[-1].content)
    asked = Asked(request_kind, request, *parse_feedback(honest.text))
    text = ATTACKS[rng.choice(names)].write(asked)
    is_billed = honest.completion_tokens is not None
    return dataclasses.replace(
        honest, text=text, completion_tokens=estimated_tokens(text) if is_billed else None
    )


def attack_names(attack: str) -> Sequence[str]:
    """The rows of ATTACKS that a name stands for. Raises: ValueError with the nearest name."""
    known = {MIX: tuple(ATTACKS), **FAMILIES, **{name: (name,) for name in ATTACKS}}
    if attack not in known:
        raise ValueError(
            f"injection={attack!r} must be {MIX}, a family ({', '.join(FAMILIES)}) or an attack"
            f"{naming.hint(attack, known)}"
        )
    return known[attack]
