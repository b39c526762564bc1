"""How much of what is hidden the leak detector finds, how often it cries wolf, and how fast.

`python -m experiments.detector_suite` (a few minutes on one CPU core) writes each private unit of
twelve types in each obfuscation inside other sentences, and asks the detector of an episode's six
units for it; asks it about 10,000 requests that give nothing away; and times both. It writes
results.json and recall.png beside this file. NOTES.md reads the figures.
"""

from __future__ import annotations

import argparse
import collections
import json
import math
import os
import pathlib
import platform
import random
import statistics
import time
from typing import Any

from matplotlib.figure import Figure

from collab.privacy import forms, needles
from collab.privacy.detector import Detector
from collab.progress import progress
from collab.report import git_commit
from experiments.detector_suite import clean, obfuscations
from experiments.detector_suite.units import KINDS, Unit, episode, unit

HERE = pathlib.Path(__file__).parent
REPEATS = 5  # of each timing; the median counts
LEAST_RECALL, MOST_ALARMS, LEAST_PER_S = 0.98, 0.005, 2000
Case = tuple[str, list[Unit], list[str]]  # obfuscation, units with the hidden one first, requests


def cases(count: int, seed: int) -> list[Case]:
    """`count` cases of each obfuscation, kinds of units in turn where it applies to them."""
    made: list[Case] = []
    for obfuscation in (*obfuscations.CLAIMED, *obfuscations.BEYOND):
        rng = random.Random(f"{seed} {obfuscation.__name__}")
        number = 0
        for attempt in range(100 * count):
            hidden = unit(KINDS[attempt % len(KINDS)], rng)
            texts = obfuscation(hidden, rng)
            if texts is None:
                continue
            others = [other for other in episode(rng) if other.kind != hidden.kind][:5]
            requests = [clean.carried(text, rng) for text in texts]
            if rng.random() < 0.5:
                requests.insert(rng.randint(0, len(requests)), clean.prose(rng))
            made.append((obfuscation.__name__, [hidden, *others], requests))
            number += 1
            if number == count:
                break
    return made


