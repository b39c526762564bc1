"""google-tunix's sampler. Its Llama class ignores rope_theta, so the network is its Qwen2."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import nnx
from tunix.generate import sampler
from tunix.models.qwen2 import model

from collab.models.presets import PRESETS
from experiments.bench.peers.ours import VOCABULARY


class Words:
    """A stand-in for a tokenizer: "N k" is a prompt of N tokens, the k-th such."""

    def encode(self, text: str, **_: Any) -> list[int]:
        count, number = map(int, text.split())
        return [100 + (number * 977 + i * 31) % 40_000 for i in range(count)]

    def decode(self, ids: list[int], **_: Any) -> str:
        return f"{len(ids)} tokens"

    def bos_id(self) -> int:
        return 0

    def eos_id(self) -> int:
        return 2

    def pad_id(self) -> int:
        return 3


class Tunix:
    """One sampler a length, whose cache is just long enough."""

    def __init__(self) -> None:
        shape = PRESETS["smollm2_135m"]
        self.config = model.ModelConfig(
            num_layers=shape["layers"],
            vocab_size=VOCABULARY,
            embed_dim=shape["width"],
            hidden_dim=shape["feed_forward"],
            num_heads=shape["heads"],
            head_dim=shape["head_channels"],
            num_kv_heads=shape["kv_heads"],
            rope_theta=int(shape["rope_theta"]),
            norm_eps=shape["norm_epsilon"],
            use_tied_embedding=True,
            dtype=jnp.float32,
            param_dtype=jnp.float32,
        )
        self.network = model.Qwen2(self.config, rngs=nnx.Rngs(0))
        self.samplers: dict[int, sampler.Sampler] = {}

    def generate(self, *, batch: int, prompt: int, new: int, greedy: bool) -> None:
        capacity = prompt + 128 * -(-new // 128)
        if capacity not in self.samplers:
            cache = sampler.CacheConfig(
                cache_size=capacity,
                num_layers=self.config.num_layers,
                num_kv_heads=self.config.num_kv_heads,
                head_dim=self.config.head_dim,
            )
            self.samplers[capacity] = sampler.Sampler(self.network, Words(), cache)
        mode: dict[str, Any] = {} if greedy else {"temperature": 1.0, "top_p": 1.0, "seed": 0}
        self.samplers[capacity](
            [f"{prompt} {row}" for row in range(batch)],
            max_generation_steps=new,
            max_prompt_length=prompt,
            forbidden_tokens=[2],
            return_logprobs=not greedy,
            **mode,
        )
