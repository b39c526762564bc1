"""Parameters as decoding reads them: layers apart, matrices of one input joined, on CPU turned.

What is laid out is the tree of `collab.models.transformer`, which reads either.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from collab.models.lora import Lora, merged_layer
from collab.models.projection import TURNED
from collab.types import Params

# Parameters that only a tree for decoding has.
QUERY_KEY_VALUE, GATE_UP = "query_key_value", "gate_up"  # several matrices in one
# In int8: a table [D, V] of its own, tied or not, and its scale.
TRANSPOSED, TRANSPOSED_SCALE = "embedding_DV", "embedding_scale_V"
JOINED = {QUERY_KEY_VALUE: ("query", "key", "value"), GATE_UP: ("gate", "up")}
INPUT_AXES = {"out": 2}  # of a kernel, where it is not one


def unstack_layers(
    params: Params,
    *,
    is_joined: bool = False,
    is_turned: bool = False,
    rows: int = 1,
    lora: Lora | None = None,
) -> Params:
    """The same parameters for decoding: layers are subtrees "0", "1", ..., not stacked leaves.

    A slice of a stacked leaf is a copy to XLA's CPU back end, and it is not moved out of the decode
    loop. Takes numpy, too. is_joined: what reads the same input is one matrix; not where heads are
    split over devices. is_turned: kernels stand [F, D] where that is faster with so many rows (see
    `projection.linear`). lora: of the network; its adapters are merged.
    """
    layers = params["layers"]
    count = len(jax.tree.leaves(layers)[0])
    apart = {str(index): layer_of(layers, index) for index in range(count)}
    if lora:
        apart = {index: merged_layer(layer, lora) for index, layer in apart.items()}
    if is_joined:
        apart = {index: _joined(layer) for index, layer in apart.items()}
    out = {**params, "layers": apart}
    if is_turned:
        out["layers"] = {index: _turned(layer, rows) for index, layer in apart.items()}
    return out


def _joined(layer: Params) -> Params:
    """A layer with matrices of one input side by side: of heads, or of feed-forward channels."""
    parts = {part for names in JOINED.values() for part in names}
    joined = {name: part for name, part in layer.items() if name not in parts}
    for name, (first, *others) in JOINED.items():
        joined[name] = {
            leaf: jnp.concatenate([value, *(layer[other][leaf] for other in others)], axis=axis)
            for leaf, value in layer[first].items()
            for axis in [(1 if leaf == "kernel" else 0)]
        }
    return joined


def _turned(maps: Params, rows: int) -> Params:
    """Linear maps with kernels [F, D]; for a single row only where D is at least F."""
    out = dict(maps)
    for name, parts in maps.items():
        if "kernel" not in parts:
            continue
        kernel = parts["kernel"]
        inputs = math.prod(kernel.shape[: INPUT_AXES.get(name, 1)])
        if rows > 1 or inputs**2 >= kernel.size:
            rest = {leaf: value for leaf, value in parts.items() if leaf != "kernel"}
            out[name] = {**rest, TURNED: kernel.reshape(inputs, -1).T}
    return out


def layer_of(layers: Params, index: int) -> Params:
    """Of stacked layers or of unstacked ones."""
    if str(index) in layers:
        return layers[str(index)]
    one: Params = jax.tree.map(lambda leaf: leaf[index], layers)
    return one
