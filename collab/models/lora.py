"""Low-rank adapters beside frozen matrices, and what of a policy is trained where there are some.

    y = x W + (alpha / rank) (x A) B

A branch beside W holds A and B (`collab.models.projection`). A tree with any is trained in them and
in the policy's heads alone; nothing else has a gradient or moments. Decoding and export read
the sum, W + (alpha / rank) A B. Source: Hu et al. 2021.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from collab.types import Params

ADAPTER = "lora"  # a branch of the tree, with the leaves "a" and "b"


@dataclasses.dataclass(frozen=True)
class Lora:
    """Adapters of a network. targets: names of `collab.types.PROJECTIONS`."""

    rank: int
    alpha: float
    targets: tuple[str, ...]

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


def split(params: Params) -> tuple[Params, Params]:
    """A policy's leaves that are trained, and those that are frozen.

    Adapters and all but `lm`, and the rest; without adapters everything, and nothing.
    """
    adapters = _adapters_of(params["lm"])
    if not adapters:
        return params, {}
    return {**params, "lm": adapters}, {"lm": base_of(params["lm"])}


def joined(one: Params, other: Params) -> Params:
    """The leaves of both trees; of a leaf that both have, that of `other`."""
    both = {name: joined(one[name], other[name]) for name in one if _is_branch(other.get(name))}
    return {**one, **other, **both}


def completed(trained: Params, params: Params) -> Params:
    """Trained leaves with the frozen ones of `params`."""
    return joined(split(params)[1], trained)


def base_of(lm: Params) -> Params:
    """A tree without its adapters."""
    return {
        name: base_of(part) if _is_branch(part) else part
        for name, part in lm.items()
        if name != ADAPTER
    }


def merged(lm: Params, lora: Lora | None) -> Params:
    """A language model's tree, layers stacked, with the adapters added to their matrices."""
    if lora is None:
        return lm
    return {**lm, "layers": jax.vmap(lambda layer: merged_layer(layer, lora))(lm["layers"])}


def merged_layer(layer: Params, lora: Lora) -> Params:
    """The same of one layer."""

    def added(part: Params) -> Params:
        if ADAPTER not in part:
            return part
        kernel, adapter = part["kernel"], part[ADAPTER]
        delta = jnp.tensordot(adapter["a"], adapter["b"], axes=1, precision="highest")
        return {**base_of(part), "kernel": kernel + (lora.scale * delta).astype(kernel.dtype)}

    return {name: added(part) for name, part in layer.items()}


def _adapters_of(tree: Params) -> Params:
    """Only branches that lead to adapters."""
    below = {name: _adapters_of(part) for name, part in tree.items() if _is_branch(part)}
    below = {name: part for name, part in below.items() if part}
    return below | {ADAPTER: tree[ADAPTER]} if ADAPTER in tree else below


def _is_branch(part: object) -> bool:
    return isinstance(part, dict)
