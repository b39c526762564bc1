"""One request to the backend when it may go, metered: between `client` and a backend.

Whether it may go is asked of `breaker`, `limits`, `budget` and `accounts`, which it keeps told.
Futures, threads, the cache and retries are `client`'s.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import logging
import math
import threading
from collections.abc import Callable, Sequence

from ml_collections import ConfigDict

from collab.llm import Backend, Completion, Message, errors, estimated_tokens
from collab.llm.accounts import Account, Accounts
from collab.llm.breaker import CircuitBreaker, RetryBudget
from collab.llm.budget import Budget, Prices
from collab.llm.hedging import first_reply
from collab.llm.journal import Journal, JournalFailed
from collab.llm.limits import RateLimits
from collab.llm.meters import Meters
from collab.llm.replay import ReplayBackend
from collab.types import HelpRequest

DOWN_AFTER = 3  # final errors in a row: enough that one server of several being odd is no outage


@dataclasses.dataclass(frozen=True)
class Call:
    """A request on its way. account: of its episode. submitted_s: by the client's clock."""

    request: HelpRequest
    messages: list[Message]
    account: Account
    submitted_s: float

    @property
    def tokens(self) -> int:
        """An estimate of what it will take, prompt and completion."""
        return _prompt_tokens(self.messages) + self.request.reply_tokens


