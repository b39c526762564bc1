"""The egress gate: the one way from the policy to a helper.

`Client.submit` takes nothing but what `Gate.screen` made, so no request reaches a backend unseen:

    off      everything passes
    observe  everything passes, and what private units went along is noted in the audit log
    mask     units become placeholders, "[doctor-1]"; those that left come back in the reply
    block    a request that holds a unit is not sent; the policy sees UNAVAILABLE

A unit in a form that can't be cut out of its text (spelled out, encoded, in pieces over several
requests) blocks the request in mode mask, too. So does one that the helper has named before: a
placeholder in its place would tell a helper that guesses which guess is right. For the same reason
earlier replies go along word for word: they are the helper's own. What a unit is, is for `detector`
to find.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

from collab import naming
from collab.privacy.audit import AuditLog
from collab.privacy.detector import Detector
from collab.types import HelpRequest, PrivateUnit

MODES = ("off", "observe", "mask", "block")
_TOKEN = object()  # what only this module can show


@dataclasses.dataclass(frozen=True)
class Screened:
    """A request as it may leave. `Gate.screen` makes it, nothing else can.

    is_blocked: nothing may be sent. placeholders: those that left in the episode, each with the
    unit it stands for.
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
        naming.check("privacy.gate=", mode, MODES)
        self.mode, self._audit = mode, audit

    def screen(self, request: HelpRequest, units: Sequence[PrivateUnit]) -> Screened:
        """What may leave of a request, and of the earlier talk that goes along with it.

        units: of the problem that the request is about. Everything that left before in the episode
        is in `request.history`, with the replies as the helper wrote them.
        """
        if self.mode == "off" or (self.mode == "observe" and self._audit is None):
            return Screened(request, False, (), _TOKEN)
        earlier = [e.request for e in request.history if e.request]
        placeholders: tuple[tuple[str, str], ...] = ()
        if self.mode == "mask":
            pairs = _placeholders(units)
            named = _named(request, units)
            hidden = [pair for at, pair in enumerate(pairs) if at not in named]
            request = dataclasses.replace(request, text=_masked(request.text, hidden))
            left = "\n".join([*earlier, request.text])
            placeholders = tuple((name, unit.text) for name, unit in pairs if name in left)
        found = sorted(Detector(units).leaked_by_request([*earlier, request.text])[-1])
        is_blocked = bool(found) and self.mode in ("mask", "block")
        screened = Screened(request, is_blocked, placeholders, _TOKEN)
        if self._audit is not None:
            kinds = {name: unit.kind for name, unit in _placeholders(units)}
            self._audit.note(
                request,
                found=[units[at].kind for at in found],
                masked=[kinds[name] for name, _ in placeholders if name in request.text],
                is_blocked=is_blocked,
            )
        return screened

    def close(self) -> None:
        """Close the audit log."""
        if self._audit is not None:
            self._audit.close()


def restored(reply: str, placeholders: Sequence[tuple[str, str]]) -> str:
    """A reply with the units back in the place of their placeholders, in one pass.

    One that touches a word or another bracket stays as it is: glued to letters, a unit would pass
    for another word once it is copied.
    """
    if not placeholders:
        return reply
    texts = dict(placeholders)
    names = "|".join(map(re.escape, texts))
    return re.sub(rf"(?<![\w\]])(?:{names})(?![\w\[])", lambda match: texts[match[0]], reply)


def _placeholders(units: Sequence[PrivateUnit]) -> list[tuple[str, PrivateUnit]]:
    """One a unit, numbered within its kind, with that unit; they hold no letter of it."""
    count: dict[str, int] = {}
    found = []
    for unit in units:
        count[unit.kind] = count.get(unit.kind, 0) + 1
        found.append((f"[{unit.kind}-{count[unit.kind]}]", unit))
    return found


def _named(request: HelpRequest, units: Sequence[PrivateUnit]) -> set[int]:
    """Which units the helper has named itself in an earlier reply: it may be guessing."""
    detector = Detector(units)
    told = [exchange.feedback.text for exchange in request.history]
    return {at for text in told for at in detector.leaked_by_request([text])[0]}


def _masked(text: str, hidden: Sequence[tuple[str, PrivateUnit]]) -> str:
    """`text` with every unit that stands in it, in any case and spacing, by its placeholder."""
    for placeholder, unit in sorted(hidden, key=lambda pair: -len(pair[1].text)):
        words = r"\s+".join(re.escape(word) for word in unit.text.split())
        if words:
            new = placeholder.replace("\\", r"\\")  # a kind is any text
            text = re.sub(rf"(?<!\w){words}(?!\w)", new, text, flags=re.IGNORECASE)
    return text
