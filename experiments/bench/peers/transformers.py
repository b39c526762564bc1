"""Hugging Face transformers on torch: `generate` with its dynamic cache (the static one is slower).

It returns no log-probabilities here, which its users would have to ask for as whole logits. The
step of GRPO is written by hand as TRL takes it: logits of what was written alone, no recomputation.
"""

from __future__ import annotations

import copy
import functools
import math

import torch
import transformers
from torch.nn import functional

from collab.models.presets import PRESETS
from experiments.bench.peers import PROMPT
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

    @functools.cached_property
    def network(self) -> transformers.LlamaForCausalLM:
        return network()

    @functools.cached_property
    def learner(self) -> Learner:
        return Learner()

    def update(self, *, batch: int, length: int, has_reference: bool) -> None:
        self.learner.step(batch, length, has_reference=has_reference)

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


class Learner:
    """Adam with a clipped norm on the clipped ratio to the sampler and the KL to the reference."""

    def __init__(self) -> None:
        self.network = network(is_training=True)
        self.reference = copy.deepcopy(self.network).requires_grad_(False)
        self.adam = torch.optim.Adam(self.network.parameters(), lr=1e-5, betas=(0.9, 0.99))

    def step(self, batch: int, length: int, *, has_reference: bool) -> None:
        ids_BS = torch.randint(100, VOCABULARY, (batch, length), generator=_generator())
        sampler_BN = torch.full((batch, length - PROMPT), -math.log(VOCABULARY))
        advantage_B1 = torch.tensor([1.0, -1.0]).repeat(batch // 2)[:, None]
        reference_BN = sampler_BN
        if has_reference:
            with torch.no_grad():
                reference_BN = written_logp(self.reference, ids_BS)
        logp_BN = written_logp(self.network, ids_BS)
        ratio_BN, gap_BN = torch.exp(logp_BN - sampler_BN), reference_BN - logp_BN
        gain_BN = torch.minimum(ratio_BN * advantage_B1, ratio_BN.clamp(0.8, 1.2) * advantage_B1)
        loss = (0.05 * (torch.exp(gap_BN) - gap_BN - 1.0) - gain_BN).mean()
        self.adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.adam.step()
        if not math.isfinite(loss.item()):
            raise RuntimeError(f"the loss is {loss.item()}")


def written_logp(network: transformers.LlamaForCausalLM, ids_BS: torch.Tensor) -> torch.Tensor:
    """Log-probability of each token after the prompt, f32 [B, N]."""
    hidden_BSD = network.model(input_ids=ids_BS, use_cache=False).last_hidden_state
    logits_BNV = network.lm_head(hidden_BSD[:, PROMPT - 1 : -1])
    written_BN = ids_BS[:, PROMPT:]
    loss = functional.cross_entropy(
        logits_BNV.flatten(0, 1), written_BN.flatten(), reduction="none"
    )
    return -loss.view_as(written_BN)


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)
