"""The one table of parameters: where each leaf of `Transformer` stands in a published model.

Names are those of Hugging Face's Llama, Qwen2 and Qwen3; `gguf` translates them once more. Their
matrices are [out, in], ours [in, out] with heads and channels as own axes and layers stacked.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np

from collab.models.transformer import TransformerConfig
from collab.types import Params


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One parameter. name: the published one, "{}" for the layer; shape: ours, without layers.

    inputs: size of a matrix's input side, which is transposed on the way; 0 = taken as it is.
    """

    name: str
    shape: tuple[int, ...]
    inputs: int = 0

    @property
    def published_shape(self) -> tuple[int, ...]:
        """[out, in] for a matrix, [heads * channels] for a bias."""
        size = int(np.prod(self.shape))
        if self.inputs:
            return (size // self.inputs, self.inputs)
        return (size,) if self.name.endswith("bias") else self.shape


def leaves(config: TransformerConfig) -> dict[tuple[str, ...], Leaf]:
    """Every parameter of this network by its path in the tree."""
    width, hidden = config.width, config.feed_forward
    query, kv = (config.heads, config.head_channels), (config.kv_heads, config.head_channels)
    attention, mlp = "model.layers.{}.self_attn.", "model.layers.{}.mlp."
    layer = {
        ("attention_norm", "scale"): Leaf("model.layers.{}.input_layernorm.weight", (width,)),
        ("query", "kernel"): Leaf(attention + "q_proj.weight", (width, *query), width),
        ("key", "kernel"): Leaf(attention + "k_proj.weight", (width, *kv), width),
        ("value", "kernel"): Leaf(attention + "v_proj.weight", (width, *kv), width),
        ("out", "kernel"): Leaf(
            attention + "o_proj.weight", (*query, width), config.heads * config.head_channels
        ),
        ("mlp_norm", "scale"): Leaf("model.layers.{}.post_attention_layernorm.weight", (width,)),
        ("gate", "kernel"): Leaf(mlp + "gate_proj.weight", (width, hidden), width),
        ("up", "kernel"): Leaf(mlp + "up_proj.weight", (width, hidden), width),
        ("down", "kernel"): Leaf(mlp + "down_proj.weight", (hidden, width), hidden),
    }
    if config.has_qkv_bias:
        layer["query", "bias"] = Leaf(attention + "q_proj.bias", query)
        layer["key", "bias"] = Leaf(attention + "k_proj.bias", kv)
        layer["value", "bias"] = Leaf(attention + "v_proj.bias", kv)
    if config.has_qk_norm:
        layer["query_norm", "scale"] = Leaf(attention + "q_norm.weight", query[1:])
        layer["key_norm", "scale"] = Leaf(attention + "k_norm.weight", kv[1:])
    table: dict[tuple[str, ...], Leaf] = {
        ("embed", "embedding"): Leaf("model.embed_tokens.weight", (config.vocabulary, width)),
        **{("layers", *path): leaf for path, leaf in layer.items()},
        ("final_norm", "scale"): Leaf("model.norm.weight", (width,)),
    }
    if not config.is_tied:
        table["unembedding", "kernel"] = Leaf("lm_head.weight", (width, config.vocabulary), width)
    return table


def build_tree(config: TransformerConfig, read: Callable[[str], np.ndarray]) -> Params:
    """The parameter tree, f32, from `read(published name)`.

    Raises: ValueError if a tensor has another shape than the configuration says.
    """

    def one(leaf: Leaf, name: str) -> np.ndarray:
        array = read(name)
        if array.shape != leaf.published_shape:
            raise ValueError(
                f"tensor {name} has shape {array.shape}, the model's configuration says "
                f"{leaf.published_shape}; weights and configuration do not belong together"
            )
        return (array.T if leaf.inputs else array).reshape(leaf.shape)

    tree: Params = {}
    for path, leaf in leaves(config).items():
        if path[0] == "layers":
            stacked = np.empty((config.layers, *leaf.shape), np.float32)
            for index in range(config.layers):
                stacked[index] = one(leaf, leaf.name.format(index))
        else:
            stacked = np.array(one(leaf, leaf.name), np.float32, order="C")
        branch = tree
        for key in path[:-1]:
            branch = branch.setdefault(key, {})
        branch[path[-1]] = stacked
    return tree


def published_names(config: TransformerConfig) -> Iterator[str]:
    """Names of all tensors that a published model of this shape holds."""
    for path, leaf in leaves(config).items():
        if path[0] == "layers":
            yield from (leaf.name.format(index) for index in range(config.layers))
        else:
            yield leaf.name


def published_tensors(
    config: TransformerConfig, params: Params
) -> Iterator[tuple[str, np.ndarray]]:
    """Name and array of every tensor as a published model has it, in the parameters' own dtype.

    Raises: ValueError if a leaf has another shape than the configuration says.
    """

    def one(leaf: Leaf, array: np.ndarray) -> np.ndarray:
        if leaf.inputs:
            array = array.reshape(leaf.inputs, -1).T
        return np.ascontiguousarray(array.reshape(leaf.published_shape))

    for path, leaf in leaves(config).items():
        branch = params
        for key in path:
            branch = branch[key]
        array = np.asarray(branch)
        is_layer = path[0] == "layers"
        shape = (config.layers, *leaf.shape) if is_layer else leaf.shape
        if array.shape != shape:
            raise ValueError(f"parameter {'/'.join(path)} has shape {array.shape}, not {shape}")
        if is_layer:
            yield from ((leaf.name.format(i), one(leaf, array[i])) for i in range(config.layers))
        else:
            yield leaf.name, one(leaf, array)
