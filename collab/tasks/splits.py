"""The splits that every task has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

SPLITS = ("train", "validation", "test")

T = TypeVar("T")


def problems_of(splits: Mapping[str, T], split: str) -> T:
    """What `splits` holds under the name. Raises: ValueError for a split that no task has."""
    if split not in splits:
        raise ValueError(f"split={split!r} must be one of {', '.join(SPLITS)}")
    return splits[split]
