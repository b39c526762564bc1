"""Kills, signals and several processes: each test starts this file as a program of its own."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import multihost_utils

from collab import checkpoint, sharding
from collab.checkpoint import Checkpointer
from test_checkpoint import assert_equal, state_at

# --- kills ---------------------------------------------------------------------------------


def save_for_ever(folder: Path) -> None:
    """Restore, check what came back, then save without pause until killed."""
    keeper = Checkpointer(folder, keep=3)
    restored = keeper.restore(like=state_at(0))
    step = 0
    if restored is not None:
        step = restored.step
        assert restored.host == {"step": step}
        assert_equal(restored.state, state_at(step))
    print(f"at {step}", flush=True)
    while True:
        step += 1
        keeper.save(step, state_at(step), host={"step": step})
        keeper.wait()
        print(f"saved {step}", flush=True)


def save_when_stopped(folder: Path) -> None:
    """A training loop as short as can be: leaves with a checkpoint when asked to stop."""
    flag, keeper, step = checkpoint.install_signal_handlers(), Checkpointer(folder, keep=1), 0
    print("ready", flush=True)
    while not flag.should_stop(step):
        step += 1
        time.sleep(0.01)
    keeper.save(step, state_at(step), host={"step": step})
    keeper.close()
    print(f"left {step}", flush=True)


def start(work: str, folder: Path, *more: str, devices: int = 1) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, __file__, work, str(folder), *more],
        env=os.environ
        | {
            "PYTHONPATH": str(Path(__file__).parents[1]),
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        },
        stdout=subprocess.PIPE,
        text=True,
    )


def said(child: subprocess.Popen[str]) -> list[str]:
    assert child.stdout is not None
    return [line.strip() for line in child.stdout]


@pytest.mark.parametrize(
    "kills", [6, pytest.param(60, marks=[pytest.mark.soak, pytest.mark.timeout(1800)])]
)
def test_a_kill_at_any_moment_leaves_the_last_saved_step(tmp_path: Path, kills: int) -> None:
    rng, last = random.Random(0), 0
    for _ in range(kills):
        child = start("save_for_ever", tmp_path)
        try:
            assert child.stdout is not None
            first = child.stdout.readline().split()
            assert first[:1] == ["at"], "the worker failed to restore"
            assert int(first[1]) in (last, last + 1)  # a save may finish before it could say so
            time.sleep(rng.uniform(0.0, 0.5))
        finally:
            child.kill()
        lines = said(child)
        last = int(lines[-1].split()[1]) if lines else int(first[1])
    keeper = Checkpointer(tmp_path, keep=3)
    restored = keeper.restore(like=state_at(0))
    assert restored is not None
    assert_equal(restored.state, state_at(restored.step))
    (tmp_path / "99.orbax-checkpoint-tmp").mkdir()  # as kills leave them, if none here did
    keeper.save(restored.step + 1, restored.state, host={})
    keeper.close()
    assert not list(tmp_path.glob("*tmp*"))


def trouble_one_process(folder: Path, address: str, process: str) -> None:
    """What one of two processes meets moves both: a damaged chunk, then a request to stop.

    They save steps 1 and 2; a chunk of 2 that only process 1 reads goes missing.
    """
    jax.distributed.initialize(address, num_processes=2, process_id=int(process))
    mesh = sharding.make_mesh({"data": 1, "fsdp": 8, "model": 1})
    values = {step: np.random.default_rng(step).normal(size=(1024, 256)) for step in (1, 2)}

    def placed(step: int) -> Any:
        whole = {"up": {"kernel": values[step].astype(np.float32)}}
        return jax.tree.map(
            lambda leaf, at: jax.make_array_from_callback(leaf.shape, at, lambda i: leaf[i]),
            whole,
            sharding.param_shardings(whole, mesh),
        )

    keeper = Checkpointer(folder, keep=5)
    for step in (1, 2):
        keeper.save(step, placed(step), host={"step": step})
    keeper.wait()
    if process == "1":
        files = (folder / "2" / "state" / "ocdbt.process_1" / "d").iterdir()
        max(files, key=lambda path: path.stat().st_size).unlink()
    multihost_utils.sync_global_devices("damaged")
    restored = keeper.restore(like=placed(1))
    assert restored is not None
    assert restored.step == restored.host["step"] == 1
    kernel = sharding.fetch(restored.state)["up"]["kernel"]
    np.testing.assert_array_equal(kernel, values[1].astype(np.float32))
    keeper.save(2, placed(2), host={"step": 2})
    keeper.close()
    flag, step = checkpoint.install_signal_handlers(), 2
    if process == "0":
        os.kill(os.getpid(), signal.SIGTERM)
    while not flag.should_stop(step):
        step += 1
        time.sleep(0.05)
    print(keeper.steps(), "stopped after", step, flush=True)


def test_damage_and_signals_that_one_of_two_processes_meets_move_both(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    children = [
        start("trouble_one_process", tmp_path, address, str(process), devices=4)
        for process in range(2)
    ]
    try:
        last = [child.communicate(timeout=120)[0].splitlines()[-1] for child in children]
    finally:
        for child in children:
            child.kill()
    assert last[0].startswith("[1, 2] stopped after ")
    assert last[1] == last[0]
    restored = Checkpointer(tmp_path, keep=5).restore(
        like={"up": {"kernel": jnp.zeros((1024, 256), jnp.float32)}}
    )
    assert restored is not None
    assert restored.step == 2


def test_the_first_signal_leaves_with_a_checkpoint(tmp_path: Path) -> None:
    child = start("save_when_stopped", tmp_path)
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        child.send_signal(signal.SIGTERM)
        lines = said(child)
        assert child.wait(60) == 0
    finally:
        child.kill()
    restored = Checkpointer(tmp_path, keep=1).restore(like=state_at(0))
    assert restored is not None
    assert lines == [f"left {restored.step}"]


def test_the_second_signal_kills() -> None:
    program = (
        "import os, signal, time\n"
        "from collab.checkpoint import install_signal_handlers\n"
        "flag = install_signal_handlers()\n"
        "os.kill(os.getpid(), signal.SIGTERM)\n"
        "assert flag.should_stop(1)\n"
        "os.kill(os.getpid(), signal.SIGTERM)\n"
        "time.sleep(60)\n"
    )
    child = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=120)
    assert child.returncode == -signal.SIGTERM
    assert b"SIGTERM: stopping after this step" in child.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_sets_the_flag_and_handlers_can_be_given_back(number: int) -> None:
    before = signal.getsignal(number)
    flag = checkpoint.install_signal_handlers()
    assert not flag.should_stop(1)
    signal.raise_signal(number)
    assert flag.should_stop(2)
    flag.uninstall()
    assert signal.getsignal(number) == before


if __name__ == "__main__":
    WORK = {
        "save_for_ever": save_for_ever,
        "save_when_stopped": save_when_stopped,
        "trouble_one_process": trouble_one_process,
    }
    WORK[sys.argv[1]](Path(sys.argv[2]), *sys.argv[3:])
