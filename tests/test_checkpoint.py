"""Round trips, what is kept, damage and the way back, on one process with 8 fake devices.

Kills, signals and several processes are in test_checkpoint_processes.
"""

from __future__ import annotations

import json
import logging
import os
import random
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from collab import checkpoint, sharding
from collab.checkpoint import Checkpointer

HOST = {"cursor": 7, "generator": 2**100 + 1, "names": ["a", "b"], "rate": 0.1}


def state_at(step: int, *, mesh: jax.sharding.Mesh | None = None) -> Any:
    """A state of every kind of leaf, different at each step."""
    rng = np.random.default_rng(step)
    state = {
        "params": {
            "embed": {"embedding": rng.normal(size=(64, 32)).astype(np.float32)},
            "layers": {"gate": {"kernel": rng.normal(size=(2, 32, 16)).astype(np.float32)}},
        },
        "noise": rng.integers(2**32, size=(32, 32), dtype=np.uint32),  # zstd stores it as it is
        "half": jnp.asarray(rng.normal(size=(5, 3)), jnp.bfloat16),
        "flags": np.arange(7) % 2 == step % 2,
        "step": np.int32(step),
    }
    state = jax.tree.map(jnp.asarray, state)
    if mesh is not None:
        state = jax.device_put(state, sharding.param_shardings(state, mesh))
    return state | {"key": jax.random.key(step)}


def assert_equal(found: Any, expected: Any) -> None:
    plain = [{**tree, "key": jax.random.key_data(tree["key"])} for tree in (found, expected)]
    jax.tree.map(np.testing.assert_array_equal, *map(jax.device_get, plain))


def saved(folder: Path, steps: list[int], **options: Any) -> None:
    keeper = Checkpointer(folder, **{"keep": 10} | options)
    for step in steps:
        keeper.save(step, state_at(step), host=HOST | {"step": step})
    keeper.close()


@pytest.fixture(scope="module")
def three_steps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with steps 1, 2 and 3, to be copied before it is damaged."""
    folder = tmp_path_factory.mktemp("three_steps") / "run"
    saved(folder, [1, 2, 3])
    return folder


@pytest.fixture
def run(three_steps: Path, tmp_path: Path) -> Path:
    return shutil.copytree(three_steps, tmp_path / "run")


def data_files(run: Path, step: int) -> list[Path]:
    """The files that hold the arrays of a step, those that Orbax has merged into others too."""
    return [path for path in (run / str(step) / "state").rglob("d/*") if path.is_file()]


def flip_bit(run: Path, step: int, *, at: int, bit: int) -> None:
    """Flip one bit of the leaf `noise` wherever it stands on disk, as it is, byte for byte."""
    noise = np.asarray(state_at(step)["noise"]).tobytes()
    holders = [path for path in data_files(run, step) if noise in path.read_bytes()]
    assert holders
    for path in holders:
        data = bytearray(path.read_bytes())
        data[data.index(noise) + at] ^= 1 << bit
        path.write_bytes(data)


# --- saving and restoring ------------------------------------------------------------------


def test_state_and_host_record_come_back(run: Path) -> None:
    restored = Checkpointer(run, keep=10).restore(like=state_at(0))
    assert restored is not None
    assert restored.step == 3
    assert restored.host == HOST | {"step": 3}
    assert_equal(restored.state, state_at(3))


def test_an_asked_step_comes_back_and_a_missing_one_is_an_error(run: Path) -> None:
    keeper = Checkpointer(run, keep=10)
    restored = keeper.restore(2, like=state_at(0))
    assert restored is not None
    assert_equal(restored.state, state_at(2))
    with pytest.raises(ValueError, match=r"step=5 is not in .*; there are \[1, 2, 3\]"):
        keeper.restore(5, like=state_at(0))


def test_reading_leaves_a_save_in_progress_alone(run: Path) -> None:
    (run / "4.orbax-checkpoint-tmp").mkdir()
    restored = Checkpointer(run, keep=1).restore(like=state_at(0))
    assert restored is not None
    assert restored.step == 3
    assert (run / "4.orbax-checkpoint-tmp").exists()
    assert (run / "1").exists()


def test_an_empty_folder_restores_nothing(tmp_path: Path) -> None:
    assert Checkpointer(tmp_path / "new", keep=1).restore(like=state_at(0)) is None


def test_buffers_may_be_donated_right_after_save(tmp_path: Path) -> None:
    keeper = Checkpointer(tmp_path, keep=1)
    state = {"w": jnp.arange(300_000.0)}
    expected = np.asarray(state["w"]).copy()
    clear = jax.jit(lambda state: jax.tree.map(lambda leaf: leaf * 0 - 1, state), donate_argnums=0)
    keeper.save(1, state, host={})
    for _ in range(3):
        state = clear(state)
    jax.block_until_ready(state)
    restored = keeper.restore(like=state)
    assert restored is not None
    np.testing.assert_array_equal(restored.state["w"], expected)


def test_save_and_restore_lift_a_transfer_guard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The CPU backend guards only one direction, so the digests are made to go that way."""
    keeper, state = Checkpointer(tmp_path, keep=1), state_at(1)
    real = checkpoint.digests

    def with_a_transfer(tree: Any) -> dict[str, str]:
        jnp.add(tree["step"], np.arange(3))
        return real(tree)

    monkeypatch.setattr(checkpoint, "digests", with_a_transfer)
    with jax.transfer_guard("disallow"):
        keeper.save(1, state, host={})
        restored = keeper.restore(like=state)
    assert restored is not None
    assert_equal(restored.state, state)


