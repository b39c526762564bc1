"""What accelerators can do at most, by their vendors' public figures.

Peaks are of dense bf16 matmuls; nobody reaches them. Nothing here was measured. Links are in one
direction: half of what vendors call bidirectional; v4's are six of 50 GB/s (Jouppi et al. 2023).
"""

from __future__ import annotations

import dataclasses

GB, GIB = 10**9, 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One device as jax sees it. link_bytes_per_s: in one direction, over all its links together.

    kinds: how `jax.Device.device_kind` begins. cores: TensorCores that a slice's name counts for
    each chip; jax sees them as one device.
    """

    name: str
    kinds: tuple[str, ...]
    memory_bytes: int
    flops_per_s: float
    memory_bytes_per_s: float
    link_bytes_per_s: float
    source: str
    cores: int = 1


TPU, NVIDIA = "cloud.google.com/tpu/docs/", "NVIDIA's data sheet, SXM"
# The first whose kind fits counts: "TPU v5" is v5p, after v5e.
CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v4", ("TPU v4",), 32 * GIB, 275e12, 1200e9, 300e9, TPU + "v4", cores=2),
        Chip("v5e", ("TPU v5 lite", "TPU v5e"), 16 * GB, 197e12, 819e9, 200e9, TPU + "v5e"),
        Chip("v5p", ("TPU v5",), 95 * GB, 459e12, 2765e9, 600e9, TPU + "v5p", cores=2),
        Chip("v6e", ("TPU v6 lite", "TPU v6e"), 32 * GB, 918e12, 1600e9, 400e9, TPU + "v6e"),
        Chip("a100", ("NVIDIA A100-SXM4-80GB",), 80 * GB, 312e12, 2039e9, 300e9, NVIDIA),
        Chip("h100", ("NVIDIA H100 80GB",), 80 * GB, 989e12, 3350e9, 450e9, NVIDIA),
        Chip("h200", ("NVIDIA H200",), 141 * GB, 989e12, 4800e9, 450e9, NVIDIA),
    )
}


def chip_of(device_kind: str) -> Chip | None:
    """The chip of `jax.Device.device_kind`; None for one that the table does not have."""
    return next((chip for chip in CHIPS.values() if device_kind.startswith(chip.kinds)), None)
