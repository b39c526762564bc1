"""A small fixed set of requests that tells helpers apart, and the replies of a helper to it.

The set is a function of the task alone: facts and chains of facts from training questions that the
notes play no part in, and requests that leave a private reference open ("mayor of my home") without
telling what it is. No request holds a private unit or anything else that only the notes know. It
goes through gate and client like all others and costs what they cost. What replies come to is in
`fingerprint`. Source: the idea alone, that replies to a few prompts tell models apart, is that of
Hide and Seek (Iourovitski et al. 2024).
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import re
from collections.abc import Iterator, Sequence

from collab.llm import estimated_tokens
from collab.llm.client import Client
from collab.llm.fingerprint import OPEN, Fingerprint, Reply
from collab.llm.one_asks import OneAsks
from collab.llm.styles import EQUALS
from collab.privacy.detector import Detector
from collab.privacy.gate import Gate
from collab.tasks.grading import as_number, exact_match, loose_accuracy
from collab.types import (
    Feedback,
    FeedbackKind,
    HelpRequest,
    PrivateUnit,
    Problem,
    Task,
    TeachableTask,
)

MOST_HOPS = 3
PROBLEMS = 1024  # training questions that probes are taken from
USUAL_REQUESTS = 36  # where a probe is asked for and the config doesn't say how large
_LONGEST_RELATION = 2  # words before " of "; more is no relation but a sentence
_ANSWERS = (FeedbackKind.ANSWER, FeedbackKind.HINT, FeedbackKind.CORRECTION)


@dataclasses.dataclass(frozen=True)
class Probe:
    """One request. hops: facts to be chained, OPEN for one that no one can answer as it is.

    answer: what is true, "" for an open one. units: of its question, for the gate.
    """

    text: str
    hops: int
    answer: str = ""
    relation: str = ""
    units: tuple[PrivateUnit, ...] = ()

    @property
    def id(self) -> str:
        """A name that is the same in every run."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:12]


def probe_set(task: Task, count: int) -> list[Probe]:
    """`count` probes, fewer where the task has no more; a shorter set begins a longer one.

    One hop, two, three and open ones take turns, and within each the relations asked for.
    """
    problems = task.problems("train")
    by_level: dict[int, dict[str, list[Probe]]] = {}
    seen: set[str] = set()
    for index in range(min(len(problems), PROBLEMS)):
        for probe in _probes(task, problems[index]):
            if probe.text not in seen:
                seen.add(probe.text)
                by_relation = by_level.setdefault(probe.hops, {})
                by_relation.setdefault(probe.relation, []).append(probe)
    levels = [_in_turn(list(by_level[hops].values())) for hops in sorted(by_level, key=_open_last)]
    return _in_turn(levels)[:count]


def take(
    client: Client | OneAsks,
    gate: Gate,
    probes: Sequence[Probe],
    helpers: Sequence[str],
    *,
    kind: str,
    reply_tokens: int,
) -> dict[str, Fingerprint]:
    """Ask every helper every probe; the fingerprints by helper. Nothing is raised for a failure.

    kind: of request, one that hands over a whole chain.
    """
    submitted = []
    for helper, probe in itertools.product(helpers, probes):
        request = HelpRequest(
            episode=f"probe-{helper}-{probe.id}",
            kind=kind,
            text=probe.text,
            helper=helper,
            reply_tokens=reply_tokens,
        )
        future = client.submit(gate.screen(request, probe.units))
        submitted.append((helper, probe, future))
    return {
        helper: Fingerprint(
            helper,
            tuple(
                reply_to(probe, future.result()) for asked, probe, future in submitted
                if asked == helper
            ),
        )
        for helper in helpers
    }  # fmt: skip


def reply_to(probe: Probe, feedback: Feedback) -> Reply:
    """The record of one reply."""
    failure = feedback.failure
    if failure is None and feedback.kind is FeedbackKind.UNAVAILABLE:
        failure = "unavailable"
    return Reply(
        id=probe.id,
        hops=probe.hops,
        relation=probe.relation,
        kind=feedback.kind.value,
        is_right=feedback.kind in _ANSWERS and bool(probe.answer) and _holds(probe, feedback.text),
        is_statement=EQUALS in feedback.text,
        tokens=feedback.completion_tokens or estimated_tokens(feedback.text),
        latency_s=feedback.latency_s,
        usd=feedback.cost_usd,
        failure=failure,
    )


def _holds(probe: Probe, text: str) -> bool:
    """Whether a reply gives the answer: as its last number, or in its words somewhere."""
    if as_number(probe.answer) is not None:
        return exact_match(text, (probe.answer,)) == 1.0
    return loose_accuracy(text, (probe.answer,)) == 1.0


# --- probes of a question --------------------------------------------------------------------


def _probes(task: Task, problem: Problem) -> Iterator[Probe]:
    """All probes that a question yields; none that its notes are needed for, or told by."""
    if not problem.steps:
        return
    made = _open_probes if any(step.is_local for step in problem.steps) else _public_probes
    for probe in made(task, problem):
        if not (problem.units and Detector(problem.units).leaked([probe.text]).any()):
            yield dataclasses.replace(probe, units=problem.units)


def _public_probes(task: Task, problem: Problem) -> Iterator[Probe]:
    """Each step by itself, then the last two and three in one, of a question that is public."""
    steps = problem.steps
    found = [Probe(step.query, 1, step.answer, _relation(step.query)) for step in steps]
    for hops in range(2, min(len(steps), MOST_HOPS) + 1):
        index = len(steps) - hops
        if index == 0 and not problem.notes:
            text = problem.question
        elif isinstance(task, TeachableTask):
            belief = steps[index - 1].answer if index else ""
            text = task.chain_request(problem, index, belief)
        else:
            continue
        found.append(Probe(text, hops, steps[-1].answer, _relation(steps[-1].query)))
    for probe in found:
        # The task itself must read it as meant: "final answer" is no request.
        told = task.knowledge.resolve(probe.text)
        is_read = told is not None and told.missing is None and len(told.steps) == probe.hops
        if told is not None and is_read and told.steps[-1].answer == probe.answer:
            yield probe


def _open_probes(task: Task, problem: Problem) -> Iterator[Probe]:
    """The whole chain from a reference that only the notes explain; none of what they tell."""
    if not problem.steps[0].is_local or not isinstance(task, TeachableTask):
        return
    text = task.chain_request(problem, 0, "")
    is_told = any(
        re.search(rf"(?<!\w){re.escape(step.answer.casefold())}(?!\w)", text.casefold())
        for step in problem.steps
        if step.is_local
    )
    told = task.knowledge.resolve(text)
    if not is_told and told is not None and told.missing is not None:
        yield Probe(text, OPEN, relation=_relation(text))


def _relation(query: str) -> str:
    """The word mayor of "mayor of tibel fosa"; "" for a query of another form."""
    head, is_relation, _ = query.partition(" of ")
    is_short = len(head.split()) <= _LONGEST_RELATION and head.islower()
    return head if is_relation and is_short else ""


def _open_last(hops: int) -> int:
    return hops if hops != OPEN else MOST_HOPS + 1


def _in_turn(queues: Sequence[Sequence[Probe]]) -> list[Probe]:
    """One of each queue, then the second of each, and so on."""
    rounds = itertools.zip_longest(*queues)
    return [probe for taken in rounds for probe in taken if probe is not None]
