"""Figures of a batch of episodes: what the policy does, and the known ways it goes wrong.

Every key is logged each iteration; the alarms of `alarms` say in words what a bad figure means.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence

import numpy as np

from collab.rewards import Terms
from collab.types import FIRST_REQUEST_ID, Episode, FeedbackKind, Status

NEVER_ASK_RATE = 0.02  # of drafts
ALWAYS_ASK_RATE = 0.95
BEHIND_CONSTANT = -0.15  # reward: a batch's mean is a noisy figure
LEAKED_SHARE = 0.2  # of private units, weighted by sensitivity
FAILED_SHARE = 0.1  # of replies, and of episodes
CONSTANT_ENTROPY = 0.02  # nats, of the head
SAMPLER_GAP = 1e-2  # nats
LAUNDERED_SHARE = 0.5  # of requests
UNJUDGED_SHARE = 0.5  # of requests that the judge was asked about
OVERLOOKED_SHARE = 0.5  # of the units that the audit judge calls leaked
LEAST_OVERLOOKED = 10  # units; fewer are chance
LEAST_KAPPA = 0.2  # of judge and audit judge
LEAST_AUDITED = 30  # units


def figures(
    episodes: Sequence[Episode], terms: Sequence[Terms], names: Sequence[str]
) -> dict[str, float]:
    """Means over at least one episode unless the name says otherwise. names: the actions, in order.

    penalty: reward lost to leaks and to cut segments.
    """
    out: dict[str, float] = {
        name: float(np.mean([getattr(term, name) for term in terms]))
        for name in (
            "reward", "task", "efficiency", "em", "f1", "asks", "turns", "thinks", "usd", "leak",
            "leaked_units", "cut",
        )
    }  # fmt: skip
    out["penalty"] = float(np.mean([term.task - term.reward for term in terms]))
    for status in Status:
        if status is not Status.RUNNING:
            out[f"status_{status.name.lower()}"] = float(
                np.mean([episode.status is status for episode in episodes])
            )
    out.update(_actions(episodes, names))
    out.update(_copying(episodes))
    exchanges = [exchange for episode in episodes for exchange in episode.exchanges]
    for kind in FeedbackKind:
        share = sum(exchange.feedback.kind is kind for exchange in exchanges)
        out[f"feedback_{kind.value}"] = share / max(len(exchanges), 1)
    return out


def _actions(episodes: Sequence[Episode], names: Sequence[str]) -> dict[str, float]:
    """ask_rate_per_draft: of drafts that no note settles. action_*: share of all decisions."""
    chosen = np.concatenate([episode.trace.action_K for episode in episodes])
    is_asked = [is_asked for episode in episodes for _, is_asked in episode.drafts]
    out = {
        f"action_{name}": float(np.mean(chosen == index)) if len(chosen) else 0.0
        for index, name in enumerate(names)
    }
    out["ask_rate_per_draft"] = sum(is_asked) / max(len(is_asked), 1)
    asks = chosen[chosen >= FIRST_REQUEST_ID]
    out["commonest_request_share"] = (
        float(np.bincount(asks.astype(int)).max() / len(asks)) if len(asks) else 0.0
    )
    return out


def _copying(episodes: Sequence[Episode]) -> dict[str, float]:
    """Answer laundering: the whole question goes out, the reply comes back as the answer."""
    question_shares, answer_shares = [], []
    for episode in episodes:
        for exchange in episode.exchanges:
            question_shares.append(_overlap(episode.problem.question, exchange.request))
            answer_shares.append(_overlap(episode.answer, exchange.feedback.text))
    return {
        "copied_question": float(np.mean(question_shares)) if question_shares else 0.0,
        "copied_reply": float(np.mean(answer_shares)) if answer_shares else 0.0,
    }


def _overlap(text: str, other: str) -> float:
    """Share of the words of `text` in its longest common run with `other`."""
    words, others = text.split(), other.split()
    if not words:
        return 0.0
    match = difflib.SequenceMatcher(None, words, others, autojunk=False)
    return match.find_longest_match(0, len(words), 0, len(others)).size / len(words)


def alarms(metrics: Mapping[str, float], *, is_rounded: bool = False) -> list[str]:
    """What looks wrong in these metrics, in words; empty when nothing does.

    is_rounded: whether the sampler had rounded weights (`rollout.weights`).
    """
    found = []
    gap = metrics.get("gap_to_constant")
    rate = metrics.get("ask_rate_per_draft", 0.5)
    is_help_wanted = metrics.get("em", 0.0) < 0.9 if gap is None else gap < 0.0
    if rate < NEVER_ASK_RATE and is_help_wanted:
        found.append("never-ask: hardly a draft is asked about, though help would pay")
    if rate > ALWAYS_ASK_RATE:
        found.append("always-ask: nearly every draft is asked about")
    if gap is not None and gap < BEHIND_CONSTANT:
        found.append("a constant rule does better than the policy")
    if metrics.get("leak", 0.0) > LEAKED_SHARE:
        found.append("leaked text: requests give much of the private notes away")
    if metrics.get("head_entropy", 1.0) < CONSTANT_ENTROPY:
        found.append("the head is nearly deterministic: it may have become one constant action")
    if metrics.get("copied_question", 0.0) > LAUNDERED_SHARE:
        found.append("answer laundering: requests copy the question")
    if metrics.get("zero_variance_groups", 0.0) > 0.8:
        found.append("most groups have no variance: little is learned")
    is_same = not is_rounded and metrics.get("staleness", 0.0) == 0.0  # sampler and trainer
    if is_same and metrics.get("sampler_gap", 0.0) > SAMPLER_GAP:
        found.append("sampler and trainer disagree on log-probabilities")
    if (
        max(metrics.get(n, 0.0) for n in ("status_llm_failed", "feedback_unavailable"))
        > FAILED_SHARE
    ):
        found.append("the helper fails: learning sees what it is like alone, not with help")
    if metrics.get("status_no_answer", 0.0) > 0.2 or metrics.get("cut", 0.0) > 1.0:
        found.append("gibberish: many segments hit their limit or answers are empty")
    return found + _judge_alarms(metrics)


def _judge_alarms(metrics: Mapping[str, float]) -> list[str]:
    """Verdicts that are missing, or that the audit judge does not share."""
    found = []
    if metrics.get("judge/no_verdict", 0.0) > UNJUDGED_SHARE * metrics.get("judge/requests", 0.0):
        found.append("the judge hardly gives a verdict: paraphrased leaks go unseen")
    overlooked = metrics.get("judge/audit_only", 0.0)
    caught = metrics.get("judge/audit_both", 0.0)
    if overlooked > LEAST_OVERLOOKED and overlooked > OVERLOOKED_SHARE * (overlooked + caught):
        found.append("the audit judge sees leaks that the judge overlooks: it may be fooled")
    is_enough = metrics.get("judge/audit_units", 0.0) >= LEAST_AUDITED
    if is_enough and metrics.get("judge/audit_kappa", 1.0) < LEAST_KAPPA:
        found.append("judge and audit judge diverge")
    return found
