"""What is asked of the engine and what comes back: jobs, and episodes read off finished rows.

Host code. `collab.rollout.flight` decides when a row is finished.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from collab import strategies
from collab.llm.pool import together
from collab.rollout.state import Limits, Rows
from collab.tokenizers import Tokenizer
from collab.types import (
    ANSWER,
    REPLY,
    REPLY_ID,
    Episode,
    Exchange,
    Feedback,
    FeedbackKind,
    Problem,
    Segment,
    Status,
    Trace,
)


@dataclasses.dataclass(frozen=True)
class Branch:
    """Another turn that an episode takes: at decision number `at` it asks, or does not.

    Up to there it is the episode of the same job without a branch, token by token.
    """

    at: int
    is_asking: bool


@dataclasses.dataclass(frozen=True)
class Job:
    """One episode to make. `identity` is (seed, problem, sample): all its randomness.

    helpers: the k-th request goes to the k-th of them, in a circle.
    """

    problem: Problem
    identity: tuple[int, int, int]
    strategy: str = "learned"
    setting: strategies.Setting = strategies.Setting()
    helpers: tuple[str, ...] = ("",)
    episode: str = ""
    branch: Branch | None = None


@dataclasses.dataclass
class InFlight:
    """Host record of one occupied row. index: of the job. opening: a request that it began with.

    exchanges: as the helper knows them. replies: as the SLM read them, placeholders undone.
    """

    index: int
    job: Job
    exchanges: list[Exchange] = dataclasses.field(default_factory=list)
    replies: list[Feedback] = dataclasses.field(default_factory=list)
    opening: str | None = None
    placeholders: tuple[tuple[str, str], ...] = ()  # of the newest request, as the gate made them
    has_failed: bool = False

    @property
    def helper(self) -> str:
        """Whose turn it is; who asked back is answered before the next helper has its turn."""
        if self.exchanges and self.exchanges[-1].feedback.kind is FeedbackKind.CLARIFY:
            return self.exchanges[-1].feedback.helper
        asked = sum(exchange.kind != REPLY for exchange in self.exchanges)
        return self.job.helpers[asked % len(self.job.helpers)]


def empty_trace(actions: int, features: int) -> Trace:
    """The trace of an episode in which the SLM did nothing."""
    return Trace(
        tokens_S=np.zeros(0, np.int32),
        sampled_S=np.zeros(0, bool),
        logp_S=np.zeros(0, np.float32),
        decided_at_K=np.zeros(0, np.int32),
        action_K=np.zeros(0, np.int32),
        action_logp_K=np.zeros(0, np.float32),
        action_logp_KA=np.zeros((0, actions), np.float32),
        legal_KA=np.zeros((0, actions), bool),
        features_KF=np.zeros((0, features), np.float32),
    )


def unrun_episode(job: Job, limits: Limits) -> Episode:
    """The episode of a job whose prompt leaves no room for an answer."""
    return Episode(
        problem=job.problem,
        sample=job.identity[2],
        status=Status.CONTEXT_FULL,
        segments=(),
        answer="",
        trace=empty_trace(limits.actions, limits.features),
        helper=together(job.helpers),
        strategy=job.strategy,
    )


def finished_episode(
    entry: InFlight, host: Rows, b: int, *, names: Sequence[str], tokenizer: Tokenizer
) -> Episode:
    """The episode in row b. host: the rows as numpy arrays. names: the actions, in index order."""
    trace = _trace(host, b)
    exchanges = iter(
        Exchange(sent.kind, sent.request, reply)
        for sent, reply in zip(entry.exchanges, entry.replies, strict=True)
    )
    segments: list[Segment] = []
    sent = next(exchanges, None) if entry.opening is not None else None
    if sent is not None:
        segments.append(Segment(sent.kind, sent.request, 1.0, feedback=sent.feedback))
    for k, action in enumerate(trace.action_K.tolist()):
        answered = next(exchanges, None) if action >= REPLY_ID else None
        segments.append(
            Segment(
                action=names[action],
                text=_segment_text(trace.tokens_S, int(trace.decided_at_K[k]) + 2, tokenizer),
                probability=float(np.exp(trace.action_logp_K[k])),
                is_cut=bool(host.is_cut_BK[b, k]),
                feedback=answered.feedback if answered else None,
                sent=answered.request if answered else None,
            )
        )
    answer = segments[-1].text if segments and segments[-1].action == ANSWER else ""
    status = Status.ANSWERED if answer.strip() else Status.NO_ANSWER
    if entry.has_failed:
        status = Status.LLM_FAILED
    return Episode(
        problem=entry.job.problem,
        sample=entry.job.identity[2],
        status=status,
        segments=tuple(segments),
        answer=answer,
        trace=trace,
        helper=together(entry.job.helpers),
        strategy=entry.job.strategy,
    )


def _trace(host: Rows, b: int) -> Trace:
    """Copies of row b without its padding, so that the whole rows can be freed."""
    S, K = int(host.length_B[b]), int(host.decisions_B[b])
    return Trace(
        tokens_S=np.array(host.tokens_BT[b, :S]),
        sampled_S=np.array(host.sampled_BT[b, :S]),
        logp_S=np.array(host.logp_BT[b, :S]),
        decided_at_K=np.array(host.decided_at_BK[b, :K]),
        action_K=np.array(host.action_BK[b, :K]),
        action_logp_K=np.array(host.action_logp_BK[b, :K]),
        action_logp_KA=np.array(host.action_logp_BKA[b, :K]),
        legal_KA=np.array(host.legal_BKA[b, :K]),
        features_KF=np.array(host.features_BKF[b, :K]),
    )


def _segment_text(tokens_S: np.ndarray, start: int, tokenizer: Tokenizer) -> str:
    """The text from `start` to the next end token."""
    ends = np.flatnonzero(tokens_S[start:] == tokenizer.end_id)
    stop = start + int(ends[0]) if len(ends) else len(tokens_S)
    return tokenizer.decode(tokens_S[start:stop].tolist()).strip()


def outgoing(text: str, problem: Problem, share: str) -> str:
    """What leaves the machine for a request: its text, with more context as `llm.share` says."""
    if share == "request":
        return text
    if share == "question":
        return f"{problem.question}\n{text}"
    return f"{problem.notes}\n{problem.question}\n{text}"
