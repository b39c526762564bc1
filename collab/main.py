"""Train a small model that learns to ask a large one for help, evaluate it, or talk to it.

    python -m collab.main --config=configs/quickstart.py --workdir=runs/quickstart

modes
  --mode=train      train, then compare every strategy; the same command resumes a stopped run
  --mode=evaluate   compare every strategy again, by --checkpoint
  --mode=ask        answer your own questions, by --checkpoint; shows what leaves the machine
  --mode=calibrate  for the helper now configured, find how readily the policy should ask: for the
                    best reward, or for --config.calibrate.ask_rate=0.4 asks a question
  --mode=probe      how strong each helper is, and whether it is the one that was trained with

Every key of the config can be set: --config.rl.iterations=40. collab/config.py explains them all.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence

from absl import app, flags
from ml_collections import config_flags

from collab.overrides import read_arguments
from collab.rules import validate

MODES = ("train", "evaluate", "ask", "calibrate", "probe")
FLAGS = flags.FLAGS
config_flags.DEFINE_config_file("config", None, "a file of configs/; --config.KEY=VALUE overrides")
flags.DEFINE_string("workdir", None, "folder of this run: data, checkpoints, metrics, plots")
flags.DEFINE_enum("mode", "train", list(MODES), "what to do; train by default")
flags.DEFINE_string(
    "checkpoint", "", "a step of workdir, best, or another run's folder; default: newest"
)
flags.DEFINE_enum(
    "profile", "", ["", "steps"], "steps: trace some iterations of training for TensorBoard"
)
flags.DEFINE_bool("debug", False, "show the traceback of an error")
flags.DEFINE_string("coordinator", "", "several processes: host:port of process 0; a TPU pod: auto")
flags.DEFINE_integer("processes", 1, "how many there are, with --coordinator=host:port")
flags.DEFINE_integer("process", 0, "index of this one, with --coordinator=host:port")
OWN_FLAGS = (
    "config", "workdir", "mode", "checkpoint", "profile", "debug", "coordinator", "processes",
    "process",
)  # fmt: skip
EXAMPLE = "python -m collab.main --config=configs/quickstart.py --workdir=runs/quickstart"
USER_ERRORS = (ValueError, OSError, flags.Error, FloatingPointError, RuntimeError, ImportError)


def main(argv: list[str]) -> None:
    """Set up jax as the flags say, then hand over to `collab.run`."""
    if len(argv) > 1:
        raise ValueError(f"unexpected argument {argv[1]!r}; every option is --name=value")
    validate(FLAGS.config)
    if FLAGS.profile and FLAGS.mode != "train":
        raise ValueError(f"--profile={FLAGS.profile} is of --mode=train; leave one of them out")
    # Imported late, so that --help and a mistake answer at once.
    from collab import run

    run.prepare(FLAGS.config, FLAGS.workdir)
    run.start_processes(FLAGS.coordinator, FLAGS.processes, FLAGS.process)
    options = {"is_profiled": True} if FLAGS.profile else {}
    getattr(run, FLAGS.mode)(FLAGS.config, FLAGS.workdir, FLAGS.checkpoint, **options)


def cli(arguments: Sequence[str]) -> int:
    """Run `main` and return the exit status; an error of the user's is one line on stderr.

    arguments: as in `sys.argv`, which they must be: the config's flags read that.
    """
    if HELP_WORDS & set(arguments[1:]):
        print(help_text())
        return 0
    set_up_logging()
    try:
        main(_read_flags(arguments))
    except USER_ERRORS as error:
        if "--debug" in arguments or FLAGS["debug"].value:  # they may not have been parsed yet
            raise
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("error: interrupted; the same command starts or resumes the run", file=sys.stderr)
        return 1
    return 0


def _read_flags(arguments: Sequence[str]) -> list[str]:
    """Parse the flags, mistakes in the config first: absl would wrap them. Returns the rest."""
    app.define_help_flags()  # --helpfull
    sys.argv[:] = read_arguments(arguments)
    rest: list[str] = FLAGS(sys.argv)
    for name in ("config", "workdir"):
        if not FLAGS[name].value:
            raise ValueError(f"--{name} is missing; try {EXAMPLE}")
    return rest


def set_up_logging() -> None:
    """Our own lines without a prefix; of other libraries only warnings.

    `absl.app.run` would let absl print every step of Orbax and TFDS, so it isn't used.
    """
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("collab").setLevel(logging.INFO)


def help_text() -> str:
    """What --help prints: this module's docstring and its flags."""
    lines = [f"  --{name:<13} {FLAGS[name].help}" for name in OWN_FLAGS]
    return "\n".join(
        [__doc__ or "", "flags", *lines, "  --helpfull      every flag of every library"]
    )


def one_line(error: BaseException) -> str:
    """What an error says in one line; where there was more, how to see it."""
    if isinstance(error, ModuleNotFoundError):
        return f"the package {error.name} is missing; pip install -e . brings what every run needs"
    first, *more = str(error).strip().splitlines() or [type(error).__name__]
    return f"{first} (--debug shows more)" if more else first


HELP_WORDS = {"--help", "-help", "-h", "--helpshort"}

if __name__ == "__main__":
    status = cli(sys.argv)
    sys.stdout.flush()
    sys.stderr.flush()
    if status:
        os._exit(status)  # threads of the LLM client may still wait for a server
