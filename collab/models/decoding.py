"""Parameters as decoding reads them: layers apart, matrices of one input joined, on CPU turned.

What is laid out is the tree of `collab.models.transformer`, which reads either.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from collab.types import Params

# Parameters that only a tree for decoding has.
QUERY_KEY_VALUE, GATE_UP = "query_key_value", "gate_up"  # several matrices in one
TURNED = "kernel_FD"  # in place of a kernel whose output axes come last
JOINED = {QUERY_KEY_VALUE: ("query", "key", "value"), GATE_UP: ("gate", "up")}
INPUT_AXES = {"out": 2}  # of a kernel, where it is not one
FEW = 64  # tokens


def unstack_layers(
    params: Params, *, is_joined: bool = False, is_turned: bool = False, rows: int = 1
) -> Params:
    """The same parameters for decoding: layers are subtrees "0", "1", ..., not stacked leaves.

    A slice of a stacked leaf is a copy to XLA's CPU back end, and it is not moved out of the decode
    loop. Takes numpy, too. is_joined: what reads the same input is one matrix; not where heads are
    split over devices. is_turned: kernels stand [F, D] where `linear` is faster with so many rows.
    """
    layers = params["layers"]
    count = len(jax.tree.leaves(layers)[0])
    apart = {str(index): layer_of(layers, index) for index in range(count)}
    if is_joined:
        apart = {index: _joined(layer) for index, layer in apart.items()}
    out = {**params, "layers": apart}
    if is_turned:
        out["layers"] = {index: _turned(layer, rows) for index, layer in apart.items()}
    return out


def linear(x: jax.Array, kernel_FD: jax.Array) -> jax.Array:
    """[..., D] -> [..., F], by the matrix times columns.

    XLA's CPU back end takes 0.6 to 0.85 of the time that it takes for 2 to 64 rows times the matrix
    (measured), but exchanges the operands of a product that is turned over right away.
    """
    x_ND = x.reshape(-1, x.shape[-1])
    y_FN = jnp.einsum("fd,nd->fn", kernel_FD, x_ND, preferred_element_type=x.dtype)
    if len(x_ND) <= FEW:
        y_FN = jax.lax.optimization_barrier(y_FN)
    return y_FN.T.reshape(*x.shape[:-1], -1)


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
