"""Chips by the names that jax gives them, and what those can do."""

from __future__ import annotations

import pytest

from collab.chips import CHIPS, Chip, chip_of

# As jax prints them for these devices.
SEEN = {
    "TPU v4": "v4",
    "TPU v5 lite": "v5e",
    "TPU v5": "v5p",
    "TPU v5p": "v5p",
    "TPU v6 lite": "v6e",
    "NVIDIA A100-SXM4-80GB": "a100",
    "NVIDIA H100 80GB HBM3": "h100",
    "NVIDIA H200": "h200",
}


@pytest.mark.parametrize(("kind", "name"), SEEN.items())
def test_a_device_is_known_by_its_kind(kind: str, name: str) -> None:
    chip = chip_of(kind)
    assert chip is not None and chip.name == name


@pytest.mark.parametrize("kind", ["cpu", "", "NVIDIA GeForce RTX 4090", "TPU v7"])
def test_of_others_nothing_is_said(kind: str) -> None:
    assert chip_of(kind) is None


@pytest.mark.parametrize("chip", CHIPS.values(), ids=CHIPS)
def test_figures_are_of_the_right_size(chip: Chip) -> None:
    """A slip of a thousand, or sparsity counted in: all lie between 100 and 1000 FLOP a byte."""
    assert 100 < chip.flops_per_s / chip.memory_bytes_per_s < 1000
    assert 1e10 < chip.memory_bytes < 2e11
    assert chip.flops_per_s < 1e15
