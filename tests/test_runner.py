"""Making the runs of a study: side by side, once each, cut and taken up, and what fails.

The runs are small programs that leave what a real one leaves; what they do is told by their name.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from experiments.runner import Result, execute
from experiments.study import Job, Run, plan

BASE = str(Path(__file__).parents[1] / "configs" / "quickstart.py")
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
CHILD = """
import json, os, pathlib, signal, sys, time
folder, name, config = pathlib.Path(sys.argv[1]), sys.argv[2], sys.argv[3]
opened = [os.path.join("/proc/self/fd", fd) for fd in os.listdir("/proc/self/fd")]
held = [os.path.basename(os.readlink(path)) for path in opened if os.path.exists(path)]
def note(word):
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    line = json.dumps([word, name, time.time(), cores, os.getsid(0), held]) + "\\n"
    with open(folder.parent / "notes", "a") as file:
        file.write(line)
def save(number, frame):
    note("saved")
    sys.exit(0)
signal.signal(signal.SIGTERM, save)
(folder / "config.json").write_text(config)
note("began")
if name == "fails":
    print("warning: the first line\\nerror: rl.samples=1 is too few\\n", file=sys.stderr)
    sys.exit(3)
if name.startswith("imitates"):
    (folder / "cold_start" / "2").mkdir(parents=True)
    deadline = time.time() + 30
    while '"next"' not in (folder.parent / "notes").read_text() and time.time() < deadline:
        time.sleep(0.01)
if name.endswith("long") and not (folder / "again").exists():
    (folder / "again").touch()
    time.sleep(60)
time.sleep(0.3)
if name != "forgets":
    (folder / "evaluation.json").write_text('{"config": ' + config + "}")
