"""Exchanges of a replay file as JSONL, out and in: a line of ASCII JSON each.

A line holds all that a key is made of, but no key: it is computed anew, so that a file may be
written or edited by hand.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from collab.llm import Completion, Message
from collab.llm.replay_store import (
    LARGEST_COUNT,
    Asked,
    Recorded,
    ReplayStore,
    is_same_reply,
    storable,
)

_TEXT, _COUNT, _USAGE, _NUMBER = "a text", "a count", "a count or null", "a number, 0 or more"
_FIELDS = {
    "backend": _TEXT,
    "model": _TEXT,
    "helper": _TEXT,
    "instruction_version": _COUNT,
    "messages": "a list of {role, content} with texts",
    "reply_tokens": _COUNT,
    "temperature": _NUMBER,
    "text": _TEXT,
    "prompt_tokens": _USAGE,
    "completion_tokens": _USAGE,
    "cached_prompt_tokens": _USAGE,
    "latency_s": _NUMBER,
    "stored_at_s": _NUMBER,
    "cut": "'', 'length', 'deadline' or 'tail'",
    "is_structured": "true or false",
}
_SINCE_VERSION_2: dict[str, Any] = {
    "cut": "",
    "is_structured": False,
}  # what a line of before means


def export_jsonl(store: ReplayStore, path: Path) -> int:
    """Write every exchange as a line of JSON in ASCII, in the order of storing. Returns how many.

    The file appears whole or not at all. Raises: OSError, StoreFailed, ValueError.
    """
    if path.exists() and path.samefile(store.path):
        raise ValueError(f"{path} is the replay file itself; name another file to write")
    if not path.parent.is_dir():
        raise ValueError(f"{path}: its folder does not exist; make it first")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    count = 0
    try:
        with open(temporary, "w", encoding="ascii") as file:
            for count, row in enumerate(store.recorded(), start=1):  # noqa: B007 - the last counts
                file.write(_line(row) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return count


def import_jsonl(store: ReplayStore, path: Path) -> tuple[int, int]:
    """Store every line that `export_jsonl` wrote, or none. Returns (lines, new exchanges).

    A line whose request has the same reply already changes nothing; blank lines are passed over.
    Raises: ValueError with line and reason (texts are not quoted); OSError, StoreFailed.
    """
    lines = 0
    with open(path, "rb") as file, store.transaction():
        before = len(store)
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = _parsed(line)
                kept = store.put(row.asked, row.completion, stored_at_s=row.stored_at_s)
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}; nothing was imported") from None
            if not is_same_reply(kept, row.completion):
                raise ValueError(
                    f"{path}, line {number}: its request has another reply in {store.path}, or in "
                    "a line above; remove one of them; nothing was imported"
                )
            lines += 1
        return lines, len(store) - before


def _line(row: Recorded) -> str:
    asked, reply = row.asked, row.completion
    fields = {
        "backend": asked.backend,
        "model": asked.model,
        "helper": asked.helper,
        "instruction_version": asked.instruction_version,
        "messages": [{"role": m.role, "content": m.content} for m in asked.messages],
        "reply_tokens": asked.reply_tokens,
        "temperature": asked.temperature,
        "text": reply.text,
        "prompt_tokens": reply.prompt_tokens,
        "completion_tokens": reply.completion_tokens,
        "cached_prompt_tokens": reply.cached_prompt_tokens,
        "latency_s": reply.latency_s,
        "stored_at_s": row.stored_at_s,
        "cut": reply.cut,
        "is_structured": asked.is_structured,
    }
    return json.dumps(fields, allow_nan=False)


def _parsed(line: bytes) -> Recorded:
    """Raises: ValueError with a reason that quotes field names only."""
    try:
        fields = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        raise ValueError("it is not JSON in UTF-8") from None
    if not isinstance(fields, dict):
        raise ValueError("it is not a JSON object")
    fields = _SINCE_VERSION_2 | fields
    if missing := sorted(_FIELDS.keys() - fields.keys()):
        raise ValueError(f"{', '.join(missing)} must be given")
    if extra := len(fields.keys() - _FIELDS.keys()):
        raise ValueError(f"it has {extra} fields besides {', '.join(_FIELDS)}")
    for name, wanted in _FIELDS.items():
        if not _is_right(fields[name], wanted):
            raise ValueError(f"{name} must be {wanted}")
    talk = tuple(Message(row["role"], row["content"]) for row in fields["messages"])
    asked = Asked(
        fields["backend"],
        fields["model"],
        fields["helper"],
        talk,
        fields["reply_tokens"],
        float(fields["temperature"]),
        fields["instruction_version"],
        fields["is_structured"],
    )
    completion = Completion(
        fields["text"],
        prompt_tokens=fields["prompt_tokens"],
        completion_tokens=fields["completion_tokens"],
        latency_s=float(fields["latency_s"]),
        cached_prompt_tokens=fields["cached_prompt_tokens"],
        cut=fields["cut"],
        is_structured=fields["is_structured"],
    )
    return Recorded(asked, storable(completion), float(fields["stored_at_s"]))


def _is_right(value: Any, wanted: str) -> bool:
    if wanted == _FIELDS["is_structured"]:
        return isinstance(value, bool)
    if wanted == _FIELDS["cut"]:
        return value in ("", "length", "deadline", "tail")
    if wanted == _TEXT:
        return isinstance(value, str)
    if wanted in (_COUNT, _USAGE):
        is_absent = value is None and wanted == _USAGE
        return is_absent or (type(value) is int and 0 <= value <= LARGEST_COUNT)
    if wanted == _NUMBER:
        return type(value) in (int, float) and 0.0 <= value <= sys.float_info.max
    return isinstance(value, list) and all(
        isinstance(row, dict)
        and row.keys() == {"role", "content"}
        and all(isinstance(text, str) for text in row.values())
        for row in value
    )
