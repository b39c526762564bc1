"""Makes the runs of a study, a few side by side: the same command finishes what was cut.

A run whose evaluation is there, or kept in the repository, is not made again, and one that was cut
goes on. Studies that share a root may run at the same time: each run is locked by whoever makes it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import pathlib
import pprint
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import FrameType
from typing import IO

from collab import cold_start
from collab.progress import progress
from experiments.kept import KEPT, bring_back, keep, path_of, take_away
from experiments.study import Job, Run, is_done, plan, work_done

POLL_S = 1.0


@dataclasses.dataclass(frozen=True)
class Result:
    """What came of a study. jobs: the finished ones, in its order. failed: reasons by label.

    kept: where their archives stand, if anywhere.
    """

    study: str
    jobs: tuple[Job, ...]
    failed: Mapping[str, str]
    is_stopped: bool
    kept: pathlib.Path | None = None

    @property
    def status(self) -> int:
        """The exit status of the command."""
        return 130 if self.is_stopped else int(bool(self.failed))


def train_command(job: Job) -> list[str]:
    """The run as a command, with a config file written for it."""
    path = job.folder / "study_config.py"
    path.write_text(
        f'"""Run {job.run.label} of a study, with every key."""\n\n'
        "import ml_collections\n\n\n"
        "def get_config():\n"
        f"    return ml_collections.ConfigDict({pprint.pformat(job.config.to_dict())})\n",
        encoding="utf-8",
    )
    main = [sys.executable, "-m", "collab.main"]
    return [*main, f"--config={path}", f"--workdir={job.folder}"]


def execute(
    study: str,
    runs: Sequence[Run],
    *,
    root: pathlib.Path,
    jobs: int = 2,
    command: Callable[[Job], list[str]] = train_command,
    poll_s: float = POLL_S,
    kept: pathlib.Path = KEPT,
) -> Result:
    """Make all runs that are not there, `jobs` at a time; a failure does not stop the others.

    kept: where archives of finished runs stand, and are put (`experiments.kept`).

    On stderr stand one progress line with the time left, and at the end what failed and why.
    The CPU cores are split among those that run, where the system can bind a process to cores
    (Linux): XLA then starts one thread for each core that it may use. Output goes to log.txt of the
    run's folder. The first SIGINT or SIGTERM is handed on as SIGTERM, on which a run saves and
    ends; a second one kills.
    Raises: ValueError for a run that can't be, before any starts.
    """
    if jobs < 1:
        raise ValueError(f"jobs={jobs} must be at least 1; try jobs=2")
    planned = plan(study, runs, root)
    for job in planned:
        _link(job, root / study)
    _bring_back(study, planned, kept)
    queue = _Queue(planned, jobs, command, kept)
    with (
        _noted_signals() as signals,
        contextlib.closing(queue),
        progress(queue.total, study) as line,
    ):
        shown, is_going = 0, True
        while is_going:
            is_going = queue.advance(len(signals))
            worked = max(shown, queue.worked())
            line.update(worked - shown, **queue.figures())
            shown = worked
            time.sleep(poll_s if is_going else 0)
    for label, reason in queue.failed.items():
        print(f"{study}: {label} failed: {reason}", file=sys.stderr)
    done = tuple(job for job in planned if job.run.label in queue.done)
    if signals:
        tally = f"{len(done)} of {len(planned)} runs are done"
        print(f"{study}: stopped, {tally}; the same command goes on", file=sys.stderr)
    return Result(study, done, queue.failed, bool(signals), kept)


def _link(job: Job, folder: pathlib.Path) -> None:
    """A name by which people find the run."""
    job.folder.mkdir(parents=True, exist_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / job.run.label
    path.unlink(missing_ok=True)
    path.symlink_to(os.path.relpath(job.folder, folder.resolve()), target_is_directory=True)


def _bring_back(study: str, planned: Sequence[Job], kept: pathlib.Path) -> None:
    """Unpack what is kept, but not where a run that is to be made begins with what was not kept."""
    begun_with = {
        job.source.folder
        for job in planned
        if job.source
        and not (job.folder / "evaluation.json").is_file()
        and not path_of(job, kept).is_file()
        and not cold_start.is_kept(job.source.folder)
    }
    count = 0
    for job in planned:
        if job.folder in begun_with:
            take_away(job, kept)
        else:
            count += bring_back(job, kept)
    if count:
        print(f"{study}: {count} of {len(planned)} runs are those in {kept}", file=sys.stderr)


@contextlib.contextmanager
def _noted_signals() -> Iterator[list[int]]:
    """SIGINT and SIGTERM are noted in the list meanwhile, and do nothing else."""
    noted: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        noted.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield noted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@dataclasses.dataclass
class _Child:
    """A run under way. lock: shared with the process, so that it outlives a kill of this one."""

    job: Job
    slot: int
    process: subprocess.Popen[bytes]
    lock: IO[bytes]


class _Queue:
    """Runs that wait, are under way, done or failed. total: work that was left at the start."""

    def __init__(
        self,
        planned: Sequence[Job],
        slots: int,
        command: Callable[[Job], list[str]],
        kept: pathlib.Path,
    ) -> None:
        self.slots, self.command, self.kept = slots, command, kept
        self.waiting: list[Job] = []
        self.children: list[_Child] = []
        self.done: set[str] = set()
        self.failed: dict[str, str] = {}
        self.signals = 0
        for job in planned:
            if not self._is_settled(job):
                self.waiting.append(job)
        self.before = {job.run.label: work_done(job) for job in self.waiting}
        self.total = sum(self._left(job) for job in self.waiting)
        self.ended_work = 0

    def advance(self, signals: int) -> bool:
        """Note what has ended, start what can be; False once there is nothing to wait for."""
        for child in [child for child in self.children if child.process.poll() is not None]:
            self._end(child)
        if signals > self.signals:
            for child in self.children:
                child.process.send_signal(signal.SIGKILL if self.signals else signal.SIGTERM)
            self.signals = signals
        if signals:
            return bool(self.children)
        for job in list(self.waiting):
            if len(self.children) < self.slots and self._is_ready(job):
                self._start(job)
        return bool(self.waiting or self.children)

    def worked(self) -> int:
        """Work done since the start."""
        under_way = [
            min(work_done(child.job) - self.before[child.job.run.label], self._left(child.job))
            for child in self.children
        ]
        return self.ended_work + sum(max(0, work) for work in under_way)

    def figures(self) -> dict[str, float]:
        """What stands beside the progress."""
        return {"done": len(self.done), "running": len(self.children), "failed": len(self.failed)}

    def close(self) -> None:
        """End what still runs, in case of an error here."""
        for child in self.children:
            child.process.terminate()
        for child in self.children:
            child.process.wait()
            child.lock.close()

    def _left(self, job: Job) -> int:
        return job.work - self.before[job.run.label]

    def _is_settled(self, job: Job) -> bool:
        """Whether a job is done, or stands in a folder that another one filled."""
        try:
            if is_done(job):
                self.done.add(job.run.label)
        except ValueError as error:
            self.failed[job.run.label] = str(error)
        return job.run.label in self.done or job.run.label in self.failed

    def _leave(self, job: Job) -> None:
        self.waiting.remove(job)
        self.ended_work += self._left(job)

    def _is_ready(self, job: Job) -> bool:
        """Whether the cold start that a job begins with is there; it fails if that won't come."""
        source = job.source
        if source is None or cold_start.is_kept(source.folder):
            return True
        if source.run.label in self.done or source.run.label in self.failed:
            self._leave(job)
            self.failed[job.run.label] = f"{source.run.label} left no cold start to begin with"
        return False

    def _start(self, job: Job) -> None:
        """Start a job, unless another study is at it."""
        lock = (job.folder / ".lock").open("ab")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            return
        if self._is_settled(job):  # the other study ended it
            lock.close()
            self._leave(job)
            return
        slot = min(set(range(self.slots)) - {child.slot for child in self.children})
        with (job.folder / "log.txt").open("ab") as log:
            process = subprocess.Popen(
                self.command(job),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(lock.fileno(),),
                start_new_session=True,  # a terminal's Ctrl-C would reach it besides our SIGTERM
            )
        _bind(process.pid, slot, self.slots)
        self.waiting.remove(job)
        self.children.append(_Child(job, slot, process, lock))

    def _end(self, child: _Child) -> None:
        self.children.remove(child)
        child.lock.close()
        self.ended_work += self._left(child.job)
        if self._is_settled(child.job):
            if child.job.run.label in self.done:
                keep(child.job, self.kept)
            return
        if self.signals:
            return
        log = child.job.folder / "log.txt"
        self.failed[child.job.run.label] = (
            f"status {child.process.returncode}, {_last_line(log)!r}, the last line of {log}"
        )


def _bind(pid: int, slot: int, slots: int) -> None:
    """Give a process its part of the cores; one of them where there are fewer than slots."""
    if not hasattr(os, "sched_setaffinity"):
        return
    cores = sorted(os.sched_getaffinity(0))
    with contextlib.suppress(ProcessLookupError):  # it has ended already
        os.sched_setaffinity(pid, cores[slot::slots] or [cores[slot % len(cores)]])


def _last_line(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 8192))
        lines = file.read().decode(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
