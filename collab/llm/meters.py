"""What a client counts, by name."""

from __future__ import annotations

import threading

METERS = (
    "requests",
    "sent",  # attempts handed to the backend, retries and hedges among them; of the whole run
    "retries",
    "retries_withheld",  # by the retry budget
    "failures",
    "cache_hits",
    "prompt_tokens",
    "cached_prompt_tokens",  # of those, read from the server's own cache
    "completion_tokens",
    "usage_estimated",  # replies whose server reported no usage
    "replies_cut",  # by the token limit, or kept as far as they had come at the deadline
    "tails_cut",  # streams left after the feedback, which the LLM had not ended
    "usd",  # of the whole run
    "latency_s",  # summed over requests that were sent
    "rate_limited_wait_s",  # summed over requests that our limits, or a server's 429, put off
    "circuit_opened",  # times
    "hedged",
    "hedges_won",
)


class Meters:
    """Sums by name, from 0. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._totals = dict.fromkeys(METERS, 0.0)

    def add(self, **more: float) -> None:
        """Add to each sum; names beyond METERS begin when they are first met."""
        with self._lock:
            for name, amount in more.items():
                self._totals[name] = self._totals.get(name, 0.0) + amount

    def totals(self) -> dict[str, float]:
        with self._lock:
            return dict(self._totals)
