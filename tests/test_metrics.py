"""The masked mean against values worked by hand, and what the writers leave on disk."""

from __future__ import annotations

import builtins
import json
import sys
import types
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from collab import metrics
from collab.metrics import JsonlWriter, make_writers, masked_mean, read_jsonl

NAN, INF = float("nan"), float("inf")
X = np.array([[1.0, 2.0, 4.0], [8.0, 16.0, 32.0]], np.float32)
MASK = np.array([[True, False, True], [False, False, False]])


# --- masked mean ---------------------------------------------------------------------------


def test_denominator_is_the_number_of_unmasked_places() -> None:
    assert masked_mean(jnp.asarray(X), jnp.asarray(MASK)) == 2.5
    assert masked_mean(jnp.asarray(X), jnp.ones_like(MASK)) == 10.5


def test_reduction_over_one_axis_has_a_denominator_per_row_and_0_for_an_empty_one() -> None:
    per_row = masked_mean(jnp.asarray(X), jnp.asarray(MASK), axis=1)
    np.testing.assert_array_equal(per_row, [2.5, 0.0])
    per_column = masked_mean(jnp.asarray(X), jnp.asarray(MASK), axis=0)
    np.testing.assert_array_equal(per_column, [1.0, 0.0, 4.0])


def test_a_mask_broadcasts_and_still_counts_places() -> None:
    column = jnp.asarray([[True], [False]])
    assert masked_mean(jnp.asarray(X), column) == pytest.approx(7 / 3)


def test_an_empty_mask_gives_0_with_a_zero_gradient() -> None:
    value, gradient = jax.value_and_grad(masked_mean)(jnp.asarray(X), jnp.zeros_like(MASK))
    assert value == 0.0
    np.testing.assert_array_equal(gradient, np.zeros_like(X))


@pytest.mark.parametrize("poison", [NAN, INF, -INF, 3e38])
def test_masked_places_count_nothing_and_get_exactly_no_gradient(poison: float) -> None:
    poisoned = jnp.where(MASK, X, poison)
    value, gradient = jax.value_and_grad(masked_mean)(poisoned, jnp.asarray(MASK))
    assert value == 2.5
    np.testing.assert_array_equal(gradient, np.where(MASK, 0.5, 0.0))


def test_half_precision_is_summed_in_f32() -> None:
    ones = jnp.ones(4099, jnp.bfloat16)  # bfloat16 has no 4099
    mean = masked_mean(ones, ones > 0)
    assert mean.dtype == jnp.float32
    assert mean == 1.0


# --- JSON lines ----------------------------------------------------------------------------


def test_a_line_is_on_disk_as_soon_as_it_is_written(tmp_path: Path) -> None:
    writer = JsonlWriter(tmp_path / "new" / "metrics.jsonl")
    writer.write(0, {"stage": "cold", "loss": np.float32(0.5), "asks": jnp.asarray(2), "n": 3})
    assert read_jsonl(tmp_path / "new" / "metrics.jsonl") == [
        {"step": 0, "stage": "cold", "loss": 0.5, "asks": 2, "n": 3}
    ]


def test_numbers_that_are_not_finite_become_null_and_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    JsonlWriter(path).write(1, {"a": NAN, "b": jnp.asarray(-INF), "c": np.float32(INF), "d": 1.0})
    [line] = path.read_text().splitlines()
    assert "NaN" not in line
    assert "Infinity" not in line
    expected = {"step": 1, "a": None, "b": None, "c": None, "d": 1.0, "nonfinite": 3}
    assert json.loads(line) == expected


def written(path: Path, steps: list[int], label: str) -> None:
    writer = JsonlWriter(path)
    for step in steps:
        writer.write(step, {"course": label})
    writer.close()


