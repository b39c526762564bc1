"""Text to token ids and back, with control tokens that no text can spell.

`base` holds what every kind shares (controls, prompt, feedback, save); one file per kind beside it.
A new kind is one file plus one line in `TOKENIZERS`.
"""

from __future__ import annotations

import importlib
import json
import os
import pathlib
from collections.abc import Callable, Sequence

import ml_collections

from collab import naming
from collab.tokenizers.base import SETTINGS_FILE, Tokenizer, control_names

__all__ = ["TOKENIZERS", "Tokenizer", "control_names", "load_tokenizer", "make_tokenizer"]

TOKENIZERS = {
    "byte": "collab.tokenizers.byte:ByteTokenizer",
    "sentencepiece": "collab.tokenizers.pieces:PieceTokenizer",
    "gguf": "collab.tokenizers.bpe:GgufTokenizer",
    "hf": "collab.tokenizers.bpe:FolderTokenizer",
}


def make_tokenizer(
    config: ml_collections.ConfigDict, *, corpus: Callable[[], Sequence[str]]
) -> Tokenizer:
    """The tokenizer that `config` asks for.

    Reads config.tokenizer, config.requests (their names) and, for the kinds that belong
    to a model, config.model.weights. `corpus` is called only by a kind that trains on text.
    """
    return _kind(config.tokenizer.kind).from_config(config, corpus=corpus)


def load_tokenizer(folder: str | os.PathLike[str]) -> Tokenizer:
    """Read back what `Tokenizer.save` wrote; needs nothing outside `folder`.

    Raises: ValueError if there is none, or if it would not give the same ids any more.
    """
    path = pathlib.Path(folder) / SETTINGS_FILE
    if not path.is_file():
        raise ValueError(f"no saved tokenizer: {path} does not exist")
    settings = json.loads(path.read_text(encoding="utf-8"))
    tokenizer = _kind(settings["kind"]).restore(path.parent, settings)
    if tokenizer.vocabulary_digest != settings["vocabulary_digest"]:
        raise ValueError(f"the tokenizer in {folder} was changed; start in a new --workdir")
    return tokenizer


def _kind(name: str) -> type[Tokenizer]:
    naming.check("tokenizer.kind=", name, TOKENIZERS)
    module, kind = TOKENIZERS[name].split(":")
    found: type[Tokenizer] = getattr(importlib.import_module(module), kind)
    return found
