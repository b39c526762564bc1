"""Where arrays live: the device mesh, path rules for parameters, and row helpers for batches.

Model code names no mesh axis. Parameters and optimizer state are placed by `RULES` (first match
over the "/"-joined path), batches by their rows; `jax.jit` with these shardings does the rest. The
mesh axes: `data` splits rows, `fsdp` splits rows and parameters, `model` splits heads, feed-forward
channels and the vocabulary.
"""

from __future__ import annotations

import logging
import math
import pickle
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

AXES = ("data", "fsdp", "model")
Made = TypeVar("Made")
LEAST_SENT = 4096  # bytes from one process to the others at once: each size is a program

# Specs name the LAST dimensions of a leaf; those before (stacked layers, ranks) stay whole.
RULES: tuple[tuple[str, P], ...] = (
    (r"(^|/)(action|feature)_head(/|$)", P()),  # small, read at every decode step
    (r"(^|/)embed/embedding$", P("model", "fsdp")),  # V D
    (r"(^|/)(unembedding/kernel|embedding_DV)$", P("fsdp", "model")),  # D V
    (r"(^|/)query_key_value/kernel$", P("fsdp", None, None)),  # D H+2M C, not where heads are split
    (r"(^|/)gate_up/kernel$", P("fsdp", None)),  # D 2F, the same
    (r"(^|/)kernel_FD$", P(None, "fsdp")),  # the same
    (r"(^|/)(query|key|value)/kernel$", P("fsdp", "model", None)),  # D H C
    (r"(^|/)(query|key|value)/(bias|lora/b)$", P("model", None)),  # H C
    (r"(^|/)out/kernel$", P("model", None, "fsdp")),  # H C D
    (r"(^|/)(gate|up)/kernel$", P("fsdp", "model")),  # D F
    (r"(^|/)down/kernel$", P("model", "fsdp")),  # F D
    (r"(^|/)(query|key|value|gate|up)/lora/a$", P("fsdp", None)),  # D R
    (r"(^|/)out/lora/a$", P("model", None, None)),  # H C R
    (r"(^|/)down/lora/a$", P("model", None)),  # F R
    (r"(^|/)(out|down)/lora/b$", P("fsdp")),  # D
    (r"(^|/)(gate|up)/lora/b$", P("model")),  # F
    (r"", P()),  # norms, other biases, counters
)


def make_mesh(mesh_config: Mapping[str, int]) -> Mesh:
    """The mesh `(data, fsdp, model)` over the first devices there are.

    Raises: ValueError if a size is not positive, or if the product does not suit the devices: one
    process may leave devices idle (warned), several must use all of theirs.
    """
    sizes = tuple(int(mesh_config[axis]) for axis in AXES)
    for axis, size in zip(AXES, sizes, strict=True):
        if size < 1:
            raise ValueError(f"mesh.{axis}={size} must be at least 1; try mesh.{axis}=1")
    needed, devices = math.prod(sizes), jax.devices()
    must_use_all = jax.process_count() > 1
    if needed > len(devices) or (must_use_all and needed != len(devices)):
        rule = "all" if must_use_all else "at most all"
        rest = sizes[1] * sizes[2]
        fits = len(devices) % rest == 0
        better = (len(devices) // rest, *sizes[1:]) if fits else (len(devices), 1, 1)
        raise ValueError(
            f"{_named(sizes)} take {needed} devices, but must take {rule} of the {len(devices)} "
            f"present; try {_named(better)}"
        )
    if needed < len(devices):
        logging.getLogger(__name__).warning(
            "%s use %d of %d devices, the others stay idle", _named(sizes), needed, len(devices)
        )
    return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * 3, devices=devices[:needed])


def is_first_process() -> bool:
    """Whether this process writes what is written once: metrics, tables, samples."""
    return jax.process_index() == 0


def first_process_first(make: Callable[[], Made]) -> Made:
    """What `make` returns on each process; the first has finished before the others begin.

    For what finds its files or makes them, in a folder that all processes see.
    """
    if jax.process_count() == 1:
        return make()
    try:
        made = make() if is_first_process() else None
    finally:  # a failure of the first must not leave the others waiting
        multihost_utils.sync_global_devices("collab.first_process_first")
    return made if made is not None else make()


