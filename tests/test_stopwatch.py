"""Every second of a lap belongs to one part."""

from __future__ import annotations

import pytest

from collab.stopwatch import PARTS, Stopwatch


class FakeClock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_parts_and_host_add_up_to_the_wall() -> None:
    clock = FakeClock()
    watch = Stopwatch(clock)
    clock.now_s += 1.0
    for _ in range(2):
        with watch.part("decode"):
            clock.now_s += 2.0
    with watch.part("update"):
        clock.now_s += 0.25
    lap = watch.lap()
    assert lap.wall_s == 5.25
    expected = {**dict.fromkeys(PARTS, 0.0), "decode": 4.0, "update": 0.25, "host": 1.0}
    assert lap.seconds == expected


def test_a_lap_begins_where_the_last_one_ended() -> None:
    clock = FakeClock()
    watch = Stopwatch(clock)
    with watch.part("wait"):
        clock.now_s += 3.0
    watch.count(steps=2)
    watch.count(steps=3, tokens=1)
    assert watch.lap().counts == {"steps": 5, "tokens": 1}
    clock.now_s += 0.5
    lap = watch.lap()
    assert (lap.wall_s, lap.seconds["wait"], lap.counts["steps"]) == (0.5, 0.0, 0)


def test_a_part_that_nobody_knows_is_an_error() -> None:
    with pytest.raises(KeyError), Stopwatch().part("decoding"):
        pass
