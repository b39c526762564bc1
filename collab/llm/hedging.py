"""A second, equal request where the first is slow; whichever replies first counts."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable
from concurrent.futures import Executor

from collab.llm import Completion


def first_reply(
    send: Callable[[], Completion],
    *,
    pool: Executor,
    after_s: float,
    may_hedge: Callable[[], bool],
) -> tuple[Completion, bool]:
    """The first completion of `send` or of a second `send`, begun `after_s` seconds later.

    may_hedge: asked then, once; False leaves it at the first. A `send` that fails leaves it to the
    other. Returns also whether the second won. The loser goes on in `pool`, its result unread.
    Raises: what the first one raised, where none succeeds.
    Source: Dean and Barroso 2013, The Tail at Scale, "Hedged requests".
    """
    first = pool.submit(send)
    concurrent.futures.wait([first], timeout=after_s)
    if first.done() or not may_hedge():
        return first.result(), False
    second = pool.submit(send)
    for done in concurrent.futures.as_completed([first, second]):
        if done.exception() is None:
            return done.result(), done is second
    return first.result(), False  # raises
