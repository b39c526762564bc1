"""The audit log: what left this machine, when, to whom, and which private units went along.

One JSON object a line, appended before the request is sent, so that a kill loses none. So it may
say too much, never too little: a request that is answered from the cache or a replay file, or that
a limit holds back after the gate let it pass, stands there as sent. It holds no text of a request
and no unit, only kinds and counts: the log is no leak itself.

    python -m collab.privacy.audit runs/mine/audit.jsonl
"""

from __future__ import annotations

import argparse
import collections
import datetime
import errno
import json
import logging
import os
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from collab.types import HelpRequest

SENT, BLOCKED = "sent", "blocked"
_START = '{"time": "'  # of each line
_FIELDS = {
    *("time", "where", "helper", "episode", "kind", "characters", "outcome", "units", "masked"),
}
_log = logging.getLogger(__name__)


class AuditLog:
    """Appends to one file, which others may write, too. `note` may be called from any thread."""

    def __init__(self, path: str | Path, *, where: str) -> None:
        """where: who gets the requests. Raises: ValueError for a file that can't be written."""
        self._path, self._where = Path(path), where
        self._lock = threading.Lock()
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        except OSError as error:
            raise ValueError(
                f"audit log {self._path}: {error.strerror}; name a --workdir you may write"
            ) from None
        size = os.fstat(self._file).st_size
        if size and os.pread(self._file, 1, size - 1) != b"\n":
            self._write(b"\n")  # what a kill cut short shall spoil no line but itself

    def note(
        self,
        request: HelpRequest,
        *,
        found: Sequence[str],
        masked: Sequence[str],
        is_blocked: bool,
    ) -> None:
        """One line about a request. found, masked: kinds of the units that it holds, and held.

        Raises: OSError where it can't be written: nothing leaves that is not noted.
        """
        line = {
            "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
            "where": self._where,
            "helper": request.helper,
            "episode": request.episode,
            "kind": request.kind,
            "characters": len(request.text),
            "outcome": BLOCKED if is_blocked else SENT,
            "units": sorted(found),
            "masked": sorted(masked),
        }
        self._write((json.dumps(line) + "\n").encode())

    def close(self) -> None:
        """Close the file; further notes are errors, a second time does nothing."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _write(self, data: bytes) -> None:
        with self._lock:
            try:
                is_whole = os.write(self._file, data) == len(data)
            except OSError as error:
                raise OSError(error.errno, error.strerror, str(self._path)) from None
        if not is_whole:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))


def read(path: str | Path) -> list[dict[str, Any]]:
    """The lines of a log. What a kill cut short is left out, and said.

    Raises: ValueError with the line's number for any other that can't be read.
    """
    lines, cut = [], 0
    for number, text in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), start=1):
        line = _read(text)
        if line is not None:
            lines.append(line)
        elif text.startswith(_START[: len(text)]):
            cut += 1
        else:
            raise ValueError(f"{path}, line {number} is no line of an audit log")
    if cut:
        _log.warning("audit log %s: %d lines that were cut short are left out", path, cut)
    return lines


def _read(text: str) -> dict[str, Any] | None:
    """One line, or None where it is not a whole one."""
    try:
        line = json.loads(text)
    except ValueError:
        return None
    return line if isinstance(line, dict) and line.keys() == _FIELDS else None


def summary(lines: Sequence[dict[str, Any]]) -> str:
    """A few lines for people: how much left to whom, how much was blocked, which kinds of units."""
    if not lines:
        return "nothing left"
    said = [f"{len(lines)} requests from {lines[0]['time']} to {lines[-1]['time']}"]
    groups: dict[tuple[str, str], list[dict[str, Any]]] = collections.defaultdict(list)
    for line in lines:
        groups[line["where"], line["helper"]].append(line)
    for (where, helper), group in sorted(groups.items()):
        sent = [line for line in group if line["outcome"] == SENT]
        blocked = [line for line in group if line["outcome"] == BLOCKED]
        name = f"{where} {helper}".strip()
        said.append(
            f"{name}: {len(sent)} sent ({sum(line['characters'] for line in sent)} characters), "
            f"{len(blocked)} blocked, {len({line['episode'] for line in group})} episodes"
        )
        for title, part, key in (
            ("in what was sent", sent, "units"),
            ("masked before it was sent", sent, "masked"),
            ("in what was blocked", blocked, "units"),
        ):
            units = collections.Counter(kind for line in part for kind in line[key])
            counts = ", ".join(f"{kind} {count}" for kind, count in units.most_common())
            if counts:
                said.append(f"  private units {title}: {counts}")
    return "\n".join(said)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the summary of a log. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m collab.privacy.audit", description=__doc__)
    parser.add_argument("log", help="the audit.jsonl of a run's workdir")
    flags = parser.parse_args(arguments)
    try:
        print(summary(read(flags.log)))
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
