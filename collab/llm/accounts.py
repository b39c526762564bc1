"""What each episode has used up: its spend, its waiting, and what it lost to a helper that is down.

Two bounds on waiting come from here: `llm.episode_deadline_s` over all requests of an episode, and,
whatever that is, one `llm.deadline_s` a helper that doesn't answer may cost it. Thread-safe.
"""

from __future__ import annotations

import dataclasses
import math
import threading

from collab.llm.budget import Spend
from collab.types import HelpRequest

KEPT = 2**14  # newest episodes; far more than rows in flight
LEAST_SHARE = 0.1  # of a deadline: with less of it left, a request is not worth sending


@dataclasses.dataclass
class Account:
    """One episode's. waited_s: for all its requests, from asking to feedback.

    lost_s: in requests that failed, since the helper last answered anyone (reply `replies_seen`).
    """

    spent: Spend
    waited_s: float = 0.0
    lost_s: float = 0.0
    replies_seen: int = 0


class Accounts:
    """The accounts of the episodes in flight."""

    def __init__(self, *, deadline_s: float, episode_deadline_s: float) -> None:
        """episode_deadline_s: 0 = none."""
        self._deadline_s, self._episode_deadline_s = deadline_s, episode_deadline_s or math.inf
        self._lock = threading.Lock()  # guards all below, and every account
        self._by_episode: dict[str, Account] = {}
        self._replies = 0

    def of(self, request: HelpRequest) -> Account:
        """The account of a request's episode.

        A request without history is an episode's first and opens a new one, since names come again:
        each evaluation counts its episodes from the start.
        """
        with self._lock:
            account = self._by_episode.get(request.episode)
            if account is None or not request.history:
                self._by_episode.pop(request.episode, None)
                account = self._by_episode[request.episode] = Account(Spend())
                if len(self._by_episode) > KEPT:
                    del self._by_episode[next(iter(self._by_episode))]
            return account

    def note_reply(self) -> None:
        """The helper answered someone: what was lost before says nothing about it now."""
        with self._lock:
            self._replies += 1

    def note_wait(self, account: Account, *, waited_s: float, lost_s: float) -> None:
        """A request of the episode is over. lost_s: of that, in attempts that got no answer."""
        with self._lock:
            account.waited_s += waited_s
            if lost_s:
                kept_s = account.lost_s if account.replies_seen == self._replies else 0.0
                account.lost_s, account.replies_seen = kept_s + lost_s, self._replies

    def left_s(self, account: Account) -> float:
        """What all further requests of the episode may take, inf where nothing bounds them."""
        with self._lock:
            return self._episode_deadline_s - account.waited_s

    def patience_s(self, account: Account) -> float:
        """What the next request may take: a deadline, less what was lost since the last reply.

        0 where too little is left to be worth sending.
        """
        with self._lock:
            lost_s = account.lost_s if account.replies_seen == self._replies else 0.0
        left_s = self._deadline_s - lost_s
        return left_s if left_s >= LEAST_SHARE * self._deadline_s else 0.0