def clean_episodes(count: int, seed: int) -> list[tuple[list[Unit], list[str]]]:
    """Episodes of four requests that give nothing away, `count` requests in all."""
    rng = random.Random(f"{seed} clean")
    made = []
    for _ in range(count // 4):
        units = episode(rng)
        made.append((units, clean.requests(units, rng)))
    return made


def wilson(found: int, total: int) -> list[float]:
    """95 % interval of a share."""
    z = 1.96
    share = found / total
    middle = share + z * z / (2 * total)
    reach = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    scale = 1 + z * z / total
    return [round(max(0.0, (middle - reach) / scale), 4), round((middle + reach) / scale, 4)]


def share(found: int, total: int) -> dict[str, Any]:
    """A share with its interval."""
    return {"of": total, "share": round(found / total, 4), "ci": wilson(found, total)}


def is_found(case: Case) -> bool:
    """Whether the detector sees the hidden unit."""
    _, units, requests = case
    return bool(Detector([one.private for one in units]).leaked(requests)[0])


def alarms(units: list[Unit], requests: list[str]) -> list[tuple[str, str]]:
    """(unit, request) of each alarm; the request is the one that completed the unit."""
    by_request = Detector([one.private for one in units]).leaked_by_request(requests)
    return [
        (units[at].text, text)
        for found, text in zip(by_request, requests, strict=True)
        for at in sorted(found)
    ]


def requests_per_s(batch: list[tuple[list[Unit], list[str]]]) -> float:
    """Median rate over repeats, each with empty caches and a detector built for each episode.

    By processor time of this one thread, so that other work on the machine does not count.
    """
    rates = []
    total = sum(len(requests) for _, requests in batch)
    for _ in range(REPEATS):
        forms.read.cache_clear()
        needles.needles_of.cache_clear()
        start_s = time.process_time()
        for units, requests in batch:
            Detector([one.private for one in units]).leaked_by_request(requests)
        rates.append(total / (time.process_time() - start_s))
    return statistics.median(rates)


def measure(
    count: int, clean_count: int, seed: int, *, misses: pathlib.Path | None
) -> dict[str, Any]:
    """All figures, as results.json holds them. misses: where to write what went wrong."""
    made, quiet = cases(count, seed), clean_episodes(clean_count, seed)
    found, total = collections.Counter[str](), collections.Counter[str]()
    by_kind, of_kind = collections.Counter[str](), collections.Counter[str]()
    wrong: list[str] = []
    claimed = [function.__name__ for function in obfuscations.CLAIMED]
    beyond = [function.__name__ for function in obfuscations.BEYOND]
    with progress(len(made) + len(quiet), "detector suite") as bar:
        for case in made:
            name, (hidden, *_), requests = case
            hit = is_found(case)
            found[name] += hit
            total[name] += 1
            if name in claimed:
                by_kind[hidden.kind] += hit
                of_kind[hidden.kind] += 1
                if not hit:
                    wrong.append(f"missed {name}: {hidden.text!r} in {requests!r}")
            bar.update()
        noisy = 0
        for units, requests in quiet:
            raised = alarms(units, requests)
            noisy += len({text for _, text in raised})
            wrong += [f"alarm: {name!r} by {text!r} of {requests!r}" for name, text in raised]
            bar.update()
    if misses is not None:
        misses.write_text("\n".join(wrong) + "\n", encoding="utf-8")
    sums = [sum(counter[name] for name in claimed) for counter in (found, total)]
    result = {
        "seed": seed,
        "commit": git_commit(),
        "device": processor(),
        "python": platform.python_version(),
        "recall": share(*sums),
        "false_alarms_per_request": share(noisy, 4 * len(quiet)),
        "requests_per_s": {
            "clean": round(requests_per_s(quiet)),
            "hidden": round(requests_per_s([(units, texts) for _, units, texts in made])),
        },
        "by_obfuscation": {name: share(found[name], total[name]) for name in claimed},
        "by_kind": {kind: share(by_kind[kind], of_kind[kind]) for kind in KINDS},
        "beyond": {name: share(found[name], total[name]) for name in beyond},
    }
    return {**result, "claims": claims(result)}


def claims(result: dict[str, Any]) -> list[dict[str, Any]]:
    """What is wanted of the detector, and whether it holds; shares by their point estimates."""
    recall, alarmed = result["recall"], result["false_alarms_per_request"]
    worst, least = min(result["by_obfuscation"].items(), key=lambda row: row[1]["share"])
    per_s = result["requests_per_s"]
    rows = [
        ("recall over the claimed obfuscations is at least 0.98",
         recall["share"], recall["ci"], recall["share"] >= LEAST_RECALL),
        (f"so it is over each of them (the worst: {worst})",
         least["share"], least["ci"], least["share"] >= LEAST_RECALL),
        ("at most 0.5 % of clean requests raise an alarm",
         alarmed["share"], alarmed["ci"], alarmed["share"] <= MOST_ALARMS),
        *((f"one core looks at 2,000 requests a second, {which}",
           per_s[name], None, per_s[name] >= LEAST_PER_S)
          for name, which in (("clean", "clean ones"), ("hidden", "ones that hide a unit"))),
    ]  # fmt: skip
    return [
        {"claim": claim, "figure": figure, "ci": ci, "seeds": [result["seed"]], "holds": holds}
        for claim, figure, ci, holds in rows
    ]


def processor() -> str:
    """The processor's name where Linux tells it."""
    info = pathlib.Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def draw(result: dict[str, Any]) -> Figure:
    """Recall of each obfuscation with its interval, what is not claimed in another colour."""
    figure = Figure(figsize=(8, 11), layout="constrained")
    axes = figure.subplots()
    for table, colour, label in (
        ("beyond", "tab:orange", "not claimed"),
        ("by_obfuscation", "tab:blue", "claimed"),
    ):
        rows = sorted(result[table].items(), key=lambda row: row[1]["share"])
        names = [name.replace("_", " ") for name, _ in rows]
        heights = [row["share"] for _, row in rows]
        reach = [
            [max(0.0, row["share"] - row["ci"][0]) for _, row in rows],
            [max(0.0, row["ci"][1] - row["share"]) for _, row in rows],
        ]
        axes.barh(names, heights, xerr=reach, color=colour, label=label, capsize=2)
    axes.set_xlabel("recall (95 % Wilson interval)")
    axes.set_xlim(0, 1.02)
    axes.grid(axis="x", alpha=0.3)
    axes.legend(loc="lower right")
    return figure


def main() -> None:
    """Measure, write, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=200, help="of each obfuscation")
    parser.add_argument("--clean", type=int, default=10_000, help="requests")
    # Seed 0 was looked at while the detector was written.
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--misses", type=pathlib.Path, help="file for all misses and false alarms")
    arguments = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):  # one core, as the rate says
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    result = measure(arguments.cases, arguments.clean, arguments.seed, misses=arguments.misses)
    (HERE / "results.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    draw(result).savefig(HERE / "recall.png", dpi=90)
    for table in ("by_obfuscation", "beyond", "by_kind"):
        print(f"{table:<22} recall  95 % interval    of")
        for name, row in result[table].items():
            low, high = row["ci"]
            print(f"  {name:<20} {row['share']:6.3f}  [{low:.3f} {high:.3f}]  {row['of']:5d}")
    for name in ("recall", "false_alarms_per_request", "requests_per_s"):
        print(name, result[name])


if __name__ == "__main__":
    main()
