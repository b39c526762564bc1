"""What of a run is kept in the repository: its figures, whole and always alike, and no weights."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

from experiments.kept import LARGEST_BYTES, bring_back, keep, path_of, take_away
from experiments.study import Job, Run, plan

BASE = str(Path(__file__).parents[1] / "configs" / "quickstart.py")
FIGURES = {
    "evaluation.json": "{}",
    "config.json": "{}",
    "outcomes.npz": "outcomes",
    "episodes/evaluation.jsonl.gz": "episodes",
    "transfer/other.npz": "measured",
}
OTHERS = ("checkpoints/3/params", "cold_start/2/params", "log.txt", ".lock", "tokenizer/model")


def job_in(root: Path) -> Job:
    return plan("study", [Run("a", BASE)], root)[0]


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """A finished one."""
    job = job_in(tmp_path)
    for name, content in [*FIGURES.items(), *((name, "other") for name in OTHERS)]:
        path = job.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return job


def test_figures_are_kept_and_come_back(job: Job, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    keep(job, kept)
    other = job_in(tmp_path / "other")
    assert bring_back(other, kept)
    found = {
        str(path.relative_to(other.folder)): path.read_text()
        for path in other.folder.rglob("*")
        if path.is_file()
    }
    assert found == FIGURES
    take_away(other, kept)
    assert not any(path.is_file() for path in other.folder.rglob("*"))
    assert path_of(job, kept).is_file()


def test_a_run_that_is_there_stays_as_it_is(job: Job, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    assert not bring_back(job, kept)  # nothing is kept
    keep(job, kept)
    (job.folder / "evaluation.json").write_text("[]")
    assert not bring_back(job, kept)
    assert (job.folder / "evaluation.json").read_text() == "[]"


def test_the_same_content_is_the_same_archive_and_more_is_added(job: Job, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    keep(job, kept)
    before = path_of(job, kept).read_bytes()
    for path in job.folder.rglob("*"):
        path.touch()
    keep(job, kept)
    assert path_of(job, kept).read_bytes() == before
    (job.folder / "boundaries.json").write_text("{}")
    keep(job, kept)
    with zipfile.ZipFile(path_of(job, kept)) as file:
        assert set(file.namelist()) == {*FIGURES, "boundaries.json"}


def test_no_folder_of_the_machine_is_kept(job: Job, tmp_path: Path) -> None:
    places = {"compile_cache": "/here", "task": {"data_dir": "/there", "train": 3}, "seed": 1}
    (job.folder / "config.json").write_text(json.dumps(places))
    (job.folder / "evaluation.json").write_text(json.dumps({"config": places, "rows": []}))
    keep(job, tmp_path / "kept")
    with zipfile.ZipFile(path_of(job, tmp_path / "kept")) as file:
        config, evaluation = (json.loads(file.read(f"{n}.json")) for n in ("config", "evaluation"))
    assert config == {"compile_cache": "", "task": {"data_dir": "", "train": 3}, "seed": 1}
    assert evaluation == {"config": config, "rows": []}


def test_what_is_too_large_is_refused_by_name(job: Job, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).bytes(2 * LARGEST_BYTES)
    (job.folder / "noise.bin").write_bytes(noise)
    with pytest.raises(ValueError, match=r"log\.test_episodes"):
        keep(job, tmp_path / "kept")
    assert not path_of(job, tmp_path / "kept").exists()
