"""What the campaign's figures come to: its claims, and the table for the README. Runs nothing."""

from __future__ import annotations

import collections
import statistics
from collections.abc import Mapping
from typing import Any

import numpy as np

from collab.llm.fault_table import FAULTS, UNDETECTABLE
from experiments.fault_campaign.child import EARLY, ITERATIONS, PROBLEMS, SAMPLES

OUTAGE, JUMPS = "gone_60s", "clock_jumps"  # what is no fault of a server's reply
LATE_S = 0.25  # past the deadline
SLOWER = 1.5  # times the run without faults, besides what was waited for
SLOWER_STEP = 2.0  # times the usual, through an outage
GROWTH_MB = 30  # of peak memory over the runs without faults
FLAT_MB = 0.5  # per 10,000 calls, at the upper end of the interval
OURS = "failures/internal_error"  # a bug, whatever the server did
NEAREST = 4  # runs without faults, in time, that a run is compared with
SPOILS_NEXT = ("closed_after", "stray_reply")  # the next call on the connection may fail
EPISODES = ITERATIONS * PROBLEMS * SAMPLES
Parts = Mapping[str, Any]


def claims(parts: Parts) -> list[dict[str, Any]]:
    """Each claim over what is there so far: figure, interval where it has one, whether it holds."""
    training = parts["training"]
    wrong = {name: verdict(name, parts) for name in training}

    def count(text: str) -> list[str]:
        return [name for name, found in wrong.items() if text in found]

    rows: list[tuple[str, Any, Any, bool]] = []
    for text, claim in VERDICTS.items():
        failing = count(text)
        figure = f"{len(training) - len(failing)} of {len(training)}"
        rows.append((claim, f"{figure}{': not ' if failing else ''}{', '.join(failing)}", None,
                     not failing))  # fmt: skip
    if "deadlines" in parts:
        rows += _of_deadlines(parts["deadlines"])
    if OUTAGE in training and not training[OUTAGE]["exit_status"]:
        rows += _of_outage(training[OUTAGE])
    if "calls" in parts:
        rows += _of_calls(parts["calls"])
    return [
        {"claim": claim, "figure": figure, "ci": interval, "seeds": 1, "holds": holds}
        for claim, figure, interval, holds in rows
    ]


VERDICTS = {
    "exit": "training finishes",
    "status": "every episode has a status",
    "credit": "no reply is credited to another request (but where nothing tells)",
    "ours": "no request ends in an error of our own",
    "slow": f"wall under {SLOWER} times the median of the nearest runs without faults, plus waits",
    "memory": f"peak memory within {GROWTH_MB} MB of the runs without faults",
}


def verdict(name: str, parts: Parts) -> list[str]:
    """Which of VERDICTS do not hold of a training run."""
    found = parts["training"][name]
    if found["exit_status"]:
        return ["exit"]
    wrong, episodes = [], sum(found["statuses"].values())
    is_whole = episodes % (PROBLEMS * SAMPLES) == 0 if name == OUTAGE else episodes == EPISODES
    if not is_whole:
        wrong.append("status")
    if found["miscredited"] and name not in UNDETECTABLE:
        wrong.append("credit")
    if found["client"].get(OURS):
        wrong.append("ours")
    if name == OUTAGE:  # as long as it takes; its steps are looked at one by one
        return wrong
    if found["wall_s"] > SLOWER * free_s(found, parts) + found["waited_s"]:
        wrong.append("slow")
    if found["peak_rss_mb"] > max(row["peak_rss_mb"] for row in parts["free"]) + GROWTH_MB:
        wrong.append("memory")
    return wrong


def free_s(found: Mapping[str, Any], parts: Parts) -> float:
    """Median wall of the runs without faults that ended nearest to this one: machines drift."""
    near = sorted(parts["free"], key=lambda row: abs(row["ended_s"] - found["ended_s"]))[:NEAREST]
    return statistics.median(row["wall_s"] for row in near)


def _of_deadlines(timed: Parts) -> list[tuple[str, Any, Any, bool]]:
    odd = [
        name
        for name, found in timed.items()
        if name not in SPOILS_NEXT and found["ends"] != [found["expected"]]
    ]
    latest_s = max(found["late_s"] for found in timed.values())
    return [
        (f"each of {len(timed)} faults ends in the error it should", odd or "all", None, not odd),
        (f"a call returns within its deadline + {LATE_S} s", f"latest {latest_s:+.3f} s", None,
         latest_s <= LATE_S),
    ]  # fmt: skip


def outage_figures(found: Mapping[str, Any]) -> dict[str, Any]:
    """Step times before and through an outage; when the circuit opened and closed, in seconds."""
    gone_s, back_s, changes = found["gone_s"], found["back_s"], found["circuit"]
    steps = found["steps"][EARLY:]
    usual = [step["took_s"] for step in steps if step["ended_s"] <= gone_s]
    through = [
        step["took_s"]
        for step in steps
        if step["ended_s"] > gone_s and step["ended_s"] - step["took_s"] < back_s
    ]
    opened = [row["at_s"] for row in changes if row["change"] == "opened"]
    closed = [row["at_s"] for row in changes if row["change"] == "closed"]
    return {
        "usual_s": statistics.median(usual),
        "through_s": statistics.median(through),
        "longest_s": max(through),
        "steps_through": len(through),
        "opened": len(opened),
        "opened_after_s": round(opened[0] - gone_s, 1) if opened else None,
        "closed_after_s": round(closed[-1] - back_s, 1) if closed else None,
    }


