"""Help requests in, futures of typed feedback out; nothing ever raises out of a future.

Bounded concurrency, deadlines per request and per episode, retries with jitter, a cache that also
joins identical requests in flight. Whether an attempt may go, and what it costs, is `sender`'s
business; how to reach an LLM the backend's, what to say to it `prompts`'s.
"""

from __future__ import annotations

import concurrent.futures
import functools
import hashlib
import json
import logging
import math
import random
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from collab.llm import Backend, Completion, Message, errors, prompts
from collab.llm.journal import Journal
from collab.llm.sender import Call, Sender
from collab.privacy.gate import Screened
from collab.types import Feedback, FeedbackKind, HelpRequest

LONGEST_BACKOFF_S = 30.0
KEPT = 2**16  # newest replies in the cache, some 140 MB; a long run must not grow for ever


class Client:
    """Sends help requests to one backend. `submit` may be called from any thread."""

    def __init__(
        self,
        backend: Backend,
        llm: ConfigDict,
        requests: Mapping[str, str],
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] | None = None,
        seed: int = 0,
        journal: Journal | None = None,
        write: Callable[[HelpRequest, str], list[Message]] = prompts.messages,
        read: Callable[[str], tuple[FeedbackKind, str]] = prompts.parse_feedback,
    ) -> None:
        """requests: `config.requests`, kind -> instruction. clock, sleep: seconds, for tests.

        The default sleep ends at once when the client is closed. journal: of what is spent, where
        that is real money; closed with this. write, read: for what is no help: how a request with
        its instruction becomes a chat, and a completion feedback.
        """
        self._write, self._read = write, read
        self._backend, self._llm, self._requests = backend, llm, dict(requests)
        self._closing = threading.Event()
        self._clock, self._sleep = clock, sleep or self._closing.wait
        self._sender = Sender(backend, llm, clock=clock, sleep=self._sleep, journal=journal)
        self._meters = self._sender.meters
        self._jitter = random.Random(seed)
        self._lock = threading.Lock()  # guards the jitter and all below
        self._leaders: dict[str, Future[Feedback]] = {}
        self._pool = None
        if not backend.is_local:
            self._pool = concurrent.futures.ThreadPoolExecutor(llm.concurrency, "help")

    @property
    def is_down(self) -> bool:
        """Whether final errors (bad key, unknown model, no credit) ended help for good."""
        return self._sender.is_down

    @property
    def is_spent(self) -> bool:
        """Whether the budget of the run, or of this hour, is spent: nothing would be sent."""
        return self._sender.budget.is_spent

    def submit(self, screened: Screened) -> Future[Feedback]:
        """Ask for help. The future always resolves to a Feedback, UNAVAILABLE where help failed.

        A cached reply carries the same cost as the first, so that no episode's reward depends on
        which of them asked first, and a hedge is not charged to it; `counters` meter what was paid.
        A local backend has answered when this returns. Raises: ValueError for a request kind that
        the run does not have.
        """
        request = screened.request
        instruction = prompts.instruction_of(request.kind, self._requests)
        messages = self._write(request, instruction)
        key = self._cache_key(request, messages) if self._llm.cache else ""
        call = Call(request, messages, self._sender.accounts.of(request), self._clock())
        future: Future[Feedback] = Future()
        future.set_running_or_notify_cancel()  # it can't be cancelled: another may wait for it
        if screened.is_blocked:
            self._meters.add(requests=1)
            future.set_result(self._failed(request, "blocked", self._clock()))
            return future
        with self._lock:
            leader = self._leaders.get(key)
            if leader is None and key and self._sender.may_lead(call.account):
                self._leaders[key] = future
        self._meters.add(requests=1, cache_hits=leader is not None)
        if leader is not None:
            self._follow(call, future, leader)
        elif self._pool is None or self._closing.is_set():
            self._resolve(call, key, future)
        else:
            try:
                self._pool.submit(self._resolve, call, key, future)
            except RuntimeError:  # closed since the line above
                self._resolve(call, key, future)
        return future

    def hear(self, futures: Iterable[Future[Feedback]], timeout_s: float) -> None:
        """Wait until one of the futures has resolved, and no longer than `timeout_s`."""
        if timeout_s:
            concurrent.futures.wait(
                futures, timeout=timeout_s, return_when=concurrent.futures.FIRST_COMPLETED
            )

    def counters(self) -> dict[str, float]:
        """Totals: `meters.METERS`, and `failures/<name>` for each kind of failure met.

        What a restored spend covers (usd, sent) is of the whole run, the rest of this process.
        """
        run, breaker = self._sender.budget.run, self._sender.breaker
        return {
            **self._meters.totals(),
            "usd": run.usd,
            "sent": float(run.requests),
            "circuit_opened": float(breaker.times_opened),
        }

    def spend_state(self) -> dict[str, Any]:
        """What the run has spent, in plain numbers, for a checkpoint."""
        return self._sender.budget.state()

    def restore_spend(self, state: Mapping[str, Any]) -> None:
        """Add what earlier processes of the run spent, unless a journal knows; call it once."""
        self._sender.budget.restore(state)

    def close(self) -> None:
        """Resolve what is queued as UNAVAILABLE, wait for what is in flight, free connections."""
        self._closing.set()
        self._sender.is_closed = True
        if self._pool is not None:
            self._pool.shutdown(wait=True)
        self._sender.close()
        self._backend.close()

    # --- one request -----------------------------------------------------------------------

    def _resolve(self, call: Call, key: str, future: Future[Feedback]) -> None:
        started_s, is_lost = self._clock(), False
        try:
            completion = self._sender.recalled(call)
            if completion is None:
                deadline_s = self._sender.await_turn(call)
                started_s = self._clock()
                completion = self._complete(call, deadline_s)
            feedback = self._feedback(call.request, completion, started_s)
        except errors.HelpError as error:
            is_lost = isinstance(error, errors.Transient)
            feedback = self._failed(call.request, error.name, started_s)
        except Exception as error:  # noqa: BLE001 - the one place: no bug here may end a rollout
            # Type and place alone: the text of a foreign error may quote the request or the key.
            logging.warning("a help request ended in %s at %s", type(error).__name__, _place(error))
            feedback = self._failed(call.request, "internal_error", started_s)
        now_s = self._clock()
        self._sender.accounts.note_wait(
            call.account,
            waited_s=now_s - call.submitted_s,
            lost_s=now_s - started_s if is_lost else 0.0,
        )
        with self._lock:
            if feedback.failure is None and key:
                self._leaders.setdefault(key, future)
                if len(self._leaders) > KEPT:
                    del self._leaders[next(iter(self._leaders))]
            elif self._leaders.get(key) is future:
                del self._leaders[key]  # a failure is not cached
        future.set_result(feedback)

    def _follow(self, call: Call, future: Future[Feedback], leader: Future[Feedback]) -> None:
        """Get what an identical request gets, unless the episode can't wait so long for it."""
        once = threading.Lock()  # taken by who resolves the future
        left_s = self._sender.may_wait_s(call.account)
        if left_s < math.inf and not leader.done():
            timer = threading.Timer(max(0.0, left_s), self._leave, (call, future, once))
            timer.daemon = True
            timer.start()
            leader.add_done_callback(lambda _: timer.cancel())
        leader.add_done_callback(functools.partial(self._join, call, future, once))

    def _leave(self, call: Call, future: Future[Feedback], once: threading.Lock) -> None:
        """The episode's time is up before its twin's."""
        if once.acquire(blocking=False):
            waited_s = self._clock() - call.submitted_s
            self._sender.accounts.note_wait(call.account, waited_s=waited_s, lost_s=waited_s)
            future.set_result(self._failed(call.request, errors.TimedOut.name, call.submitted_s))

    def _join(
        self, call: Call, future: Future[Feedback], once: threading.Lock, leader: Future[Feedback]
    ) -> None:
        """Pass on the reply to an identical request, which may be another episode's."""
        if not once.acquire(blocking=False):
            return
        feedback, waited_s = leader.result(), self._clock() - call.submitted_s
        if feedback.failure is not None:
            self._meters.add(**{"failures": 1, f"failures/{feedback.failure}": 1})
        is_lost = feedback.failure in errors.TRANSIENT
        self._sender.accounts.note_wait(
            call.account, waited_s=waited_s, lost_s=waited_s if is_lost else 0.0
        )
        future.set_result(feedback)

    def _complete(self, call: Call, deadline_s: float) -> Completion:
        """The first completion that succeeds, within deadline and retries."""
        attempt, has_retried_malformed = 0, False
        while True:
            try:
                return self._sender.attempt(call, deadline_s)
            except errors.HelpError as error:
                is_malformed = isinstance(error, errors.Malformed)
                is_first = is_malformed and not has_retried_malformed
                is_worth = isinstance(error, errors.Transient) or is_first
                has_retried_malformed |= is_malformed
                pause_s = self._backoff_s(attempt, error)
                is_late = self._clock() + pause_s >= deadline_s
                if not is_worth or attempt >= self._llm.retries or is_late:
                    raise
                if self._sender.breaker.is_open or not self._may_retry():
                    raise
                self._sleep(pause_s)
                if not self._sender.take_turn(call, deadline_s):
                    raise
                if not self._sender.await_hold(deadline_s):
                    raise
            attempt += 1

    def _may_retry(self) -> bool:
        """Whether the budget that all requests share holds one more retry."""
        may_retry = self._sender.retries.withdraw()
        self._meters.add(retries=may_retry, retries_withheld=not may_retry)
        return may_retry

    def _backoff_s(self, attempt: int, error: errors.HelpError) -> float:
        """Full jitter over an exponential bound, on top of the pause that the server asked for."""
        bound_s = min(self._llm.backoff_s * 2.0**attempt, LONGEST_BACKOFF_S)
        asked_s = error.retry_after_s if isinstance(error, errors.Transient) else None
        with self._lock:
            return (asked_s or 0.0) + self._jitter.uniform(0.0, bound_s)

    # --- what it came to -------------------------------------------------------------------

    def _feedback(self, request: HelpRequest, completion: Completion, started_s: float) -> Feedback:
        kind, text = self._read(completion.text)
        latency_s = completion.latency_s
        feedback = Feedback(
            kind,
            text,
            prompt_tokens=completion.prompt_tokens or 0,
            completion_tokens=completion.completion_tokens or 0,
            cost_usd=self._sender.usd(request, completion),
            latency_s=self._clock() - started_s if latency_s is None else latency_s,
            helper=request.helper,
            is_part=completion.is_part,
        )
        self._meters.add(latency_s=feedback.latency_s)
        return feedback

    def _failed(self, request: HelpRequest, name: str, started_s: float) -> Feedback:
        latency_s = self._clock() - started_s
        self._meters.add(**{"failures": 1, f"failures/{name}": 1, "latency_s": latency_s})
        return Feedback(
            FeedbackKind.UNAVAILABLE,
            "",
            latency_s=latency_s,
            helper=request.helper,
            failure=name,
        )

    def _cache_key(self, request: HelpRequest, messages: Sequence[Message]) -> str:
        """A digest of all that the reply depends on; the text itself is not kept."""
        parts = {
            "version": prompts.INSTRUCTION_VERSION,
            "helper": request.helper,
            "messages": [(message.role, message.content) for message in messages],
            "reply_tokens": request.reply_tokens,
            "temperature": self._llm.temperature,
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _place(error: BaseException) -> str:
    """Where an error was raised, as "file.py:12"."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{Path(frame.filename).name}:{frame.lineno}"
