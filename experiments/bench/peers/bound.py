"""What this machine could do at best: weights read once a step, and matmuls at full speed.

Measured here and now by BLAS: a product of a large matrix with a vector, which reads memory and
little else, and one of square matrices, which computes.
"""

from __future__ import annotations

import time

import numpy as np

from collab.models.presets import PRESETS
from experiments.bench.peers.ours import VOCABULARY

SQUARE, TALL = 1536, (98_304, 1024)  # TALL is 400 MB, past every cache


class Bound:
    """Seconds follow from bytes and operations; those of attention are left out."""

    def __init__(self) -> None:
        shape = PRESETS["smollm2_135m"]
        width, channels = shape["width"], shape["head_channels"]
        attention = width * channels * 2 * (shape["heads"] + shape["kv_heads"])
        layer = attention + 3 * width * shape["feed_forward"]
        self.layers, self.table = shape["layers"] * layer, VOCABULARY * width
        rng = np.random.default_rng(0)
        self.tall = rng.standard_normal(TALL, np.float32)
        self.vector = rng.standard_normal(TALL[1], np.float32)
        self.square = rng.standard_normal((SQUARE, SQUARE), np.float32)

    def generate(self, *, batch: int, prompt: int, new: int, greedy: bool) -> float:
        read_s = _least(lambda: self.tall @ self.vector) / self.tall.nbytes  # a byte
        product_s = _least(lambda: self.square @ self.square) / (2 * SQUARE**3)  # an operation
        reading = 2 * batch * prompt * self.layers * product_s
        step = max(
            4 * (self.layers + self.table) * read_s,
            2 * batch * (self.layers + self.table) * product_s,
        )
        return reading + new * step

    def update(self, *, batch: int, length: int, has_reference: bool) -> None:
        raise NotImplementedError


def _least(work: object) -> float:
    assert callable(work)
    taken = []
    for _ in range(3):
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    return min(taken)
