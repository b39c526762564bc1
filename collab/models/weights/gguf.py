"""GGUF files of Llama, Qwen2 and Qwen3 models, dequantised to f32.

Dequantising 135M parameters takes seconds, so the converted tree is kept in the user's cache
folder, under the digest of the file's content.
"""

from __future__ import annotations

import hashlib
import os
import pathlib
import tempfile
from typing import Any

import numpy as np
from absl import logging

from collab.models.transformer import TransformerConfig
from collab.models.weights import layout
from collab.tokenizers import gguf_file
from collab.tokenizers.base import require
from collab.types import Params

ARCHITECTURES = ("llama", "qwen2", "qwen3")
CONVERSION = "1"  # raise it when the same file should give other parameters
# part of a published name -> its GGUF name, after "blk.<layer>."
LAYER_PARTS = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
OUTER_NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}


def load(
    source: str, *, cache_dir: pathlib.Path | None = None, use_cache: bool = True
) -> tuple[Params, TransformerConfig]:
    """Parameters and shape of a GGUF (`gguf:PATH` or `package:NAME`).

    cache_dir: None = $XDG_CACHE_HOME/collab (or ~/.cache/collab). A cache that can't be written is
    logged, and the file is converted again next time.
    """
    path = gguf_file.resolve(source)
    file = gguf_file.read(path)
    config = read_config(file)
    if not use_cache:
        return convert(file, config), config
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    folder = cache_dir or default_cache_dir()
    kept = folder / f"{path.stem}-{digest[:16]}-{CONVERSION}.safetensors"
    numpy_format = require("safetensors.numpy")
    if kept.is_file():
        try:
            return _nest(numpy_format.load_file(kept)), config
        except require("safetensors").SafetensorError as error:
            logging.warning("cached weights %s are damaged, converting again: %s", kept, error)
    params = convert(file, config)
    try:
        _write_atomically(kept, _flatten(params))
    except OSError as error:
        logging.warning("converted weights were not cached in %s: %s", folder, error)
    return params, config


def default_cache_dir() -> pathlib.Path:
    """The user's cache folder, by the XDG base directory rule."""
    root = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return pathlib.Path(root).expanduser() / "collab"


def read_config(file: gguf_file.GgufFile) -> TransformerConfig:
    """The network's shape from the metadata.

    Raises: ValueError for an unknown architecture or stretched rotary positions.
    """
    name = file.get("general.architecture")
    if name not in ARCHITECTURES:
        raise ValueError(
            f"{file.path.name}: architecture {name!r} must be one of {', '.join(ARCHITECTURES)}"
        )
    scaling = file.metadata.get(f"{name}.rope.scaling.type", "none")
    if scaling != "none" or "rope_freqs.weight" in file.tensors:
        raise ValueError(
            f"{file.path.name}: stretched rotary positions are not read from GGUF; "
            "load the same model from its Hugging Face folder (model.weights=hf:FOLDER)"
        )
    width, heads = file.get(f"{name}.embedding_length"), file.get(f"{name}.attention.head_count")
    head_channels = file.metadata.get(f"{name}.attention.key_length", width // heads)
    rotary = file.metadata.get(f"{name}.rope.dimension_count", head_channels)
    if rotary != head_channels:
        raise ValueError(
            f"{file.path.name}: {rotary} rotary channels of {head_channels}; must be all of them"
        )
    epsilon = file.get(f"{name}.attention.layer_norm_rms_epsilon")
    if "token_embd.weight" not in file.tensors:
        raise ValueError(f"{file.path.name} holds no weights, only a vocabulary; name another file")
    return TransformerConfig(
        vocabulary=file.tensors["token_embd.weight"].shape[0],
        width=width,
        layers=file.get(f"{name}.block_count"),
        heads=heads,
        kv_heads=file.metadata.get(f"{name}.attention.head_count_kv", heads),
        head_channels=head_channels,
        feed_forward=file.get(f"{name}.feed_forward_length"),
        rope_theta=file.metadata.get(f"{name}.rope.freq_base", 10_000.0),
        norm_epsilon=float(f"{epsilon:.6g}"),  # stored as f32: 9.99999974e-06 means 1e-5
        is_tied="output.weight" not in file.tensors,
        has_qkv_bias="blk.0.attn_q.bias" in file.tensors,
        has_qk_norm="blk.0.attn_q_norm.weight" in file.tensors,
    )


def convert(file: gguf_file.GgufFile, config: TransformerConfig) -> Params:
    """Dequantise every tensor. Raises: ValueError if one is missing or of an unexpected shape."""
    is_permuted = file.get("general.architecture") == "llama"

    def read(name: str) -> np.ndarray:
        array = _dequantise(file, _gguf_name(name))
        if is_permuted and (".q_proj." in name or ".k_proj." in name):
            heads = config.heads if ".q_proj." in name else config.kv_heads
            return unpermute(array, heads)
        return array

    return layout.build_tree(config, read)


def unpermute(rows: np.ndarray, heads: int) -> np.ndarray:
    """Undo llama.cpp's reordering of a query's or key's rows.

    Its Llama converter puts the two channels of a rotary pair side by side; ours stand half a head
    apart, as in the published model. Qwen files are not reordered.
    """
    half = rows.shape[0] // heads // 2
    return rows.reshape(heads, half, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def _gguf_name(name: str) -> str:
    if name in OUTER_NAMES:
        return OUTER_NAMES[name]
    _, _, layer, rest = name.split(".", 3)
    part, _, suffix = rest.rpartition(".")
    return f"blk.{layer}.{LAYER_PARTS[part]}.{suffix}"


def _dequantise(file: gguf_file.GgufFile, name: str) -> np.ndarray:
    if name not in file.tensors:
        raise ValueError(f"{file.path.name} has no tensor {name}; the file is incomplete")
    library, quants = require("gguf"), require("gguf.quants")
    entry = file.tensors[name]
    kind = library.GGMLQuantizationType(entry.type)
    shape: Any = quants.quant_shape_to_byte_shape(entry.shape, kind)
    size = int(np.prod(shape))
    raw = file.data[entry.offset : entry.offset + size]
    if raw.size != size:
        raise ValueError(f"{file.path.name} ends inside tensor {name}; fetch it again")
    array = quants.dequantize(np.asarray(raw).reshape(shape), kind)
    return np.asarray(array, np.float32)


def _flatten(params: Params, prefix: str = "") -> dict[str, np.ndarray]:
    flat: dict[str, np.ndarray] = {}
    for key, value in params.items():
        if isinstance(value, dict):
            flat.update(_flatten(value, f"{prefix}{key}/"))
        else:
            flat[prefix + key] = value
    return flat


def _nest(flat: dict[str, np.ndarray]) -> Params:
    tree: Params = {}
    for name, array in flat.items():
        *path, last = name.split("/")
        branch = tree
        for key in path:
            branch = branch.setdefault(key, {})
        branch[last] = array
    return tree


def _write_atomically(path: pathlib.Path, flat: dict[str, np.ndarray]) -> None:
    """Write beside the target and rename, so that no reader ever meets half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        written = pathlib.Path(folder) / path.name
        require("safetensors.numpy").save_file(flat, written)
        os.replace(written, path)
