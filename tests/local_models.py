"""A tiny random model with a chat template, as a Hugging Face folder that `llm.local` can load."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import ml_collections

from collab.config import default_config
from collab.llm.local import LocalBackend
from collab.models import weights
from networks import TINY, random_params
from test_tokenizers import hf_folder

SHAPE = dataclasses.replace(
    TINY,
    vocabulary=420,  # of the folder's tokenizer
    is_tied=False,  # tied, random weights say the last token again and again
)


def write_model(folder: pathlib.Path, **changes: Any) -> str:
    """The folder as `llm.local.weights` names it. changes: of the tokenizer's config."""
    hf_folder(folder, **changes)
    weights.export(folder, random_params(SHAPE, seed=7, scale=0.5), SHAPE)
    return f"hf:{folder}"


def local_llm(source: str, *, temperature: float = 0.0, **local: Any) -> ml_collections.ConfigDict:
    """`config.llm` for a small `LocalBackend`."""
    llm: ml_collections.ConfigDict = default_config().llm
    llm.update({"backend": "local", "temperature": temperature})
    llm.local.update({"weights": source, "context_tokens": 256, "rows": 4, **local})
    return llm


def made(llm: ml_collections.ConfigDict, **given: Any) -> LocalBackend:
    return LocalBackend.from_config(llm, **{"knowledge": None, "seed": 0, "mesh": None, **given})
