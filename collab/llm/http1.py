"""HTTP/1.1 replies read from bytes as they arrive: head, then body. No sockets, no clocks.

Only what a client of a JSON service meets: no pipelining, no upgrades, no pushes. Why not
`http.client`: its header parser is made for e-mail and takes longer than all the rest of a request.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator

from collab.llm import errors

MAX_HEAD_BYTES = 2**16  # of all heads of a reply: interim ones, the last, and trailers
_STATUS = re.compile(r"HTTP/1\.([01]) ([1-9]\d\d)(?: .*)?\Z", re.ASCII)
_SIZE = re.compile(rb"([0-9a-fA-F]{1,15})[ \t]*(?:;.*)?\Z", re.DOTALL)
_HEAD_END = re.compile(rb"\r?\n\r?\n")
_WITHOUT_BODY = (204, 304)


@dataclasses.dataclass(frozen=True)
class Head:
    """Status and headers. Names are in lower case; values that came apart are joined by ", "."""

    status: int
    headers: dict[str, str]
    is_kept_alive: bool


class ReplyReader:
    """One reply. is_whole: its body has ended as HTTP says, and nothing came after it."""

    def __init__(self, receive: Callable[[], bytes]) -> None:
        """receive: the next bytes, b"" at the end of the stream; what it raises passes through."""
        self._receive = receive
        self._buffer = b""
        self._head_left = MAX_HEAD_BYTES
        self.is_whole = False

    def head(self) -> Head:
        """The final head; interim ones (1xx) are passed over. Raises: ConnectionFailed, Malformed.

        What is no HTTP at all, has no end, or ends before its first line is a failed connection.
        """
        while True:
            head = _parsed(self._head_text())
            if head.status >= 200:
                return head

    def body(self, head: Head) -> Iterator[bytes]:
        """The body's pieces, without transfer coding. Raises: ConnectionFailed, Malformed."""
        coding = head.headers.get("transfer-encoding")
        length = _length(head.headers.get("content-length"))
        if head.status in _WITHOUT_BODY:
            pass
        elif coding is not None:
            if coding.lower() != "chunked":
                raise errors.Malformed("the reply's Transfer-Encoding is unknown")
            yield from self._chunks()
        elif length is not None:
            yield from self._exactly(length)
        else:
            while piece := self._piece():
                yield piece
        self.is_whole = not self._buffer

    def _head_text(self) -> str:
        seen = 0
        while not (end := _HEAD_END.search(self._buffer, max(0, seen - 3))):
            seen = len(self._buffer)
            if seen >= self._head_left:
                raise errors.ConnectionFailed("the reply's headers do not end")
            if not b"HTTP/1.".startswith(self._buffer[:7]):
                raise errors.ConnectionFailed("the server does not speak HTTP/1.1")
            if not self._read_more():
                if b"\n" in self._buffer:
                    raise errors.Malformed("the reply ends in its headers")
                raise errors.ConnectionFailed("closed before the reply was whole")
        text = self._buffer[: end.start()].decode("latin-1")
        self._buffer = self._buffer[end.end() :]
        self._head_left -= end.end()
        return text

    def _chunks(self) -> Iterator[bytes]:
        while size := self._chunk_size():
            yield from self._exactly(size)
            if self._line():
                raise errors.Malformed("the reply breaks HTTP: a chunk is longer than it says")
        while trailer := self._line():
            self._head_left -= len(trailer)

    def _chunk_size(self) -> int:
        match = _SIZE.match(self._line())
        if match is None:
            raise errors.Malformed("the reply breaks HTTP: a chunk without a size")
        return int(match[1], 16)

    def _exactly(self, count: int) -> Iterator[bytes]:
        while count:
            if not self._buffer and not self._read_more():
                raise errors.ConnectionFailed("closed before the reply was whole")
            piece, self._buffer = self._buffer[:count], self._buffer[count:]
            count -= len(piece)
            yield piece

    def _line(self) -> bytes:
        while b"\n" not in self._buffer:
            if len(self._buffer) >= self._head_left:
                raise errors.Malformed("the reply breaks HTTP: a line does not end")
            if not self._read_more():
                raise errors.ConnectionFailed("closed before the reply was whole")
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line.removesuffix(b"\r")

    def _piece(self) -> bytes:
        if not self._buffer:
            self._read_more()
        piece, self._buffer = self._buffer, b""
        return piece

    def _read_more(self) -> bool:
        data = self._receive()
        self._buffer += data
        return bool(data)


def _parsed(text: str) -> Head:
    first, *lines = text.split("\n")
    status = _STATUS.match(first.rstrip("\r"))
    if status is None:
        raise errors.ConnectionFailed("the server does not speak HTTP/1.1")
    headers: dict[str, str] = {}
    name = ""
    for line in lines:
        if line[:1] in (" ", "\t") and name:  # an old way to go on with the value above
            headers[name] += f" {line.strip()}"
            continue
        name, colon, value = line.partition(":")
        name = name.lower()
        if not colon or not name or name != name.strip():
            raise errors.Malformed("the reply breaks HTTP: a header without a name")
        value = value.strip()
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    options = {option.strip() for option in headers.get("connection", "").lower().split(",")}
    # Both lengths at once: which one counts is a matter of opinion, so nothing may follow.
    is_doubtful = "transfer-encoding" in headers and "content-length" in headers
    is_kept = "keep-alive" in options if status[1] == "0" else "close" not in options
    return Head(int(status[2]), headers, is_kept and not is_doubtful)


def _length(value: str | None) -> int | None:
    """Raises: Malformed where the header names two lengths, or none."""
    if value is None:
        return None
    lengths = {part.strip() for part in value.split(",")}
    length = lengths.pop()
    if lengths or not (length.isascii() and length.isdigit() and len(length) < 16):
        raise errors.Malformed("the reply's Content-Length is ambiguous")
    return int(length)
