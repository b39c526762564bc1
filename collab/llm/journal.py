"""What was really paid, in a file of the run's folder: `kill -9` at any moment forgets none of it.

A line of JSON for each change, appended as one write, so several processes may share the file. What
limits follow from it is `budget`'s business. Dollars and counts only: no text ever comes here.
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from collab.llm import errors

_log = logging.getLogger(__name__)
_FIELDS = {"at_s", "usd", "requests", "tokens"}


class JournalFailed(errors.HelpError):
    """What is spent can't be written down: no money for what would be forgotten."""

    name = "journal_failed"
    is_final = True


class Journal:
    """The file, open for appending. Not locked: a write is one system call.

    A write belongs to the kernel at once, without fsync: a power cut may cost the last seconds.
    """

    def __init__(self, path: str | Path, *, wall_clock: Callable[[], float] = time.time) -> None:
        """wall_clock: Unix time, since it must mean the same after a restart; it may jump.

        Raises: ValueError for a file that can't be written.
        """
        self.path, self._wall_clock = Path(path), wall_clock
        try:
            self._file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        except OSError as error:
            raise ValueError(
                f"spend journal {self.path}: {error.strerror}; name a --workdir you may write"
            ) from None

    def add(self, *, usd: float, requests: int, tokens: int) -> None:
        """Append an amount. Raises: JournalFailed."""
        record = {
            "at_s": round(self._wall_clock(), 3),
            "usd": usd,
            "requests": requests,
            "tokens": tokens,
        }
        # The line break comes first: what a kill cuts short then spoils no record but itself.
        line = f"\n{json.dumps(record)}".encode()
        try:
            is_whole = os.write(self._file, line) == len(line)
        except OSError as error:
            raise JournalFailed(f"spend journal {self.path}: {error.strerror}") from None
        if not is_whole:
            raise JournalFailed(f"spend journal {self.path}: no space left; free some")

    def history(self) -> Iterator[tuple[float, dict[str, Any]]]:
        """Every amount as (seconds ago, fields of `add`), in the order of writing.

        What lies in the future, by a clock that was set back, reads as just now. Where one was set
        forward, nothing shows it: the hour then ends early, the run's total is right. A record that
        was cut short is left out, and said.
        """
        now_s, spoilt = self._wall_clock(), 0
        with self.path.open("rb") as file:
            for line in file:
                amount = _amount(line)
                if amount is None:
                    spoilt += bool(line.strip())
                    continue
                yield max(0.0, now_s - amount.pop("at_s")), amount
        if spoilt:
            _log.warning("spend journal %s: %d unreadable lines left out", self.path, spoilt)

    def close(self) -> None:
        """Let go of the file; a second time does nothing."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def _amount(line: bytes) -> dict[str, Any] | None:
    """The fields of one line, or None where it is not whole."""
    try:
        read = json.loads(line)
    except ValueError:
        return None
    is_whole = isinstance(read, dict) and read.keys() == _FIELDS
    if not is_whole or not all(
        type(number) in (int, float) and math.isfinite(number) for number in read.values()
    ):
        return None
    return dict(read)