def test_saved_is_said_only_when_it_is_on_disk(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="collab.checkpoint")
    keeper = Checkpointer(tmp_path, keep=1)
    keeper.save(1, state_at(1), host={})
    assert "on disk" not in caplog.text
    keeper.wait()
    assert "step 1 is on disk" in caplog.text
    assert (tmp_path / "1" / "commit_success.txt").exists()


@pytest.mark.parametrize(
    ("there", "back"),
    [((1, 1, 1), (4, 1, 2)), ((4, 1, 2), (1, 1, 1)), ((2, 2, 2), (1, 4, 2))],
    ids=["1x1-4x2", "4x2-1x1", "2x2x2-1x4x2"],
)
def test_another_mesh_restores_bit_equal(
    tmp_path: Path, there: tuple[int, ...], back: tuple[int, ...]
) -> None:
    meshes = [
        sharding.make_mesh(dict(zip(sharding.AXES, sizes, strict=True))) for sizes in (there, back)
    ]
    keeper = Checkpointer(tmp_path, keep=1)
    keeper.save(1, state_at(1, mesh=meshes[0]), host={})
    like = state_at(2, mesh=meshes[1])
    restored = keeper.restore(like=like)
    assert restored is not None
    assert_equal(restored.state, state_at(1))
    wanted = jax.tree.map(lambda leaf: leaf.sharding, like)
    assert jax.tree.map(lambda leaf: leaf.sharding, restored.state) == wanted


def test_the_record_on_disk_is_readable(run: Path) -> None:
    record = json.loads((run / "3" / "record" / "metadata").read_text())["record"]
    assert record["host"]["cursor"] == 7
    assert record["leaves"]["half"]["dtype"] == "bfloat16"


# --- what is kept --------------------------------------------------------------------------


def test_the_latest_and_the_best_are_kept_also_by_the_next_process(tmp_path: Path) -> None:
    metrics = [(1, float("nan")), (2, 0.9), (3, None), (4, 0.5), (5, 0.2)]
    keeper = Checkpointer(tmp_path, keep=2, best_metric="reward")
    for step, metric in metrics:
        keeper.save(step, state_at(step), host={}, metric=metric)
    keeper.close()
    assert keeper.steps() == [2, 4, 5]
    keeper = Checkpointer(tmp_path, keep=2, best_metric="reward")
    assert keeper.best_step() == 2
    keeper.save(6, state_at(6), host={}, metric=0.6)
    keeper.save(7, state_at(7), host={}, metric=0.95)
    keeper.save(8, state_at(8), host={}, metric=0.1)
    keeper.save(9, state_at(9), host={}, metric=0.1)
    keeper.close()
    assert keeper.steps() == [7, 8, 9]


def test_without_a_metric_only_the_latest_are_kept(tmp_path: Path) -> None:
    keeper = Checkpointer(tmp_path, keep=1)
    keeper.save(1, state_at(1), host={}, metric=9.0)
    keeper.save(2, state_at(2), host={}, metric=1.0)
    keeper.close()
    assert keeper.steps() == [2]


def test_keep_must_be_positive(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"checkpoint.keep=0 must be at least 1"):
        Checkpointer(tmp_path, keep=0)


