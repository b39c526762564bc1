"""Hugging Face folders (config.json and *.safetensors, sharded or not) of Llama, Qwen2 and Qwen3.

SmolLM is a Llama. `export` writes the same layout back, so that other engines serve what was
trained here.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from collab.models.lora import merged
from collab.models.transformer import RopeScaling, TransformerConfig
from collab.models.weights import layout
from collab.tokenizers.base import read_json, require
from collab.types import Params

INDEX_FILE, WEIGHTS_FILE = "model.safetensors.index.json", "model.safetensors"
CLASSES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
# key of config.json -> the values that this network computes
SUPPORTED = {
    "hidden_act": ("silu", "swish"),
    "mlp_bias": (False,),
    "use_sliding_window": (False,),
    "partial_rotary_factor": (1.0,),
    "rope_interleaved": (False,),
    "quantization_config": (),
}
NEEDED = (
    "num_attention_heads", "vocab_size", "hidden_size", "num_hidden_layers", "intermediate_size",
    "rms_norm_eps",
)  # fmt: skip
YARN_EXTRAS = ("attention_factor", "mscale", "mscale_all_dim")


def load(folder: pathlib.Path) -> tuple[Params, TransformerConfig]:
    """Parameters (f32) and shape of a folder.

    Raises: ValueError if it is no such folder, or of another architecture, or lacks a tensor, or
    holds one that has no place in the network.
    """
    config = read_config(folder)
    files = _tensor_files(folder)
    needed = set(layout.published_names(config))
    missing = sorted(needed - files.keys())
    if missing:
        raise ValueError(f"{folder} lacks {len(missing)} tensors, the first is {missing[0]}")
    # A tied model may repeat its embedding as lm_head; older ones store rotary frequencies.
    unknown = sorted(
        name
        for name in files.keys() - needed
        if name != "lm_head.weight" and not name.endswith("rotary_emb.inv_freq")
    )
    if unknown:
        raise ValueError(f"{folder} holds tensors that the network has no place for: {unknown[:3]}")
    opened = {path: _opened(path) for path in set(files.values())}

    def read(name: str) -> np.ndarray:
        return np.asarray(opened[files[name]].get_tensor(name), np.float32)

    return layout.build_tree(config, read), config


def _tensor_files(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """The file that holds each tensor."""
    index = folder / INDEX_FILE
    if index.is_file():
        found = read_json(index)
        _require_keys(found, index, ("weight_map",))
        shards = found["weight_map"]
        absent = sorted({shard for shard in shards.values() if not (folder / shard).is_file()})
        if absent:
            raise ValueError(f"{folder}: {INDEX_FILE} names {absent[0]}, which is not there")
        return {name: folder / shard for name, shard in shards.items()}
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        raise ValueError(f"{folder} holds neither {WEIGHTS_FILE} nor {INDEX_FILE}")
    with _opened(path) as file:
        return dict.fromkeys(file.keys(), path)


def _opened(path: pathlib.Path) -> Any:
    """An open file of tensors. Raises: ValueError if it is damaged."""
    library = require("safetensors")
    try:
        return library.safe_open(str(path), framework="numpy")
    except library.SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}); fetch it again") from error


def _require_keys(found: Mapping[str, Any], path: pathlib.Path, needed: Sequence[str]) -> None:
    lacking = [key for key in needed if found.get(key) is None]
    if lacking:
        raise ValueError(f"{path} lacks {', '.join(lacking)}; fetch it again")


def read_config(folder: pathlib.Path) -> TransformerConfig:
    """The network's shape from config.json.

    Raises: ValueError if the file is missing or asks for something this network does not compute.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(f"model.weights=hf:{folder}: {path} does not exist")
    raw = read_json(path)
    family = raw.get("model_type")
    if family not in CLASSES:
        raise ValueError(f"{path}: model_type={family!r} must be one of {', '.join(CLASSES)}")
    for key, accepted in SUPPORTED.items():
        if raw.get(key) is not None and raw[key] not in accepted:
            raise ValueError(f"{path}: {key}={raw[key]!r} is not computed here")
    if family != "qwen2" and raw.get("attention_bias"):
        raise ValueError(f"{path}: attention_bias=true (one on o_proj too) is not computed here")
    _require_keys(raw, path, NEEDED)
    theta, scaling = _rope(raw, path)
    heads = raw["num_attention_heads"]
    return TransformerConfig(
        vocabulary=raw["vocab_size"],
        width=raw["hidden_size"],
        layers=raw["num_hidden_layers"],
        heads=heads,
        kv_heads=raw.get("num_key_value_heads") or heads,
        head_channels=raw.get("head_dim") or raw["hidden_size"] // heads,
        feed_forward=raw["intermediate_size"],
        rope_theta=theta,
        rope_scaling=scaling,
        norm_epsilon=raw["rms_norm_eps"],
        is_tied=raw.get("tie_word_embeddings", False),
        has_qkv_bias=family == "qwen2",
        has_qk_norm=family == "qwen3",
    )


