"""What accelerators can do at most: memory, its bandwidth, bf16 arithmetic; by the name jax gives.

Per device as jax counts them: a chip, but of a TPU v2 or v3 (not here) a core. Dense arithmetic,
without sparsity.
Source: Google Cloud's pages "TPU v4", "TPU v5e", "TPU v5p" and "TPU v6e"; NVIDIA's data sheets of
A100 (SXM), H100 (SXM) and H200 (SXM), whose peak with sparsity is halved.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Chip:
    """peak_flops: bf16 operations a second. memory: bytes, of powers of ten for GPUs."""

    name: str
    memory_bytes: float
    bytes_per_s: float
    peak_flops: float


GIB = 2.0**30
# By the beginning of jax's `device_kind`; the first that fits counts.
CHIPS: tuple[tuple[str, Chip], ...] = (
    ("TPU v4", Chip("v4", 32 * GIB, 1.228e12, 275e12)),
    ("TPU v5 lite", Chip("v5e", 16 * GIB, 0.819e12, 197e12)),
    ("TPU v5e", Chip("v5e", 16 * GIB, 0.819e12, 197e12)),
    ("TPU v5", Chip("v5p", 95 * GIB, 2.765e12, 459e12)),  # also "TPU v5p"
    ("TPU v6 lite", Chip("v6e", 32 * GIB, 1.640e12, 918e12)),
    ("TPU v6e", Chip("v6e", 32 * GIB, 1.640e12, 918e12)),
    ("NVIDIA A100-SXM4-40GB", Chip("A100-40", 40e9, 1.555e12, 312e12)),
    ("NVIDIA A100-SXM4-80GB", Chip("A100", 80e9, 2.039e12, 312e12)),
    ("NVIDIA H100 80GB HBM3", Chip("H100", 80e9, 3.35e12, 989e12)),
    ("NVIDIA H200", Chip("H200", 141e9, 4.8e12, 989e12)),
)


def chip_of(device_kind: str) -> Chip | None:
    """The chip of `jax.Device.device_kind`; None for one that the table does not have."""
    return next((chip for kind, chip in CHIPS if device_kind.startswith(kind)), None)