def test_going_on_from_an_earlier_step_sets_the_later_ones_aside(
    run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keeper = Checkpointer(run, keep=10)
    assert keeper.restore(1, like=state_at(0)) is not None
    keeper.save(1, state_at(1), host=HOST)  # the step it stands at: nothing to do
    assert keeper.steps() == [1, 2, 3]
    keeper.save(2, state_at(20), host=HOST)
    keeper.wait()
    assert keeper.steps() == [1, 2]
    assert "steps [2, 3] are of a course that was left" in caplog.text
    assert {path.name for path in run.glob("set-aside-*")} == {"set-aside-2-1", "set-aside-3-1"}
    restored = Checkpointer(run, keep=10).restore(like=state_at(0))
    assert restored is not None
    assert_equal(restored.state, state_at(20))


# --- damage --------------------------------------------------------------------------------


def assert_falls_back(run: Path, caplog: pytest.LogCaptureFixture, *, reason: str) -> None:
    restored = Checkpointer(run, keep=10).restore(like=state_at(0))
    assert restored is not None
    assert restored.step == 2
    assert_equal(restored.state, state_at(2))
    [warning] = [r.getMessage() for r in caplog.records if r.name == "collab.checkpoint"]
    assert warning.startswith("checkpoint step 3 is damaged: ")
    assert reason in warning
    assert warning.endswith("going back to step 2")


@pytest.mark.parametrize("seed", range(8))
def test_one_flipped_bit_in_the_data_is_found(
    run: Path, caplog: pytest.LogCaptureFixture, seed: int
) -> None:
    rng = random.Random(seed)
    flip_bit(run, 3, at=rng.randrange(4096), bit=rng.randrange(8))
    assert_falls_back(run, caplog, reason="the digest of leaf noise differs")


def test_a_flipped_bit_names_step_and_leaf_when_that_step_is_asked(run: Path) -> None:
    flip_bit(run, 3, at=17, bit=0)
    message = r"step 3 is damaged: the digest of leaf noise differs.*; restore another of"
    with pytest.raises(ValueError, match=message):
        Checkpointer(run, keep=10).restore(3, like=state_at(0))


def damage_cut(run: Path) -> None:
    for path in data_files(run, 3):
        os.truncate(path, path.stat().st_size // 2)


def damage_missing_chunk(run: Path) -> None:
    for path in data_files(run, 3):
        path.unlink()


def damage_record(run: Path) -> None:
    path = run / "3" / "record" / "metadata"
    path.write_text(path.read_text().replace('"cursor": 7', '"cursor": 5'))


def damage_missing_record(run: Path) -> None:
    shutil.rmtree(run / "3" / "record")


def damage_missing_state(run: Path) -> None:
    shutil.rmtree(run / "3" / "state")


def damage_empty(run: Path) -> None:
    shutil.rmtree(run / "3")
    (run / "3").mkdir()


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (damage_cut, "its state cannot be read"),
        (damage_missing_chunk, "its state cannot be read"),
        (damage_record, "the digest of its host record differs"),
        (damage_missing_record, "its host record cannot be read"),
        (damage_missing_state, "its state cannot be read"),
        (damage_empty, "its host record cannot be read"),
    ],
)
def test_a_damaged_newest_step_is_reported_and_passed_over(
    run: Path, caplog: pytest.LogCaptureFixture, damage: Any, reason: str
) -> None:
    damage(run)
    assert_falls_back(run, caplog, reason=reason)


def test_when_every_step_is_damaged_nothing_starts_over_in_silence(run: Path) -> None:
    for step in (1, 2, 3):
        shutil.rmtree(run / str(step) / "state" / "d")
    with pytest.raises(ValueError, match=r"step 3 is .*step 1 is .*start in a new folder"):
        Checkpointer(run, keep=10).restore(like=state_at(0))


def test_a_fallen_back_run_saves_the_damaged_step_anew(run: Path) -> None:
    damage_empty(run)
    keeper = Checkpointer(run, keep=10)
    assert keeper.restore(like=state_at(0)) is not None
    keeper.save(3, state_at(3), host=HOST)
    keeper.close()
    restored = Checkpointer(run, keep=10).restore(like=state_at(0))
    assert restored is not None
    assert restored.step == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"half": jax.ShapeDtypeStruct((5, 4), "bfloat16")},
            r"half is bfloat16\[5, 3\] but .*\[5, 4\]",
        ),
        (
            {"half": jax.ShapeDtypeStruct((5, 3), "float32")},
            r"half is bfloat16\[5, 3\] but this run's is float32",
        ),
        (
            {"more": jax.ShapeDtypeStruct((1,), "float32")},
            r"leaf more is absent but this run's is float32\[1\]; restore",
        ),
    ],
)
def test_a_state_of_another_shape_is_a_config_error_not_damage(
    run: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Checkpointer(run, keep=10).restore(like=state_at(0) | change)


# --- digests -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "bool"])
def test_digests_of_host_and_device_agree_on_every_mesh(
    mesh: jax.sharding.Mesh, dtype: str
) -> None:
    values = jnp.asarray(np.random.default_rng(0).normal(size=(8, 9, 700)) * 9).astype(dtype)
    expected = checkpoint._host_sum(values)
    for placed in (sharding.row_sharding(mesh), sharding.replicated(mesh)):
        assert checkpoint._device_sum(jax.device_put(values, placed)) == expected
        assert checkpoint._host_sum(jax.device_put(values, placed)) == expected


def test_digests_see_every_bit_and_place() -> None:
    values = np.arange(40, dtype=np.uint32).reshape(5, 8)
    seen = {int(checkpoint._host_sum(jnp.asarray(values)))}
    for at in range(values.size):
        for bit in range(32):
            changed = values.copy()
            changed.flat[at] ^= np.uint32(1 << bit)
            seen.add(int(checkpoint._host_sum(jnp.asarray(changed))))
    swapped = [values[::-1], values[:, ::-1], values * 0, values ^ np.uint32(1 << 31)]
    seen.update(int(checkpoint._host_sum(jnp.asarray(other))) for other in swapped)
    assert len(seen) == 1 + 40 * 32 + len(swapped)


def test_digests_name_every_leaf_and_change_with_it() -> None:
    one, two = checkpoint.digests(state_at(1)), checkpoint.digests(state_at(2))
    assert list(one) == sharding.leaf_paths(state_at(1))
    assert all(one[path] != two[path] for path in one)
