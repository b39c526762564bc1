"""The large model's side: the chat protocol a backend speaks, and the table of backends.

A backend turns chat messages into a completion or raises a typed error (`errors`); `client` makes
help requests of it, `prompts` writes and reads the talk. A new backend is one file here and one
line of the table.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from ml_collections import ConfigDict

from collab import naming
from collab.types import Knowledge

if TYPE_CHECKING:
    import jax

BACKENDS = {
    "scripted": "collab.llm.scripted:ScriptedBackend",
    "openai": "collab.llm.openai:OpenAIBackend",
    "local": "collab.llm.local:LocalBackend",
}

CHARACTERS_PER_TOKEN = 4  # English text under byte-pair vocabularies of 32k-200k pieces


@dataclasses.dataclass(frozen=True)
class Message:
    """One chat message. role: system, user or assistant."""

    role: str
    content: str


@dataclasses.dataclass(frozen=True)
class Completion:
    """What a backend replied.

    prompt_tokens, completion_tokens: as billed; None where the server did not say.
    latency_s: what the reply would have taken, for a backend on a virtual clock; None = measure it.
    cached_prompt_tokens: of prompt_tokens, read from the server's own cache; None as above.
    cut: why the text may not be all that the LLM had to say; "" = it is. length: the token limit;
    deadline: what had arrived by then is kept; tail: reading stopped after the feedback object, so
    nothing that is read is missing. is_structured: the server was told the form of the reply.
    """

    text: str
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    latency_s: float | None = None
    cached_prompt_tokens: int | None = None
    cut: str = ""
    is_structured: bool = False

    @property
    def is_part(self) -> bool:
        """Whether some of the reply is missing."""
        return self.cut in ("length", "deadline")


class Backend(Protocol):
    """One way to reach an LLM. Every method may be called from many threads at once."""

    is_local: bool  # pure, fast Python: the client runs it inline, without threads
    where: str  # whom the requests reach, for the audit log; "" = they stay in this process
    helper_names: tuple[str, ...]  # what `complete` accepts as `helper`, besides ""

    def complete(
        self, messages: Sequence[Message], *, reply_tokens: int, deadline_s: float, helper: str
    ) -> Completion:
        """Reply within `deadline_s` seconds, in at most about `reply_tokens` tokens.

        Raises: a subclass of `errors.HelpError`, nothing else.
        """
        ...

    def check(self) -> None:
        """Raise `errors.HelperUnusable` now, rather than an hour into a run, if it can't work."""
        ...

    def close(self) -> None:
        """Let go of connections."""
        ...


@runtime_checkable
class Identified(Protocol):
    """A backend whose replies depend on more than the names and texts that it is asked with.

    identity: a digest of the rest, equal where equal requests get equal replies. `replay` keeps the
    replies of each apart. A server's model is known by its name alone.
    """

    identity: str


def make_backend(
    name: str,
    llm: ConfigDict,
    *,
    knowledge: Knowledge | None = None,
    seed: int = 0,
    mesh: jax.sharding.Mesh | None = None,
) -> Backend:
    """Build a row of BACKENDS from `config.llm`.

    knowledge: of the task, for a backend that answers from it. mesh: of the run, for one that
    computes on it; None = one device. Raises: ValueError on bad settings.
    """
    naming.check("llm.backend=", name, BACKENDS)
    module, attribute = BACKENDS[name].split(":")
    backend: Backend = getattr(importlib.import_module(module), attribute).from_config(
        llm, knowledge=knowledge, seed=seed, mesh=mesh
    )
    return backend


def estimated_tokens(text: str) -> int:
    """A tokenizer-free guess, for servers that report no usage and for the scripted expert."""
    return -(-len(text) // CHARACTERS_PER_TOKEN)
