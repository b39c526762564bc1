"""Command line: train (then evaluate), evaluate a checkpoint, or ask interactively.

    python -m collab.main --config=configs/quickstart.py --workdir=runs/quickstart
    python -m collab.main --config=... --workdir=... --mode=evaluate [--checkpoint=STEP or FOLDER]
    python -m collab.main --config=... --workdir=... --mode=ask

Any key of the config can be set: --config.rl.iterations=40. collab/config.py explains them all.
"""

from __future__ import annotations

import logging
import os
import sys

from absl import app, flags
from ml_collections import config_flags

from collab.config import check_overrides, default_config, flatten

FLAGS = flags.FLAGS
config_flags.DEFINE_config_file("config", None, "A file of configs/; --config.KEY=VALUE overrides.")
flags.DEFINE_string("workdir", None, "Folder of this run: data, checkpoints, metrics, plots.")
flags.DEFINE_enum("mode", "train", ["train", "evaluate", "ask"], "What to do.")
flags.DEFINE_string("checkpoint", "", "Step in workdir, or another run's folder; empty = newest.")
flags.DEFINE_bool("debug", False, "Show the traceback of an error.")
flags.DEFINE_string("coordinator", "", "host:port of process 0, for several processes; or 'auto'.")
flags.DEFINE_integer("processes", 1, "Number of processes, with --coordinator=host:port.")
flags.DEFINE_integer("process", 0, "Index of this process, with --coordinator=host:port.")


def main(argv: list[str]) -> None:
    """Set up jax as the flags say, then hand over to `collab.run`."""
    if len(argv) > 1:
        raise ValueError(f"unexpected argument {argv[1]!r}; every option is --name=value")
    for name in ("config", "workdir"):
        if FLAGS[name].value is None:
            raise ValueError(f"--{name} is missing; try {EXAMPLE}")
    # Imported late, so that --help and a mistyped flag answer at once.
    from collab import run

    run.start_processes(FLAGS.coordinator, FLAGS.processes, FLAGS.process)
    run.prepare(FLAGS.config, FLAGS.workdir)
    getattr(run, FLAGS.mode)(FLAGS.config, FLAGS.workdir, FLAGS.checkpoint)


EXAMPLE = "python -m collab.main --config=configs/quickstart.py --workdir=runs/quickstart"


def cli() -> None:
    """Run `main`; an error of the user's ends in one line on stderr and exit status 1."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for noisy in ("absl", "orbax", "jax", "matplotlib"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    is_debug = any(argument.startswith("--debug") for argument in sys.argv)
    try:
        check_overrides(sys.argv[1:], flatten(default_config()))
        app.run(main, flags_parser=lambda arguments: FLAGS(arguments))
    except USER_ERRORS as error:
        if is_debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        # Threads of the LLM client may still wait for a server.
        sys.stderr.flush()
        os._exit(1)


USER_ERRORS = (ValueError, OSError, flags.Error, FloatingPointError, RuntimeError)

if __name__ == "__main__":
    cli()
