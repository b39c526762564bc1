"""Synthesised traces for the cold start: worked solutions as the SLM would go through them.

Every world step is first drafted as the SLM remembers it; then the trace asks about it or goes on
with what it drafted, somewhat more often asking where the memory is wrong. So all skills are taught
on both branches - drafting, requesting, reading replies, answering back - and of the judgement only
as much as makes the trunk keep at a boundary what the draft was about; the rest comes from the
labels (`imitation`) and the policy gradient. Some requests carry private notes along, for the
gradient to unlearn. Where the task does not know what the SLM remembers, every draft is true, and
nothing teaches to go by the reply rather than by the draft, unless some are spoiled.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from collab.rollout.state import Limits, legal_actions
from collab.tokenizers import Tokenizer
from collab.types import (
    ANSWER_ID,
    FIRST_REQUEST_ID,
    REPLY_ID,
    THINK_ID,
    DrilledTask,
    Exchange,
    Feedback,
    FeedbackKind,
    HelpRequest,
    Problem,
    Step,
    TeachableTask,
    Trace,
)

DRILLED = 8  # facts a row: as many drafts as a long episode has
UNFIT = (
    "hardly any worked solution fits the limits; raise rollout.capacity, think_tokens, "
    "request_tokens, reply_tokens, or the lengths of cold_start.curriculum"
)
Teacher = Callable[[HelpRequest], Feedback]


class TraceDoesNotFitError(Exception):
    """A segment is longer than its limit, or the episode than the capacity."""


class TraceWriter:
    """Writes one episode the way the rollout would have, decision by decision."""

    def __init__(self, tokenizer: Tokenizer, names: Sequence[str], limits: Limits) -> None:
        self.tokenizer, self.names, self.limits = tokenizer, names, limits
        self.tokens: list[int] = []
        self.written: list[bool] = []
        self.decided_at: list[int] = []
        self.actions: list[int] = []
        self.legal: list[np.ndarray] = []
        self.asks, self.is_drafted, self.is_asked_back = 0, False, False

    def prompt(self, problem: Problem) -> None:
        self._extend(self.tokenizer.prompt(problem.question, problem.notes), written=False)

    def segment(
        self, action: int, text: str, *, is_choice: bool = True, is_imitated: bool = True
    ) -> None:
        """Append a decision and its text.

        is_choice=False: the decision is not to be imitated. is_imitated=False: the text is not.

        Raises: TraceDoesNotFitError if the action is not legal here or the text is too long.
        """
        legal_A = legal_actions(
            self.limits,
            length_B=np.array([len(self.tokens)]),
            asks_B=np.array([self.asks]),
            decisions_B=np.array([len(self.actions)]),
            is_drafted_B=np.array([self.is_drafted]),
            is_asked_back_B=np.array([self.is_asked_back]),
        )[0]
        ids = [*self.tokenizer.encode(text), self.tokenizer.end_id]
        if not legal_A[action] or len(ids) > self.limits.segment_tokens[action]:
            raise TraceDoesNotFitError
        self.decided_at.append(len(self.tokens) - 1)
        self.actions.append(action)
        self.legal.append(legal_A if is_choice else np.arange(len(legal_A)) == action)
        self._extend([self.tokenizer.control[self.names[action]]], written=False)
        self._extend(ids, written=is_imitated)
        self.asks += action >= REPLY_ID
        self.is_drafted, self.is_asked_back = action == THINK_ID, False

    def feedback(self, feedback: Feedback) -> None:
        ids, is_cut = self.tokenizer.feedback(
            feedback.kind, feedback.text, self.limits.reply_tokens
        )
        if is_cut:
            raise TraceDoesNotFitError
        self._extend(ids, written=False)
        self.is_drafted, self.is_asked_back = False, feedback.kind is FeedbackKind.CLARIFY

    def trace(self) -> Trace:
        count = len(self.actions)
        return Trace(
            tokens_S=np.array(self.tokens, np.int32),
            sampled_S=np.array(self.written),
            logp_S=np.zeros(len(self.tokens), np.float32),
            decided_at_K=np.array(self.decided_at, np.int32),
            action_K=np.array(self.actions, np.int32),
            action_logp_K=np.zeros(count, np.float32),
            action_logp_KA=np.zeros((count, self.limits.actions), np.float32),
            legal_KA=np.array(self.legal).reshape(count, self.limits.actions),
            features_KF=np.zeros((count, self.limits.features), np.float32),
        )

    def _extend(self, ids: Sequence[int], *, written: bool) -> None:
        self.tokens += ids
        self.written += [written] * len(ids)


@dataclasses.dataclass(frozen=True)
class Synthesiser:
    """Makes traces of a task. settings: `config.cold_start`. teacher: who answers requests."""

    task: TeachableTask
    tokenizer: Tokenizer
    names: Sequence[str]
    limits: Limits
    settings: Mapping[str, Any]
    teacher: Teacher
    helpers: Sequence[str]

    def batch(
        self, problems: Sequence[Problem], rng: np.random.Generator, *, longest: int = 0
    ) -> tuple[list[Trace], float]:
        """Whole episodes, and a share of bare facts where the task can drill them.

        longest: only traces of at most so many tokens, and the notes cut to the sentences that a
        solution reads; 0 = no such limit. What a network must find in 50 tokens it finds sooner.
        Returns also the share of the tried solutions that did not fit the limits of a rollout.
        Raises: ValueError when hardly any worked solution fits the limits, with the keys to raise.
        """
        size = self.settings["batch"]
        try:
            batch = self._drills(problems, rng, longest or self.limits.capacity)
        except TraceDoesNotFitError as error:
            raise ValueError(UNFIT) from error
        tried = unfit = 0
        while len(batch) < size:
            tried += 1
            if tried > 50 * size:
                raise ValueError(UNFIT)
            problem = problems[int(rng.integers(len(problems)))]
            try:
                if longest:
                    problem = _shortened(problem, longest / self.limits.capacity, rng)
                trace = self.episode(problem, rng)
            except TraceDoesNotFitError:
                unfit += 1
                continue
            if not longest or len(trace.tokens_S) <= longest:
                batch.append(trace)
        return batch, unfit / max(tried, 1)

    def _drills(
        self, problems: Sequence[Problem], rng: np.random.Generator, longest: int
    ) -> list[Trace]:
        """The rows of a batch that drill facts and reading; none where the task has no such."""
        if not isinstance(self.task, DrilledTask):
            return []
        facts, readings = (
            round(self.settings["batch"] * self.settings[share])
            for share in ("drill_share", "read_share")
        )
        return [self.drill(rng, longest) for _ in range(facts)] + [
            self.reading(problems[int(rng.integers(len(problems)))], rng, longest)
            for _ in range(readings)
        ]

    def drill(self, rng: np.random.Generator, longest: int) -> Trace:
        """Facts as drafts without a prompt, as many as fit, at most 8."""
        writer = TraceWriter(self.tokenizer, self.names, self.limits)
        writer.tokens, writer.written = [self.tokenizer.control["bos"]], [False]
        assert isinstance(self.task, DrilledTask)
        for _ in range(min(DRILLED, self.limits.max_segments - 1)):
            if len(writer.tokens) + self.limits.think_tokens > longest:
                break
            writer.segment(THINK_ID, self.task.drill(rng).statement, is_choice=False)
        return writer.trace()

    def reading(self, problem: Problem, rng: np.random.Generator, longest: int) -> Trace:
        """What some sentences of the notes tell, as drafts in another order; no question."""
        assert isinstance(self.task, DrilledTask)
        encode = self.tokenizer.encode
        sentences = _sentences(problem.notes)
        notes, total = "", 3
        steps: list[Step] = []
        for index in rng.permutation(len(sentences)):
            sentence = f"{sentences[index]} . "
            found = self.task.readings(dataclasses.replace(problem, notes=sentence.strip()))
            total += len(encode(sentence)) + sum(len(encode(s.statement)) + 2 for s in found)
            if total > longest or len(steps) + len(found) >= self.limits.max_segments:
                break
            notes, steps = notes + sentence, [*steps, *found]
        writer = TraceWriter(self.tokenizer, self.names, self.limits)
        writer.prompt(dataclasses.replace(problem, question="", notes=notes.strip()))
        for index in rng.permutation(len(steps)):
            writer.segment(THINK_ID, steps[index].statement, is_choice=False)
        return writer.trace()

    def episode(self, problem: Problem, rng: np.random.Generator) -> Trace:
        """One worked solution, with the SLM's own beliefs where it does not ask."""
        writer = TraceWriter(self.tokenizer, self.names, self.limits)
        writer.prompt(problem)
        belief, index, reference = "", 0, ""
        while (step := self.task.next_step(problem, index, belief)) is not None:
            remembered = step.answer if step.is_local else self.task.recall(step, rng)
            is_spoiled = not step.is_local and self._is_spoiled(rng)
            if is_spoiled:
                remembered = self.task.knowledge.wrong_answer(step, rng)
            draft = dataclasses.replace(step, answer=remembered)
            writer.segment(THINK_ID, draft.statement, is_imitated=not is_spoiled)
            lean = self.settings["ask_lean"] * (1 if remembered != step.answer else -1)
            is_asking = not step.is_local and rng.random() < self.settings["ask_share"] + lean
            if is_spoiled or is_asking:
                told = self._ask(writer, problem, draft, index, belief, reference, rng)
                if told:
                    index, belief, reference = index + len(told), told[-1], ""
                    continue
                if is_spoiled:  # a hint, or nothing: what was false does not stay
                    remembered = step.answer
                    writer.segment(THINK_ID, step.statement)
            reference = step.query if step.is_local and index == 0 else ""
            index, belief = index + 1, remembered
        writer.segment(ANSWER_ID, belief)
        return writer.trace()

    def _is_spoiled(self, rng: np.random.Generator) -> bool:
        share = self.settings["spoil_share"]
        return share > 0 and rng.random() < share  # at 0 no draw: traces stay as they were

    def _ask(
        self,
        writer: TraceWriter,
        problem: Problem,
        draft: Step,
        index: int,
        belief: str,
        reference: str,
        rng: np.random.Generator,
    ) -> list[str]:
        """Request, reply, and a REPLY where the teacher asks back. Returns the answers told.

        The last kind hands over the rest; the others, each as often, are about the draft. What they
        get for an answer to something else (the first part of it) is read, not taken for the draft.
        """
        kinds = len(self.names) - FIRST_REQUEST_ID
        is_chain = kinds > 1 and rng.random() < self.settings["solve_share"]
        kind = len(self.names) - 1
        if not is_chain:
            kind = FIRST_REQUEST_ID + int(rng.integers(max(kinds - 1, 1)))
        if is_chain or self.names[kind] == "ask_hint":
            text = self.task.chain_request(problem, index, belief)
        else:
            text = draft.statement if self.names[kind] == "ask_check" else draft.query
        is_vague = bool(reference) and rng.random() < self.settings["vague"]
        if is_vague:
            text = text.replace(belief, reference)
        elif rng.random() < self.settings["overshare"]:
            text = f"{_some_notes(problem, rng)}{text}"
        helper = str(rng.choice(list(self.helpers))) if self.helpers else ""
        request = HelpRequest("trace", self.names[kind], text, helper=helper)
        reply = self.teacher(request)
        writer.segment(kind, text)
        writer.feedback(reply)
        if reply.kind is FeedbackKind.CLARIFY:
            history = (Exchange(request.kind, text, reply),)
            writer.segment(REPLY_ID, belief)
            reply = self.teacher(
                HelpRequest("trace", self.names[REPLY_ID], belief, history, helper)
            )
            writer.feedback(reply)
        told = [part.strip().split(" = ", 1) for part in reply.text.split(" ; ") if " = " in part]
        return [answer for query, answer in told if is_chain or query == draft.query]


