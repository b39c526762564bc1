"""`python -m collab.plan` as users meet it: one command, and mistakes that end it early."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import ml_collections
import pytest

import runs
from collab import plan
from collab.config import load_config
from collab.planning import devices
from conftest import TINY

ROOT = Path(__file__).parents[1]
BIG = str(ROOT / "configs" / "qwen2_5_7b.py")


def ended(*arguments: object) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of the command, without the tests' own fake devices."""
    environment = {key: value for key, value in os.environ.items() if key != "JAX_PLATFORMS"}
    done = subprocess.run(
        [sys.executable, "-m", "collab.plan", *map(str, arguments)],
        env=environment | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def config_file(tmp_path: Path, tiny_config: ml_collections.ConfigDict) -> Path:
    path = tmp_path / "small.py"
    runs.write_config(path, tiny_config)
    return path


def test_one_command_plans_for_more_devices_than_there_are(
    config_file: Path, tmp_path: Path
) -> None:
    """With XLA_FLAGS of 8 devices in the environment, as the tests have it, and 16 chips."""
    out = tmp_path / "plan.json"
    status, said, errors = ended(
        f"--config={config_file}", "--slice=v6e-16", "--mesh=fsdp=8,model=2", f"--out={out}",
        "--config.model.preset=tiny_32x2",
    )  # fmt: skip
    assert status == 0, errors
    assert "FITS" in said and "mesh data=1, fsdp=8, model=2" in said and "16 x v6e" in said
    assert errors.count("compiled ") == 5
    record = json.loads(out.read_text(encoding="utf-8"))
    assert record["mesh"] == {"data": 1, "fsdp": 8, "model": 2}
    assert record["config"]["rollout"]["capacity"] == TINY["rollout.capacity"]
    assert record["fits"]["v6e"] == "fits" and record["compiler"] == "XLA:cpu"
    assert len(record["programs"]) == 5
    assert any(row["work"]["collectives"] for row in record["programs"])


def test_help_and_mistakes_answer_at_once(config_file: Path, tmp_path: Path) -> None:
    status, said, errors = ended("--help")
    assert (status, errors) == (0, "")
    assert plan.EXAMPLE in said
    assert all(f"--{name} " in said for name in plan.OWN_FLAGS)
    status, said, errors = ended(f"--config={config_file}", "--slice=v5p-7")
    assert (status, said) == (1, "")
    assert errors.startswith("error: --slice='v5p-7'") and "try --slice=v5p-14" in errors
    assert "compiled" not in errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], f"error: --config is missing; try {plan.EXAMPLE}"),
        (["--config=none.py"], "--config=none.py: there is no such file"),
        (["--config={config}", "--config.rollout.row=1"], "did you mean rollout.rows"),
        (["--config={config}", "--mesh=fsdp=3"], "must divide by mesh.data*mesh.fsdp=3; try "),
        (["--config={config}", "--mesh=tensor=2"], "try --mesh=data=1,fsdp=8,model=1"),
        (["--config={config}", "--mesh=fsdp=2", "--slice=v5e-8"], "the slice has 8; try --mesh="),
        (["--config={config}", "--mesh=data=8192"], "8192 devices are more than the 4096"),
        (["--config={config}", "--out=no/such/folder/plan.json"], "there is no folder no/such"),
        (["--config={config}", "--slcie=v5e-8"], "Did you mean: slice"),
        (["--config={config}", "--compiler=tpu", "--slice=h100-8"], "try --slice=v5e-8"),
        (["--config={config}", "--compiler=tpu"], "needs a slice of TPUs"),
        (["--config={config}", "v5e-8"], "unexpected argument 'v5e-8'"),
    ],
)
def test_mistakes_name_the_fix(
    arguments: list[str],
    message: str,
    config_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(devices, "stand_in", lambda count: pytest.fail("it went on to compile"))
    plan.FLAGS.unparse_flags()
    for flag in plan.OWN_FLAGS:
        plan.FLAGS[flag].unparse()
    given = ["plan", *(argument.format(config=config_file) for argument in arguments)]
    monkeypatch.setattr(sys, "argv", given)
    assert plan.cli(sys.argv) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("slice_text", "mesh"),
    [
        ("v5p-8", {"data": 1, "fsdp": 4, "model": 1}),
        ("v5e-256", {"data": 1, "fsdp": 256, "model": 1}),
    ],
)
def test_the_shipped_config_of_seven_billion_suits_the_slices(
    slice_text: str, mesh: dict[str, int]
) -> None:
    config = load_config(BIG)
    place = plan.settle(config, slice_text, "")
    assert place is not None
    assert config.mesh.to_dict() == mesh
