"""A tiny random model with a chat template, as a Hugging Face folder that `llm.local` can load."""

from __future__ import annotations

import pathlib
import re
from typing import Any

import ml_collections
import numpy as np

from collab.config import default_config
from collab.llm.local import LocalBackend
from collab.models import weights
from collab.models.transformer import TransformerConfig
from collab.models.weights import layout
from test_tokenizers import hf_folder

SHAPE = TransformerConfig(
    vocabulary=420,  # of the folder's tokenizer
    width=32,
    layers=2,
    heads=4,
    kv_heads=2,
    head_channels=8,
    feed_forward=64,
    is_tied=False,  # tied, random weights say the last token again and again
)


def write_model(folder: pathlib.Path, **changes: Any) -> str:
    """The folder as `llm.local.weights` names it. changes: of the tokenizer's config."""
    hf_folder(folder, **changes)
    random = np.random.default_rng(7)
    shapes = {leaf.name: leaf.published_shape for leaf in layout.leaves(SHAPE).values()}

    def tensor(name: str) -> np.ndarray:
        shape = shapes[re.sub(r"layers\.\d+\.", "layers.{}.", name)]
        return (0.5 * random.standard_normal(shape)).astype(np.float32)

    weights.export(folder, layout.build_tree(SHAPE, tensor), SHAPE)
    return f"hf:{folder}"


def local_llm(source: str, *, temperature: float = 0.0, **local: Any) -> ml_collections.ConfigDict:
    """`config.llm` for a small `LocalBackend`."""
    llm: ml_collections.ConfigDict = default_config().llm
    llm.update({"backend": "local", "temperature": temperature})
    llm.local.update({"weights": source, "context_tokens": 256, "rows": 4, **local})
    return llm


def made(llm: ml_collections.ConfigDict, **given: Any) -> LocalBackend:
    return LocalBackend.from_config(llm, **{"knowledge": None, "seed": 0, "mesh": None, **given})
