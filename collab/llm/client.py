"""Help requests in, futures of typed feedback out; nothing ever raises out of a future.

Bounded concurrency, one deadline per request, retries with jitter, a cache that also joins
identical requests in flight, and meters of usage, cost and failures. How to reach an LLM is the
backend's business, what to say to it `prompts`'s.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import json
import logging
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future

from ml_collections import ConfigDict

from collab.llm import Backend, Completion, Message, errors, estimated_tokens, prompts
from collab.types import Feedback, FeedbackKind, HelpRequest

DOWN_AFTER = 3  # final errors in a row: enough that one server of several being odd is no outage
LONGEST_BACKOFF_S = 30.0
METERS = (
    "requests",
    "retries",
    "failures",
    "cache_hits",
    "prompt_tokens",
    "completion_tokens",
    "usage_estimated",  # replies whose server reported no usage
    "usd",
    "latency_s",  # summed over requests that were sent
)


class Client:
    """Sends help requests to one backend. `submit` may be called from any thread.

    is_down: final errors (bad key, unknown model, no credit) came DOWN_AFTER times in a row; from
    then on nothing is sent.
    """

    def __init__(
        self,
        backend: Backend,
        llm: ConfigDict,
        requests: Mapping[str, str],
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] | None = None,
        seed: int = 0,
    ) -> None:
        """requests: `config.requests`, kind -> instruction. clock, sleep: seconds, for tests.

        The default sleep ends at once when the client is closed.
        """
        self.is_down = False
        self._backend, self._llm, self._requests = backend, llm, dict(requests)
        self._closing = threading.Event()
        self._clock, self._sleep = clock, sleep or self._closing.wait
        self._jitter = random.Random(seed)
        self._lock = threading.Lock()  # guards all below
        self._counters = dict.fromkeys(METERS, 0.0)
        self._leaders: dict[str, Future[Feedback]] = {}
        self._final_in_a_row = 0
        self._pool = None
        if not backend.is_local:
            self._pool = concurrent.futures.ThreadPoolExecutor(llm.concurrency, "help")

    def submit(self, request: HelpRequest) -> Future[Feedback]:
        """Ask for help. The future always resolves to a Feedback, UNAVAILABLE where help failed.

        A cached reply carries the same cost as the first, so that no episode's reward depends on
        which of them asked first; `counters` meter what was paid. A local backend has answered when
        this returns. Raises: ValueError for a request kind that the run does not have.
        """
        instruction = prompts.instruction_of(request.kind, self._requests)
        messages = prompts.messages(request, instruction)
        key = self._cache_key(request, messages) if self._llm.cache else ""
        future: Future[Feedback] = Future()
        future.set_running_or_notify_cancel()  # it can't be cancelled: another may wait for it
        with self._lock:
            self._counters["requests"] += 1
            leader = self._leaders.get(key)
            if leader is not None:
                self._counters["cache_hits"] += 1
            elif key:
                self._leaders[key] = future
        if leader is not None:
            leader.add_done_callback(lambda done: future.set_result(done.result()))
        elif self._pool is None or self._closing.is_set():
            self._resolve(request, messages, key, future)
        else:
            self._pool.submit(self._resolve, request, messages, key, future)
        return future

    def counters(self) -> dict[str, float]:
        """Totals since the start: METERS, and `failures/<name>` for each kind of failure met."""
        with self._lock:
            return dict(self._counters)

    def close(self) -> None:
        """Resolve what is queued as UNAVAILABLE, wait for what is in flight, free connections."""
        self._closing.set()
        if self._pool is not None:
            self._pool.shutdown(wait=True)
        self._backend.close()

    # --- one request -----------------------------------------------------------------------

    def _resolve(
        self, request: HelpRequest, messages: list[Message], key: str, future: Future[Feedback]
    ) -> None:
        started_s = self._clock()
        try:
            completion = self._complete(request, messages, started_s + self._llm.deadline_s)
            feedback = self._metered(request, messages, completion, started_s)
        except errors.HelpError as error:
            feedback = self._failed(request, error.name, started_s)
        except Exception as error:  # noqa: BLE001 - the one place: no bug here may end a rollout
            # The type alone: the text of a foreign error may quote the request or the key.
            logging.warning("a help request ended in %s", type(error).__name__)
            feedback = self._failed(request, "internal_error", started_s)
        if feedback.failure is not None:
            with self._lock:
                self._leaders.pop(key, None)  # a failure is not cached
        future.set_result(feedback)

    def _complete(
        self, request: HelpRequest, messages: list[Message], deadline_s: float
    ) -> Completion:
        """The first completion that succeeds, within deadline and retries."""
        attempt, has_retried_malformed = 0, False
        while True:
            self._check_may_send()
            try:
                completion = self._backend.complete(
                    messages,
                    reply_tokens=request.reply_tokens,
                    deadline_s=deadline_s - self._clock(),
                    helper=request.helper,
                )
            except errors.HelpError as error:
                self._note_outcome(error)
                is_malformed = isinstance(error, errors.Malformed)
                is_first = is_malformed and not has_retried_malformed
                is_worth = isinstance(error, errors.Transient) or is_first
                has_retried_malformed |= is_malformed
                pause_s = self._backoff_s(attempt, error)
                is_late = self._clock() + pause_s >= deadline_s
                if not is_worth or attempt >= self._llm.retries or is_late:
                    raise
            else:
                self._note_outcome(None)
                return completion
            with self._lock:
                self._counters["retries"] += 1
            self._sleep(pause_s)
            attempt += 1

    def _check_may_send(self) -> None:
        if self._closing.is_set():
            raise errors.Closed("the client is closed")
        if self.is_down:
            raise errors.HelperDown(f"{DOWN_AFTER} final errors in a row")
        limit_usd = self._llm.usd_limit
        with self._lock:
            is_spent = 0 < limit_usd <= self._counters["usd"]
        if is_spent:
            raise errors.OverBudget(f"llm.usd_limit={limit_usd} is spent")

    def _note_outcome(self, error: errors.HelpError | None) -> None:
        """Count final errors in a row; a reply ends the row, a transient failure says nothing."""
        with self._lock:
            if error is None:
                self._final_in_a_row = 0
            elif error.is_final:
                self._final_in_a_row += 1
            if self._final_in_a_row == DOWN_AFTER and error is not None and not self.is_down:
                self.is_down = True
                logging.error("the helper is down for good: %s", error)

    def _backoff_s(self, attempt: int, error: errors.HelpError) -> float:
        """Full jitter over an exponential bound, on top of the pause that the server asked for."""
        bound_s = min(self._llm.backoff_s * 2.0**attempt, LONGEST_BACKOFF_S)
        asked_s = error.retry_after_s if isinstance(error, errors.Transient) else None
        with self._lock:
            return (asked_s or 0.0) + self._jitter.uniform(0.0, bound_s)

    # --- what it came to -------------------------------------------------------------------

    def _metered(
        self,
        request: HelpRequest,
        messages: Sequence[Message],
        completion: Completion,
        started_s: float,
    ) -> Feedback:
        kind, text = prompts.parse_feedback(completion.text)
        sent, received = completion.prompt_tokens, completion.completion_tokens
        is_estimated = sent is None or received is None
        if sent is None:
            sent = sum(estimated_tokens(message.content) for message in messages)
        if received is None:
            received = estimated_tokens(completion.text)
        usd_million = (
            sent * self._llm.usd_per_million_prompt_tokens
            + received * self._llm.usd_per_million_completion_tokens
        )
        latency_s = completion.latency_s
        feedback = Feedback(
            kind,
            text,
            prompt_tokens=sent,
            completion_tokens=received,
            cost_usd=usd_million / 1e6,
            latency_s=self._clock() - started_s if latency_s is None else latency_s,
            helper=request.helper,
        )
        with self._lock:
            self._counters["prompt_tokens"] += sent
            self._counters["completion_tokens"] += received
            self._counters["usage_estimated"] += is_estimated
            self._counters["usd"] += feedback.cost_usd
            self._counters["latency_s"] += feedback.latency_s
        return feedback

    def _failed(self, request: HelpRequest, name: str, started_s: float) -> Feedback:
        latency_s = self._clock() - started_s
        with self._lock:
            self._counters["failures"] += 1
            self._counters[f"failures/{name}"] = self._counters.get(f"failures/{name}", 0.0) + 1
            self._counters["latency_s"] += latency_s
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
