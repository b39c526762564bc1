"""Our commands as users run them: ones that serve, interrupts, and mistakes at start-up."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest


class Started(NamedTuple):
    """A command that serves. said: its line about that. base_url: which the line names."""

    child: subprocess.Popen[str]
    said: str
    base_url: str


@contextlib.contextmanager
def started(module: str, config: Path, *flags: str) -> Iterator[Started]:
    """`python -m module` with a config file, on a free port; killed at the end."""
    command = [sys.executable, "-m", module, f"--config={config}", "--port=0", *flags]
    child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=heed_interrupts)
    try:
        assert child.stderr is not None
        said = next((line for line in child.stderr if line.startswith("serving ")), "")
        assert said
        yield Started(child, said, said.split()[3].removesuffix(":"))
    finally:
        child.kill()
        child.communicate()


def interrupted(child: subprocess.Popen[str]) -> str:
    """What a command still has to say when it is interrupted, which ends it well."""
    assert child.stderr is not None
    child.send_signal(signal.SIGINT)
    assert child.wait(30) == 0
    return child.stderr.read()


def heed_interrupts() -> None:
    """For a child that is to be interrupted: a suite run in the background ignores SIGINT."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def refusal(
    main: Callable[[Sequence[str]], int],
    arguments: Sequence[str],
    capsys: pytest.CaptureFixture[str],
) -> str:
    """The one line that a command ends in for a mistake at start-up."""
    assert main(arguments) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    return told
