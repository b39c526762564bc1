"""Which episodes share a row of the context: first fit, the longest first.

Source: Johnson 1973; it takes at most 11/9 of the fewest rows and 6/9 of one (Dósa 2007).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def pack(lengths: Sequence[int], row_tokens: int) -> tuple[np.ndarray, int]:
    """Where each episode starts, row after row, and how many rows that takes.

    lengths: tokens, each at most `row_tokens`. Returns starts i64 [number of episodes] among the
    tokens of all rows; an episode lies in one row, and shares no token with another.
    """
    start_E = np.zeros(len(lengths), np.int64)
    filled: list[int] = []  # tokens of each row
    for episode in sorted(range(len(lengths)), key=lambda e: (-lengths[e], e)):
        length = lengths[episode]
        fits = (row for row, used in enumerate(filled) if used + length <= row_tokens)
        row = next(fits, len(filled))
        if row == len(filled):
            filled.append(0)
        start_E[episode] = row * row_tokens + filled[row]
        filled[row] += length
    return start_E, len(filled)
