"""What help may cost, in dollars, requests and tokens: per run, per hour and per episode.

Prices are a table of the config. What is spent goes into checkpoints as a plain dict, and where it
is real money into a `journal` as it happens. Whether anything is sent is `sender`'s business.
Thread-safe; no threads or sleeps.
"""

from __future__ import annotations

import collections
import dataclasses
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from collab.llm import Completion, errors
from collab.llm.journal import Journal

HOUR_S, MINUTE_S = 3600.0, 60.0


class Prices:
    """Dollars per million tokens, by the name of the model or helper; the row "" is for the rest.

    rows: (name, prompt, cached prompt, completion), as `llm.prices` has them.
    """

    def __init__(self, rows: Iterable[tuple[str, float, float, float]]) -> None:
        self._by_name = {name: (prompt, cached, said) for name, prompt, cached, said in rows}

    def completion_usd(self, name: str) -> float:
        """Dollars per million completion tokens."""
        return self._by_name.get(name, self._by_name[""])[2]

    def usd(self, name: str, completion: Completion) -> float:
        """The price of one completion. Unknown counts are 0, as is a cached count by itself."""
        prompt_price, cached_price, said_price = self._by_name.get(name, self._by_name[""])
        sent = completion.prompt_tokens or 0
        cached = min(completion.cached_prompt_tokens or 0, sent)
        usd_million = (
            (sent - cached) * prompt_price
            + cached * cached_price
            + (completion.completion_tokens or 0) * said_price
        )
        return usd_million / 1e6


@dataclasses.dataclass
class Spend:
    """An amount spent, or a limit to it. requests: that were sent, retries and hedges too."""

    usd: float = 0.0
    requests: int = 0
    tokens: int = 0

    def add(self, other: Spend) -> None:
        self.usd += other.usd
        self.requests += other.requests
        self.tokens += other.tokens

    def reached(self, limit: Spend) -> str:
        """The first field that is at its limit or over; "" where none is. A limit of 0 is none."""
        for name, most in vars(limit).items():
            if 0 < most <= getattr(self, name):
                return name
        return ""


