"""llama.cpp through its C interface: f32 weights and cache, rows as sequences of one batch.

A row's next token is the most likely one, or drawn by llama.cpp's own sampler.
"""

from __future__ import annotations

import ctypes
import os
import pathlib
import tempfile
from typing import Any

import llama_cpp
import numpy as np

from collab.models.presets import PRESETS
from collab.models.transformer import TransformerConfig
from experiments.bench.peers.ours import VOCABULARY
from experiments.loader_agreement.__main__ import write_f32

QUIET = llama_cpp.llama_log_callback(lambda level, text, data: None)


class LlamaCpp:
    """Weights are those of SmolLM2-135M-Instruct, the file that is at hand, dequantised."""

    def __init__(self) -> None:
        config = TransformerConfig(vocabulary=VOCABULARY, **PRESETS["smollm2_135m"])
        llama_cpp.llama_log_set(QUIET, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "f32.gguf"
            write_f32(path, config)
            settings = llama_cpp.llama_model_default_params()
            settings.use_mmap = False
            self.model: Any = llama_cpp.llama_load_model_from_file(str(path).encode(), settings)

    def generate(self, *, batch: int, prompt: int, new: int, greedy: bool) -> None:
        context, tokens = self._context(batch, prompt, new), _Batch(batch * prompt)
        sampler = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())
        last = (
            llama_cpp.llama_sampler_init_greedy()
            if greedy
            else llama_cpp.llama_sampler_init_dist(0)
        )
        llama_cpp.llama_sampler_chain_add(sampler, last)
        rng = np.random.default_rng(0)
        try:
            for row in range(batch):
                tokens.clear()
                for place, token in enumerate(rng.integers(100, VOCABULARY, prompt)):
                    tokens.add(int(token), place, row, is_read=place == prompt - 1)
                self._decode(context, tokens)
                if row + 1 < batch:
                    continue
                # Of the prompts read before, the first token is the last one's: no time differs.
                first = llama_cpp.llama_sampler_sample(sampler, context, prompt - 1)
            written = [first] * batch
            for step in range(new - 1):
                tokens.clear()
                for row, token in enumerate(written):
                    tokens.add(token, prompt + step, row, is_read=True)
                self._decode(context, tokens)
                written = [
                    llama_cpp.llama_sampler_sample(sampler, context, row) for row in range(batch)
                ]
        finally:
            llama_cpp.llama_sampler_free(sampler)
            llama_cpp.llama_free(context)
            tokens.close()

    def update(self, *, batch: int, length: int, has_reference: bool) -> None:
        raise NotImplementedError

    def _context(self, batch: int, prompt: int, new: int) -> Any:
        threads = len(os.sched_getaffinity(0))
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx = batch * (prompt + new)
        settings.n_batch = max(prompt, batch)
        settings.n_ubatch = max(prompt, batch)
        settings.n_seq_max = batch
        settings.n_threads = settings.n_threads_batch = threads
        settings.type_k = settings.type_v = llama_cpp.GGML_TYPE_F32
        context = llama_cpp.llama_new_context_with_model(self.model, settings)
        if not context:
            raise RuntimeError("no context")
        return context

    def _decode(self, context: Any, tokens: _Batch) -> None:
        status = llama_cpp.llama_decode(context, tokens.batch)
        if status:
            raise RuntimeError(f"llama_decode gave {status}")


class _Batch:
    """Tokens of one call, each with its place and row."""

    def __init__(self, size: int) -> None:
        self.batch = llama_cpp.llama_batch_init(size, 0, 1)

    def clear(self) -> None:
        self.batch.n_tokens = 0

    def add(self, token: int, place: int, row: int, *, is_read: bool) -> None:
        """is_read: whether its logits are wanted."""
        at = self.batch.n_tokens
        self.batch.token[at], self.batch.pos[at] = token, place
        self.batch.n_seq_id[at], self.batch.seq_id[at][0] = 1, row
        self.batch.logits[at] = is_read
        self.batch.n_tokens = at + 1

    def close(self) -> None:
        llama_cpp.llama_batch_free(self.batch)
