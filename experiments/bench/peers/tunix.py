"""google-tunix's sampler and step of GRPO, as it is by default: nothing is recomputed backwards.

Its Llama class ignores rope_theta, so the network is its Qwen2.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from tunix.generate import sampler
from tunix.models.qwen2 import model
from tunix.rl import common
from tunix.rl.algo_core import grpo_loss_fn
from tunix.rl.grpo.grpo_learner import GRPOConfig
from tunix.sft.peft_trainer import PeftTrainer, TrainingConfig

from collab.models.presets import PRESETS
from experiments.bench.peers import PROMPT
from experiments.bench.peers.ours import VOCABULARY

PAD, END = 3, 2  # ids


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
        return END

    def pad_id(self) -> int:
        return PAD


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
            forbidden_tokens=[END],
            return_logprobs=not greedy,
            **mode,
        )

    @functools.cached_property
    def learner(self) -> Learner:
        # Of the same seed: such weights are so sure of their tokens that others' KL overflows.
        return Learner(self.network, model.Qwen2(self.config, rngs=nnx.Rngs(0)))

    def update(self, *, batch: int, length: int, has_reference: bool) -> None:
        self.learner.step(batch, length, has_reference=has_reference)


class Learner:
    """The trainer of tunix with its loss of GRPO, as its GRPOLearner sets them up."""

    def __init__(self, network: model.Qwen2, reference: model.Qwen2) -> None:
        self.reference = nnx.split(reference)
        algorithm = GRPOConfig(beta=0.05, kl_loss_mode="low_var_kl", loss_agg_mode="token-mean")
        algorithm.temperature = 1.0  # as the learner says it

        def loss_of(network: model.Qwen2, train_example: common.TrainExample) -> Any:
            return grpo_loss_fn(network, train_example, algorithm, pad_id=PAD, eos_id=END)

        adam = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-5, b2=0.99))
        trainer = PeftTrainer(network, adam, TrainingConfig(eval_every_n_steps=10**9))
        trainer.with_loss_fn(loss_of, has_aux=True)
        trainer.with_gen_model_input_fn(lambda example: {"train_example": example})
        self.train, _ = trainer.jit_train_and_eval_step()
        self.sampled: dict[tuple[int, int], jax.Array] = {}  # log-probabilities, by shape

    def step(self, batch: int, length: int, *, has_reference: bool) -> None:
        written, rng = length - PROMPT, np.random.default_rng(0)
        tokens_BS = jnp.asarray(rng.integers(100, VOCABULARY, (batch, length)), jnp.int32)
        prompt_BS, written_BN = tokens_BS[:, :PROMPT], tokens_BS[:, PROMPT:]

        def of_reference() -> jax.Array:
            return common.compute_per_token_logps(
                *self.reference, prompt_BS, written_BN, pad_id=PAD, eos_id=END
            )

        if tokens_BS.shape not in self.sampled:  # in the round that compiles
            self.sampled[tokens_BS.shape] = of_reference()
        sampled_BN = self.sampled[tokens_BS.shape]
        example = common.TrainExample(
            prompt_ids=prompt_BS,
            prompt_mask=jnp.ones((batch, PROMPT), bool),
            completion_ids=written_BN,
            completion_mask=jnp.ones((batch, written), jnp.int32),
            advantages=jnp.resize(jnp.array([1.0, -1.0]), batch),
            ref_per_token_logps=of_reference() if has_reference else sampled_BN,
            old_per_token_logps=sampled_BN,
        )
        loss, _, _ = self.train(example)
        if not np.isfinite(float(jax.device_get(loss))):
            raise RuntimeError(f"the loss is {loss}")