def test_a_resumed_run_drops_the_steps_it_repeats(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    written(path, [0, 1, 2, 3], "first")
    written(path, [2, 2, 3, 4], "second")
    lines = [(line["step"], line["course"]) for line in read_jsonl(path)]
    assert lines == [(0, "first"), (1, "first")] + [(step, "second") for step in (2, 2, 3, 4)]
    assert [entry.name for entry in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_line_that_a_kill_cut_is_left_out_and_then_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    written(path, [0, 1], "first")
    with path.open("a") as file:
        file.write('{"step": 2, "cour')
    assert [line["step"] for line in read_jsonl(path)] == [0, 1]
    written(path, [2], "second")
    assert [line["step"] for line in read_jsonl(path)] == [0, 1, 2]


def test_a_broken_line_amid_a_file_is_an_error_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0}\n{"step": \n{"step": 2}\n')
    with pytest.raises(ValueError, match=r"metrics.jsonl:2 is not a line of JSON; remove"):
        read_jsonl(path)


# --- the other writers ---------------------------------------------------------------------


def events(folder: Path) -> list[tuple[str, int, float]]:
    """Scalars of TensorBoard's event files, read by the framing that its record format states."""
    found = []
    for path in sorted(folder.glob("events.*")):
        data, at = path.read_bytes(), 0
        while at < len(data):
            size = int.from_bytes(data[at : at + 8], "little")
            event = Event.FromString(data[at + 12 : at + 12 + size])
            found += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
            at += 12 + size + 4
    return found


def test_writers_of_the_config_all_get_the_line(
    tiny_config: ml_collections.ConfigDict, tmp_path: Path
) -> None:
    tiny_config.log.tensorboard = True
    with make_writers(tiny_config.log, tmp_path) as writer:
        writer.write(3, {"stage": "rl", "loss": 0.5, "bad": NAN})
    assert events(tmp_path / "tensorboard") == [("rl/loss", 3, 0.5)]
    assert read_jsonl(tmp_path / "metrics.jsonl")[0]["loss"] == 0.5


def test_tensorboard_can_be_off(tiny_config: ml_collections.ConfigDict, tmp_path: Path) -> None:
    with make_writers(tiny_config.log, tmp_path) as writer:
        writer.write(3, {"loss": 0.5})
    assert [entry.name for entry in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_writers_that_write_nothing_leave_everything_as_it_was(
    tiny_config: ml_collections.ConfigDict, tmp_path: Path
) -> None:
    tiny_config.log.tensorboard = True
    written(tmp_path / "metrics.jsonl", [0, 1], "first")
    with make_writers(tiny_config.log, tmp_path):
        pass
    assert [entry.name for entry in tmp_path.iterdir()] == ["metrics.jsonl"]
    assert len(read_jsonl(tmp_path / "metrics.jsonl")) == 2


def test_only_the_first_process_writes(
    tiny_config: ml_collections.ConfigDict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with make_writers(tiny_config.log, tmp_path) as writer:
        writer.write(0, {"loss": 1.0})
    assert list(tmp_path.iterdir()) == []


class FakeWandb(types.ModuleType):
    """Records what a run is told."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.inits: list[dict[str, Any]] = []
        self.logs: list[tuple[dict[str, float], int]] = []
        self.finished = 0
        self.util = types.SimpleNamespace(generate_id=lambda: f"id{len(self.inits)}")

    def init(self, **settings: Any) -> FakeWandb:
        self.inits.append(settings)
        return self

    def log(self, figures: dict[str, float], step: int) -> None:
        self.logs.append((figures, step))

    def finish(self) -> None:
        self.finished += 1


def test_wandb_gets_the_figures_and_keeps_its_id_over_a_restart(
    tiny_config: ml_collections.ConfigDict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    tiny_config.log.wandb_project = "help"
    for step in (0, 1):
        with make_writers(tiny_config.log, tmp_path) as writer:
            writer.write(step, {"stage": "rl", "loss": 0.5})
    assert [init["project"] for init in wandb.inits] == ["help", "help"]
    assert [init["id"] for init in wandb.inits] == ["id0", "id0"]
    assert wandb.logs == [({"rl/loss": 0.5}, 0), ({"rl/loss": 0.5}, 1)]
    assert wandb.finished == 2


def test_missing_wandb_is_said_at_start_up_with_the_fix(
    tiny_config: ml_collections.ConfigDict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without_wandb(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "wandb":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_wandb)
    tiny_config.log.wandb_project = "help"
    with pytest.raises(ValueError, match=r"log.wandb_project='help' needs .*\.\[wandb\]"):
        make_writers(tiny_config.log, tmp_path)


def test_one_writer_that_fails_to_close_does_not_keep_others_open(tmp_path: Path) -> None:
    class Failing:
        def write(self, step: int, figures: Any) -> None:
            del step, figures

        def close(self) -> None:
            raise OSError("disk full")

    jsonl = JsonlWriter(tmp_path / "metrics.jsonl")
    writers = metrics.Writers(jsonl, Failing())
    writers.write(0, {})
    with pytest.raises(OSError, match="disk full"):
        writers.close()
    with pytest.raises(ValueError, match="closed file"):
        jsonl.write(1, {})
