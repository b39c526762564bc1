"""What a config needs before you pay for it: memory, work and collectives of each device.

    python -m collab.plan --config=configs/qwen2_5_7b.py --slice=v5p-8

compiles the steps of training for as many fake CPU devices as the slice has chips; weights are
never made, nothing runs. Says whether it fits, which term is largest, and what to change.

  --slice=v5e-256   256 chips. v4 and v5p slices count cores: v5p-8 is 4 chips. h100-8 is 8 GPUs
  --mesh=data=1,fsdp=64,model=4   devices along each axis; default: config.mesh, or all along fsdp
  --compiler=tpu    the slice's own compiler, which needs no TPU: pip install -e .[tpu]. Untried

Every key of the config can be set: --config.rollout.rows=256. collab/config.py explains them all.
"""

from __future__ import annotations

import json
import logging
import math
import pathlib
import sys
import time
from collections.abc import Sequence
from typing import Any

from absl import flags
from ml_collections import config_flags

from collab.main import HELP_WORDS, USER_ERRORS, one_line, set_up_logging
from collab.overrides import read_arguments
from collab.planning.slices import Slice, read_mesh, read_slice, suited_mesh
from collab.rules import validate

FLAGS = flags.FlagValues()  # its own, so that none of collab.main's is taken and ignored
config_flags.DEFINE_config_file(
    "config", None, "a file of configs/; --config.KEY=VALUE overrides", flag_values=FLAGS
)
flags.DEFINE_string("slice", "", "chips of a job: v5p-8, v5e-256, h100-8", flag_values=FLAGS)
flags.DEFINE_string("mesh", "", "such as data=1,fsdp=8,model=1", flag_values=FLAGS)
flags.DEFINE_enum("compiler", "cpu", ["cpu", "tpu"], "whose temporaries", flag_values=FLAGS)
flags.DEFINE_string("out", "", "a file for the plan as JSON", flag_values=FLAGS)
flags.DEFINE_bool("debug", False, "show the traceback of an error", flag_values=FLAGS)
OWN_FLAGS = ("config", "slice", "mesh", "compiler", "out", "debug")
EXAMPLE = "python -m collab.plan --config=configs/qwen2_5_7b.py --slice=v5p-8"
MOST_DEVICES = 4096  # that a CPU is asked to stand for; our choice
_log = logging.getLogger("collab.plan")


def make_plan(config: Any, place: Slice | None, compiler: str = "cpu") -> dict[str, Any]:
    """The record of `collab.planning.table`; needs as many devices as config.mesh takes."""
    from collab import sharding
    from collab.planning import devices, programs, table

    mesh, options = sharding.make_mesh(config.mesh), programs.QUICKLY
    if compiler == "tpu" and place:
        mesh, options = devices.tpu_mesh(place, config.mesh.to_dict()), None
    planned = programs.planned(config, mesh)
    made = []
    for name, lower in planned.lower.items():
        started = time.monotonic()
        made.append(programs.compiled(name, lower, options))
        took_s, temporary_gb = time.monotonic() - started, made[-1].temporary_bytes / 1e9
        _log.info("compiled %s in %.0f s: %.2f GB of temporaries", name, took_s, temporary_gb)
    return table.to_record(planned, made, place)


def settle(config: Any, slice_text: str, mesh_text: str) -> Slice | None:
    """Put the mesh that the flags say into the config, and check it. Raises: ValueError."""
    place = read_slice(slice_text) if slice_text else None
    mesh = read_mesh(mesh_text) if mesh_text else config.mesh.to_dict()
    if place:
        mesh = suited_mesh(mesh, place.devices)
    devices = math.prod(mesh.values())
    if devices > MOST_DEVICES:
        raise ValueError(f"{devices} devices are more than the {MOST_DEVICES} that can be planned "
                         "here; name a smaller --slice or --mesh")  # fmt: skip
    config.mesh.update(mesh)
    validate(config)
    return place


def main(argv: list[str]) -> None:
    """Check the flags, then compile and print."""
    if len(argv) > 1:
        raise ValueError(f"unexpected argument {argv[1]!r}; every option is --name=value")
    config, out = FLAGS.config, FLAGS.out
    if not config:
        raise ValueError(f"--config is missing; try {EXAMPLE}")
    place = settle(config, FLAGS.slice, FLAGS.mesh)
    if out and not pathlib.Path(out).resolve().parent.is_dir():
        raise ValueError(f"--out={out}: there is no folder {pathlib.Path(out).parent}; make it")
    # Imported late, so that --help and a mistake answer at once, and none before jax is told.
    from collab.planning import devices

    if FLAGS.compiler == "tpu":
        devices.check_tpu_compiler(place)
    devices.stand_in(math.prod(config.mesh.values()))
    record = make_plan(config, place, FLAGS.compiler)
    from collab.planning import table

    if out:
        text = json.dumps({**record, "config": config.to_dict()}, indent=1, default=list)
        pathlib.Path(out).write_text(text + "\n", encoding="utf-8")
    print(table.to_text(record, config))


def cli(arguments: Sequence[str]) -> int:
    """Run `main` and return the exit status; an error of the user's is one line on stderr.

    arguments: as in `sys.argv`, which they must be: the config's flags read that.
    """
    if HELP_WORDS & set(arguments[1:]):
        listed = (f"  --{name:<9} {FLAGS[name].help}" for name in OWN_FLAGS)
        print("\n".join([__doc__ or "", "flags", *listed]))
        return 0
    set_up_logging()
    try:
        sys.argv[:] = read_arguments(arguments)
        main(FLAGS(sys.argv))
    except USER_ERRORS as error:
        if "--debug" in arguments:
            raise
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(cli(sys.argv))
