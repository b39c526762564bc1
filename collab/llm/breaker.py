"""What keeps an outage cheap: a circuit breaker, and one budget of retries for all requests.

Both are told how attempts ended and say whether another may go. Sending is `sender`'s business, how
much of an outage one episode bears `accounts`'s. Thread-safe; no threads, sleeps or I/O.
"""

from __future__ import annotations

import threading
from collections.abc import Callable


class CircuitBreaker:
    """Closed: all may go. Open: none. After a pause one goes as a probe: a reply closes it again.

    Source: Nygard 2018, Release It!, "Circuit Breaker". A probe that fails opens it for another
    pause of the same length: a longer one would cost more help than it saves requests.
    """

    def __init__(
        self, *, failures: int, pause_s: float, clock: Callable[[], float], span_s: float = 0.0
    ) -> None:
        """failures: in a row that open it; 0 never does. pause_s: before each probe.

        span_s: from the first of them to the last, at least: what many requests in flight meet at
        one moment is one event.
        """
        self.times_opened = 0  # from closed
        self._failures, self._pause_s, self._span_s, self._clock = failures, pause_s, span_s, clock
        self._lock = threading.Lock()  # guards all below
        self._in_a_row = 0
        self._row_began_s = 0.0
        self._opened_s: float | None = None  # or when the last probe failed; None = closed
        self._is_probing = False
        self._era = 0  # outcomes of an earlier one are old news

    @property
    def is_open(self) -> bool:
        """Whether the helper seems down, a probe under way or not."""
        return self._opened_s is not None

    def would_admit(self, *, may_probe: bool = True) -> bool:
        """What `admit` would say now; takes nothing."""
        with self._lock:
            return self._would_admit(may_probe)

    def admit(self, *, may_probe: bool = True) -> int | None:
        """A ticket for one attempt, to be handed to `note` whatever happens; None = do not send."""
        with self._lock:
            if not self._would_admit(may_probe):
                return None
            if self._opened_s is not None:
                self._is_probing = True
                self._era += 1
            return self._era

    def note(self, ticket: int, is_alive: bool | None) -> str:
        """How the attempt ended. Returns "open" or "closed" where that changed the state, else "".

        is_alive: the helper replied in some way; None where the attempt says nothing about it.
        """
        with self._lock:
            if ticket != self._era:
                return ""
            if is_alive is None:
                self._is_probing = False
                return ""
            if is_alive:
                was_open = self._opened_s is not None
                self._in_a_row, self._opened_s, self._is_probing = 0, None, False
                return "closed" if was_open else ""
            if self._is_probing:
                self._opened_s, self._is_probing = self._clock(), False
                return ""
            now_s = self._clock()
            self._in_a_row += 1
            if self._in_a_row == 1:
                self._row_began_s = now_s
            is_long = self._in_a_row >= self._failures and now_s - self._row_began_s >= self._span_s
            if not self._failures or not is_long:
                return ""
            self._in_a_row, self._opened_s = 0, now_s
            self._era += 1
            self.times_opened += 1
            return "open"

    def _would_admit(self, may_probe: bool) -> bool:
        if self._opened_s is None:
            return True
        is_over = self._clock() - self._opened_s >= self._pause_s
        return is_over and may_probe and not self._is_probing


class RetryBudget:
    """Retries in hand, for all requests together: each one takes one, each reply earns a share.

    So a helper that fails always gets at most `size` retries in all, and one that fails now and
    then at most `size` + `refill` a reply, however many retries a single request is allowed.
    Source: retry throttling of gRPC (proposal A6) and Finagle's RetryBudget, without the time in
    the latter; charging for retries as Finagle does, so that the bound holds exactly.
    """

    def __init__(self, size: int, *, refill: float) -> None:
        """size: retries at the start, and at most; 0 = no bound. refill: earned by each reply."""
        self._size, self._refill = size, refill
        self._lock = threading.Lock()
        self._left = float(size)

    def withdraw(self) -> bool:
        """Take one retry; False where none is left."""
        with self._lock:
            if self._size and self._left < 1.0:
                return False
            self._left -= 1.0
            return True

    def note_reply(self) -> None:
        """An attempt was answered."""
        with self._lock:
            self._left = min(float(self._size), self._left + self._refill)
