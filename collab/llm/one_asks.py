"""A client of several processes: the first one asks for all, and all hear of a reply together.

Every process makes the same calls in the same order, as it runs the same programs. Requests leave
from the first alone; what it has heard reaches the others in `hear`, so that all feed the same
replies in the same turn. Nothing waits for a reply but the first process, and no longer than the
deadlines of its client.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from typing import Any

from collab import sharding
from collab.llm.client import Client
from collab.privacy.gate import Screened
from collab.types import Feedback

POLL_S = 0.05


class OneAsks:
    """What `collab.llm.client.Client` is to one process. make: called on the first alone."""

    def __init__(self, make: Callable[[], Client]) -> None:
        self._client = sharding.on_first(make)
        self._numbers = itertools.count()
        self._in_flight: dict[int, _Shared] = {}
        self._asked: dict[int, Future[Feedback]] = {}  # on the first process
        self.is_down = self.is_spent = False  # as of the last `hear`

    def submit(self, screened: Screened) -> Future[Feedback]:
        """Ask for help, on the first process. The future resolves in `hear`."""
        number, future = next(self._numbers), _Shared(self)
        self._in_flight[number] = future
        if self._client:
            self._asked[number] = self._client.submit(screened)
        return future

    def hear(self, futures: Iterable[Future[Feedback]], timeout_s: float) -> None:
        """Resolve all that have come, of `futures` and others; waits so long for one, if need be.

        All processes must call it. Raises: RuntimeError on all where the client failed.
        """
        del futures  # what is in flight, the first process knows

        def heard() -> tuple[bool, bool, dict[int, Feedback]]:
            assert self._client
            self._client.hear(self._asked.values(), timeout_s)
            done = [number for number, future in self._asked.items() if future.done()]
            replies = {number: self._asked.pop(number).result() for number in done}
            return self._client.is_down, self._client.is_spent, replies

        self.is_down, self.is_spent, replies = sharding.from_first(heard)
        for number, feedback in replies.items():
            self._in_flight.pop(number).set_result(feedback)

    def counters(self) -> dict[str, float]:
        """The client's, on the first process; else nothing."""
        return self._client.counters() if self._client else {}

    def spend_state(self) -> dict[str, Any]:
        """The client's, on the first process, which writes the checkpoint's host part."""
        return self._client.spend_state() if self._client else {}

    def restore_spend(self, state: Mapping[str, Any]) -> None:
        """As the client's."""
        if self._client:
            self._client.restore_spend(state)

    def close(self) -> None:
        """As the client's."""
        if self._client:
            self._client.close()


class _Shared(Future[Feedback]):
    """`result` hears until the reply has come: all processes must ask for it."""

    def __init__(self, owner: OneAsks) -> None:
        super().__init__()
        self._owner = owner

    def result(self, timeout: float | None = None) -> Feedback:
        """The reply. timeout: not used; the client's deadlines end the wait."""
        while not self.done():
            self._owner.hear((self,), POLL_S)
        return super().result(0.0)
