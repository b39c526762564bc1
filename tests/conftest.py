"""What every test runs under: 8 fake CPU devices, no network but loopback, one tiny config.

The environment is set before anything imports jax, and child processes inherit it; the socket guard
lives in this process only.
"""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

FAKE_DEVICES = 8
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={FAKE_DEVICES}"
os.environ["JAX_PLATFORMS"] = "cpu"
# A persistent cache would hide a program that is compiled twice.
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"

import jax  # noqa: E402
import ml_collections  # noqa: E402
import pytest  # noqa: E402

from collab.config import default_config  # noqa: E402
from collab.llm.replay_store import ReplayStore  # noqa: E402
from collab.sharding import make_mesh  # noqa: E402
from compiling import compiled_once  # noqa: E402

MESHES = {
    "1x1x1": {"data": 1, "fsdp": 1, "model": 1},
    "4x1x1": {"data": 4, "fsdp": 1, "model": 1},
    "2x1x2": {"data": 2, "fsdp": 1, "model": 2},
    "2x2x2": {"data": 2, "fsdp": 2, "model": 2},
}

TINY = {
    "task.train": 32,
    "task.validation": 8,
    "task.test": 8,
    "task.world.people": 8,
    "task.world.cities": 8,
    "task.world.countries": 4,
    "task.world.organisations": 4,
    "task.world.films": 4,
    "tokenizer.kind": "byte",
    "model.preset": "tiny",
    "rollout.rows": 8,
    "rollout.capacity": 96,
    "rollout.max_segments": 6,
    "rollout.max_asks": 3,
    "rollout.think_tokens": 8,
    "rollout.request_tokens": 8,
    "rollout.answer_tokens": 6,
    "rollout.reply_tokens": 12,
    "rollout.steps_per_call": 16,
    "llm.concurrency": 8,
    "llm.deadline_s": 5.0,
    "llm.backoff_s": 0.01,
    "cold_start.steps": 4,
    "cold_start.batch": 8,
    "cold_start.warmup": 1,
    "cold_start.label_problems": 4,
    "cold_start.label_samples": 2,
    "cold_start.label_steps": 2,
    "rl.iterations": 2,
    "rl.constant_problems": 4,
    "rl.problems": 4,
    "rl.samples": 2,
    "rl.warmup": 1,
    "checkpoint.every": 1,
    "checkpoint.imitation_every": 1,
    "evaluate.bootstrap": 50,
    "log.tensorboard": False,
}


@pytest.fixture
def tiny_config() -> ml_collections.ConfigDict:
    """A fresh, valid config that runs in seconds; a test changes what it is about."""
    config = default_config()
    config.lock()  # a key that the schema has lost is an error, not an addition
    config.update_from_flattened_dict(TINY)
    return config


@pytest.fixture(params=list(MESHES.values()), ids=list(MESHES))
def mesh_config(request: pytest.FixtureRequest) -> dict[str, int]:
    """`config.mesh` of each mesh shape that numbers must not depend on."""
    return dict(request.param)


@pytest.fixture
def mesh(mesh_config: dict[str, int]) -> jax.sharding.Mesh:
    """A test that takes `mesh` runs once on each shape of MESHES."""
    return make_mesh(mesh_config)


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where compiled programs are kept for a session, of all its workers."""
    base = tmp_path_factory.getbasetemp()
    return (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "compiled"


@pytest.fixture(scope="module")
def quick(compiled: Path) -> Iterator[Path]:
    """The programs of a module compile once a session, quickly; the folder that keeps them."""
    with compiled_once(compiled):
        yield compiled


@pytest.fixture
def replay_path(tmp_path: Path) -> Path:
    """Where a replay file may be; there is none yet."""
    return tmp_path / "replay.sqlite"


@pytest.fixture
def store(replay_path: Path) -> Iterator[ReplayStore]:
    """An empty replay file, open."""
    store = ReplayStore(replay_path)
    yield store
    store.close()


def is_loopback(host: Any) -> bool:
    """Whether a host name or address cannot leave this machine."""
    if host in (None, "", b"", "localhost", b"localhost"):
        return True
    text = host.decode() if isinstance(host, bytes) else str(host)
    try:
        return ipaddress.ip_address(text.split("%")[0]).is_loopback
    except ValueError:
        return False


@pytest.fixture(autouse=True)
def only_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any look-up of, or connection to, another machine raises OSError with the reason."""

    def refuse(host: Any) -> None:
        raise OSError(f"tests may only use loopback sockets, not {host!r}")

    def guarded(call: Callable[..., Any], at: int) -> Callable[..., Any]:
        def checked(self: socket.socket, *args: Any) -> Any:
            address = args[at] if at >= 0 else args[-1]
            if self.family in (socket.AF_INET, socket.AF_INET6) and not is_loopback(address[0]):
                refuse(address[0])
            return call(self, *args)

        return checked

    look_up = socket.getaddrinfo

    def guarded_look_up(host: Any, *args: Any, **kwargs: Any) -> Any:
        if not is_loopback(host):
            refuse(host)
        return look_up(host, *args, **kwargs)

    monkeypatch.setattr(socket.socket, "connect", guarded(socket.socket.connect, 0))
    monkeypatch.setattr(socket.socket, "connect_ex", guarded(socket.socket.connect_ex, 0))
    monkeypatch.setattr(socket.socket, "sendto", guarded(socket.socket.sendto, -1))
    monkeypatch.setattr(socket, "getaddrinfo", guarded_look_up)