def _of_outage(found: Mapping[str, Any]) -> list[tuple[str, Any, Any, bool]]:
    figures = outage_figures(found)
    ratio = figures["through_s"] / figures["usual_s"]
    is_closed = figures["closed_after_s"] is not None and figures["opened"] > 0
    return [
        (f"gone for 60 s: the median step under {SLOWER_STEP} times the usual", round(ratio, 2),
         None, ratio < SLOWER_STEP and figures["steps_through"] > 0),
        ("gone for 60 s: the circuit opens, and closes by itself", figures, None, is_closed),
    ]  # fmt: skip


def slope_mb(looks: list[dict[str, float]]) -> tuple[float, float, float]:
    """Growth of resident memory per 10,000 calls, by least squares, with a 95 % interval.

    The interval takes the looks for independent, which makes it rather narrow.
    """
    calls = np.array([look["calls"] for look in looks]) / 1e4
    memory = np.array([look["rss_mb"] for look in looks])
    (slope, _), covariance = np.polyfit(calls, memory, 1, cov=True)
    half = 2.05 * float(np.sqrt(covariance[0, 0]))  # Student's t with 28 degrees of freedom
    return float(slope), float(slope) - half, float(slope) + half


def _of_calls(found: Mapping[str, Any]) -> list[tuple[str, Any, Any, bool]]:
    if found["exit_status"]:
        return [("the calls are all resolved", f"exit status {found['exit_status']}", None, False)]
    before, after, looks = found["before"], found["after"], found["looks"]
    is_back = all(after[name] <= before[name] for name in ("open_files", "threads"))
    slope, low, high = slope_mb(looks)
    blocks = (looks[-1]["python_blocks"] - looks[0]["python_blocks"]) / found["asked"]
    return [
        (f"{found['asked']} calls at 20 % faults: all resolved, none credited wrongly",
         [found["resolved"], found["miscredited"]], None,
         found["resolved"] == found["asked"] and not found["miscredited"]),
        ("no call ends in an error of our own", found["client"].get(OURS, 0.0), None,
         not found["client"].get(OURS)),
        ("open files and threads are back at the start",
         [[row["open_files"], row["threads"]] for row in (before, after)], None, is_back),
        ("memory is flat: MB per 10,000 calls", round(slope, 2),
         [round(low, 2), round(high, 2)], high < FLAT_MB),
        ("memory is flat: Python's blocks per call", round(blocks, 3), None, blocks < 0.1),
    ]  # fmt: skip


# --- the table of the README ---------------------------------------------------------------

# Rows by what the client makes of a fault.
GROUPS = {
    "connection lost": "connection_failed",
    "too slow": "timed_out",
    "malformed reply": "malformed",
    "server error (5xx)": "server_failed",
    "429": "rate_limited",
    "401": "auth_failed",
    "redirect": "bad_request",
    "odd, but a reply": "reply",
}
HEADS = ("faults", "requests without help", "episodes with a status", "credited wrongly",
         "wall, times no fault", "waited, s", "slowest call, deadline 1 s")  # fmt: skip


def table(parts: Parts) -> str:
    """Markdown: a row for each group of faults of like outcome, and for what stands alone."""
    training = parts["training"]
    groups: dict[str, list[str]] = collections.defaultdict(list)
    for name in training:
        groups[_group(name)].append(name)
    order = [*(title for title in GROUPS if title in groups),
             *(title for title in groups if title not in GROUPS)]  # fmt: skip
    rows = [_row(title, groups[title], parts) for title in order]
    free = parts["free"]
    walls = sorted(row["wall_s"] for row in free)
    first = ["none", "0 %", f"{EPISODES} of {EPISODES}", "0", f"1 ({walls[0]:.0f} to "
             f"{walls[-1]:.0f} s)", "0", "-"]  # fmt: skip
    lines = [HEADS, tuple("---" for _ in HEADS), first, *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _group(name: str) -> str:
    if name not in FAULTS or name in UNDETECTABLE:
        return TITLES.get(name, name)
    expected = FAULTS[name].expected
    word = expected.name if expected else "reply"
    return next((title for title, error in GROUPS.items() if error == word), word)


TITLES = {
    "mix": "all of these, mixed",
    JUMPS: "our own clock jumps by up to a day",
    OUTAGE: "helper gone for 60 s",
    "other_unmarked": "another request's reply, unmarked",
}


def _row(title: str, names: list[str], parts: Parts) -> list[str]:
    found = [parts["training"][name] for name in names]
    done = [row for row in found if not row["exit_status"]]
    ended = len(names) - len(done)
    asked = sum(row["client"].get("requests", 0) for row in done)
    failed = sum(row["client"].get("failures", 0) for row in done)
    episodes = sum(sum(row["statuses"].values()) for row in done)
    is_outage = names == [OUTAGE]
    ratios = [row["wall_s"] / free_s(row, parts) for row in done]
    wall = _span(ratios, 2)
    if is_outage and done:
        figures = outage_figures(done[0])
        wall = (
            f"step {figures['through_s'] / figures['usual_s']:.2f}; circuit open after "
            f"{figures['opened_after_s']} s, closed {figures['closed_after_s']} s after its return"
        )
    taken = [parts["deadlines"][name]["longest_s"] for name in names if name in parts["deadlines"]]
    wanted = episodes if is_outage else len(names) * EPISODES
    return [
        f"{title} ({len(names)})" if len(names) > 1 else title,
        f"{100 * failed / max(asked, 1):.0f} %" + (f", {ended} did not finish" if ended else ""),
        f"{episodes} of {wanted}",
        str(sum(row["miscredited"] for row in done)),
        wall,
        "-" if is_outage else _span([row["waited_s"] for row in done], 0),
        f"{max(taken):.2f} s" if taken else "-",
    ]


def _span(values: list[float], digits: int) -> str:
    if not values:
        return "-"
    low, high = (f"{value:.{digits}f}" for value in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"
