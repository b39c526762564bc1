"""Kill -9 through a whole run, training and evaluation, against a server that counts.

`experiments/kill_resume` is the program, and kills more often.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from experiments.kill_resume import __main__ as kill_resume

SMALL = {
    "rl.iterations": 2,
    "rl.problems": 4,
    "cold_start.steps": 2,
    "rollout.rows": 8,
    "evaluate.strategies": ("learned",),
}


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "kills", [2, pytest.param(20, marks=[pytest.mark.soak, pytest.mark.timeout(3600)])]
)
def test_a_killed_run_pays_for_nothing_twice_and_ends_as_if_it_had_not_been(
    kills: int, compiled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JAX_ENABLE_COMPILATION_CACHE", "true")
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "true")
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=1")
    settings = {
        **kill_resume.SETTINGS,
        **SMALL,
        "task.data_dir": str(tmp_path / "data"),
        "compile_cache": str(compiled),
    }
    rng = random.Random(0)
    unbroken = kill_resume.course(tmp_path / "unbroken", settings, rng=rng)
    asked = len(unbroken.server.asked)
    after = [asked // 4, 3 * asked // 4]  # in training, and in evaluation
    after = after if kills == 2 else kill_resume.moments(unbroken, kills, rng)
    killed = kill_resume.course(tmp_path / "killed", settings, after=after, rng=rng)
    found = kill_resume.findings(killed, unbroken)
    assert [row for row in kill_resume.claims(found) if not row["holds"]] == []
    assert found["requests_unbroken"] > 20
    assert found["compared"]["metrics"] >= 3 and min(found["compared"].values()) > 0
    assert len(killed.kills[-1].stored) > 10  # or nothing was at stake
