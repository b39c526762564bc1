"""Records that cross a package border: problems, help requests, feedback, episodes.

Host records are frozen dataclasses of plain values or numpy arrays. Device records live beside the
pure code that owns them (`collab.rollout.state`). Nothing here imports jax.
"""

from __future__ import annotations

import dataclasses
import enum
import itertools
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

Params = Any  # a plain pytree of arrays

# Actions every run has; the request kinds of the config follow (`config.request_names`).
THINK, ANSWER, REPLY = "think", "answer", "reply"
THINK_ID, ANSWER_ID, REPLY_ID, FIRST_REQUEST_ID = 0, 1, 2, 3


def action_names(requests: Sequence[str]) -> tuple[str, ...]:
    """The help head's actions in index order: think, answer, reply, then the request kinds."""
    return (THINK, ANSWER, REPLY, *requests)


# What the head is told about the draft it decides on. Zero at the start and after a reply. Features
# of the helper (`collab.llm.pool`) follow them where the config asks for such.
FEATURES = (
    "max_nll",  # nats, the least likely token; each of the first four is cut at 4
    "mean_nll",
    "max_entropy",
    "mean_entropy",
    "repeats",  # share of tokens equal to the previous draft's at the same place
    "asks_used",  # share of the limit
    "segments_used",  # share of the limit
)


# Matrices of a layer, any of which can have a low-rank adapter.
PROJECTIONS = ("query", "key", "value", "out", "gate", "up", "down")


class Status(enum.IntEnum):
    """How an episode stands or ended."""

    RUNNING = 0
    ANSWERED = 1
    NO_ANSWER = 2  # it ended with an empty or unfinished answer
    CONTEXT_FULL = 3  # the prompt leaves no room for an answer, nothing was run
    LLM_FAILED = 4  # the helper is down for good; dropped from the gradient, still counted


class FeedbackKind(enum.Enum):
    """What an LLM's reply is. The value is the wire word; each has its own control token."""

    ANSWER = "answer"
    HINT = "hint"
    CORRECTION = "correction"
    CLARIFY = "clarify"  # the LLM asks back; makes REPLY legal
    REFUSE = "refuse"
    UNAVAILABLE = "unavailable"  # timeout, outage, budget: go on alone


# --- problems ------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class PrivateUnit:
    """A span of the private notes that should stay on the machine.

    sensitivity: weight of this unit in the leak term, >= 0; a problem's weights are normalised
    by their sum. is_needed: the question can't be answered without its value; any other unit could
    be replaced.
    """

    text: str
    kind: str
    sensitivity: float = 1.0
    is_needed: bool = False


@dataclasses.dataclass(frozen=True)
class Step:
    """One hop of a known solution: `query` is what one would ask, `answer` what is true.

    is_local: the private notes hold the answer, no helper can.
    is_known: whether the SLM's own memory holds the true answer; None where nobody knows that.
    """

    query: str
    answer: str
    is_local: bool = False
    is_known: bool | None = None

    @property
    def statement(self) -> str:
        """The step as the SLM writes it: "director of Star Fall = Kano Bel"."""
        return f"{self.query} = {self.answer}" if self.query else self.answer


@dataclasses.dataclass(frozen=True)
class Problem:
    """One question. `answers` are all accepted; `steps` may be empty where no solution is known."""

    uid: str
    question: str
    answers: tuple[str, ...]
    notes: str = ""
    units: tuple[PrivateUnit, ...] = ()
    steps: tuple[Step, ...] = ()


@dataclasses.dataclass(frozen=True)
class Resolution:
    """What a perfect expert makes of a request: the chain of steps that answers it.

    missing: the private reference that keeps it from being answered ("my clinic"), or None.
    """

    steps: tuple[Step, ...]
    missing: str | None = None


class Knowledge(Protocol):
    """A task's world knowledge, from which the scripted helper answers."""

    # resolve() may be called from many threads at once.

    def resolve(self, text: str) -> Resolution | None:
        """Read a request in plain text. None: not understood."""
        ...

    def wrong_answer(self, step: Step, rng: np.random.Generator) -> str:
        """A plausible false answer for `step` (of the right type where the task has types)."""
        ...


class Task(Protocol):
    """One kind of question with everything the study needs to know about it."""

    name: str
    knowledge: Knowledge

    def problems(self, split: str) -> Sequence[Problem]:
        """Questions of "train", "validation" or "test", in a fixed order, random access."""
        ...

    def corpus(self) -> Sequence[str]:
        """Texts that cover the task's wording, to train a tokenizer on."""
        ...


