"""The egress gate: the one way from the policy to a helper.

`Client.submit` takes nothing but what `Gate.screen` made, so no request reaches a backend unseen:

    off      everything passes
    observe  everything passes, and what private units went along is noted in the audit log
    mask     units become placeholders, "[doctor-1]"; they come back in the reply
    block    a request that holds a unit is not sent; the policy sees UNAVAILABLE

A unit in a form that can't be cut out of its text (spelled out, encoded, in pieces over several
requests) blocks the request in mode mask, too. What a unit is, is for `detector` to find.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

from collab.privacy.audit import AuditLog
from collab.privacy.detector import Detector
from collab.types import Exchange, FeedbackKind, HelpRequest, PrivateUnit

MODES = ("off", "observe", "mask", "block")
_TOKEN = object()  # what only this module can show


@dataclasses.dataclass(frozen=True)
class Screened:
    """A request as it may leave. `Gate.screen` makes it, nothing else can.

    is_blocked: nothing may be sent. placeholders: placeholder -> the unit it stands for.
    """

    request: HelpRequest
    is_blocked: bool
    placeholders: tuple[tuple[str, str], ...]
    token: dataclasses.InitVar[object]

    def __post_init__(self, token: object) -> None:
        if token is not _TOKEN:
            raise TypeError("only collab.privacy.gate makes Screened requests")

    @property
    def sent(self) -> str:
        """The text that leaves; "" if none does."""
        return "" if self.is_blocked else self.request.text


class Gate:
    """Screens requests by one mode. audit: where what leaves is noted, None = nowhere."""

    def __init__(self, mode: str, audit: AuditLog | None = None) -> None:
        if mode not in MODES:
            raise ValueError(f"privacy.gate={mode!r} must be one of {', '.join(MODES)}")
        self.mode, self._audit = mode, audit

    def screen(self, request: HelpRequest, units: Sequence[PrivateUnit]) -> Screened:
        """What may leave of a request, and of the earlier talk that goes along with it.

        units: of the problem that the request is about. Everything that left before in the episode
        is in `request.history`.
        """
        if self.mode == "off" or (self.mode == "observe" and self._audit is None):
            return Screened(request, False, (), _TOKEN)
        placeholders: tuple[tuple[str, str], ...] = ()
        if self.mode in ("mask", "block"):
            request = dataclasses.replace(
                request, history=tuple(_quiet(exchange, units) for exchange in request.history)
            )
        if self.mode == "mask":
            placeholders = tuple(zip(_placeholders(units), (u.text for u in units), strict=True))
            request = dataclasses.replace(request, text=_masked(request.text, units))
        earlier = [e.request for e in request.history if e.request]
        found = sorted(Detector(units).leaked_by_request([*earlier, request.text])[-1])
        is_blocked = bool(found) and self.mode in ("mask", "block")
        screened = Screened(request, is_blocked, placeholders, _TOKEN)
        if self._audit is not None:
            self._audit.note(
                request,
                found=[units[at].kind for at in found],
                masked=_masked_kinds(request.text, units) if placeholders else [],
                is_blocked=is_blocked,
            )
        return screened

    def close(self) -> None:
        """Close the audit log."""
        if self._audit is not None:
            self._audit.close()


def restored(reply: str, placeholders: Sequence[tuple[str, str]]) -> str:
    """A reply with the units back in the place of their placeholders."""
    for placeholder, text in placeholders:
        reply = reply.replace(placeholder, text)
    return reply


def _placeholders(units: Sequence[PrivateUnit]) -> list[str]:
    """One a unit, numbered within its kind; they hold no letter of the unit."""
    count: dict[str, int] = {}
    found = []
    for unit in units:
        count[unit.kind] = count.get(unit.kind, 0) + 1
        found.append(f"[{unit.kind}-{count[unit.kind]}]")
    return found


def _masked(text: str, units: Sequence[PrivateUnit]) -> str:
    """`text` with every unit that stands in it, in any case and spacing, by its placeholder."""
    pairs = zip(units, _placeholders(units), strict=True)
    for unit, placeholder in sorted(pairs, key=lambda pair: -len(pair[0].text)):
        words = r"\s+".join(re.escape(word) for word in unit.text.split())
        if words:
            new = placeholder.replace("\\", r"\\")  # a kind is any text
            text = re.sub(rf"(?<!\w){words}(?!\w)", new, text, flags=re.IGNORECASE)
    return text


def _masked_kinds(text: str, units: Sequence[PrivateUnit]) -> list[str]:
    """Kinds of the units whose placeholders stand in `text`."""
    pairs = zip(units, _placeholders(units), strict=True)
    return [unit.kind for unit, placeholder in pairs if placeholder in text]


def _quiet(exchange: Exchange, units: Sequence[PrivateUnit]) -> Exchange:
    """An earlier exchange as it may be repeated to a helper: its reply may name units by now.

    A reply that holds one in another form is repeated without its text.
    """
    text = _masked(exchange.feedback.text, units)
    if exchange.feedback.kind is FeedbackKind.UNAVAILABLE or Detector(units).leaked([text]).any():
        text = ""
    return dataclasses.replace(exchange, feedback=dataclasses.replace(exchange.feedback, text=text))
