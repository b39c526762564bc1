"""A chat completion that arrives as server-sent events, collected until there is enough of it.

Enough is a whole feedback object: what a model goes on to say after it is never read anyway. Which
bytes arrive when is `transport`'s business, what a feedback object is `prompts`'s.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any

from collab.llm import Completion, errors, prompts
from collab.llm.bodies import completion_of, json_object

GRACE_S = 0.25  # from the end of the text, for usage and the end of the stream
MAX_LINE_BYTES = 2**20
MAX_CHARACTERS = 2**20
_DONE = b"[DONE]"
_FIRST_HALVES = "".join(map(chr, range(0xD800, 0xDC00)))


class StreamedReply:
    """One reply. `feed` it, then take its `completion`."""

    def __init__(
        self,
        fail: Callable[[int, bytes], errors.HelpError],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """fail: the error of an error event, by its status and body. clock: seconds."""
        self._fail, self._clock = fail, clock
        self._rest = b""  # the beginning of a line
        self._data: list[bytes] = []  # of the event under way
        self._parts: list[str] = []  # of the text
        self._refusals: list[str] = []
        self._length = 0  # of both, in characters
        self._finish: str | None = None
        self._usage: Any = None
        self._is_done = False  # the stream says so
        self._tail: str | None = None  # what follows the feedback object; None = not whole yet
        self._settled_s: float | None = None  # when the text was enough

    def feed(self, piece: bytes) -> float:
        """Take some bytes; returns how many seconds to wait for more, 0 where none are wanted.

        Raises: Malformed; what `fail` made of an error event.
        """
        *lines, self._rest = (self._rest + piece).split(b"\n")
        if len(self._rest) > MAX_LINE_BYTES:
            raise errors.Malformed(f"a line of the stream exceeds {MAX_LINE_BYTES} bytes")
        before = len(self._parts)
        for line in lines:
            self._take(line.removesuffix(b"\r"))
        new = "".join(self._parts[before:])
        if new and (self._tail is not None or "}" in new):
            self._tail = prompts.after_feedback("".join(self._parts))
        if not self._is_ended:
            if self._tail is None:
                return math.inf
            if self._tail.strip("` \t\r\n"):
                return 0.0  # it rambles on
        if self._settled_s is None:
            self._settled_s = self._clock()
        return max(0.0, self._settled_s + GRACE_S - self._clock())

    def completion(self, *, is_late: bool) -> Completion:
        """What has arrived, marked where it may not be all. is_late: reading ended at the deadline.

        Raises: Malformed, ContentFiltered; TimedOut where nothing readable came in time, and
        ConnectionFailed where the stream ended before the reply did.
        """
        last = (b"\n".join(self._data), self._rest.removeprefix(b"data:"))
        self._is_done |= _DONE in map(bytes.strip, last)  # without the blank line after it
        text = _joined(self._parts) if self._parts else None
        if self._is_ended or self._tail is not None:
            whole = completion_of(
                text,
                refusal="".join(self._refusals) if self._refusals else None,
                finish=self._finish,
                usage=self._usage,
            )
            return whole if self._is_ended else dataclasses.replace(whole, cut="tail")
        if not is_late:
            raise errors.ConnectionFailed("the stream ended before the reply was whole")
        if text is None or not prompts.holds_text(text):
            raise errors.TimedOut("the deadline came before any text that can be read")
        text = text.rstrip(_FIRST_HALVES)  # of a pair, whose second half comes too late
        part = completion_of(text, refusal=None, finish=None, usage=self._usage)
        return dataclasses.replace(part, cut="deadline")

    @property
    def _is_ended(self) -> bool:
        return self._finish is not None or self._is_done

    def _take(self, line: bytes) -> None:
        if not line:
            self._end_event()
        elif line.startswith(b"data:"):  # others are comments, names, ids and pauses
            self._data.append(line[5:].removeprefix(b" "))

    def _end_event(self) -> None:
        data, self._data = b"\n".join(self._data), []
        if data.strip() == _DONE:
            self._is_done = True
        elif data and not self._is_done:
            self._read(data)

    def _read(self, data: bytes) -> None:
        event = json_object(data)
        if event.get("error"):
            raise self._fail(_status(event["error"]), data)
        choices = event.get("choices")
        if not isinstance(choices, list) or not all(isinstance(row, dict) for row in choices):
            raise errors.Malformed("an event of the stream has no choices")
        if isinstance(event.get("usage"), dict):
            self._usage = event["usage"]
        for choice in choices:
            if choice.get("index") in (0, None):
                self._read_choice(choice)

    def _read_choice(self, choice: dict[str, Any]) -> None:
        delta = choice.get("delta")
        fields = delta if isinstance(delta, dict) else {}
        content, refusal = fields.get("content"), fields.get("refusal")
        if not isinstance(content, str | None) or not isinstance(refusal, str | None):
            raise errors.Malformed("the reply's content is not a text")
        self._parts += [] if content is None else [content]
        self._refusals += [] if refusal is None else [refusal]
        self._length += len(content or "") + len(refusal or "")
        if self._length > MAX_CHARACTERS:
            raise errors.Malformed(f"the reply exceeds {MAX_CHARACTERS} characters")
        if isinstance(choice.get("finish_reason"), str):
            self._finish = choice["finish_reason"]


def _status(error: Any) -> int:
    """The HTTP status that an error event names as its code; else that of a failed server."""
    code = error.get("code") if isinstance(error, dict) else None
    return code if type(code) is int and 400 <= code < 600 else 500


def _joined(parts: list[str]) -> str:
    """Surrogate pairs that came as two escapes in two events become one character."""
    return "".join(parts).encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")
