"""SentencePiece byte-pair pieces, trained in process on the task's own corpus.

A dummy space goes before every text, so that a word has the same pieces at the start of a segment
and in the middle of one: a small model has to learn each name only once.
"""

from __future__ import annotations

import io
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import ml_collections
import sentencepiece

from collab.config import request_names
from collab.tokenizers.base import Tokenizer

MODEL_FILE = "tokenizer.model"
# SentencePiece writes a space as U+2581 and would read a real U+2581 back as a space. So real ones
# travel as ESCAPE + "b", and the escape itself (a private-use character) as ESCAPE + "a".
SPACE_MARK, ESCAPE = "\u2581", "\ue581"


class PieceTokenizer(Tokenizer):
    """Byte fallback makes every text exact; a text's leading spaces are kept too."""

    kind = "sentencepiece"

    def __init__(self, requests: Sequence[str], model: bytes) -> None:
        self._model = model
        self._processor = sentencepiece.SentencePieceProcessor()
        self._processor.LoadFromSerializedProto(model)
        super().__init__(
            requests=requests,
            base_size=self._processor.GetPieceSize(),
            special_ids=[self._processor.unk_id()],
        )

    @classmethod
    def from_config(
        cls, config: ml_collections.ConfigDict, *, corpus: Callable[[], Sequence[str]]
    ) -> PieceTokenizer:
        """Train on `corpus()`; the same texts give the same bytes."""
        return cls(request_names(config), train(corpus(), config.tokenizer.vocabulary))

    @classmethod
    def restore(cls, folder: pathlib.Path, settings: Mapping[str, Any]) -> PieceTokenizer:
        """Read the model file that stands beside the settings."""
        return cls(settings["requests"], (folder / MODEL_FILE).read_bytes())

    def _encode(self, text: str) -> list[int]:
        escaped = text.replace(ESCAPE, ESCAPE + "a").replace(SPACE_MARK, ESCAPE + "b")
        ids: list[int] = self._processor.EncodeAsIds(escaped)
        return ids

    def _decode(self, ids: list[int]) -> str:
        text: str = self._processor.DecodeIds(ids)
        return text.replace(ESCAPE + "b", SPACE_MARK).replace(ESCAPE + "a", ESCAPE)

    def _fingerprint(self) -> bytes:
        return self._model

    def _write(self, folder: pathlib.Path) -> None:
        (folder / MODEL_FILE).write_bytes(self._model)


def train(corpus: Sequence[str], pieces: int) -> bytes:
    """A serialised BPE model of `pieces` pieces, byte pieces included.

    Raises: ValueError if the corpus is empty or holds too little (or too much) for `pieces`.
    """
    if not any(text.strip() for text in corpus):
        raise ValueError("tokenizer.kind='sentencepiece' needs text; the task's corpus is empty")

    def lines() -> Iterator[str]:
        for text in corpus:
            yield from text.splitlines()

    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.Train(
            sentence_iterator=lines(),
            model_writer=model,
            model_type="bpe",
            vocab_size=pieces,
            normalization_rule_name="identity",
            add_dummy_prefix=True,
            remove_extra_whitespaces=False,
            byte_fallback=True,
            split_digits=True,
            character_coverage=0.9995,  # rarer characters fall back to their bytes
            max_sentence_length=1 << 20,  # the default drops longer lines in silence
            num_threads=1,  # bitwise the same on every machine
            unk_id=0,
            bos_id=-1,  # controls are ours and stand outside the pieces
            eos_id=-1,
            pad_id=-1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise ValueError(
            f"tokenizer.vocabulary={pieces} does not fit the task's corpus: {error}; "
            "256 pieces are bytes, the rest must be at least the characters and at most the "
            "merges that the corpus holds"
        ) from error
    return model.getvalue()
