"""Programs of two processes that run as one, as on two hosts."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path


def outputs(program: str, *arguments: str, devices: int, timeout_s: float) -> list[str]:
    """What each of two processes prints. program: a file, run with address, process, arguments.

    devices: of each process. Raises: subprocess.TimeoutExpired; both have been killed then.
    """
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    environment = os.environ | {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }
    workers = [
        subprocess.Popen(
            [sys.executable, program, address, str(process), *arguments],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        for process in range(2)
    ]
    try:
        return [child.communicate(timeout=timeout_s)[0] for child in workers]
    finally:
        for child in workers:
            child.kill()
