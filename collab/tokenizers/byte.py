"""One token per UTF-8 byte: no training, no file, exact for every text."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ml_collections

from collab.config import request_names
from collab.tokenizers.base import Tokenizer


class ByteTokenizer(Tokenizer):
    """Ids 0..255 are bytes."""

    kind = "byte"

    def __init__(self, requests: Sequence[str]) -> None:
        super().__init__(requests=requests, base_size=256)

    @classmethod
    def from_config(
        cls, config: ml_collections.ConfigDict, *, corpus: Callable[[], Sequence[str]]
    ) -> ByteTokenizer:
        """Nothing to train: `corpus` is not called."""
        del corpus
        return cls(request_names(config))

    @classmethod
    def restore(cls, folder: pathlib.Path, settings: Mapping[str, Any]) -> ByteTokenizer:
        """The settings alone are enough."""
        del folder
        return cls(settings["requests"])

    def _encode(self, text: str) -> list[int]:
        return list(text.encode("utf-8"))

    def _decode(self, ids: list[int]) -> str:
        return bytes(ids).decode("utf-8", "replace")

    def _fingerprint(self) -> bytes:
        return b"utf-8"