def _rope(raw: Mapping[str, Any], path: pathlib.Path) -> tuple[float, RopeScaling | None]:
    """Rotary base and scaling, from the keys of transformers 5 or those before it."""
    newer = raw.get("rope_parameters") or {}
    entry = raw.get("rope_scaling") or newer
    theta = float(newer.get("rope_theta", raw.get("rope_theta", 10_000.0)))
    kind = entry.get("rope_type", entry.get("type", "default"))
    if kind == "default":
        return theta, None
    extras = [key for key in YARN_EXTRAS if entry.get(key) is not None]
    if kind not in ("linear", "llama3", "yarn") or extras or entry.get("truncate") is False:
        raise ValueError(
            f"{path}: rope_type={kind!r} {' '.join(extras)} is not computed here; "
            "linear, llama3 and plain yarn are"
        )
    _require_keys(entry, path, ("factor",))
    context = entry.get("original_max_position_embeddings", raw.get("max_position_embeddings"))
    names = ("low_freq_factor", "high_freq_factor", "beta_fast", "beta_slow")
    given = {name: float(entry[name]) for name in names if entry.get(name) is not None}
    return theta, RopeScaling(
        kind=kind, factor=float(entry["factor"]), original_context=context or 8192, **given
    )


def export(
    folder: pathlib.Path, params: Params, config: TransformerConfig, *, context: int = 8192
) -> None:
    """Write config.json and model.safetensors as Hugging Face lays them out, adapters merged.

    context: longest sequence the model is for, a hint to whoever serves it.
    Raises: ValueError if no published family has this combination of options.
    """
    if config.has_qkv_bias and config.has_qk_norm:
        raise ValueError("no published family has query/key/value bias and query/key norm at once")
    family = "qwen2" if config.has_qkv_bias else "qwen3" if config.has_qk_norm else "llama"
    settings: dict[str, Any] = {
        "architectures": [CLASSES[family]],
        "model_type": family,
        "vocab_size": config.vocabulary,
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_channels,
        "intermediate_size": config.feed_forward,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_epsilon,
        "rope_theta": config.rope_theta,
        "rope_scaling": _published_scaling(config.rope_scaling),
        "tie_word_embeddings": config.is_tied,
        "max_position_embeddings": context,
        "torch_dtype": "float32",
    }
    if family != "qwen2":
        settings["attention_bias"] = False
    folder.mkdir(parents=True, exist_ok=True)
    tensors = dict(layout.published_tensors(config, merged(params, config.lora)))
    path = str(folder / WEIGHTS_FILE)
    require("safetensors.numpy").save_file(tensors, path, metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(settings, indent=2), encoding="utf-8")


def _published_scaling(scaling: RopeScaling | None) -> dict[str, Any] | None:
    if scaling is None:
        return None
    entry = {"rope_type": scaling.kind, "factor": scaling.factor}
    own = {"llama3": ("low_freq_factor", "high_freq_factor"), "yarn": ("beta_fast", "beta_slow")}
    values = dataclasses.asdict(scaling)
    entry |= {name: values[name] for name in own.get(scaling.kind, ())}
    if scaling.kind in own:
        entry["original_max_position_embeddings"] = scaling.original_context
    return entry
