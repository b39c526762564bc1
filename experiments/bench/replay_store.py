"""What a replay file costs per exchange: put and get in microseconds, beside plain JSON lines.

`python -m experiments.bench.replay_store` (half a minute) prints a table and writes
replay_store.json. The plain form keeps a dict in memory and appends a flushed line of JSON for each
reply: no other process may write it, and a start reads it whole. NOTES.md reads the figures.
"""

from __future__ import annotations

import json
import os
import pathlib
import platform
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

from collab.llm import Completion, Message
from collab.llm.replay_store import Asked, ReplayStore, exchange_key
from collab.report import git_commit

RESULTS = pathlib.Path(__file__).with_suffix(".json")
EXCHANGES, REPEATS = 2000, 25
SYSTEM_CHARACTERS, REQUEST_CHARACTERS, REPLY_CHARACTERS = 1000, 1000, 200


def exchanges() -> list[tuple[Asked, Completion]]:
    """Talks of about 2 KB, of which the last characters differ."""
    system = Message("system", "s" * SYSTEM_CHARACTERS)
    return [
        (
            Asked(
                "openai",
                "big",
                "one",
                (system, Message("user", "é" + "u" * REQUEST_CHARACTERS + str(i))),
                64,
                0.7,
            ),
            Completion("r" * REPLY_CHARACTERS + str(i), 500, 50, 0.75),
        )
        for i in range(EXCHANGES)
    ]


def each_us(work: Callable[[Any], object], items: Sequence[Any]) -> float:
    """Microseconds per item."""
    start_s = time.perf_counter()
    for item in items:
        work(item)
    return (time.perf_counter() - start_s) / len(items) * 1e6


def measured(pairs: list[tuple[Asked, Completion]], folder: pathlib.Path) -> dict[str, float]:
    """One repeat of every row."""
    keys = [exchange_key(asked) for asked, _ in pairs]
    store = ReplayStore(folder / "replay.sqlite")
    found = {
        "key": each_us(lambda pair: exchange_key(pair[0]), pairs),
        "put": each_us(lambda pair: store.put(*pair), pairs),
        "get": each_us(store.get, keys),
    }
    store.close()
    lines: dict[str, str] = {}
    with open(folder / "lines.jsonl", "w", encoding="ascii") as file:

        def write(pair: tuple[Asked, Completion]) -> None:
            asked, completion = pair
            key = exchange_key(asked)
            talk = [vars(message) for message in asked.messages]
            lines[key] = json.dumps(
                vars(asked) | vars(completion) | {"messages": talk, "key": key, "at": time.time()}
            )
            file.write(lines[key] + "\n")
            file.flush()

        found["plain put"] = each_us(write, pairs)
    found["plain get"] = each_us(lambda key: json.loads(lines[key]), keys)
    return found


def main() -> None:
    pairs = exchanges()
    repeats = []
    for _ in range(REPEATS):
        with tempfile.TemporaryDirectory() as folder:
            repeats.append(measured(pairs, pathlib.Path(folder)))
    rows = {}
    print(f"{'':10} {'median us':>10} {'lowest':>8} {'highest':>8} {'x plain':>8}")
    for name in repeats[0]:
        taken = [repeat[name] for repeat in repeats]
        plain = f"plain {name}"
        ratios = [repeat[name] / repeat[plain] for repeat in repeats if plain in repeat]
        rows[name] = {"median_us": statistics.median(taken), "range_us": [min(taken), max(taken)]}
        if ratios:
            rows[name]["times_plain"] = statistics.median(ratios)
        last = f"{statistics.median(ratios):8.2f}" if ratios else ""
        print(
            f"{name:10} {statistics.median(taken):10.1f} {min(taken):8.1f} {max(taken):8.1f} {last}"
        )
    content = {
        "rows": rows,
        "exchanges": EXCHANGES,
        "repeats": REPEATS,
        "characters": [SYSTEM_CHARACTERS, REQUEST_CHARACTERS, REPLY_CHARACTERS],
        "sqlite": sqlite3.sqlite_version,
        "python": platform.python_version(),
        "device": f"{platform.machine()}, {len(os.sched_getaffinity(0))} of {os.cpu_count()} cores",
        "commit": git_commit(),
    }
    RESULTS.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
