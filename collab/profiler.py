"""A profiler's trace of a few iterations, for `--profile=steps`.

TensorBoard (with its profile plug-in) reads the folder, ui.perfetto.dev the `.trace.json.gz` in it.
Host parts carry the names of `collab.stopwatch`. Operations carry the named scopes that they belong
to (admit, feed, advance with read, decide and write; reference, policy and optimizer of an update)
in TensorBoard's graph and operation views; a CPU's time line has XLA's own names.
"""

from __future__ import annotations

import contextlib
import logging
import pathlib
from collections.abc import Iterator

import jax

WARM_UP, TRACED = 1, 3  # iterations; programs are compiled in the first
FOLDER = "profile"  # in the workdir

_log = logging.getLogger(__name__)


class Profiler:
    """Traces `TRACED` iterations of this process after its first `WARM_UP` ones, into `folder`."""

    def __init__(self, folder: pathlib.Path) -> None:
        self._folder, self._seen, self._is_tracing = folder, 0, False

    @contextlib.contextmanager
    def iteration(self, index: int) -> Iterator[None]:
        """Around the work of one iteration, which the trace shows as a step of that number."""
        if self._seen == WARM_UP:
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0  # its calls would crowd out everything else
            jax.profiler.start_trace(self._folder, profiler_options=options)
            self._is_tracing = True
        self._seen += 1
        with jax.profiler.StepTraceAnnotation("iteration", step_num=index):
            yield
        if self._seen == WARM_UP + TRACED:
            self.close()

    def close(self) -> None:
        """Write what was traced; also of a run that ends early."""
        if self._is_tracing:
            self._is_tracing = False
            jax.profiler.stop_trace()
            _log.info("a trace of %d iterations is in %s", self._seen - WARM_UP, self._folder)
