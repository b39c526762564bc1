"""What a study runs: configs, folders that are named by what counts, and mistakes that are named.

How runs are made is in test_runner.py, what is read from them in test_results.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from collab.config import load_config
from experiments.runner import train_command
from experiments.study import EVALUATION, ITERATION, Job, Run, is_done, plan, work_done

BASE = "configs/quickstart.py"


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[1])


def job_of(root: Path, name: str = "a", seed: int = 0, **overrides: Any) -> Job:
    changes = {key.replace("__", "."): value for key, value in overrides.items()}
    return plan("study", [Run(name, BASE, seed, changes)], root)[0]


# --- configs and folders -------------------------------------------------------------------


def test_overrides_and_seed_are_set_and_open_tables_replaced(tmp_path: Path) -> None:
    helpers = {"weak": {"hops": 1}}
    job = job_of(tmp_path, seed=3, rl__iterations=7, llm__helpers=helpers, task__name="gsm")
    assert (job.config.seed, job.config.rl.iterations) == (3, 7)
    assert job.config.llm.helpers.to_dict() == helpers
    assert job.config.rollout.temperature == 0.7  # of the base
    assert job.config.compile_cache == str(tmp_path / "programs")
    assert job.config.task.data_dir == str(tmp_path / "data")
    assert job.folder.parent == tmp_path / "runs"
    assert job.folder.name.startswith("gsm-seed3-")


def test_the_folder_is_named_by_what_figures_depend_on(tmp_path: Path) -> None:
    folder = job_of(tmp_path).folder
    assert job_of(tmp_path, "other").folder == folder  # so that studies share it
    assert job_of(tmp_path, log__samples=9, task__data_dir="/d").folder == folder
    assert job_of(tmp_path, rl__iterations=40).folder == folder  # as the base has it
    others = [
        job_of(tmp_path, seed=1),
        job_of(tmp_path, rl__iterations=41),
        job_of(tmp_path, cold_start__curriculum=((1, 64),)),
        job_of(tmp_path, llm__helpers={"one_hop": {"hops": 1, "weight": 3.0}}),
    ]
    assert len({folder, *(job.folder for job in others)}) == 5


def test_a_run_that_begins_with_anothers_cold_start_stands_apart(tmp_path: Path) -> None:
    runs = [Run("next", BASE, cold_start="a"), Run("a", BASE), Run("last", BASE, 1)]
    jobs = plan("study", runs, tmp_path)
    assert [job.run.name for job in jobs] == ["next", "a", "last"]
    assert jobs[0].source is jobs[1] and jobs[1].source is None
    assert jobs[0].config.cold_start.from_run == str(jobs[1].folder)
    assert len({job.folder for job in jobs}) == 3
    assert jobs[1].work - jobs[0].work == jobs[1].config.cold_start.steps


def test_the_written_config_file_says_the_same(tmp_path: Path) -> None:
    job = job_of(tmp_path, llm__helpers={"weak": {"hops": 1}}, evaluate__strategies=("learned",))
    job.folder.mkdir(parents=True)
    command = train_command(job)
    path = next(word for word in command if word.startswith("--config=")).removeprefix("--config=")
    assert load_config(path).to_dict() == job.config.to_dict()
    assert f"--workdir={job.folder}" in command


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (Run("a", BASE, 0, {"rl.iteration": 1}), "unknown; did you mean rl.iterations"),
        (Run("a", BASE, 0, {"rl.samples": 1}), "run 'a-seed0': rl.samples=1 must be at least 2"),
        (Run("a", BASE, 0, {"rl.samples": "8"}), "rl.samples='8' must be of type int"),
        (Run("a", "configs/none.py"), "run 'a-seed0': --config=configs/none.py: there is no such"),
        (
            Run("a", BASE, cold_start="b"),
            "cold_start='b' must name a run of this study with seed 0",
        ),
        (Run("../a", BASE), "must have a name of its own in letters"),
        (Run("there", BASE), "must have a name of its own"),
    ],
)
def test_a_run_that_cannot_be_is_named(run: Run, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError) as refused:
        plan("study", [Run("there", BASE), Run("b", BASE, 1), run], tmp_path)
    assert message in str(refused.value)
    assert list(tmp_path.iterdir()) == []


# --- what is there -------------------------------------------------------------------------


def write(job: Job, config: dict[str, Any], **evaluation: Any) -> None:
    job.folder.mkdir(parents=True, exist_ok=True)
    (job.folder / "config.json").write_text(json.dumps(config))
    (job.folder / "evaluation.json").write_text(json.dumps({"config": config, **evaluation}))


def test_done_is_what_has_an_evaluation_of_this_config(tmp_path: Path) -> None:
    job = job_of(tmp_path)
    assert not is_done(job)
    config = job.config.to_dict()
    write(job, config | {"compile_cache": "elsewhere"})
    assert is_done(job)
    del config["rl"]["standardise"]  # a key that is newer than the run, at its default
    config["model"]["remat"] = False  # what it was called once; no figure depends on it
    write(job, config)
    assert is_done(job)
    (job.folder / "evaluation.json").unlink()
    assert not is_done(job)


@pytest.mark.parametrize("left", ["config.json", "evaluation.json"])
def test_a_folder_of_another_config_is_refused_by_its_key(left: str, tmp_path: Path) -> None:
    job = job_of(tmp_path)
    config = job.config.to_dict()
    write(job, config)
    config["rl"]["iterations"] = 39  # as if the base had been changed
    other = {"config": config} if left == "evaluation.json" else config
    (job.folder / left).write_text(json.dumps(other))
    with pytest.raises(ValueError, match=r"has rl\.iterations=39, wanted is 40; move its folder"):
        is_done(job)


def test_work_is_read_off_the_metrics(tmp_path: Path) -> None:
    job = job_of(tmp_path)
    cold, iterations = job.config.cold_start.steps, job.config.rl.iterations
    assert job.work == cold + ITERATION * iterations + EVALUATION
    assert work_done(job) == 0
    job.folder.mkdir(parents=True)
    metrics = job.folder / "metrics.jsonl"
    for step, work in [(25, 25), (cold, cold), (cold + 1, cold), (cold + 4, cold + 3 * ITERATION)]:
        with metrics.open("a") as file:
            file.write(json.dumps({"step": step}) + "\n")
        assert work_done(job) == work
    metrics.write_text('{"step": 1')
    assert work_done(job) == 0
