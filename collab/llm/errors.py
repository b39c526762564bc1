"""Every way help can fail, as types. Only `Transient` ones, and `Malformed` once, are retried.

Messages name keys of the config and say what to change. They never hold the API key, and never text
that a server sent in reply to a request: that may quote the request, which may be private.
"""

# The names are the failures' own words, as metrics and Feedback.failure have them.
# ruff: noqa: N818

from __future__ import annotations


class HelpError(Exception):
    """A request that got no reply.

    name: its word in metrics and in `Feedback.failure`. is_final: the same backend can't answer any
    request until someone changes something.
    """

    name = "help_error"
    is_final = False


class Transient(HelpError):
    """Worth another try. retry_after_s: the pause the server asked for, if it did."""

    name = "transient"

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class ConnectionFailed(Transient):
    """Refused, reset, or closed before the whole reply was there."""

    name = "connection_failed"


class TimedOut(Transient):
    """The deadline passed, or the episode's, or the server says that its own did (408)."""

    name = "timed_out"


class ServerFailed(Transient):
    """A status 5xx or 409."""

    name = "server_failed"


class RateLimited(Transient):
    """A status 429 that waiting cures, or no turn in time under the limits of `llm` itself."""

    name = "rate_limited"


# What they are called in `Feedback.failure`.
TRANSIENT = frozenset(each.name for each in Transient.__subclasses__())


class NeverReplied(HelpError):
    """A scripted helper let the deadline pass, in its own time: none is left to try again in."""

    name = TimedOut.name


class Malformed(HelpError):
    """A reply that breaks the protocol: not JSON, no choices, bad UTF-8, too large."""

    name = "malformed"


class Rejected(HelpError):
    """The server understood, and will say the same again."""

    name = "rejected"


class BadRequest(Rejected):
    """A status 400, 413, 422 or another 4xx, or a redirect."""

    name = "bad_request"


class ContextTooLong(Rejected):
    """The talk exceeds the LLM's context."""

    name = "context_too_long"


class AuthFailed(Rejected):
    """A status 401 or 403: no key, a wrong one, or one without the right."""

    name = "auth_failed"
    is_final = True


class ModelNotFound(Rejected):
    """A status 404: the server knows no such model, or the base URL has a wrong path."""

    name = "model_not_found"
    is_final = True


class QuotaSpent(Rejected):
    """The account has no credit left (402, or 429 with insufficient_quota)."""

    name = "quota_spent"
    is_final = True


class ContentFiltered(HelpError):
    """A filter of the server withheld the reply."""

    name = "content_filtered"


class OverBudget(HelpError):
    """Run, hour or episode has spent what `llm.budget` allows; the server was not asked."""

    name = "over_budget"


class CircuitOpen(HelpError):
    """The helper seems down for now: not sent, or not sent again."""

    name = "circuit_open"


class HelperDown(HelpError):
    """Final errors in a row: the server is not asked any more."""

    name = "helper_down"


class Closed(HelpError):
    """The client was closed before the request was answered."""

    name = "closed"


class HelperUnusable(ValueError):
    """Found at start-up: no request could ever be answered. The message names the fix."""
