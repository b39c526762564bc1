"""The audit log: what left this machine, when, to whom, and which private units went along.

One JSON object a line, appended before the request is sent, so that a kill loses none. It holds no
text of a request and no unit, only kinds and counts: the log is no leak itself.

    python -m collab.privacy.audit runs/mine/audit.jsonl
"""

from __future__ import annotations

import argparse
import collections
import datetime
import json
import os
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from collab.types import HelpRequest

SENT, BLOCKED = "sent", "blocked"


class AuditLog:
    """Appends to one file. `note` may be called from any thread. where: who gets the requests."""

    def __init__(self, path: str | Path, *, where: str) -> None:
        self._path, self._where = Path(path), where
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._lock = threading.Lock()

    def note(
        self,
        request: HelpRequest,
        *,
        found: Sequence[str],
        masked: Sequence[str],
        is_blocked: bool,
    ) -> None:
        """One line about a request. found, masked: kinds of the units that it holds, and held."""
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
        with self._lock:
            os.write(self._file, (json.dumps(line) + "\n").encode())

    def close(self) -> None:
        """Close the file; further notes are errors."""
        os.close(self._file)


def read(path: str | Path) -> list[dict[str, Any]]:
    """The lines of a log. A last line that a kill cut short is left out.

    Raises: ValueError with the line's number for any other that can't be read.
    """
    text = Path(path).read_text(encoding="utf-8")
    lines = []
    for number, line in enumerate(text.splitlines(keepends=True), start=1):
        try:
            lines.append(dict(json.loads(line)))
        except ValueError as error:
            if not line.endswith("\n"):
                break
            raise ValueError(f"{path}, line {number} is no line of an audit log") from error
    return lines


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
