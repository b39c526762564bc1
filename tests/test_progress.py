"""The plain progress lines, on a clock of our own; tqdm's bar on a terminal."""

from __future__ import annotations

import io

import pytest

from collab.progress import headline, progress, span


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_plain_lines_come_now_and_then_with_an_eta_and_the_last_figures() -> None:
    clock, stream = Clock(), io.StringIO()
    with progress(100, "rl", stream=stream, clock=clock) as line:
        for done in range(1, 101):
            clock.now_s += 0.5
            line.update(1, **({"reward": 0.1 * done} if done % 10 == 0 else {}))
    assert stream.getvalue().splitlines() == [
        "rl: 20/100 (20%), 10s, ETA 40s  reward=2",
        "rl: 40/100 (40%), 20s, ETA 30s  reward=4",
        "rl: 60/100 (60%), 30s, ETA 20s  reward=6",
        "rl: 80/100 (80%), 40s, ETA 10s  reward=8",
        "rl: 100/100 (100%), took 50s  reward=10",
    ]


def test_a_stage_that_is_left_says_how_far_it_came() -> None:
    stream = io.StringIO()
    with pytest.raises(KeyError), progress(9, "cold start", stream=stream, clock=Clock()) as line:
        line.update(3)
        raise KeyError
    assert stream.getvalue() == "cold start: 3/9 (33%), took 0s\n"


def test_no_units_yet_and_no_total_are_no_trouble() -> None:
    clock, stream = Clock(), io.StringIO()
    with progress(5, "wait", stream=stream, clock=clock) as line:
        clock.now_s += 11
        line.update(0)
    with progress(0, "nothing", stream=stream, clock=clock):
        pass
    assert stream.getvalue().splitlines() == [
        "wait: 0/5 (0%), 11s, ETA unknown",
        "wait: 0/5 (0%), took 11s",
        "nothing: 0/0, took 0s",
    ]


def test_a_terminal_gets_a_bar() -> None:
    stream = Terminal()
    with progress(4, "evaluate", stream=stream) as line:
        line.update(4, em=0.5)
    last = stream.getvalue().split("\r")[-1]
    assert "evaluate: 100%" in last
    assert "4/4" in last
    assert "em=0.5" in last


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0s"), (59.4, "59s"), (59.6, "1m00s"), (200, "3m20s"), (7500, "2h05m")],
)
def test_spans_read_well(seconds: float, text: str) -> None:
    assert span(seconds) == text


def test_dollars_stand_on_the_progress_line_once_there_are_any() -> None:
    metrics = {"reward": 0.5, "usd": 0.1, "kl": 0.0, "client/usd": 0.0}
    assert headline(metrics) == {"reward": 0.5}
    metrics["client/usd"] = 1.25
    assert headline(metrics) == {"reward": 0.5, "spent_usd": 1.25}
