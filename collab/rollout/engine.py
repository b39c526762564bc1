"""The host side of a rollout: fills rows, sends requests, feeds replies, collects episodes.

Requests leave as soon as their rows wait, the other rows go on meanwhile, replies enter as they
arrive and finished rows are refilled. In which order replies arrive changes nothing in an episode.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import numpy as np

from collab import sharding, strategies
from collab.config import request_names
from collab.llm.pool import Pool
from collab.llm.weakening import Weakening
from collab.models.policy import Policy, unstacked
from collab.privacy.gate import Gate, Screened, restored
from collab.rollout.decode import Admission, Decoder, Replies
from collab.rollout.episodes import InFlight, Job, finished_episode, unrun_episode
from collab.rollout.state import (
    DECIDE,
    DONE,
    WAIT,
    Limits,
    Rows,
    Rule,
    empty_rows,
    hash_tokens,
)
from collab.tokenizers import Tokenizer
from collab.tokenizers.base import MAX_CHARS_PER_TOKEN
from collab.types import (
    Episode,
    Exchange,
    Feedback,
    FeedbackKind,
    HelpRequest,
    Params,
    Problem,
    action_names,
)

GOLD_STEPS = 8  # known solution steps a row can hold, for the oracle
PROMPT_BUCKET = 32  # prompts are padded to a multiple of this
FEED_PARTS = 4  # one in so many rows is fed at once
POLL_S = 0.05
WEAKENING = 1  # stream of chance within an episode


class HelpClient(Protocol):
    """What the engine needs of `collab.llm.client.Client`."""

    @property
    def is_down(self) -> bool: ...

    @property
    def is_spent(self) -> bool: ...

    def submit(self, screened: Screened) -> concurrent.futures.Future[Feedback]: ...


class Engine:
    """Runs jobs through the jitted rollout. Build one a run: it owns the compiled programs."""

    def __init__(
        self,
        policy: Policy,
        tokenizer: Tokenizer,
        client: HelpClient,
        config: Any,
        mesh: jax.sharding.Mesh,
        gate: Gate | None = None,
        pool: Pool | None = None,
    ) -> None:
        """gate: what every request goes through; by default one that is open.

        pool: what the head is told of helpers; by default nothing.
        """
        self.config, self.client, self.tokenizer, self.mesh = config, client, tokenizer, mesh
        self.gate = gate or Gate("off")
        self.names = action_names(request_names(config))
        self.pool = pool or Pool({"": 1.0})
        self.limits = Limits.of(
            config.rollout, len(self.names), helper_features=len(self.pool.features)
        )
        self.rules = row_rules()
        self.rule_index = {name: index for index, name in enumerate(self.rules)}
        is_barred_V = tokenizer.is_control_V.copy()
        is_barred_V[tokenizer.end_id] = False
        self.decoder = Decoder(
            policy=policy,
            limits=self.limits,
            action_token_A=np.array([tokenizer.control[n] for n in self.names], np.int32),
            is_barred_V=is_barred_V,
            end_id=tokenizer.end_id,
            temperature=config.rollout.temperature,
            rules=self.rules,
        )
        self.rows_count = config.rollout.rows
        make = jax.jit(
            lambda: empty_rows(policy.config, self.limits, rows=self.rows_count, steps=GOLD_STEPS),
            out_shardings=sharding.row_sharding(mesh),
        )
        self.rows: Rows = make()
        out = jax.tree.map(lambda leaf: leaf.sharding, self.rows)
        self._admit = jax.jit(self.decoder.admit, donate_argnums=1, out_shardings=out)
        self._feed = jax.jit(self.decoder.feed, donate_argnums=1, out_shardings=out)
        self._advance = jax.jit(self.decoder.advance, donate_argnums=1, out_shardings=out)
        self._unstack: Callable[[Params], Params] | None = None  # jitted once shapes are known
        self.counters: collections.Counter[str] = collections.Counter()  # of the newest `run`

    def put_whole(self, tree: Any) -> Any:
        """Host arrays to the mesh, whole on every device."""
        return jax.device_put(tree, sharding.replicated(self.mesh))

    def programs(self) -> dict[str, int]:
        """Compiled programs by function."""
        return {
            name: getattr(self, f"_{name}")._cache_size() for name in ("admit", "feed", "advance")
        }

    def run(
        self,
        params: Params,
        jobs: Sequence[Job],
        *,
        temperature: float,
        on_done: Callable[[int], None] = lambda count: None,
        weakening: Weakening | None = None,
    ) -> list[Episode]:
        """Make all episodes, in the order of `jobs`. on_done: called with newly finished counts.

        temperature: 0 is greedy. A prompt too long for the capacity gives CONTEXT_FULL, unrun.
        weakening: what happens to replies before they are read.
        """
        self.counters = collections.Counter(replies_cut=0, replies_weakened=0, tokens_prefilled=0)
        if self.config.rollout.unstack_layers:
            params = self._unstacked(params)
        run = _Run(self, params, jobs, temperature, weakening)
        while not run.is_finished():
            before = run.finished
            run.turn()
            if run.finished > before:
                on_done(run.finished - before)
        return run.episodes()

    def _unstacked(self, params: Params) -> Params:
        """A copy for decoding, sharded by the same rules."""
        if self._unstack is None:
            shapes = jax.eval_shape(unstacked, params)
            out = sharding.param_shardings(shapes, self.mesh)
            self._unstack = jax.jit(unstacked, out_shardings=out)
        return self._unstack(params)


class _Run:
    """One call of `Engine.run`: queue, occupied rows, futures, results."""

    def __init__(
        self,
        engine: Engine,
        params: Params,
        jobs: Sequence[Job],
        temperature: float,
        weakening: Weakening | None,
    ) -> None:
        self.engine, self.params, self.jobs, self.weakening = engine, params, jobs, weakening
        self.temperature = engine.put_whole(np.float32(temperature))
        self.results: list[Episode | None] = [None] * len(jobs)
        self.finished = 0
        self.row: list[InFlight | None] = [None] * engine.rows_count
        self.futures: dict[int, concurrent.futures.Future[Feedback]] = {}
        self.prompts: dict[tuple[str, str], list[int]] = {}
        self.queue: collections.deque[int] = collections.deque()
        for index, job in enumerate(jobs):
            room = engine.limits.capacity - engine.limits.answer_room
            if engine.rules[job.strategy].mode == "opening":
                room -= engine.limits.reply_tokens
            if len(self._prompt(job)) > room:
                self.results[index] = unrun_episode(job, engine.limits)
                self.finished += 1
            else:
                self.queue.append(index)
        lengths = [len(self._prompt(jobs[index])) for index in self.queue]
        bucket = -(-max(lengths, default=1) // PROMPT_BUCKET) * PROMPT_BUCKET
        self.prompt_length = min(bucket, engine.limits.capacity)

    def is_finished(self) -> bool:
        return self.finished == len(self.jobs)

    def episodes(self) -> list[Episode]:
        return [episode for episode in self.results if episode is not None]

    def turn(self) -> None:
        """Refill rows, feed replies, advance, then handle every row that stopped."""
        self._admit()
        self._feed()
        busy = sum(entry is not None for entry in self.row)
        if busy == len(self.futures):
            if self.futures:
                concurrent.futures.wait(
                    self.futures.values(),
                    timeout=POLL_S,
                    return_when=concurrent.futures.FIRST_COMPLETED,
                )
            return
        engine = self.engine
        chunk = max(1, engine.rows_count // 8)
        idle = engine.rows_count - busy + len(self.futures) + chunk
        steps, is_help_open = engine.config.rollout.steps_per_call, not engine.client.is_spent
        engine.rows = engine._advance(
            self.params,
            engine.rows,
            self.temperature,
            *engine.put_whole((np.int32(steps), np.int32(idle), np.bool_(is_help_open))),
        )
        host = sharding.fetch(dataclasses.replace(engine.rows, cache=()))
        for b, entry in enumerate(self.row):
            if entry is None or b in self.futures:
                continue
            if host.phase_B[b] == WAIT and not entry.has_failed:
                self._request(b, entry, host)
            if host.phase_B[b] == DONE or entry.has_failed:
                self.results[entry.index] = finished_episode(
                    entry, host, b, names=engine.names, tokenizer=engine.tokenizer
                )
                self.finished += 1
                self.row[b] = None

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
            self.row[b], taken = entry, taken + 1
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
                back_F[f] = feedback.kind is FeedbackKind.CLARIFY
                # Later requests repeat the reply as it came: the helper must not learn what a
                # placeholder stands for by quoting it.
                entry.exchanges[-1] = dataclasses.replace(entry.exchanges[-1], feedback=heard)
                entry.replies.append(feedback)
                helper_FE[f] = engine.pool.features_of(entry.helper)
            whole = engine.put_whole((row_F, tokens_FR, count_F, back_F, helper_FE))
            engine.rows = engine._feed(self.params, engine.rows, Replies(*whole))

    def _weakened(self, feedback: Feedback, entry: InFlight) -> Feedback:
        """The reply as this episode gets it, by chance of its own: no other reply moves it."""
        if self.weakening is None:
            return feedback
        rng = np.random.default_rng((*entry.job.identity, WEAKENING, len(entry.exchanges)))
        weakened = self.weakening.apply(feedback, entry.exchanges[-1].request, rng)
        self.engine.counters["replies_weakened"] += weakened != feedback
        return weakened


def row_rules() -> dict[str, Any]:
    """The strategies that decide in rows; a row's rule index counts along them."""
    every = strategies.load_all()
    return {name: rule for name, rule in every.items() if rule.mode in ("rows", "opening")}


def outgoing(text: str, problem: Problem, share: str) -> str:
    """What leaves the machine for a request: its text, with more context as `llm.share` says."""
    if share == "request":
        return text
    if share == "question":
        return f"{problem.question}\n{text}"
    return f"{problem.notes}\n{problem.question}\n{text}"
