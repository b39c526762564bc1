"""How far two verdicts on the same things agree: counts, agreement rate, Cohen's kappa.

A verdict is True (leaked), False, or None where there is none; what either has no verdict on does
not count. Whose verdicts they are is for `collab.privacy.panel`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class Agreement:
    """Counts of things that both, one or neither call leaked."""

    both: int = 0
    first_only: int = 0
    second_only: int = 0
    neither: int = 0

    @property
    def pairs(self) -> int:
        """Things that both gave a verdict on."""
        return self.both + self.first_only + self.second_only + self.neither

    @property
    def rate(self) -> float | None:
        """Share on which they agree, in [0, 1]; None without a pair."""
        return (self.both + self.neither) / self.pairs if self.pairs else None

    @property
    def kappa(self) -> float | None:
        """Agreement beyond chance, at most 1; None where chance alone explains all of it.

        That is so without a pair, and where both always say the same one thing.
        Source: Cohen 1960.
        """
        if self.rate is None:
            return None
        first = (self.both + self.first_only) / self.pairs
        second = (self.both + self.second_only) / self.pairs
        chance = first * second + (1 - first) * (1 - second)
        return None if chance == 1.0 else (self.rate - chance) / (1 - chance)


def compare(first: Sequence[bool | None], second: Sequence[bool | None]) -> Agreement:
    """Count over two verdicts on each thing, in the same order."""
    told = [(a, b) for a, b in zip(first, second, strict=True) if a is not None and b is not None]
    return Agreement(
        both=sum(a and b for a, b in told),
        first_only=sum(a and not b for a, b in told),
        second_only=sum(b and not a for a, b in told),
        neither=sum(not a and not b for a, b in told),
    )
