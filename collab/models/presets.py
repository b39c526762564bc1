"""Named shapes of the decoder family, and the network that a configuration asks for.

A preset holds everything but the vocabulary, which comes from the tokenizer, and the numerics,
which come from `config.model`, as adapters do. Each published shape is checked by its parameter
count in the tests.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import ml_collections

from collab.models import weights
from collab.models.lora import Lora
from collab.models.transformer import RopeScaling, TransformerConfig

# Source: the config.json of meta-llama/Llama-3.2-1B and -3B (Llama 3.2 release, September 2024).
LLAMA3_2_ROPE = RopeScaling(
    kind="llama3", factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0, original_context=8192
)
LLAMA3_2 = {"rope_theta": 500_000.0, "rope_scaling": LLAMA3_2_ROPE, "norm_epsilon": 1e-5}
# Source: the Qwen2.5 technical report (arXiv 2412.15115) and the models' config.json.
QWEN2_5 = {"rope_theta": 1_000_000.0, "norm_epsilon": 1e-6, "has_qkv_bias": True}
# Source: the Qwen3 technical report (arXiv 2505.09388) and the models' config.json.
QWEN3 = {
    "rope_theta": 1_000_000.0,
    "norm_epsilon": 1e-6,
    "has_qk_norm": True,
    "head_channels": 128,
    "kv_heads": 8,
}
# Source: our choice; trains from scratch on a laptop in minutes. At this base some rotary pairs
# turn within a sentence, for offsets, and others hardly within a context, for lookups.
TINY = {
    "width": 64,
    "layers": 3,
    "heads": 4,
    "kv_heads": 2,
    "head_channels": 32,
    "feed_forward": 192,
    "rope_theta": 1000.0,
}

PRESETS: dict[str, dict[str, Any]] = {
    "tiny": TINY,
    # Source: our choice; the next size up, for one accelerator.
    "small": {
        "width": 256,
        "layers": 4,
        "heads": 8,
        "kv_heads": 4,
        "head_channels": 32,
        "feed_forward": 768,
    },
    # Source: our choice; `tiny` in other widths and depths, to see what an SLM's size does.
    "tiny_32x2": {**TINY, "width": 32, "layers": 2, "heads": 2, "kv_heads": 1, "feed_forward": 96},
    "tiny_48x3": {**TINY, "width": 48, "heads": 3, "kv_heads": 1, "feed_forward": 144},
    "tiny_96x3": {**TINY, "width": 96, "heads": 6, "kv_heads": 3, "feed_forward": 288},
    # Source: the metadata of SmolLM2-135M-Instruct's GGUF (arXiv 2502.02737).
    "smollm2_135m": {
        "width": 576,
        "layers": 30,
        "heads": 9,
        "kv_heads": 3,
        "head_channels": 64,
        "feed_forward": 1536,
        "rope_theta": 100_000.0,
        "norm_epsilon": 1e-5,
    },
    "qwen2_5_0_5b": {
        "width": 896,
        "layers": 24,
        "heads": 14,
        "kv_heads": 2,
        "head_channels": 64,
        "feed_forward": 4864,
        **QWEN2_5,
    },
    "qwen2_5_1_5b": {
        "width": 1536,
        "layers": 28,
        "heads": 12,
        "kv_heads": 2,
        "head_channels": 128,
        "feed_forward": 8960,
        **QWEN2_5,
    },
    "qwen2_5_7b": {
        "width": 3584,
        "layers": 28,
        "heads": 28,
        "kv_heads": 4,
        "head_channels": 128,
        "feed_forward": 18_944,
        "is_tied": False,
        **QWEN2_5,
    },
    "llama3_2_1b": {
        "width": 2048,
        "layers": 16,
        "heads": 32,
        "kv_heads": 8,
        "head_channels": 64,
        "feed_forward": 8192,
        **LLAMA3_2,
    },
    "llama3_2_3b": {
        "width": 3072,
        "layers": 28,
        "heads": 24,
        "kv_heads": 8,
        "head_channels": 128,
        "feed_forward": 8192,
        **LLAMA3_2,
    },
    "qwen3_0_6b": {"width": 1024, "layers": 28, "heads": 16, "feed_forward": 3072, **QWEN3},
    "qwen3_4b": {"width": 2560, "layers": 36, "heads": 32, "feed_forward": 9728, **QWEN3},
}

# Rows of the published embeddings, for who has no tokenizer at hand; same sources.
PUBLISHED_VOCABULARY = {
    "smollm2_135m": 49_152,
    "qwen2_5_0_5b": 151_936,
    "qwen2_5_1_5b": 151_936,
    "qwen2_5_7b": 152_064,
    "llama3_2_1b": 128_256,
    "llama3_2_3b": 128_256,
    "qwen3_0_6b": 151_936,
    "qwen3_4b": 151_936,
}


def transformer_config(model: ml_collections.ConfigDict, vocabulary: int) -> TransformerConfig:
    """The network of `config.model` with `vocabulary` tokens (controls and padding included).

    model.preset = "" takes the shape that model.weights have.
    Raises: ValueError if model.preset names no preset, or the weights' shape can't be read.
    """
    lora = Lora(model.lora.rank, model.lora.alpha, tuple(model.lora.targets))
    numerics = {
        "vocabulary": vocabulary,
        "dtype": model.dtype,
        "remat": model.remat,
        "lora": lora if lora.rank else None,
    }
    if not model.preset:
        if not model.weights:
            raise ValueError("model.preset='' takes the shape of model.weights, which is '' too")
        return dataclasses.replace(weights.shape(model.weights), **numerics)
    if model.preset not in PRESETS:
        raise ValueError(
            f"model.preset={model.preset!r} must be one of {', '.join(PRESETS)}, or '' for the "
            "shape of model.weights"
        )
    return TransformerConfig(**numerics, **PRESETS[model.preset])
