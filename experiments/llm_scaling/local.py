"""A local Flax model as helper, in three sizes, each taught the world by the scripted expert.

`make` writes Hugging Face folders that `llm.local.weights` can name: a byte-level BPE, a chat
template and a small Llama from scratch, which imitates the expert's replies (`lessons`). The parts
of a talk that never change are one token each, so that a reply costs little. Needs tokenizers,
jinja2 and safetensors, of the extra smollm2.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
import shutil
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from collab.metrics import masked_mean
from collab.models import weights
from collab.models.presets import PRESETS
from collab.models.transformer import Transformer, TransformerConfig
from collab.progress import progress
from collab.tokenizers.base import require
from collab.tokenizers.bpe import FolderTokenizer
from collab.types import Params
from experiments.llm_scaling.lessons import Lesson, Shares, Teacher

END, ROLES = "<|end|>", ("system", "user", "assistant")
TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a helper is taught. Source: our choice, near to how the SLM imitates.

    lessons: distinct ones, of which batches are drawn. tokens: of one; a longer one is left out.
    """

    lessons: int = 6_000
    steps: int = 700
    batch: int = 48
    tokens: int = 96
    vocabulary: int = 1100
    learning_rate: float = 4e-3
    warmup: int = 50
    shares: Shares = dataclasses.field(default_factory=Shares)
    seed: int = 0


RECIPE = Recipe()


def place(
    preset: str, config: ConfigDict, root: pathlib.Path, recipe: Recipe = RECIPE
) -> pathlib.Path:
    """The folder of a helper, named by all that it depends on but the code."""
    asked = [config.requests.to_dict(), config.llm.reply_tokens]
    about = [PRESETS[preset], dataclasses.asdict(recipe), config.task.world.to_dict(), asked]
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:10]
    return root / "local_helpers" / f"{preset}-{digest}"


def make(
    presets: Sequence[str], config: ConfigDict, root: pathlib.Path, recipe: Recipe = RECIPE
) -> None:
    """Fill the folder of each preset's helper that is not there. root: of the studies."""
    folders = {preset: place(preset, config, root, recipe) for preset in presets}
    missing = {preset: folder for preset, folder in folders.items() if not folder.is_dir()}
    if not missing:
        return
    teacher = Teacher(config, str(root / "data"), recipe.shares, recipe.seed)
    given = [teacher.lesson(index) for index in range(recipe.lessons)]
    rows: tuple[np.ndarray, np.ndarray] | None = None
    for preset, folder in missing.items():
        temporary = folder.with_suffix(".tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        write_tokenizer(temporary, given, teacher.fixed, recipe.vocabulary)
        tokenizer = FolderTokenizer.from_folder(temporary, ())
        rows = rows or rows_of(tokenizer, given, recipe)  # all have the same tokenizer
        network = TransformerConfig(vocabulary=tokenizer.base_size, **PRESETS[preset])
        weights.export(temporary, taught(network, rows, recipe, label=preset), network)
        temporary.rename(folder)


# --- tokens ------------------------------------------------------------------------------------


def write_tokenizer(
    folder: pathlib.Path, given: Sequence[Lesson], fixed: Sequence[str], vocabulary: int
) -> None:
    """A byte-level BPE of the lessons, in which each of `fixed` is one token."""
    library = require("tokenizers")
    backend = library.Tokenizer(library.models.BPE())
    backend.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = library.decoders.ByteLevel()
    trainer = library.trainers.BpeTrainer(
        vocab_size=vocabulary,
        initial_alphabet=sorted(library.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    texts = [text for talk, reply in given for text in (talk[-1].content.split("\n", 1)[1], reply)]
    backend.train_from_iterator(texts, trainer)
    backend.add_special_tokens([*(f"<|{role}|>" for role in ROLES), END])
    backend.add_tokens(list(fixed))
    folder.mkdir(parents=True)
    backend.save(str(folder / "tokenizer.json"))
    settings = {"eos_token": END, "bos_token": None, "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")


def rows_of(
    tokenizer: FolderTokenizer, given: Sequence[Lesson], recipe: Recipe
) -> tuple[np.ndarray, np.ndarray]:
    """Tokens i32 [N, S] and which of them the reply wrote, bool [N, S]; too long ones are left out.

    Raises: ValueError where none is short enough.
    """
    fitting = []
    for talk, reply in given:
        prompt = tokenizer.chat([(message.role, message.content) for message in talk])
        said = [*tokenizer.encode(reply), tokenizer.end_id]
        if len(prompt) + len(said) <= recipe.tokens:
            fitting.append((prompt, said))
    if not fitting:
        raise ValueError(f"recipe.tokens={recipe.tokens} hold no lesson; try 96")
    tokens_NS = np.zeros((len(fitting), recipe.tokens), np.int32)
    is_said_NS = np.zeros(tokens_NS.shape, bool)
    for row, (prompt, said) in enumerate(fitting):
        end = len(prompt) + len(said)
        tokens_NS[row, :end] = [*prompt, *said]
        is_said_NS[row, len(prompt) : end] = True
    return tokens_NS, is_said_NS


# --- imitation ---------------------------------------------------------------------------------


def taught(
    network: TransformerConfig,
    rows: tuple[np.ndarray, np.ndarray],
    recipe: Recipe,
    *,
    label: str,
) -> Params:
    """Parameters after imitation of the replies, from scratch. label: of the progress line."""
    model, (tokens_NS, is_said_NS) = Transformer(network), rows
    optimizer = optax.adamw(
        optax.warmup_cosine_decay_schedule(0.0, recipe.learning_rate, recipe.warmup, recipe.steps)
    )
    positions_BS = jnp.broadcast_to(jnp.arange(recipe.tokens), (recipe.batch, recipe.tokens))

    def loss_of(params: Params, tokens_BS: jax.Array, is_said_BS: jax.Array) -> jax.Array:
        hidden_BSD, _ = model.apply({"params": params}, tokens_BS, positions_BS)
        logits_BSV = model.apply({"params": params}, hidden_BSD[:, :-1], method=model.unembed)
        surprise_BS = optax.softmax_cross_entropy_with_integer_labels(logits_BSV, tokens_BS[:, 1:])
        return masked_mean(surprise_BS, is_said_BS[:, 1:])

    @jax.jit
    def step(state: tuple[Params, Any], *batch: jax.Array) -> tuple[tuple[Params, Any], jax.Array]:
        params, moments = state
        loss, gradient = jax.value_and_grad(loss_of)(params, *batch)
        updates, moments = optimizer.update(gradient, moments, params)
        return (optax.apply_updates(params, updates), moments), loss

    params = jax.jit(model.init)(
        jax.random.key(recipe.seed), jnp.zeros((1, 2), jnp.int32), jnp.zeros((1, 2), jnp.int32)
    )["params"]
    state = (params, optimizer.init(params))
    rng = np.random.default_rng(recipe.seed)
    with progress(recipe.steps, label) as line:
        for _ in range(recipe.steps):
            chosen_B = rng.integers(len(tokens_NS), size=recipe.batch)
            state, loss = step(state, tokens_NS[chosen_B], is_said_NS[chosen_B])
            line.update(1, loss=float(loss))
    found: Params = jax.device_get(state[0])
    return found
