"""A tiny network with random weights, and the GGUF that it would be published as."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Callable
from typing import Any

import gguf as gguf_package
import numpy as np

from collab.models.transformer import TransformerConfig
from collab.models.weights import gguf, layout

TINY = TransformerConfig(
    vocabulary=64,
    width=32,
    layers=2,
    heads=4,
    kv_heads=2,
    head_channels=8,
    feed_forward=64,
)


def random_params(config: TransformerConfig, *, seed: int = 0, scale: float = 0.2) -> Any:
    """Normal noise in every tensor, norms and biases included."""
    random = np.random.default_rng(seed)
    shapes = {leaf.name: leaf.published_shape for leaf in layout.leaves(config).values()}

    def tensor(name: str) -> np.ndarray:
        shape = shapes[re.sub(r"layers\.\d+\.", "layers.{}.", name)]
        return (scale * random.standard_normal(shape)).astype(np.float32)

    return layout.build_tree(config, tensor)


def write_gguf(
    path: pathlib.Path,
    config: TransformerConfig,
    params: Any,
    *,
    arch: str,
    kind: str = "F32",
    describe: Callable[[gguf_package.GGUFWriter], None] = lambda writer: None,
) -> None:
    """A GGUF as llama.cpp's converter writes it: Llama's query and key rows reordered.

    kind: of the matrices. describe: adds what the file says besides the network's shape.
    """
    names = dict(gguf.OUTER_NAMES)
    writer = gguf_package.GGUFWriter(str(path), arch)
    writer.add_block_count(config.layers)
    writer.add_embedding_length(config.width)
    writer.add_feed_forward_length(config.feed_forward)
    writer.add_head_count(config.heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_key_length(config.head_channels)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.norm_epsilon)
    describe(writer)
    for name, array in layout.published_tensors(config, params):
        if arch == "llama" and (".q_proj." in name or ".k_proj." in name):
            heads = config.heads if ".q_proj." in name else config.kv_heads
            pairs = array.reshape(heads, 2, config.head_channels // 2, -1)
            array = pairs.swapaxes(1, 2).reshape(array.shape)
        if name not in names:
            _, _, layer, rest = name.split(".", 3)
            part, _, suffix = rest.rpartition(".")
            names[name] = f"blk.{layer}.{gguf.LAYER_PARTS[part]}.{suffix}"
        quantised = array.ndim == 2 and kind != "F32"
        number = gguf_package.GGMLQuantizationType[kind if quantised else "F32"]
        packed = gguf_package.quants.quantize(np.ascontiguousarray(array), number)
        writer.add_tensor(names[name], packed, raw_dtype=number)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
