"""Rate limits: requests and tokens per minute, kept before a server refuses, and a server's pause.

A limiter gives out turns; whoever gets one sleeps until it has come and then sends. Thread-safe;
no threads, sleeps or I/O.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable

BURST_SHARE = 0.1  # of a minute's allowance may go at once, the rest is spread over the minute


class TokenBucket:
    """At most `per_minute` units in any minute, as the turns it gives out fall due. Not locked.

    The bucket holds a tenth of the allowance and refills at nine tenths of it a minute: together
    one allowance, in whichever minute one looks. (A bucket of a whole minute's allowance, refilled
    at the full rate, would let two through.) Turns are taken in advance: the level goes below zero
    and the taker waits until it is back, so turns come in the order of taking and nobody wakes in
    vain. Below 10 units a minute the bucket holds one, and whole units keep to the limit as well. A
    turn for more than the bucket holds can exceed a minute's allowance by the difference.
    Source: the leaky bucket as a meter, ITU-T I.371 Annex A (GCRA); the shares are our choice.
    """

    def __init__(self, per_minute: float, *, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._burst = max(1.0, BURST_SHARE * per_minute)
        self._per_s = (1.0 - BURST_SHARE) * per_minute / 60.0
        self._level, self._at_s = self._burst, clock()

    def wait_s(self, amount: float) -> float:
        """How long after now a turn for `amount` units would fall due."""
        return max(0.0, (amount - self._refilled()) / self._per_s)

    def take(self, amount: float) -> None:
        """Take that turn."""
        self._level = self._refilled() - amount

    def _refilled(self) -> float:
        now_s = self._clock()
        self._level = min(self._burst, self._level + self._per_s * (now_s - self._at_s))
        self._at_s = now_s
        return self._level


class RateLimits:
    """Both limits, 0 = no limit; and the hold that a server's Retry-After puts on all requests."""

    def __init__(
        self, *, requests_per_minute: int, tokens_per_minute: int, clock: Callable[[], float]
    ) -> None:
        self._lock = threading.Lock()  # guards the buckets and all below
        self._clock, self._held_until_s = clock, -math.inf
        self._requests, self._tokens = (
            TokenBucket(limit, clock=clock) if limit else None
            for limit in (requests_per_minute, tokens_per_minute)
        )

    def reserve(self, tokens: float, *, at_most_s: float = math.inf) -> float | None:
        """Take the next turn for a request; returns the seconds to wait for it.

        tokens: an estimate of prompt and completion. Returns None, and takes nothing, where the
        turn would come later than `at_most_s`.
        """
        with self._lock:
            wanted = [
                (bucket, amount)
                for bucket, amount in ((self._requests, 1.0), (self._tokens, tokens))
                if bucket is not None
            ]
            wait_s = max((bucket.wait_s(amount) for bucket, amount in wanted), default=0.0)
            if wait_s > at_most_s:
                return None
            for bucket, amount in wanted:
                bucket.take(amount)
            return wait_s

    def hold(self, pause_s: float) -> None:
        """The server asked for a pause: nothing should be sent for so long, by anyone."""
        until_s = self._clock() + pause_s
        with self._lock:
            self._held_until_s = max(self._held_until_s, until_s)

    def held_s(self) -> float:
        """For how long from now nothing should be sent; 0.0 = go."""
        with self._lock:
            return max(0.0, self._held_until_s - self._clock())

    def settle(self, *, reserved: float, used: float) -> None:
        """A request took `used` tokens: charge what its estimate fell short of.

        What it was too high by is not given back: it could be spent in the same minute again.
        """
        if used > reserved and self._tokens is not None:
            with self._lock:
                self._tokens.take(used - reserved)
