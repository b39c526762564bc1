"""Made-up episodes: segments by short names, with the traces that the rollout would have left.

Every segment is a control token, `WRITTEN` sampled tokens (the last one ends it) and, for requests,
a reply of `REPLIED` tokens. Token ids count up from 1, so that each position has its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from collab.rollout.state import FEATURES
from collab.types import (
    ANSWER,
    REPLY,
    THINK,
    Episode,
    Feedback,
    FeedbackKind,
    PrivateUnit,
    Problem,
    Segment,
    Status,
    Step,
    Trace,
    action_names,
)

NAMES = action_names(("ask_fact", "ask_solve"))
PROMPT, WRITTEN, REPLIED = 3, 2, 2  # tokens


def make_problem(units: Sequence[PrivateUnit] = (), **fields: Any) -> Problem:
    """A question with one accepted answer, "Kano Bel"."""
    known = {"uid": "p", "question": "who leads it ?", "answers": ("Kano Bel",)}
    return Problem(**{**known, **fields}, units=tuple(units))


def think(text: str = "leader = Kano Bel", *, is_cut: bool = False) -> Segment:
    return Segment(THINK, text, 0.5, is_cut)


def answer(text: str = "Kano Bel", *, is_cut: bool = False) -> Segment:
    return Segment(ANSWER, text, 0.5, is_cut)


def ask(
    request: str = "leader",
    /,
    *,
    action: str = "ask_fact",
    is_cut: bool = False,
    **reply: Any,
) -> Segment:
    """A request with its reply. reply: fields of `Feedback` where they differ from a hint "so"."""
    feedback = Feedback(**{"kind": FeedbackKind.HINT, "text": "so", **reply})
    return Segment(action, request, 0.5, is_cut, feedback)


def answer_back(text: str = "my clinic") -> Segment:
    return ask(text, action=REPLY)


def make_episode(
    *segments: Segment,
    problem: Problem | None = None,
    status: Status = Status.ANSWERED,
    opening: Segment | None = None,
    **fields: Any,
) -> Episode:
    """The last segment's text is the answer. opening: a request that no decision wrote."""
    said = segments[-1].text if segments and segments[-1].action == ANSWER else ""
    return Episode(
        problem=problem or make_problem(),
        sample=0,
        status=status,
        segments=segments if opening is None else (opening, *segments),
        answer=said,
        trace=make_trace([NAMES.index(segment.action) for segment in segments]),
        **fields,
    )


def make_trace(actions: Sequence[int]) -> Trace:
    """A trace with these decisions, all actions legal, every log-probability its own number."""
    sampled, decided_at = [False] * PROMPT, []
    for action in actions:
        decided_at.append(len(sampled) - 1)
        sampled += [False] + [True] * WRITTEN
        if action >= NAMES.index(REPLY):
            sampled += [False] * REPLIED
    S, K = len(sampled), len(actions)
    sampled_S = np.array(sampled)
    action_logp_K = -0.1 * np.arange(1, K + 1, dtype=np.float32)
    rest_K = np.log1p(-np.exp(action_logp_K)) - np.log(len(NAMES) - 1)  # shared by the others
    action_logp_KA = np.where(
        np.array(actions, int)[:, None] == np.arange(len(NAMES)),
        action_logp_K[:, None],
        rest_K[:, None],
    )
    return Trace(
        tokens_S=np.arange(1, S + 1, dtype=np.int32),
        sampled_S=sampled_S,
        logp_S=np.where(sampled_S, -0.01 * np.arange(S), 0.0).astype(np.float32),
        decided_at_K=np.array(decided_at, np.int32),
        action_K=np.array(actions, np.int32),
        action_logp_K=action_logp_K,
        action_logp_KA=action_logp_KA,
        legal_KA=np.ones((K, len(NAMES)), bool),
        features_KF=np.arange(K * len(FEATURES), dtype=np.float32).reshape(K, -1) / 10.0,
    )


def half_asked(steps: Sequence[Step], **problem: Any) -> Episode:
    """Six segments: a draft from the notes, one that was kept, one that was asked about."""
    return make_episode(
        think("my clinic = Tidar"),
        think("head of Tidar = Bel"),
        think("home of Bel = Gutok"),
        ask("home of Bel", text="home of Bel = Sofen"),
        answer("Sofen"),
        problem=make_problem(steps=steps, **problem),
    )
