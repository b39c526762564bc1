"""Pictures: files are real PNGs, the metrics file is read as documented."""

import json
import pathlib

import numpy as np
import pytest
from matplotlib.image import imread

from collab import plots
from collab.report import METRICS


def row(strategy: str, *, em: float, asks: float, reward: float, helper: str = "h") -> dict:
    values = {"em": em, "f1": em, "asks": asks, "turns": asks, "leaked_units": asks / 2}
    values |= {"tokens": 40 * asks, "leak": asks / 10, "usd": 0.0, "reward": reward}
    intervals = {f"{name}_ci": [values[name] - 0.02, values[name] + 0.03] for name in METRICS}
    place = {"strategy": strategy, "task": "world", "split": "test", "helper": helper}
    return {**place, "episodes": 9, **values, **intervals}


ROWS = [
    row("learned", em=0.97, asks=0.9, reward=0.76),
    row("slm_cot", em=0.2, asks=0.0, reward=0.19),
    row("llm_alone", em=1.0, asks=1.0, reward=-0.3),
    row("my own strategy", em=0.5, asks=2.0, reward=0.4),
]


def is_drawn(path: pathlib.Path) -> bool:
    """A PNG of some size in several colours."""
    image_YXC = np.round(255 * imread(path)).astype(np.uint8)
    colours = np.unique(np.ascontiguousarray(image_YXC).view(np.uint32))
    return min(image_YXC.shape[:2]) > 200 and len(colours) > 20


def test_plot_writes_three_pictures(tmp_path: pathlib.Path) -> None:
    paths = plots.plot(ROWS, tmp_path / "plots")
    assert [path.name for path in paths] == ["reward.png", "em_asks.png", "em_leaks.png"]
    assert all(path.parent == tmp_path / "plots" and is_drawn(path) for path in paths)


def test_plot_of_several_helpers_names_each(tmp_path: pathlib.Path) -> None:
    rows = [ROWS[0], row("learned", em=0.9, asks=0.1, reward=0.5, helper="a/b: c")]
    names = [path.name for path in plots.plot(rows, tmp_path)]
    assert names[0] == "reward_world_test_h.png"
    assert names[3] == "reward_world_test_a-b-c.png"
    assert len(set(names)) == 6


def test_every_strategy_has_its_own_look_in_every_picture() -> None:
    names = [*plots._STYLES, "zeta", "alpha"]
    styles = plots._styles(names)
    assert len({styles[name][0] for name in names}) == len(names)
    assert len({styles[name][1:] for name in names}) == len(names)
    assert plots._styles(["learned"])["oracle"] == styles["oracle"]


@pytest.mark.parametrize("limit", [0.11, 0.5, 1.0, 5.6, 40.0])
def test_root_ticks_start_at_zero_and_stand_apart(limit: float) -> None:
    ticks = plots._root_ticks(limit)
    assert ticks[0] == 0.0
    assert len(ticks) >= 3
    assert ticks[-1] <= limit
    assert np.diff(np.sqrt(ticks)).min() > 0.05 * np.sqrt(limit)


@pytest.mark.parametrize(("count", "target"), [(5, 0.0), (2, 0.5), (1, 0.5)])
def test_calibration_curves(tmp_path: pathlib.Path, count: int, target: float) -> None:
    points = [
        {
            "ask_bias": bias,
            **dict.fromkeys(("asks", "em", "reward"), bias / 9),
            **{f"{name}_ci": (bias / 9 - 0.1, bias / 9 + 0.1) for name in ("em", "reward")},
        }
        for bias in range(count)
    ]
    path = plots.calibration_curves(points, points[0], target=target, folder=tmp_path / "plots")
    assert path == tmp_path / "plots" / "calibration.png" and is_drawn(path)


# --- training --------------------------------------------------------------------------------


def write(path: pathlib.Path, text: str) -> pathlib.Path:
    path.write_text(text)
    return path


def test_read_curves(tmp_path: pathlib.Path) -> None:
    lines = [
        {"stage": "cold_start", "step": 1, "reward": 9.0},
        {"iteration": 0, "reward": 0.1, "kl": None},
        {"iteration": 1, "reward": 0.2, "em": 1, "loss": 3.0},
        {"iteration": 1, "reward": 0.3},
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    path = write(tmp_path / "m.jsonl", text + '\n{"iteration": 2, "reward": NaN}\n{"iterat')
    assert plots.read_curves(path) == {"reward": {0: 0.1, 1: 0.3}, "em": {1: 1.0}}


def test_a_broken_line_inside_is_named(tmp_path: pathlib.Path) -> None:
    path = write(tmp_path / "m.jsonl", '{"iterat\n{"iteration": 0, "em": 1}\n')
    with pytest.raises(ValueError, match="line 1 is not JSON"):
        plots.read_curves(path)
    with pytest.raises(ValueError, match="is not there"):
        plots.read_curves(tmp_path / "nowhere.jsonl")


def test_running_mean_by_hand() -> None:
    assert plots._running_mean([1.0, 2.0, 6.0, 0.0], 3) == [1.5, 3.0, 8 / 3, 3.0]
    assert plots._running_mean([1.0, 2.0], 1) == [1.0, 2.0]


@pytest.mark.parametrize("keys", [("reward",), ("reward", "em", "asks", "kl")])
def test_training_curves_draws_what_is_there(tmp_path: pathlib.Path, keys: tuple[str, ...]) -> None:
    lines = [{"iteration": i, **dict.fromkeys(keys, 0.1 * i)} for i in range(12)]
    path = write(tmp_path / "m.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    (picture,) = plots.training_curves(path, tmp_path / "plots")
    assert picture == tmp_path / "plots" / "training.png"
    assert is_drawn(picture)


def test_nothing_to_draw(tmp_path: pathlib.Path) -> None:
    path = write(tmp_path / "m.jsonl", '{"iteration": 1, "loss": 2.0}\n')
    assert plots.training_curves(path, tmp_path) == []
