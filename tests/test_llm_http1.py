"""Replies read from bytes, however they are cut into pieces."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collab.llm import errors
from collab.llm.http1 import MAX_HEAD_BYTES, Head, ReplyReader


def pieces(*parts: bytes) -> Callable[[], bytes]:
    """What a socket would hand out: each part once, then the end for ever."""
    left = iter(parts)
    return lambda: next(left, b"")


def read(parts: Iterable[bytes]) -> tuple[Head, bytes, bool]:
    reader = ReplyReader(pieces(*parts))
    head = reader.head()
    body = b"".join(reader.body(head))
    return head, body, reader.is_whole and head.is_kept_alive


OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
WHOLE = {
    "counted": (OK + b"Content-Length: 5\r\n\r\nhello", b"hello", True),
    "counted, closing": (
        OK + b"Connection: x, Close\r\nContent-Length: 5\r\n\r\nhello", b"hello", False,
    ),
    "counted, and more": (OK + b"Content-Length: 5\r\n\r\nhelloHTTP", b"hello", False),
    "the same count twice": (OK + b"Content-Length: 5, 5\r\n\r\nhello", b"hello", True),
    "to the end": (OK + b"\r\nhello", b"hello", True),
    "chunked": (CHUNKED + b"2\r\nhe\r\n3;a=b\r\nllo\r\n0\r\nX-Sum: 1\r\n\r\n", b"hello", True),
    "chunked and counted": (
        OK + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        b"hello",
        False,
    ),
    "bare line ends": (b"HTTP/1.1 200 OK\nContent-Length: 5\n\nhello", b"hello", True),
    "interim heads": (
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\nLink: x\r\n\r\n"
        + OK + b"Content-Length: 5\r\n\r\nhello", b"hello", True,
    ),
    "HTTP/1.0": (b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello", b"hello", False),
    "HTTP/1.0, kept": (
        b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 5\r\n\r\nhello",
        b"hello",
        True,
    ),
    "no body": (b"HTTP/1.1 204 None\r\nContent-Length: 5\r\n\r\n", b"", True),
    "no reason": (b"HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n", b"", True),
}  # fmt: skip


@pytest.mark.parametrize("name", WHOLE)
def test_bodies_end_where_http_says(name: str) -> None:
    data, body, is_reusable = WHOLE[name]
    assert read([data])[1:] == (body, is_reusable)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(sorted(WHOLE)), st.lists(st.integers(1, 80)))
def test_where_the_bytes_are_cut_makes_no_difference(name: str, cuts: list[int]) -> None:
    data, body, _ = WHOLE[name]
    at = sorted({0, *(cut for cut in cuts if cut < len(data)), len(data)})
    head, read_body, _ = read(data[a:b] for a, b in itertools.pairwise(at))
    assert (head, read_body) == (read([data])[0], body)


def test_headers_are_lower_case_and_joined() -> None:
    head, _, _ = read([OK + b"X-One:  a \r\nx-one: b\r\nX-Long: c\r\n  d\r\nEmpty:\r\n\r\n"])
    assert head.headers == {"x-one": "a, b", "x-long": "c d", "empty": ""}


LOST, BAD = errors.ConnectionFailed, errors.Malformed


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", LOST),
        (b"HTTP/1.1 20", LOST),
        (OK, BAD),
        (OK + b"Content-Ty", BAD),
        (b"SSH-2.0-OpenSSH\r\n", LOST),
        (b"HTTP/2 200\r\n\r\n", LOST),
        (b"HTTP/1.1 2000 OK\r\n\r\n", LOST),
        (b"HTTP/1.1 \xb2\xb2\xb2 OK\r\n\r\n", LOST),
        (OK + b"x" * MAX_HEAD_BYTES, LOST),
        (b"HTTP/1.1 100 Go on\r\n\r\n" * MAX_HEAD_BYTES, LOST),
        (OK + b"no colon\r\n\r\n", BAD),
        (OK + b": no name\r\n\r\n", BAD),
        (OK + b"Name : blank\r\n\r\n", BAD),
        (OK + b"Content-Length: 5\r\n\r\nhell", LOST),
        (OK + b"Content-Length: 5, 6\r\n\r\nhello", BAD),
        (OK + b"Content-Length: -5\r\n\r\nhello", BAD),
        (OK + b"Content-Length: \xb2\r\n\r\nhello", BAD),
        (OK + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\nhello", BAD),
        (OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n", BAD),
        (CHUNKED + b"5\r\nhell", LOST),
        (CHUNKED + b"5\r\nhello", LOST),
        (CHUNKED + b"5\r\nhello\r\n0\r\n", LOST),
        (CHUNKED + b"4\r\nhello\r\n0\r\n\r\n", BAD),
        (CHUNKED + b"-5\r\nhello\r\n", BAD),
        (CHUNKED + b"\r\n", BAD),
        (CHUNKED + b"5" * MAX_HEAD_BYTES, BAD),
        (CHUNKED + b"0\r\n" + b"a: b\r\n" * MAX_HEAD_BYTES, BAD),
    ],
)
def test_what_is_no_reply_has_its_type(data: bytes, expected: type[errors.HelpError]) -> None:
    with pytest.raises(errors.HelpError) as caught:
        read([data])
    assert type(caught.value) is expected


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.sampled_from([OK, CHUNKED, b"\r\n", b"\n", b"5", b":", b"x", b"\xff", b"0\r\n"]))
)
def test_any_bytes_are_a_reply_or_a_typed_failure(parts: list[bytes]) -> None:
    with contextlib.suppress(errors.HelpError):
        read(part for part in parts)
