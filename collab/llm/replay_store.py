"""Exchanges with an LLM in one SQLite file: a key per request, its first reply for good.

What is asked again is found by `exchange_key`. How the file is opened is in `replay_file`; when to
look here and when to call is decided in `replay`, which also moves exchanges in and out as JSONL.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from collab.llm import Completion, Message, errors, prompts, replay_file

LARGEST_COUNT = 2**63 - 1  # what an SQLite integer holds
_PAGE_ROWS = 256  # read at once when all are listed

_REPLY = (  # a Completion
    "text, prompt_tokens, completion_tokens, latency_s, cached_prompt_tokens, cut, is_structured"
)
_REPLY_1 = _REPLY.replace("cut, is_structured", "'', 0")  # of files of schema version 1
_COLUMNS = (
    "key, backend, model, helper, instruction_version, messages, reply_tokens, temperature, "
    f"{_REPLY}, stored_at_s"
)
_INSERT = (
    f"INSERT INTO exchanges ({_COLUMNS}) VALUES ({', '.join('?' * len(_COLUMNS.split(',')))}) "
    "ON CONFLICT (key) DO NOTHING"
)


@dataclasses.dataclass(frozen=True)
class Asked:
    """All that a reply depends on.

    backend: the name of a backend, not its address: a server may move; with a digest where replies
    depend on more than names. model: as configured, "" where the helper's name stands for it.
    is_structured: the server was told the reply's form.
    """

    backend: str
    model: str
    helper: str
    messages: tuple[Message, ...]
    reply_tokens: int
    temperature: float
    instruction_version: int = prompts.INSTRUCTION_VERSION
    is_structured: bool = False


@dataclasses.dataclass(frozen=True)
class Recorded:
    """One stored exchange. stored_at_s: Unix time."""

    asked: Asked
    completion: Completion
    stored_at_s: float


@dataclasses.dataclass(frozen=True)
class Tally:
    """What is stored of one helper. without_usage: exchanges whose server reported no usage."""

    backend: str
    model: str
    helper: str
    instruction_version: int
    exchanges: int
    prompt_tokens: int
    completion_tokens: int
    without_usage: int


class StoreFailed(errors.HelpError):
    """A stored reply can't be read, or a new one can't be kept: no money for what would be lost."""

    name = "store_failed"
    is_final = True


def exchange_key(asked: Asked) -> str:
    """A sha256 over the canonical JSON of `asked`, in hex: equal requests have equal keys.

    Raises: ValueError for a temperature that is not finite.
    """
    parts = {
        "backend": asked.backend,
        "model": asked.model,
        "helper": asked.helper,
        "instruction_version": int(asked.instruction_version),
        "messages": _pairs(asked.messages),
        "reply_tokens": int(asked.reply_tokens),
        "temperature": float(asked.temperature) + 0.0,  # 0, 0.0 and -0.0 are written alike
    }
    if asked.is_structured:  # left out otherwise: keys are older than this field
        parts["is_structured"] = True
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def storable(completion: Completion) -> Completion:
    """A completion as the file can hold it: valid Unicode, counts up to 63 bits or else unknown."""
    text = completion.text
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")

    def held(count: int | None) -> int | None:
        return count if count is None or count <= LARGEST_COUNT else None

    return dataclasses.replace(
        completion,
        text=text,
        prompt_tokens=held(completion.prompt_tokens),
        completion_tokens=held(completion.completion_tokens),
        cached_prompt_tokens=held(completion.cached_prompt_tokens),
    )


def is_same_reply(one: Completion, other: Completion) -> bool:
    """Whether text and token counts agree.

    The latency and what the server had cached may differ each time that it is asked the same.
    """
    return (one.text, one.prompt_tokens, one.completion_tokens) == (
        other.text,
        other.prompt_tokens,
        other.completion_tokens,
    )


class ReplayStore:
    """A replay file. Any number of threads and of processes of one machine may use it at once.

    A key keeps the reply that was stored first. Messages come back exactly, halves of surrogate
    pairs included; in a reply such halves become U+FFFD before it is stored.
    """

    def __init__(self, path: str | Path, *, create: bool = True) -> None:
        """create=False: the file must be there, and may lie in a folder that can't be written.

        Raises: ValueError for a file that can't be had or is none of ours.
        """
        self.path = Path(path)
        self._lock = threading.RLock()  # guards the connection, which all threads share
        try:
            self._connection = replay_file.opened(self.path, create=create)
        except sqlite3.Error as error:
            raise ValueError(replay_file.advice(self.path, error)) from None
        is_older = replay_file.schema_version(self._connection) < replay_file.SCHEMA_VERSION
        self._reply = _REPLY_1 if is_older else _REPLY

    def get(self, key: str) -> Completion | None:
        """The reply stored under `key`, with the latency and the token counts it had.

        Raises: StoreFailed.
        """
        rows = self._rows(f"SELECT {self._reply} FROM exchanges WHERE key = ?", key)
        return _completion(rows[0]) if rows else None

    def put(
        self, asked: Asked, completion: Completion, *, stored_at_s: float | None = None
    ) -> Completion:
        """Store a reply and return what stands under its key: this one, or an earlier one.

        A kill of the process after the return loses nothing. stored_at_s: Unix time, None = now.
        A token count beyond 63 bits is kept as unknown.
        Raises: StoreFailed; ValueError for a latency that is unknown, negative or infinite.
        """
        latency_s = completion.latency_s
        if latency_s is None or not 0.0 <= latency_s < math.inf:
            raise ValueError(f"latency_s={latency_s} must be finite and 0 or more to be replayed")
        key = exchange_key(asked)
        kept = dataclasses.replace(storable(completion), is_structured=asked.is_structured)
        row = (
            key,
            asked.backend,
            asked.model,
            asked.helper,
            asked.instruction_version,
            json.dumps(_pairs(asked.messages)),
            asked.reply_tokens,
            asked.temperature,
            kept.text,
            kept.prompt_tokens,
            kept.completion_tokens,
            kept.latency_s,
            kept.cached_prompt_tokens,
            kept.cut,
            asked.is_structured,
            time.time() if stored_at_s is None else stored_at_s,
        )
        with self._using() as connection:
            is_new = connection.execute(_INSERT, row).rowcount
            first = None if is_new else self.get(key)
        return first or kept

    def recorded(self) -> Iterator[Recorded]:
        """Every exchange, in the order of storing. Raises: StoreFailed."""
        last, columns = 0, _COLUMNS.replace(_REPLY, self._reply)
        while rows := self._rows(
            f"SELECT id, {columns} FROM exchanges WHERE id > ? ORDER BY id LIMIT ?",
            last,
            _PAGE_ROWS,
        ):
            yield from (_recorded(row[2:]) for row in rows)
            last = rows[-1][0]

    def tallies(self) -> list[Tally]:
        """Totals by backend, model, helper and instruction version. Raises: StoreFailed."""
        rows = self._rows(
            "SELECT backend, model, helper, instruction_version, count(*), "
            "CAST(total(prompt_tokens) AS INTEGER), CAST(total(completion_tokens) AS INTEGER), "
            "sum(prompt_tokens IS NULL OR completion_tokens IS NULL) "
            "FROM exchanges GROUP BY 1, 2, 3, 4 ORDER BY 1, 2, 3, 4"
        )
        return [Tally(*row) for row in rows]

    def __len__(self) -> int:
        return int(self._rows("SELECT count(*) FROM exchanges")[0][0])

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """All that is put inside is stored at its end, or nothing if it ends in an exception.

        Other writers wait meanwhile. Raises: StoreFailed.
        """
        with self._using() as connection:
            connection.execute("BEGIN IMMEDIATE")
            with connection:
                yield

    def close(self) -> None:
        """Let go of the file; a second time does nothing."""
        with self._lock:
            self._connection.close()

    def _rows(self, query: str, *values: Any) -> list[Any]:
        # All rows at once: a query that is half read would keep its snapshot, and a write by the
        # same connection fails when another process has written since.
        with self._using() as connection:
            return connection.execute(query, values).fetchall()

    @contextlib.contextmanager
    def _using(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                yield self._connection
            except sqlite3.Error as error:
                raise StoreFailed(replay_file.advice(self.path, error)) from None


def _recorded(row: tuple[Any, ...]) -> Recorded:
    """row: _COLUMNS without the key."""
    backend, model, helper, version, messages, reply_tokens, temperature, *reply, stored_at_s = row
    talk = tuple(Message(role, content) for role, content in json.loads(messages))
    completion = _completion(reply)
    asked = Asked(
        backend, model, helper, talk, reply_tokens, temperature, version, completion.is_structured
    )
    return Recorded(asked, completion, stored_at_s)


def _completion(reply: Sequence[Any]) -> Completion:
    """reply: _REPLY."""
    return dataclasses.replace(Completion(*reply), is_structured=bool(reply[-1]))


def _pairs(messages: tuple[Message, ...]) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in messages]