class Budget:
    """Counts what is spent against the limits of `llm.budget`.

    Requests are counted before they are sent, so their limits hold exactly. Dollars and tokens are
    known only afterwards: they overshoot by at most what is in flight. One that got no reply, at a
    deadline for example, costs nothing here; a server may bill it all the same. An hour is any 60
    minutes, counted in steps of one and rounded up, so that it rather allows too little.
    """

    def __init__(
        self,
        limits: Mapping[str, Mapping[str, Any]],
        *,
        clock: Callable[[], float],
        journal: Journal | None = None,
    ) -> None:
        """limits: "run", "hour" and "episode", each with the fields of Spend; 0 = no limit.

        journal: gets all that is spent; what stands in it counts as spent. Closed by `close`.
        """
        self._limits = {scope: Spend(**dict(limits[scope])) for scope in SCOPES}
        self._has_hourly_limit = any(vars(self._limits["hour"]).values())
        self._clock = clock
        self._lock = threading.Lock()  # guards all below, and every Spend that is passed in
        self._run = Spend()
        self._minutes: collections.deque[tuple[float, Spend]] = collections.deque()  # (end, spend)
        self._journal = journal
        if journal is not None:
            self._read(journal)
        self._was_journal_empty = self._run == Spend()

    @property
    def run(self) -> Spend:
        """A copy of what this run has spent, before a resume too."""
        with self._lock:
            return dataclasses.replace(self._run)

    @property
    def is_spent(self) -> bool:
        """Whether no episode may ask: the run's budget is spent, or this hour's."""
        with self._lock:
            return bool(self._spent_key())

    def allows(self, episode: Spend) -> bool:
        """Whether this episode may send another request."""
        with self._lock:
            return not self._reached_key(episode)

    def check(self, episode: Spend) -> None:
        """Raises: OverBudget, naming the key, if it may not."""
        with self._lock:
            self._check(episode)

    def take_request(self, episode: Spend) -> None:
        """Count a request that is about to be sent. Raises: OverBudget if it may not be."""
        with self._lock:
            self._check(episode)
            self._add(episode, Spend(requests=1))

    def add_reply(self, episode: Spend, *, usd: float, tokens: int) -> None:
        """Count what a reply cost."""
        with self._lock:
            self._add(episode, Spend(usd=usd, tokens=tokens))

    def state(self) -> dict[str, Any]:
        """What is spent, as JSON keeps it.

        Episodes are left out: none outlives its process. The hour is empty where nothing limits it.
        """
        with self._lock:
            self._forget_old()
            now_s = self._clock()
            hour = [[end_s - now_s, *vars(spend).values()] for end_s, spend in self._minutes]
            return {"run": dict(vars(self._run)), "hour": hour}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state`, of another process too. The time between counts as none at all.

        What was spent before in this process (helpers are probed when a run starts) still counts. A
        journal knows better than a state: then it counts only where the journal was empty, as for a
        run that is older than its journal.
        """
        with self._lock:
            if self._journal is not None:
                if self._was_journal_empty and state["run"] != vars(Spend()):
                    self._add(Spend(), Spend(**state["run"]))
                return
            self._run.add(Spend(**state["run"]))
            now_s = self._clock()
            minutes = [(now_s + offset_s, Spend(*spend)) for offset_s, *spend in state["hour"]]
            minutes += self._minutes
            self._minutes = collections.deque(sorted(minutes, key=lambda minute: minute[0]))

    def close(self) -> None:
        """Let go of the journal."""
        if self._journal is not None:
            self._journal.close()

    # --- under the lock --------------------------------------------------------------------

    def _read(self, journal: Journal) -> None:
        """Take what earlier processes spent for spent."""
        now_s, recent = self._clock(), []
        for ago_s, amount in journal.history():
            spend = Spend(**amount)
            self._run.add(spend)
            if self._has_hourly_limit and ago_s < HOUR_S + MINUTE_S:
                recent.append((now_s - ago_s, spend))
        for at_s, spend in sorted(recent, key=lambda row: row[0]):  # the clock may have jumped
            self._add_to_hour(at_s, spend)

    def _check(self, episode: Spend) -> None:
        key = self._reached_key(episode)
        if key:
            raise errors.OverBudget(f"llm.budget.{key} is spent")

    def _reached_key(self, episode: Spend) -> str:
        """Which limit ends this episode's asking, as "episode.usd"; "" where none does."""
        name = episode.reached(self._limits["episode"])
        return f"episode.{name}" if name else self._spent_key()

    def _spent_key(self) -> str:
        """What of the run's and the hour's limits is reached, as "run.usd"; "" where nothing is."""
        name = self._run.reached(self._limits["run"])
        if name:
            return f"run.{name}"
        if not self._has_hourly_limit:
            return ""
        self._forget_old()
        hour = Spend()
        for _, spend in self._minutes:
            hour.add(spend)
        name = hour.reached(self._limits["hour"])
        return f"hour.{name}" if name else ""

    def _add(self, episode: Spend, more: Spend) -> None:
        episode.add(more)
        self._run.add(more)
        if self._has_hourly_limit:
            self._add_to_hour(self._clock(), more)
        if self._journal is not None:
            self._journal.add(**vars(more))

    def _add_to_hour(self, at_s: float, more: Spend) -> None:
        if not self._minutes or at_s >= self._minutes[-1][0]:
            self._forget_old()
            self._minutes.append((at_s + MINUTE_S, Spend()))
        self._minutes[-1][1].add(more)

    def _forget_old(self) -> None:
        """Drop every minute that ended an hour ago or earlier."""
        while self._minutes and self._clock() >= self._minutes[0][0] + HOUR_S:
            self._minutes.popleft()


SCOPES = ("run", "hour", "episode")
