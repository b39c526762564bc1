"""The splits that every task has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from collab import naming

SPLITS = ("train", "validation", "test")

T = TypeVar("T")


def problems_of(splits: Mapping[str, T], split: str) -> T:
    """What `splits` holds under the name. Raises: ValueError for a split that no task has."""
    naming.check("split=", split, SPLITS)
    return splits[split]
