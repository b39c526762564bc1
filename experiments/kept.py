"""What finished runs leave in the repository, so that a study goes on, and is read, elsewhere.

A run's folder holds what it may need again: weights, tokenizer, logs. Kept is what its figures come
from: its evaluation, the outcome of every question, episodes and metrics, and what a study measured
with it. `python -m experiments.NAME` takes a kept run for made. To make it again, delete its file.
"""

from __future__ import annotations

import io
import json
import pathlib
import zipfile

from collab.report import write_whole
from experiments.study import Job

KEPT = pathlib.Path(__file__).parent / "kept"
# Not of interest once a run is made, or too large.
LEFT_OUT = ("checkpoints/", "cold_start/", "tokenizer/", "data/", "plots/", "tensorboard/")
LEFT_OUT_FILES = ("study_config.py", "log.txt", "samples.txt", ".lock", "episodes/training.jsonl")
FOLDERS = (("compile_cache",), ("task", "data_dir"), ("cold_start", "from_run"))  # of one machine
LARGEST_BYTES = 1 << 20
ALWAYS = (1980, 1, 1, 0, 0, 0)  # a time of every file, so that the same content is the same archive


def path_of(job: Job, kept: pathlib.Path) -> pathlib.Path:
    """Where a job's archive stands; its name tells the config, as that of the job's folder."""
    return kept / f"{job.folder.name}.zip"


def keep(job: Job, kept: pathlib.Path) -> None:
    """Write the archive of a finished job, in one step.

    Raises: ValueError where it would be larger than `LARGEST_BYTES`.
    """
    found = {
        str(path.relative_to(job.folder)): path
        for path in sorted(job.folder.rglob("*"))
        if path.is_file()
    }
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as file:
        for name, path in found.items():
            if not name.startswith(LEFT_OUT) and name not in LEFT_OUT_FILES:
                file.writestr(zipfile.ZipInfo(name, ALWAYS), _content(path), zipfile.ZIP_DEFLATED)
    content = archive.getvalue()
    if len(content) > LARGEST_BYTES:
        raise ValueError(
            f"what {job.folder} leaves is {len(content)} bytes, more than {LARGEST_BYTES}; lower "
            "log.test_episodes"
        )
    kept.mkdir(parents=True, exist_ok=True)
    path = path_of(job, kept)
    if not path.is_file() or path.read_bytes() != content:
        write_whole(path, content)


def bring_back(job: Job, kept: pathlib.Path) -> bool:
    """Unpack a job's archive into its folder where that has no evaluation; whether it did."""
    path = path_of(job, kept)
    if (job.folder / "evaluation.json").exists() or not path.is_file():
        return False
    with zipfile.ZipFile(path) as file:
        names = sorted(file.namelist(), key="evaluation.json".__eq__)  # that one tells it is whole
        for name in names:
            target = job.folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            write_whole(target, file.read(name))
    return True


def take_away(job: Job, kept: pathlib.Path) -> None:
    """Undo `bring_back`, so that the job is made again."""
    path = path_of(job, kept)
    if path.is_file():
        with zipfile.ZipFile(path) as file:
            for name in file.namelist():
                (job.folder / name).unlink(missing_ok=True)


def _content(path: pathlib.Path) -> bytes:
    """A file's bytes; of a config without the folders of the machine that it ran on."""
    if path.name not in ("config.json", "evaluation.json"):
        return path.read_bytes()
    saved = json.loads(path.read_text(encoding="utf-8"))
    for *parents, leaf in FOLDERS:
        table = saved.get("config", saved)
        for parent in parents:
            table = table.get(parent, {})
        if leaf in table:
            table[leaf] = ""
    return json.dumps(saved, indent=1).encode()
