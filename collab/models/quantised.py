"""Matrices in int8 for decoding: a quarter of the bytes that f32 makes a step read.

    y = (x q) * scale

One scale an output channel, symmetric: q is cast to the matmul's dtype where it is read, which is
exact in bf16, too. Embeddings that are looked up, biases and norms stay as they are. Source: our
choice; per-channel weights lose little at 8 bits (Dettmers et al. 2022).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from collab.models.decoding import INPUT_AXES, TRANSPOSED, TRANSPOSED_SCALE
from collab.models.projection import SCALE
from collab.types import Params

HIGHEST = 127  # of int8, with both signs


def quantise(kernel: jax.Array, *, inputs: int = 1) -> tuple[jax.Array, jax.Array]:
    """The int8 matrix, and the f32 scale of each output channel; their product errs by scale / 2.

    kernel: [*inputs, *outputs], `inputs` axes of them. A channel of zeros has scale 1.
    """
    wide = kernel.astype(jnp.float32)
    highest = jnp.abs(wide).max(axis=tuple(range(inputs)))
    scale = jnp.where(highest > 0, highest / HIGHEST, 1.0)
    return jnp.round(wide / scale).astype(jnp.int8), scale


def quantised(lm: Params) -> Params:
    """A language model's tree, its layers apart, with all that is multiplied by in int8.

    The vocabulary's table is a matrix [D, V] of its own, tied or not.
    """
    layers = {
        index: {name: _quantised_part(name, part) for name, part in layer.items()}
        for index, layer in lm["layers"].items()
    }
    rest = {name: part for name, part in lm.items() if name != "unembedding"}
    table_DV = lm["unembedding"]["kernel"] if "unembedding" in lm else lm["embed"]["embedding"].T
    table_DV, scale_V = quantise(table_DV)
    return {**rest, "layers": layers, TRANSPOSED: table_DV, TRANSPOSED_SCALE: scale_V}


def _quantised_part(name: str, part: Params) -> Params:
    if "kernel" not in part:
        return part
    kernel, scale = quantise(part["kernel"], inputs=INPUT_AXES.get(name, 1))
    return {**part, "kernel": kernel, SCALE: scale}