class Sender:
    """Sends calls. clock, sleep: seconds.

    is_down: final errors (bad key, unknown model, no credit) came DOWN_AFTER times in a row.
    is_closed: nothing is sent any more.
    """

    def __init__(
        self,
        backend: Backend,
        llm: ConfigDict,
        *,
        clock: Callable[[], float],
        sleep: Callable[[float], object],
        journal: Journal | None,
    ) -> None:
        self.is_down = self.is_closed = False
        self.meters = Meters()
        self.accounts = Accounts(
            deadline_s=llm.deadline_s, episode_deadline_s=llm.episode_deadline_s
        )
        self.breaker = CircuitBreaker(
            failures=llm.circuit_failures,
            span_s=llm.circuit_span_s,
            pause_s=llm.circuit_pause_s,
            clock=clock,
        )
        self.retries = RetryBudget(llm.retry_budget, refill=llm.retry_refill)
        self.budget = Budget(llm.budget, clock=clock, journal=journal)
        self._limits = RateLimits(
            requests_per_minute=llm.requests_per_minute,
            tokens_per_minute=llm.tokens_per_minute,
            clock=clock,
        )
        self._prices = Prices(llm.prices)
        self._backend, self._llm, self._clock, self._sleep = backend, llm, clock, sleep
        self._recall = backend.recall if isinstance(backend, ReplayBackend) else None
        self._lock = threading.Lock()  # guards all below, and is_down
        self._final_in_a_row = 0
        self._was_spent = False
        self._pool = None  # of attempts that may be two at once
        if llm.hedge_after_s and not backend.is_local:
            self._pool = concurrent.futures.ThreadPoolExecutor(2 * llm.concurrency, "attempt")

    def recalled(self, call: Call) -> Completion | None:
        """A reply that was paid for before (`replay`); it is neither sent nor metered. Or None."""
        if self._recall is None:
            return None
        kept = self._recall(
            call.messages, reply_tokens=call.request.reply_tokens, helper=call.request.helper
        )
        return None if kept is None else _with_usage(call, kept)

    def await_turn(self, call: Call) -> float:
        """Wait until our own limits let the call go; returns its deadline, by the clock.

        Raises: a `HelpError` at once where it could not be sent after the wait.
        """
        self.check(call)
        patience_s = self.accounts.patience_s(call.account)
        if patience_s <= 0.0:
            raise errors.CircuitOpen("no reply since the helper cost this episode llm.deadline_s")
        until_s = call.submitted_s + self.accounts.left_s(call.account)
        if self._clock() >= until_s:
            raise errors.TimedOut("llm.episode_deadline_s has passed")
        if not self.take_turn(call, until_s):
            raise errors.RateLimited("our own limits leave no turn before llm.episode_deadline_s")
        deadline_s = min(self._clock() + patience_s, until_s)
        if not self.await_hold(deadline_s):
            raise errors.RateLimited("the server asked for a pause that outlasts the deadline")
        return deadline_s

    def take_turn(self, call: Call, until_s: float) -> bool:
        """Sleep until the rate limits let one more attempt go; False if that is after `until_s`."""
        wait_s = self._limits.reserve(call.tokens, at_most_s=until_s - self._clock())
        if wait_s is None:
            return False
        self._wait(wait_s)
        return True

    def await_hold(self, deadline_s: float) -> bool:
        """Sleep while a server's pause lasts; False at once if that is past the deadline.

        Unlike a turn it is part of the deadline, since what it waits for may never come.
        """
        while (held_s := self._limits.held_s()) and not self.is_closed:  # others may prolong it
            if self._clock() + held_s >= deadline_s:
                return False
            self._wait(held_s)
        return True

    def attempt(self, call: Call, deadline_s: float) -> Completion:
        """A completion; from two attempts at once, where `llm.hedge_after_s` finds the first slow.

        Usage that the server did not report is filled in by an estimate. Raises: `HelpError`.
        """
        if self._pool is None:
            return self._send(call, deadline_s)
        completion, has_hedge_won = first_reply(
            lambda: self._send(call, deadline_s),
            pool=self._pool,
            after_s=self._llm.hedge_after_s,
            may_hedge=lambda: self._may_hedge(call),
        )
        self.meters.add(hedges_won=has_hedge_won)
        return completion

    def check(self, call: Call) -> None:
        """Raise the `HelpError` for which the call can't be sent now, if there is one."""
        if self.is_closed:
            raise errors.Closed("the client is closed")
        if self.is_down:
            raise errors.HelperDown(f"{DOWN_AFTER} final errors in a row")
        self.budget.check(call.account.spent)
        if not self.breaker.would_admit(may_probe=self._may_probe(call)):
            raise errors.CircuitOpen("the helper seems down")

    def may_lead(self, account: Account) -> bool:
        """Whether other episodes may wait for this one's request: it has a whole deadline left."""
        left_s = min(self.accounts.patience_s(account), self.accounts.left_s(account))
        return left_s >= self._llm.deadline_s and self.budget.allows(account.spent)

    def may_wait_s(self, account: Account) -> float:
        """For how long the episode may wait for another's request; inf as long as it may lead."""
        patience_s = self.accounts.patience_s(account)
        bound_s = patience_s if patience_s < self._llm.deadline_s else math.inf
        return min(bound_s, self.accounts.left_s(account))

    def usd(self, request: HelpRequest, completion: Completion) -> float:
        """The price of a completion whose usage is known."""
        return self._prices.usd(self._llm.model or request.helper, completion)

    def close(self) -> None:
        """Send nothing more; wait for hedges that nobody waits for."""
        self.is_closed = True
        if self._pool is not None:
            self._pool.shutdown(wait=True)
        self.budget.close()

    def _send(self, call: Call, deadline_s: float) -> Completion:
        """Ask the backend once, and count how that ended; a reply is metered, whoever reads it."""
        self.check(call)
        ticket = self.breaker.admit(may_probe=self._may_probe(call))
        if ticket is None:
            raise errors.CircuitOpen("the helper seems down")
        is_alive: bool | None = None  # as long as nothing is known
        try:
            self.budget.take_request(call.account.spent)
            completion = self._backend.complete(
                call.messages,
                reply_tokens=call.request.reply_tokens,
                deadline_s=deadline_s - self._clock(),
                helper=call.request.helper,
            )
            is_alive = True
            self._note_outcome(None)
        except errors.OverBudget:
            raise
        except errors.HelpError as error:
            is_alive = self._is_busy(error) or not isinstance(error, errors.Transient)
            self._note_outcome(error)
            raise
        finally:
            self._say(self.breaker.note(ticket, is_alive))
        return self._metered(call, completion)

    def _is_busy(self, error: errors.HelpError) -> bool:
        """Whether the server only wants to be asked later; then nobody else asks it before that.

        A pause that no request can sit out is an outage, for the circuit to deal with: it must come
        again and again to end the help, and is looked into now and then.
        """
        if not isinstance(error, errors.RateLimited):
            return False
        pause_s = error.retry_after_s or 0.0
        if pause_s >= self._llm.deadline_s:
            return False
        self._limits.hold(pause_s)
        return True

    def _wait(self, wait_s: float) -> None:
        if wait_s > 0.0:
            self.meters.add(rate_limited_wait_s=wait_s)
            self._sleep(wait_s)

    def _may_hedge(self, call: Call) -> bool:
        """A hedge needs what a retry needs, and never waits for it."""
        try:
            self.check(call)
        except errors.HelpError:
            return False
        may_hedge = (
            not self.breaker.is_open
            and not self._limits.held_s()
            and self.retries.withdraw()
            and self._limits.reserve(call.tokens, at_most_s=0.0) is not None
        )
        self.meters.add(hedged=may_hedge)
        return may_hedge

    def _may_probe(self, call: Call) -> bool:
        """An episode that lost time is spared, and what is left of its deadline would prove little.

        So the probe is another episode's; while there is none, nothing is sent.
        """
        return self.accounts.patience_s(call.account) >= self._llm.deadline_s

    def _note_outcome(self, error: errors.HelpError | None) -> None:
        """Count final errors in a row; a reply ends the row, a transient failure says nothing."""
        if error is None:
            self.accounts.note_reply()
            self.retries.note_reply()
        with self._lock:
            if error is None:
                self._final_in_a_row = 0
            elif error.is_final:
                self._final_in_a_row += 1
            if self._final_in_a_row == DOWN_AFTER and error is not None and not self.is_down:
                self.is_down = True
                logging.error("the helper is down for good: %s", error)

    def _say(self, change: str) -> None:
        """A word on each change of the circuit; a probe that fails changes nothing."""
        if change == "open":
            logging.warning(
                "the helper seems down (%d failures in a row); it is tried again every %g s",
                self._llm.circuit_failures,
                self._llm.circuit_pause_s,
            )
        elif change == "closed":
            logging.warning("the helper replies again")

    def _metered(self, call: Call, completion: Completion) -> Completion:
        is_estimated = None in (completion.prompt_tokens, completion.completion_tokens)
        completion = _with_usage(call, completion)
        sent, received = completion.prompt_tokens or 0, completion.completion_tokens or 0
        self.meters.add(
            prompt_tokens=sent,
            cached_prompt_tokens=min(completion.cached_prompt_tokens or 0, sent),
            completion_tokens=received,
            usage_estimated=is_estimated,
            replies_cut=completion.is_part,
            tails_cut=completion.cut == "tail",
        )
        self._limits.settle(reserved=call.tokens, used=sent + received)
        usd = self.usd(call.request, completion)
        try:
            self.budget.add_reply(call.account.spent, usd=usd, tokens=sent + received)
        except JournalFailed as error:  # it is paid for, so it is given; the next is not sent
            self._note_outcome(error)
        is_spent = self.budget.is_spent
        with self._lock:
            is_news, self._was_spent = is_spent and not self._was_spent, is_spent
        if is_news:
            logging.warning("llm.budget is spent (%.4g dollars): no more help", self.budget.run.usd)
        return completion


def _with_usage(call: Call, completion: Completion) -> Completion:
    """The completion with its token counts estimated where the server gave none."""
    sent, received = completion.prompt_tokens, completion.completion_tokens
    return dataclasses.replace(
        completion,
        prompt_tokens=_prompt_tokens(call.messages) if sent is None else sent,
        completion_tokens=estimated_tokens(completion.text) if received is None else received,
    )


def _prompt_tokens(messages: Sequence[Message]) -> int:
    """Of a server that doesn't say."""
    return sum(estimated_tokens(message.content) for message in messages)
