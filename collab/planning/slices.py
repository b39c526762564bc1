"""Names of slices and meshes as flags have them."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping

from collab import naming
from collab.chips import CHIPS, Chip

MESH_AXES = ("data", "fsdp", "model")  # as `collab.sharding.AXES`, which needs jax


SQUARES = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8")
SHAPES = {"v4": CUBES, "v5e": SQUARES, "v5p": CUBES, "v6e": SQUARES}  # of the usual slices
ALIASES = {"v5litepod": "v5e"}  # as gcloud spells it


@dataclasses.dataclass(frozen=True)
class Slice:
    """Devices of one kind that a job gets."""

    name: str
    chip: Chip
    devices: int

    @property
    def topology(self) -> str:
        """The shape of a TPU slice of so many chips, such as 2x2x1; "" where there is none."""
        shapes = SHAPES.get(self.chip.name, ())
        by_size = {math.prod(map(int, shape.split("x"))): shape for shape in shapes}
        return by_size.get(self.devices, "")


def read_slice(text: str) -> Slice:
    """v5p-8 is 4 chips (v4 and v5p count cores), v5e-256 is 256, h100-8 is 8.

    Raises: ValueError that names the fix.
    """
    found = re.fullmatch(r"([a-z]+\d*[a-z]*)-([1-9]\d*)", text.lower())
    kind = ALIASES.get(found[1], found[1]) if found else text.lower().partition("-")[0]
    if kind not in CHIPS:
        raise ValueError(f"--slice={text!r} must name one of {', '.join(CHIPS)} and how many, such "
                         f"as --slice=v5e-256{naming.hint(kind, CHIPS)}")  # fmt: skip
    chip = CHIPS[kind]
    if not found:
        raise ValueError(f"--slice={text!r} must say how many; try --slice={kind}-8")
    count = int(found[2])
    if count % chip.cores:
        raise ValueError(
            f"--slice={text!r}: {kind} slices count TensorCores, {chip.cores} a chip; try "
            f"--slice={kind}-{count * chip.cores} for {count} chips"
        )
    return Slice(text.lower(), chip, count // chip.cores)


def read_mesh(text: str) -> dict[str, int]:
    """data=1,fsdp=8,model=1 as a dict; an axis that is not named has size 1.

    Raises: ValueError that names the fix.
    """
    sizes = dict.fromkeys(MESH_AXES, 1)
    for part in text.split(","):
        axis, _, size = part.partition("=")
        if axis.strip() not in sizes or not re.fullmatch(r"[1-9]\d*", size.strip()):
            raise ValueError(
                f"--mesh={text!r}: {part!r} must be one of {', '.join(MESH_AXES)} and its devices; "
                "try --mesh=data=1,fsdp=8,model=1"
            )
        sizes[axis.strip()] = int(size)
    return sizes


def suited_mesh(given: Mapping[str, int], devices: int) -> dict[str, int]:
    """The mesh that takes all of a slice's devices: `given` if it does, else all along `fsdp`.

    A given mesh of one device counts as none.
    Raises: ValueError if another does not fill the slice.
    """
    size = math.prod(given.values())
    if size == devices:
        return dict(given)
    if size == 1:
        return {"data": 1, "fsdp": devices, "model": 1}
    named = ",".join(f"{axis}={count}" for axis, count in given.items())
    rest = given["data"] * given["model"]
    fsdp = devices // rest if devices % rest == 0 else devices
    better = {**given, "fsdp": fsdp} if fsdp != devices else {"data": 1, "fsdp": fsdp, "model": 1}
    raise ValueError(
        f"--mesh={named} takes {size} devices, the slice has {devices}; try --mesh="
        + ",".join(f"{axis}={count}" for axis, count in better.items())
    )