def from_first(make: Callable[[], Made]) -> Made:
    """What `make` returns on the first process, which alone calls it, on every process.

    It is pickled. Raises: what `make` raised, on the first; RuntimeError on the others.
    """
    if jax.process_count() == 1:
        return make()
    error: Exception | None = None
    sent = b""
    if is_first_process():
        try:
            sent = pickle.dumps((make(), ""))
        except Exception as found:  # noqa: BLE001  the others must not be left waiting
            error, sent = found, pickle.dumps((None, f"{type(found).__name__}: {found}"))
    with jax.transfer_guard_host_to_device("allow"):
        size = int(multihost_utils.broadcast_one_to_all(np.int32(len(sent))))
        buffer = np.zeros(max(LEAST_SENT, 1 << (size - 1).bit_length()), np.uint8)
        buffer[: len(sent)] = np.frombuffer(sent, np.uint8)
        heard = np.asarray(multihost_utils.broadcast_one_to_all(buffer))[:size].tobytes()
    if error:
        raise error
    made, failure = pickle.loads(heard)
    if failure:
        raise RuntimeError(f"the first process failed: {failure}")
    return made


def on_first(make: Callable[[], Made]) -> Made | None:
    """What `make` returns, on the first process; None on the others. Raises: as `from_first`."""
    made: list[Made] = []
    from_first(lambda: made.append(make()))
    return made[0] if made else None


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, P())


def row_sharding(mesh: Mesh) -> NamedSharding:
    """Axis 0 holds rows, split over `data` and `fsdp`; the other axes stay whole."""
    return NamedSharding(mesh, P(("data", "fsdp")))


def row_parts(mesh: Mesh) -> int:
    """How many parts the rows are split into."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def leaf_paths(tree: Any) -> list[str]:
    """The "/"-joined path of every leaf, in `jax.tree.leaves` order."""
    paths_and_leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in paths_and_leaves]


def param_shardings(tree: Any, mesh: Mesh) -> Any:
    """A NamedSharding for every leaf, by the first of `RULES` that its path matches.

    tree: parameters, or an optimizer state whose paths end in the parameters' names; leaves need
    only a shape. A dimension that its mesh axis does not divide stays whole, and so does a leaf
    with fewer dimensions than its rule names.
    """
    leaves, structure = jax.tree.flatten(tree)
    shardings = [
        NamedSharding(mesh, _leaf_spec(path, shape=np.shape(leaf), mesh=mesh))
        for path, leaf in zip(leaf_paths(tree), leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, shardings)


def put_rows(tree: Any, mesh: Mesh) -> Any:
    """Host arrays to device arrays split by rows.

    Every process passes the same whole arrays and places the rows of its own devices.
    Raises: ValueError if the rows do not divide by the mesh's row axes.
    """
    sharding = row_sharding(mesh)
    parts = row_parts(mesh)

    def put(leaf: Any) -> jax.Array:
        array = np.asarray(leaf)
        if array.ndim == 0 or array.shape[0] % parts:
            raise ValueError(
                f"an array of shape {array.shape} must have rows that divide by "
                f"mesh.data*mesh.fsdp={parts}; try a multiple of {parts} rows"
            )
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    with jax.transfer_guard_host_to_device("allow"):  # meant, though not by `jax.device_put`
        return jax.tree.map(put, tree)


def fetch(tree: Any) -> Any:
    """Device arrays to whole numpy arrays, on every process; all processes must call it."""
    if jax.process_count() == 1:
        return jax.device_get(tree)

    def gather(leaf: Any) -> Any:
        if isinstance(leaf, jax.Array) and not (
            leaf.is_fully_addressable or leaf.is_fully_replicated
        ):
            return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))
        return jax.device_get(leaf)

    with jax.transfer_guard_host_to_device("allow"):  # what gathering needs is not ours to say
        return jax.tree.map(gather, tree)


def _named(sizes: tuple[int, ...]) -> str:
    return ", ".join(f"mesh.{axis}={size}" for axis, size in zip(AXES, sizes, strict=True))


def _leaf_spec(path: str, *, shape: tuple[int, ...], mesh: Mesh) -> P:
    """The spec of the first rule that matches, fitted to the leaf's dimensions."""
    spec = next(spec for pattern, spec in RULES if re.search(pattern, path))
    whole = len(shape) - len(spec)
    if whole < 0:
        return P()
    fitted = [
        axis if axis is not None and size % mesh.shape[axis] == 0 else None
        for axis, size in zip(spec, shape[whole:], strict=True)
    ]
    return P(*[None] * whole, *fitted) if any(fitted) else P()