note("ended")
"""


def child(job: Job) -> list[str]:
    config = json.dumps(job.config.to_dict())
    return [sys.executable, "-S", "-c", CHILD, str(job.folder), job.run.name, config]


def run_all(root: Path, runs: Sequence[Run], jobs: int = 2) -> Result:
    kept = root / "kept"
    return execute("study", runs, root=root, jobs=jobs, command=child, poll_s=0.01, kept=kept)


def named(*names: str) -> list[Run]:
    """Runs that differ in something."""
    return [Run(name, BASE, 0, {"rl.iterations": 1 + at}) for at, name in enumerate(names)]


def notes(root: Path, word: str = "began") -> list[str]:
    path = root / "runs" / "notes"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [line[1] for line in lines if line[0] == word]


def labels(result: Result) -> list[str]:
    return [job.run.label for job in result.jobs]


@pytest.fixture
def soon() -> Iterator[Callable[[Callable[[], bool], Callable[[], None]], None]]:
    """In a thread, wait until the first holds, then do the second."""
    threads = []

    def begin(holds: Callable[[], bool], act: Callable[[], None]) -> None:
        def wait() -> None:
            deadline = time.monotonic() + 30
            while not holds() and time.monotonic() < deadline:
                time.sleep(0.01)
            act()

        threads.append(threading.Thread(target=wait))
        threads[-1].start()

    yield begin
    for thread in threads:
        thread.join()


# --- side by side, once --------------------------------------------------------------------


def test_runs_go_side_by_side_on_cores_of_their_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = run_all(tmp_path, named("a", "b", "c", "d"))
    assert labels(result) == ["a-seed0", "b-seed0", "c-seed0", "d-seed0"]
    assert (result.status, dict(result.failed)) == (0, {})
    lines = [json.loads(line) for line in (tmp_path / "runs" / "notes").read_text().splitlines()]
    under_way: dict[str, set[int]] = {}
    most = 0
    for word, name, _, cores, session, held in sorted(lines, key=lambda line: line[2]):
        if word == "began":
            under_way[name] = set(cores)
        else:
            del under_way[name]
        most = max(most, len(under_way))
        assert session != os.getsid(0)  # a terminal's Ctrl-C reaches the runner alone
        assert ".lock" in held  # also where the runner is killed
        if len(under_way) == 2 and CORES > 1:
            assert set.isdisjoint(*under_way.values())
    assert most == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert said[0].startswith("study: ") and "(100%), took" in said[0]
    assert "done=4 running=0 failed=0" in said[0]


def test_what_is_done_is_not_run_again_and_people_find_it_by_name(tmp_path: Path) -> None:
    first = run_all(tmp_path, named("a", "b"))
    again = execute(
        "other",
        [*named("a"), Run("new", BASE, 1)],
        root=tmp_path,
        command=child,
        poll_s=0.01,
        kept=tmp_path / "kept",
    )
    assert sorted(notes(tmp_path)) == ["a", "b", "new"]
    assert again.jobs[0].folder == first.jobs[0].folder
    assert (tmp_path / "other" / "a-seed0").resolve() == first.jobs[0].folder
    assert (tmp_path / "study" / "b-seed0" / "evaluation.json").is_file()


def test_a_run_that_fails_is_told_and_stops_no_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = run_all(tmp_path, named("fails", "a", "forgets"), jobs=1)
    assert (labels(result), result.status) == (["a-seed0"], 1)
    assert list(result.failed) == ["fails-seed0", "forgets-seed0"]
    said = capsys.readouterr().err
    assert (
        "study: fails-seed0 failed: status 3, 'error: rl.samples=1 is too few', the last line of "
    ) in said
    assert "study: forgets-seed0 failed: status 0, ''" in said
    log = tmp_path / "study" / "fails-seed0" / "log.txt"
    assert log.read_text().startswith("warning: the first line")


def test_a_folder_that_holds_another_config_is_left_alone(tmp_path: Path) -> None:
    (job,) = plan("study", named("a"), tmp_path)
    job.folder.mkdir(parents=True)
    other = job.config.to_dict()
    other["seed"] = 5
    (job.folder / "config.json").write_text(json.dumps(other))
    result = run_all(tmp_path, named("a", "b"))
    assert labels(result) == ["b-seed0"]
    assert "has seed=5, wanted is 'the default'" in result.failed["a-seed0"]
    assert notes(tmp_path) == ["b"]


def test_no_side_by_side_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="jobs=0 must be at least 1"):
        run_all(tmp_path, named("a"), jobs=0)


# --- cut ------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_has_the_runs_save_and_the_same_command_goes_on(
    number: int, tmp_path: Path, soon: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(number)
    runs = named("a-long", "b", "c-long", "d")
    long = {"a-long", "c-long"}
    soon(lambda: long <= set(notes(tmp_path)), lambda: os.kill(os.getpid(), number))
    result = run_all(tmp_path, runs)
    assert signal.getsignal(number) == before
    assert (result.is_stopped, result.status, dict(result.failed)) == (True, 130, {})
    assert set(notes(tmp_path, "saved")) == long
    assert "study: stopped, 1 of 4 runs are done; the same command" in capsys.readouterr().err
    assert run_all(tmp_path, runs).status == 0
    assert sorted(notes(tmp_path, "ended")) == ["a-long", "b", "c-long", "d"]


def test_a_second_signal_kills(tmp_path: Path, soon: Any) -> None:
    def twice() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGTERM)

    soon(lambda: any((tmp_path / "runs").glob("*/deaf")), twice)
    script = (
        "import pathlib, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "(pathlib.Path(sys.argv[1]) / 'deaf').touch()\n"
        "time.sleep(60)\n"
    )
    started = time.monotonic()
    result = execute(
        "study",
        named("a"),
        root=tmp_path,
        command=lambda job: [sys.executable, "-S", "-c", script, str(job.folder)],
        poll_s=0.01,
        kept=tmp_path / "kept",
    )
    assert result.status == 130
    assert time.monotonic() - started < 30


# --- several studies ------------------------------------------------------------------------


def test_a_run_that_another_study_makes_is_waited_for(tmp_path: Path, soon: Any) -> None:
    job, _ = plan("study", named("a", "b"), tmp_path)
    job.folder.mkdir(parents=True)
    with (job.folder / ".lock").open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_SH)  # nobody else may have it for himself

        def end() -> None:
            config = json.dumps(job.config.to_dict())
            (job.folder / "config.json").write_text(config)
            (job.folder / "evaluation.json").write_text(f'{{"config": {config}}}')
            fcntl.flock(other, fcntl.LOCK_UN)

        soon(lambda: "b" in notes(tmp_path, "ended"), end)
        result = run_all(tmp_path, named("a", "b"), jobs=1)
    assert labels(result) == ["a-seed0", "b-seed0"]
    assert notes(tmp_path) == ["b"]


# --- cold starts ----------------------------------------------------------------------------


def test_a_run_begins_once_the_cold_start_it_needs_is_there(tmp_path: Path) -> None:
    runs = [Run("next", BASE, cold_start="imitates"), Run("imitates", BASE)]
    assert run_all(tmp_path, runs).status == 0
    assert notes(tmp_path) == ["imitates", "next"]
    assert next_began_before_end(tmp_path)  # it need not wait for the whole run


def next_began_before_end(root: Path) -> bool:
    lines = [json.loads(line) for line in (root / "runs" / "notes").read_text().splitlines()]
    order = [(word, name) for word, name, *_ in lines]
    return order.index(("began", "next")) < order.index(("ended", "imitates"))


def test_a_run_whose_cold_start_will_not_come_fails(tmp_path: Path) -> None:
    for source in ("fails", "a"):  # one that fails, one that leaves none
        runs = [Run("next", BASE, cold_start=source), Run(source, BASE)]
        result = run_all(tmp_path / source, runs)
        assert result.failed["next-seed0"] == f"{source}-seed0 left no cold start to begin with"
        assert result.status == 1
        assert notes(tmp_path / source) == [source]


# --- what is kept ------------------------------------------------------------------------------


def test_a_kept_run_is_not_made_again_in_another_root(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It stands there as it was, and a run that needs its cold start makes it again."""
    elsewhere = tmp_path / "elsewhere"
    plain, *others = named("imitates", "other")
    next_one = Run("next", BASE, 0, {"rl.iterations": 9}, cold_start="imitates")
    first = run_all(tmp_path, [plain, *others])
    elsewhere.mkdir()
    os.rename(tmp_path / "kept", elsewhere / "kept")
    capsys.readouterr()
    again = run_all(elsewhere, [plain, *others])
    assert (labels(again), notes(elsewhere)) == (labels(first), [])
    assert f"2 of 2 runs are those in {elsewhere / 'kept'}" in capsys.readouterr().err

    def iterations(result: Result) -> list[int]:
        found = [json.loads((job.folder / "evaluation.json").read_text()) for job in result.jobs]
        return [one["config"]["rl"]["iterations"] for one in found]

    assert iterations(again) == iterations(first) == [1, 2]
    with_next = run_all(elsewhere, [plain, next_one])
    assert labels(with_next) == ["imitates-seed0", "next-seed0"]
    assert sorted(notes(elsewhere)) == ["imitates", "next"]
