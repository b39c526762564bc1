"""Hugging Face transformers on torch: `generate` with its dynamic cache (the static one is slower).

It returns no log-probabilities here, which its users would have to ask for as whole logits.
"""

from __future__ import annotations

import torch
import transformers

from collab.models.presets import PRESETS
from experiments.bench.peers.ours import VOCABULARY


def network(*, is_training: bool = False) -> transformers.LlamaForCausalLM:
    """Random f32 weights of SmolLM2-135M's shape."""
    shape = PRESETS["smollm2_135m"]
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=shape["width"],
        intermediate_size=shape["feed_forward"],
        num_hidden_layers=shape["layers"],
        num_attention_heads=shape["heads"],
        num_key_value_heads=shape["kv_heads"],
        head_dim=shape["head_channels"],
        rms_norm_eps=shape["norm_epsilon"],
        rope_theta=shape["rope_theta"],
        tie_word_embeddings=True,
        use_cache=not is_training,
    )
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(config).float().train(is_training)


class Transformers:
    """As many threads as there are cores to use."""

    def __init__(self) -> None:
        self.network = network()

    def generate(self, *, batch: int, prompt: int, new: int, greedy: bool) -> None:
        ids = torch.randint(100, VOCABULARY, (batch, prompt), generator=_generator())
        with torch.inference_mode():
            out = self.network.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                min_new_tokens=new,
                max_new_tokens=new,
                do_sample=not greedy,
                temperature=None if greedy else 1.0,
                top_k=None if greedy else 0,
                top_p=None if greedy else 1.0,
                pad_token_id=3,
                eos_token_id=2,
            )
        if out.shape != (batch, prompt + new):
            raise RuntimeError(f"{tuple(out.shape)} instead of {(batch, prompt + new)}")


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)
