"""The devices that a plan is compiled for: a CPU's stand-ins, or a TPU slice that isn't here.

libtpu holds the whole compiler of TPUs and needs none to compile; so where it is installed
(pip install -e .[tpu], Linux) temporaries are those of the real program. Seen so far: libtpu 0.0.42
describes v4, v5e, v5p and v6e slices and compiles a sharded matmul for v5e. No whole plan has been
compiled with it yet.
"""

from __future__ import annotations

import importlib.util
import os
import re

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh

from collab import sharding
from collab.planning.slices import Slice

# What libtpu would else ask Google's metadata server for.
ALONE = {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost"}
# As libtpu numbers a chip's cores: one device a chip.
MEGACORE = {"v4": {"chip_config_name": "megacore"}}


def stand_in(devices: int) -> None:
    """Have jax see so many CPU devices. Raises: RuntimeError where it has seen others already."""
    given = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = re.sub(r"--xla_force_host_platform_device_count=\S*", "", given)
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", devices)


def check_tpu_compiler(place: Slice | None) -> None:
    """Raises: ValueError that names the fix, unless libtpu is here and the slice is one of TPUs."""
    if place is None or not place.topology:
        raise ValueError(
            "--compiler=tpu needs a slice of TPUs that Google offers; try --slice=v5e-8, or leave "
            "--compiler out"
        )
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError("--compiler=tpu needs the package libtpu; pip install -e .[tpu]")


def tpu_mesh(place: Slice, sizes: dict[str, int]) -> Mesh:
    """The mesh over the devices of a slice, none of which need be here."""
    for name, value in ALONE.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", place.name)
    found = topologies.get_topology_desc(
        platform="tpu",
        topology_name=f"{place.chip.name}:{place.topology}",
        **MEGACORE.get(place.chip.name, {}),
    )
    shape = tuple(sizes[axis] for axis in sharding.AXES)
    devices: np.ndarray = np.array(found.devices).reshape(shape)
    return Mesh(devices, sharding.AXES, axis_types=(AxisType.Auto,) * len(shape))