def _shortened(problem: Problem, share: float, rng: np.random.Generator) -> Problem:
    """The problem with the sentences that its local steps read, and a share of the others."""
    wanted = [step.answer for step in problem.steps if step.is_local]
    kept = [
        sentence
        for sentence in _sentences(problem.notes)
        if rng.random() < share or any(answer in sentence for answer in wanted)
    ]
    return dataclasses.replace(problem, notes="".join(f"{s} . " for s in kept).strip())


def _some_notes(problem: Problem, rng: np.random.Generator) -> str:
    """One or two sentences of the private notes, to be sent along; "" without notes."""
    sentences = _sentences(problem.notes)
    if not sentences:
        return ""
    count = min(len(sentences), int(rng.integers(1, 3)))
    chosen = rng.choice(len(sentences), size=count, replace=False)
    return "".join(f"{sentences[index]} . " for index in sorted(chosen))


def _sentences(notes: str) -> list[str]:
    return [part for part in re.split(r"\s*\.(?:\s+|$)", notes.strip()) if part]


def longest_at(step: int, curriculum: Sequence[tuple[int, int]]) -> int:
    """The limit of a trace's tokens at a step of imitation; 0 once the curriculum is over."""
    for steps, longest in curriculum:
        if step < steps:
            return longest
        step -= steps
    return 0
