"""Parameters as decoding reads them: layers apart, matrices of one input joined.

What is laid out is the tree of `collab.models.transformer`, which reads either.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from collab.models.lora import Lora, merged_layer
from collab.types import Params

# Parameters that only a tree for decoding has.
QUERY_KEY_VALUE, GATE_UP = "query_key_value", "gate_up"  # several matrices in one
TRANSPOSED = "embedding_DV"  # a second table of a tied one; in int8 of any
TRANSPOSED_SCALE = "embedding_scale_V"  # of an int8 one
JOINED = {QUERY_KEY_VALUE: ("query", "key", "value"), GATE_UP: ("gate", "up")}


def unstack_layers(
    params: Params,
    *,
    is_joined: bool = False,
    is_transposed: bool = False,
    lora: Lora | None = None,
) -> Params:
    """The same parameters for decoding: layers are subtrees "0", "1", ..., not stacked leaves.

    A slice of a stacked leaf is a copy to XLA's CPU back end, and it is not moved out of the decode
    loop. Takes numpy, too. is_joined: what reads the same input is one matrix; not where heads are
    split over devices. is_transposed: a tied table stands there [D, V] besides: faster on CPU.
    lora: of the network; its adapters are merged.
    """
    layers = params["layers"]
    count = len(jax.tree.leaves(layers)[0])
    apart = {str(index): layer_of(layers, index) for index in range(count)}
    if lora:
        apart = {index: merged_layer(layer, lora) for index, layer in apart.items()}
    if is_joined:
        apart = {index: _joined(layer) for index, layer in apart.items()}
    out = {**params, "layers": apart}
    if is_transposed and "unembedding" not in params:
        out[TRANSPOSED] = params["embed"]["embedding"].T
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


def layer_of(layers: Params, index: int) -> Params:
    """Of stacked layers or of unstacked ones."""
    if str(index) in layers:
        return layers[str(index)]
    one: Params = jax.tree.map(lambda leaf: leaf[index], layers)
    return one
