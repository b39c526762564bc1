"""The ground that every other test stands on."""

from __future__ import annotations

import socket

import jax
import ml_collections
import pytest

from collab.rules import validate


@pytest.mark.parametrize("host", ["192.0.2.1", "help.invalid", "10.0.0.1", "2001:db8::1"])
def test_other_machines_are_out_of_reach(host: str) -> None:
    with pytest.raises(OSError, match="only use loopback sockets, not"):
        socket.create_connection((host, 80), timeout=1)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
        for send in (
            lambda: datagrams.connect_ex((host, 53)),
            lambda: datagrams.sendto(b"x", (host, 53)),
            lambda: datagrams.sendto(b"x", 0, (host, 53)),
        ):
            with pytest.raises(OSError, match="only use loopback sockets, not"):
                send()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_this_machine_is_in_reach(host: str) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection((host, server.getsockname()[1])) as client,
    ):
        accepted, _ = server.accept()
        client.sendall(b"x")
        assert accepted.recv(1) == b"x"
        accepted.close()


def test_there_are_eight_devices_and_no_compilation_cache() -> None:
    assert [device.platform for device in jax.devices()] == ["cpu"] * 8
    assert not jax.config.jax_enable_compilation_cache


def test_the_tiny_config_is_valid_and_fresh(tiny_config: ml_collections.ConfigDict) -> None:
    validate(tiny_config)
    tiny_config.rollout.rows = 5


def test_the_tiny_config_of_the_next_test_is_untouched(
    tiny_config: ml_collections.ConfigDict,
) -> None:
    assert tiny_config.rollout.rows == 8