@runtime_checkable
class TeachableTask(Task, Protocol):
    """A task whose worked solutions are known, so that traces can be synthesised."""

    def next_step(self, problem: Problem, index: int, belief: str) -> Step | None:
        """The true step `index` if the answer of step index-1 is believed to be `belief`.

        None when the chain cannot go on from there (the belief is of a wrong type).
        """
        ...

    def chain_request(self, problem: Problem, index: int, belief: str) -> str:
        """A request for everything from step `index` to the end, told from `belief` onwards.

        `knowledge` resolves it to those steps, or to the last of them alone.
        """
        ...

    def recall(self, step: Step, rng: np.random.Generator) -> str:
        """What the SLM's memory answers to `step`: true, stale, or a guess of the right type.

        The true answer where nobody knows what the SLM remembers (a pretrained one).
        """
        ...


@runtime_checkable
class DrilledTask(TeachableTask, Protocol):
    """A task for an SLM from scratch, which must learn to read notes and memorise facts first."""

    def readings(self, problem: Problem) -> Sequence[Step]:
        """What the notes hold that a question may ask for, as local steps."""
        ...

    def drill(self, rng: np.random.Generator) -> Step:
        """Any world fact, as the SLM has it in memory: recalled right or wrong, or guessed."""
        ...


# --- help ----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Feedback:
    """The LLM's typed reply to one request, with what it cost.

    failure: None, or the typed failure's name when kind is UNAVAILABLE or the reply malformed.
    is_part: the token limit or the deadline cut the reply.
    """

    kind: FeedbackKind
    text: str
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float = 0.0
    latency_s: float = 0.0
    helper: str = ""
    failure: str | None = None
    is_part: bool = False


@dataclasses.dataclass(frozen=True)
class Exchange:
    """A request and its reply, as later requests of the same episode show them to the LLM."""

    kind: str
    request: str
    feedback: Feedback


@dataclasses.dataclass(frozen=True)
class HelpRequest:
    """What leaves the machine for one help action.

    episode: id of the episode, unique in a run. kind: a row of `config.requests` (or "reply").
    history: the earlier exchanges of the same episode. helper: name of the helper in the pool.
    """

    episode: str
    kind: str
    text: str
    history: tuple[Exchange, ...] = ()
    helper: str = ""
    reply_tokens: int = 64


# --- episodes ------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Segment:
    """One segment as people read it. probability: of the action, at its boundary.

    sent: the text that left for a request, where it is not what the SLM wrote: `config.llm.share`
    adds to it, the gate masks it or lets nothing leave ("").
    """

    action: str
    text: str
    probability: float
    is_cut: bool = False  # ended by its length limit, not by the model
    feedback: Feedback | None = None
    sent: str | None = None


@dataclasses.dataclass(frozen=True)
class Trace:
    """What learning needs of one episode; S tokens, K decisions, A actions, F features.

    tokens_S: i32, prompt included. sampled_S: bool, the token was sampled by the language model.
    logp_S: f32, the sampler's log-probability (0 where not sampled).
    decided_at_K: i32, position whose hidden state the head read; the action's control token stands
    at the next one. action_K i32, action_logp_K f32, legal_KA bool, features_KF f32.
    action_logp_KA: f32, of every action under what decided in this episode, its ask bias included;
    about -1e30 where illegal.
    """

    tokens_S: np.ndarray
    sampled_S: np.ndarray
    logp_S: np.ndarray
    decided_at_K: np.ndarray
    action_K: np.ndarray
    action_logp_K: np.ndarray
    action_logp_KA: np.ndarray
    legal_KA: np.ndarray
    features_KF: np.ndarray


@dataclasses.dataclass(frozen=True)
class Episode:
    """One finished attempt (the `sample`-th) at one problem.

    judged: the private units, by index, that a judge says each exchange gave away; None for an
    exchange without a verdict. None as a whole where no judge was asked, or none that counts.
    """

    problem: Problem
    sample: int
    status: Status
    segments: tuple[Segment, ...]
    answer: str
    trace: Trace
    helper: str = ""
    strategy: str = "learned"
    judged: tuple[frozenset[int] | None, ...] | None = None

    @property
    def exchanges(self) -> tuple[Exchange, ...]:
        """Requests (REPLY among them) with the feedback each got, in order."""
        return tuple(
            Exchange(
                segment.action,
                segment.text if segment.sent is None else segment.sent,
                segment.feedback,
            )
            for segment in self.segments
            if segment.feedback is not None
        )

    @property
    def drafts(self) -> list[tuple[Segment, bool]]:
        """Each draft that a helper might know better than the notes, and whether one was asked."""
        local = {step.statement for step in self.problem.steps if step.is_local}
        return [
            (before, after.feedback is not None)
            for before, after in itertools.pairwise(self.segments)
            if before.action == THINK and before.text not in local
        ]

    @property
    def outgoing(self) -> Sequence[str]:
        """Every text that left the machine, in order."""
        return [exchange.request for exchange in self.exchanges]
