"""Pretrained weights in and out: GGUF files and Hugging Face folders.

`shape` and `read` dispatch on the source, `load` fits what they give to a configured network with
control tokens, `export` writes a Hugging Face folder. `layout` holds the one table of parameter
names that all formats share.
"""

from __future__ import annotations

import dataclasses
import pathlib

import numpy as np

from collab.models.transformer import TransformerConfig
from collab.models.weights import gguf, safetensors
from collab.models.weights.safetensors import export
from collab.tokenizers import gguf_file
from collab.types import Params

__all__ = ["check_fit", "export", "extend_vocabulary", "load", "read", "shape"]

NOISE = 0.1  # deviations of the table; tells new tokens apart, leaves them near its middle


def load(
    source: str,
    config: TransformerConfig,
    *,
    cache_dir: pathlib.Path | None = None,
    use_cache: bool = True,
) -> Params:
    """Parameters of `Transformer(config)` (numpy f32): the source's own, rows added for controls.

    No adapters: a source has none.

    Raises: ValueError as `read`, or if the weights have another shape than `config`, or more
    tokens.
    """
    check_fit(source, config)
    params, _ = read(source, cache_dir=cache_dir, use_cache=use_cache)
    return extend_vocabulary(params, config.vocabulary)


def check_fit(source: str, config: TransformerConfig) -> None:
    """Raise ValueError if `load` would; of the source only its shape is read."""
    own = shape(source)
    if own.vocabulary > config.vocabulary:
        raise ValueError(
            f"model.weights={source!r} have {own.vocabulary} tokens, the tokenizer "
            f"{config.vocabulary}; set tokenizer.kind to the kind of these weights (gguf or hf)"
        )
    found = dataclasses.replace(
        own,
        vocabulary=config.vocabulary,
        dtype=config.dtype,
        remat=config.remat,
        lora=config.lora,
        row_sharding=config.row_sharding,
    )
    wrong = [
        f"{field.name} {getattr(config, field.name)} (weights: {getattr(found, field.name)})"
        for field in dataclasses.fields(config)
        if getattr(config, field.name) != getattr(found, field.name)
    ]
    if wrong:
        raise ValueError(
            f"model.preset does not fit model.weights={source!r}: {'; '.join(wrong)}; "
            "name the preset of these weights, or '' for their own shape"
        )


def read(
    source: str, *, cache_dir: pathlib.Path | None = None, use_cache: bool = True
) -> tuple[Params, TransformerConfig]:
    """The source's parameters as they are (numpy f32), and their shape.

    source: gguf:PATH, package:NAME (a package that ships a GGUF) or hf:FOLDER. cache_dir: where
    converted GGUFs are kept; None = the user's cache folder. A folder's tensors are not cached.
    Raises: ValueError if the source is missing, unknown, damaged or of another architecture.
    """
    if _is_folder(source):
        return safetensors.load(_folder(source))
    return gguf.load(source, cache_dir=cache_dir, use_cache=use_cache)


def shape(source: str) -> TransformerConfig:
    """The network that a source holds, from its header or config.json alone.

    Raises: ValueError as `read`.
    """
    if _is_folder(source):
        return safetensors.read_config(_folder(source))
    return gguf.read_config(gguf_file.read(gguf_file.resolve(source)))


def extend_vocabulary(params: Params, size: int) -> Params:
    """Add rows to the embedding (and columns to an untied unembedding) up to `size` tokens.

    New rows are the mean of the old ones plus small noise, the same in every call: near the middle
    they disturb nothing, and none equals another. Raises: ValueError if there are more than `size`.
    Source: Hewitt 2021, "Initializing new word embeddings for pretrained language models".
    """

    def grown(table_VD: np.ndarray, seed: int) -> np.ndarray:
        table_VD = np.asarray(table_VD)
        missing = size - table_VD.shape[0]
        if missing < 0:
            raise ValueError(f"the weights have {table_VD.shape[0]} tokens, the tokenizer {size}")
        noise = np.random.default_rng(seed).standard_normal((missing, table_VD.shape[1]))
        rows = table_VD.mean(axis=0) + NOISE * table_VD.std(axis=0) * noise
        return np.concatenate([table_VD, rows.astype(table_VD.dtype)])

    extended = dict(params)
    extended["embed"] = {"embedding": grown(params["embed"]["embedding"], 0)}
    if "unembedding" in params:
        kernel_DV = np.asarray(params["unembedding"]["kernel"])
        extended["unembedding"] = {"kernel": grown(kernel_DV.T, 1).T}
    return extended


def _is_folder(source: str) -> bool:
    scheme = source.partition(":")[0]
    if scheme not in ("gguf", "package", "hf"):
        raise ValueError(
            f"model.weights={source!r} must be gguf:PATH, package:NAME or hf:FOLDER "
            "('' = random parameters)"
        )
    return scheme == "hf"


def _folder(source: str) -> pathlib.Path:
    return pathlib.Path(source.partition(":")[2]).expanduser()
