"""The host side of a rollout: fills rows, sends requests, feeds replies, collects episodes.

Requests leave as soon as their rows wait, the other rows go on meanwhile, replies enter as they
arrive and finished rows are refilled. In which order replies arrive changes nothing in an episode.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from collab import sharding
from collab.llm.weakening import Weakening
from collab.privacy.gate import restored
from collab.rollout.episodes import InFlight, Job, finished_episode, outgoing, unrun_episode
from collab.rollout.state import (
    DECIDE,
    DONE,
    GOLD_STEPS,
    WAIT,
    Admission,
    Replies,
    Rows,
    Rule,
    hash_tokens,
)
from collab.tokenizers.base import MAX_CHARS_PER_TOKEN
from collab.types import Episode, Exchange, Feedback, FeedbackKind, HelpRequest, Params

if TYPE_CHECKING:
    from collab.rollout.engine import Engine

LIVE_MULTIPLE = 64  # of the lengths that attention may end at
PROMPT_BUCKET = 32  # prompts are padded to a multiple of this
FEED_PARTS = 4  # one in so many rows is fed at once
POLL_S = 0.05
WEAKENING = 1  # stream of chance within an episode


class Flight:
    """Jobs in the rows of an engine: the queue, who occupies which row, futures, results."""

    def __init__(self, engine: Engine, *, temperature: float, weakening: Weakening | None) -> None:
        self.engine, self.weakening = engine, weakening
        self.temperature = engine.put_whole(np.float32(temperature))
        self._given: Params = {}  # of the last turn
        self.jobs: dict[int, Job] = {}
        self.results: dict[int, Episode] = {}
        self.version = 0  # of the parameters that the next turn will be given
        self.begun_at: dict[int, int] = {}  # versions, by job
        self.finished = self._added = 0
        self.row: list[InFlight | None] = [None] * engine.rows_count
        self.length_B = np.zeros(engine.rows_count, np.int64)  # tokens of each row
        self.futures: dict[int, concurrent.futures.Future[Feedback]] = {}
        self.prompts: dict[tuple[str, str], list[int]] = {}
        self.seen: set[tuple[int, ...]] = set()  # prompts that have been prefilled
        self.queue: collections.deque[int] = collections.deque()
        self.prompt_length = min(PROMPT_BUCKET, engine.limits.capacity)

    def add(self, jobs: Sequence[Job]) -> range:
        """Queue jobs behind all others; returns the batch that they are from now on."""
        limits = self.engine.limits
        batch = range(self._added, self._added + len(jobs))
        self._added = batch.stop
        for index, job in zip(batch, jobs, strict=True):
            self.jobs[index], length = job, len(self._prompt(job))
            room = limits.capacity - limits.answer_room
            if self.engine.rules[job.strategy].mode == "opening":
                room -= limits.reply_tokens
            if length > room:
                self._finish(index, unrun_episode(job, limits))
                continue
            self.queue.append(index)
            bucket = min(-(-length // PROMPT_BUCKET) * PROMPT_BUCKET, limits.capacity)
            self.prompt_length = max(self.prompt_length, bucket)
        return batch

    def is_finished(self, batch: range) -> bool:
        return all(index in self.results for index in batch)

    def take(self, batch: range) -> tuple[list[Episode], list[int]]:
        """Episodes of a finished batch, as its jobs go, and the version that each began at.

        They are forgotten here.
        """
        for index in batch:
            del self.jobs[index]
        episodes = [self.results.pop(index) for index in batch]
        return episodes, [self.begun_at.pop(index, self.version) for index in batch]

    def turn(self, params: Params) -> None:
        """Refill rows, feed replies, advance, then handle every row that stopped."""
        engine = self.engine
        if params is not self._given:
            self._given, self.params = params, engine.for_decoding(params)
        engine.client.hear(self.futures.values(), 0.0)
        self._admit()
        self._feed()
        with engine.stopwatch.part("prefill"):  # else it would be taken for decoding
            jax.block_until_ready(engine.rows.phase_B)
        busy = sum(entry is not None for entry in self.row)
        if busy == len(self.futures):
            if self.futures:
                with engine.stopwatch.part("wait"):
                    engine.client.hear(self.futures.values(), POLL_S)
            return
        host = self._advance(busy)
        for b, entry in enumerate(self.row):
            if entry is None or b in self.futures:
                continue
            if host.phase_B[b] == WAIT and not entry.has_failed:
                self._request(b, entry, host)
            if host.phase_B[b] == DONE or entry.has_failed:
                episode = finished_episode(
                    entry, host, b, names=engine.names, tokenizer=engine.tokenizer
                )
                self._finish(entry.index, episode)
                self.row[b] = None

    def _finish(self, index: int, episode: Episode) -> None:
        self.results[index] = episode
        self.finished += 1

    def _advance(self, busy: int) -> Rows:
        """Decode for a while; the rows as numpy arrays, without the cache. busy: rows occupied."""
        engine = self.engine
        chunk = max(1, engine.rows_count // 8)
        idle = engine.rows_count - busy + len(self.futures) + chunk
        active = [b for b, entry in enumerate(self.row) if entry and b not in self.futures]
        most, live = reach(engine.config.rollout, int(self.length_B[active].max()))
        is_help_open = not engine.client.is_spent
        limits = engine.put_whole((np.int32(most), np.int32(idle), np.bool_(is_help_open)))
        waiting = [future for future in self.futures.values() if not future.done()]
        with engine.stopwatch.part("decode"):
            engine.rows, work = engine._advance(
                self.params, engine.rows, self.temperature, *limits, live=live
            )
            rows = dataclasses.replace(engine.rows, cache=())
            host, work = sharding.fetch((rows, work))
        self.length_B = np.array(host.length_B)
        # A row could have worked while it was empty and jobs were queued, and while its reply was
        # there: on average half of the steps.
        steps, arrived = int(work.steps), sum(future.done() for future in waiting)
        startable = min(int(work.empty_row_steps), len(self.queue) * steps)
        engine.stopwatch.count(
            decode_steps=steps,
            row_steps=int(work.row_steps),
            context_read=int(work.context_read),
            idle_row_steps=startable + arrived * steps / 2,
        )
        return host

    # --- prompts and admission -------------------------------------------------------------

    def _prompt(self, job: Job) -> list[int]:
        """Token ids of the job's prompt; with an opening request behind it where it has one."""
        tokenizer, engine = self.engine.tokenizer, self.engine
        key = (job.problem.uid, job.problem.question)
        if key not in self.prompts:
            self.prompts[key] = tokenizer.prompt(job.problem.question, job.problem.notes)
        prompt = self.prompts[key]
        if engine.rules[job.strategy].mode == "opening":
            control = tokenizer.control[engine.names[job.setting.kind]]
            return [*prompt, control, *tokenizer.encode(job.problem.question), tokenizer.end_id]
        return prompt

    def _admit(self) -> None:
        """Put queued jobs into free rows, each distinct prompt prefilled once."""
        engine = self.engine
        free = [b for b, entry in enumerate(self.row) if entry is None]
        while self.queue and free and (len(free) >= engine.rows_count // 8 or self._is_idle()):
            free = self._admit_once(free)

    def _is_idle(self) -> bool:
        return all(entry is None for entry in self.row) or len(self.queue) < len(self.row) // 8

    def _admit_once(self, free: list[int]) -> list[int]:
        engine, B = self.engine, self.engine.rows_count
        P = min(B, engine.config.rollout.prompts_per_call)
        source_B = np.full(B, -1, np.int32)
        identity_BI = np.zeros((B, 3), np.uint32)
        phase_B, asks_B = np.full(B, DECIDE, np.int32), np.zeros(B, np.int32)
        index_B, kind_B = np.zeros(B, np.int32), np.zeros(B, np.int32)
        threshold_B = np.zeros(B, np.float32)
        forced_B, is_asking_B = np.full(B, -1, np.int32), np.zeros(B, bool)
        gold_BH = np.zeros((B, GOLD_STEPS), np.uint32)
        local_BH = np.zeros((B, GOLD_STEPS), bool)
        helper_BE = np.zeros((B, engine.limits.helper_features), np.float32)
        prompts: dict[tuple[int, ...], int] = {}
        openings: list[tuple[int, InFlight, str]] = []
        taken = 0
        for b in free:
            if not self.queue:
                break
            job = self.jobs[self.queue[0]]
            prompt = tuple(self._prompt(job))
            if prompt not in prompts:
                if len(prompts) == P:
                    break
                prompts[prompt] = len(prompts)
            entry = InFlight(self.queue.popleft(), job)
            self.begun_at[entry.index] = self.version
            self.row[b], taken = entry, taken + 1
            self.length_B[b] = len(prompt)
            source_B[b], identity_BI[b] = prompts[prompt], job.identity
            index_B[b] = engine.rule_index[job.strategy]
            kind_B[b], threshold_B[b] = job.setting.kind, job.setting.threshold
            if job.branch is not None:
                forced_B[b], is_asking_B[b] = job.branch.at, job.branch.is_asking
            helper_BE[b] = engine.pool.features_of(entry.helper)
            for h, step in enumerate(job.problem.steps[:GOLD_STEPS]):
                gold_BH[b, h] = hash_tokens(engine.tokenizer.encode(step.statement))
                local_BH[b, h] = step.is_local
            if engine.rules[job.strategy].mode == "opening":
                phase_B[b], asks_B[b], entry.opening = WAIT, 1, job.problem.question
                openings.append((b, entry, entry.opening))
        prompts_PS = np.zeros((P, self.prompt_length), np.int32)
        length_P = np.ones(P, np.int32)
        for prompt, p in prompts.items():
            prompts_PS[p, : len(prompt)], length_P[p] = prompt, len(prompt)
        engine.counters["tokens_prefilled"] += sum(len(prompt) for prompt in prompts)
        engine.stopwatch.count(
            prefilled=sum(map(len, prompts)), distinct=sum(map(len, prompts.keys() - self.seen))
        )
        self.seen |= prompts.keys()
        by_row = sharding.put_rows(
            (source_B, identity_BI, phase_B, asks_B,
             (index_B, kind_B, threshold_B, forced_B, is_asking_B), gold_BH, local_BH, helper_BE),
            engine.mesh,
        )  # fmt: skip
        source, identity, phase, asks, rule, gold, local, helper = by_row
        prompts_on_device, length = engine.put_whole((prompts_PS, length_P))
        new = Admission(
            prompts_PS=prompts_on_device,
            length_P=length,
            source_B=source,
            identity_BI=identity,
            phase_B=phase,
            asks_B=asks,
            rule=Rule(*rule),
            gold_BH=gold,
            gold_is_local_BH=local,
            helper_BE=helper,
        )
        with engine.stopwatch.part("prefill"):
            engine.rows = engine._admit(self.params, engine.rows, new)
        for b, entry, text in openings:
            self._send(b, entry, engine.names[entry.job.setting.kind], text)
        return free[taken:]

    # --- requests and replies --------------------------------------------------------------

    def _request(self, b: int, entry: InFlight, host: Rows) -> None:
        start, end = int(host.start_B[b]), int(host.length_B[b])
        text = self.engine.tokenizer.decode(host.tokens_BT[b, start:end].tolist())
        self._send(b, entry, self.engine.names[int(host.action_B[b])], text)

    def _send(self, b: int, entry: InFlight, kind: str, text: str) -> None:
        engine = self.engine
        request = HelpRequest(
            episode=entry.job.episode or str(entry.index),
            kind=kind,
            text=outgoing(text, entry.job.problem, engine.config.llm.share),
            history=tuple(entry.exchanges),
            helper=entry.helper,
            reply_tokens=engine.config.llm.reply_tokens,
        )
        if engine.client.is_down:
            entry.has_failed = True
            return
        screened = engine.gate.screen(request, entry.job.problem.units)
        self.futures[b] = engine.client.submit(screened)
        entry.placeholders = screened.placeholders
        entry.exchanges.append(Exchange(kind, screened.sent, Feedback(FeedbackKind.HINT, "")))

    def _feed(self) -> None:
        """Feed every reply that has arrived."""
        engine, B = self.engine, self.engine.rows_count
        arrived = sorted(b for b, future in self.futures.items() if future.done())
        F, R = max(1, B // FEED_PARTS), engine.limits.reply_tokens
        for first in range(0, len(arrived), F):
            row_F, count_F = np.full(F, B, np.int32), np.zeros(F, np.int32)
            tokens_FR, back_F = np.zeros((F, R), np.int32), np.zeros(F, bool)
            helper_FE = np.zeros((F, engine.limits.helper_features), np.float32)
            for f, b in enumerate(arrived[first : first + F]):
                entry, heard = self.row[b], self.futures.pop(b).result()
                assert entry is not None
                # What no row could read is neither kept nor repeated to the helper at our cost.
                said = heard.text[: R * MAX_CHARS_PER_TOKEN]
                is_long, heard = said != heard.text, dataclasses.replace(heard, text=said)
                heard = self._weakened(heard, entry)
                feedback = dataclasses.replace(heard, text=restored(heard.text, entry.placeholders))
                ids, is_cut = engine.tokenizer.feedback(feedback.kind, feedback.text, R)
                engine.counters["replies_cut"] += is_cut or is_long
                row_F[f], count_F[f], tokens_FR[f, : len(ids)] = b, len(ids), ids
                self.length_B[b] += len(ids)
                back_F[f] = feedback.kind is FeedbackKind.CLARIFY
                # Later requests repeat the reply as it came: the helper must not learn what a
                # placeholder stands for by quoting it.
                entry.exchanges[-1] = dataclasses.replace(entry.exchanges[-1], feedback=heard)
                entry.replies.append(feedback)
                helper_FE[f] = engine.pool.features_of(entry.helper)
            whole = engine.put_whole((row_F, tokens_FR, count_F, back_F, helper_FE))
            read = int(count_F.sum())
            engine.stopwatch.count(prefilled=read, distinct=read)
            with engine.stopwatch.part("prefill"):
                engine.rows = engine._feed(self.params, engine.rows, Replies(*whole))

    def _weakened(self, feedback: Feedback, entry: InFlight) -> Feedback:
        """The reply as this episode gets it, by chance of its own: no other reply moves it."""
        if self.weakening is None:
            return feedback
        rng = np.random.default_rng((*entry.job.identity, WEAKENING, len(entry.exchanges)))
        weakened = self.weakening.apply(feedback, entry.exchanges[-1].request, rng)
        self.engine.counters["replies_weakened"] += weakened != feedback
        return weakened


def live_lengths(settings: Any) -> tuple[int, ...]:
    """Where attention may end, the capacity last. settings: `config.rollout`."""
    capacity = settings.capacity
    block = -(-capacity // (settings.live_lengths * LIVE_MULTIPLE)) * LIVE_MULTIPLE
    return (*range(block, capacity, block), capacity)


def reach(settings: Any, longest: int) -> tuple[int, int]:
    """Decode steps of a call and where attention ends, if the longest row has so many tokens."""
    most, lengths = settings.steps_per_call, live_lengths(settings)
    live = next((n for n in lengths if n >= longest + most // 2), lengths[-1])
    return (most if live == lengths[-1] else min(most, live - longest)), live
