"""Published data files: where one lies, and its JSON records one at a time.

A file is an array of objects, or one object a line. It may be larger than memory: no more than a
few records are held, and a reader that stops early leaves the rest unread.
"""

from __future__ import annotations

import json
import pathlib
import re
from collections.abc import Iterator
from typing import Any, TextIO

_CHUNK = 2**20  # characters read at a time
_LONGEST = 2**24  # characters of a record; the published ones have some 10,000
_BETWEEN = re.compile(r"[\s,]*")
_BLANK = object()  # a line without a record


def locate(path: str, data_dir: str) -> pathlib.Path:
    """Where a configured path leads; a relative one may also lie in `data_dir`."""
    given = pathlib.Path(path).expanduser()
    prepared = pathlib.Path(data_dir) / given
    return prepared if not given.exists() and prepared.exists() else given


def records(path: pathlib.Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every record, with its place as an error would name it; blank lines are allowed.

    Raises: ValueError that names file and place of what is no JSON object, or no UTF-8, or missing
    because the file ends too soon.
    """
    number, unit = 1, "record"
    with path.open(encoding="utf-8-sig") as file:
        try:
            is_array = _is_array(file)
            unit = "record" if is_array else "line"
            for record in _elements(file) if is_array else _lines(file):
                if record is not _BLANK:
                    if not isinstance(record, dict):
                        raise ValueError("another JSON value")
                    yield f"{path}, {unit} {number}", record
                number += 1
        except ValueError as error:  # bad JSON and bad UTF-8 alike
            raise ValueError(
                f"task.path: {path}, {unit} {number} is not a whole JSON object; the file must be "
                "an array of objects or have one object a line, so download it again"
            ) from error


def _is_array(file: TextIO) -> bool:
    """Whether the first mark opens an array; the file is at its start again."""
    mark = " "
    while mark.isspace():
        mark = file.read(1)
    file.seek(0)
    return mark == "["


def _lines(file: TextIO) -> Iterator[Any]:
    for line in file:
        yield json.loads(line) if line.strip() else _BLANK


def _elements(file: TextIO) -> Iterator[Any]:
    """Elements of an array, each decoded as soon as it has been read."""
    decoder = json.JSONDecoder()
    text, at = file.read(_CHUNK), 0
    at = text.index("[") + 1
    while True:
        at = _BETWEEN.match(text, at).end()  # type: ignore[union-attr]  # matches anywhere
        if text[at : at + 1] == "]":
            return
        try:
            element, at = decoder.raw_decode(text, at)
        except json.JSONDecodeError:
            # What is pending doubles, so that a long record is not decoded many times.
            pending = text[at:]
            more = file.read(max(_CHUNK, len(pending))) if len(pending) <= _LONGEST else ""
            if not more:
                raise
            text, at = pending + more, 0
            continue
        yield element
