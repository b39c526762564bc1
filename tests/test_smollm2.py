"""configs/smollm2.py end to end with a tiny random GGUF, its requests over a real socket."""

from __future__ import annotations

import json
import pathlib
import runpy
import threading
from collections.abc import Sequence
from typing import Any, ClassVar

import gguf as gguf_package
import jax
import ml_collections
import numpy as np
import pytest

from collab import run, tasks, tokenizers
from collab.evaluate import Evaluator
from collab.llm import Completion, Message, make_backend
from collab.llm.client import Client
from collab.llm.scripted import ScriptedBackend
from collab.llm.serve import serving
from collab.models import weights
from collab.models.transformer import TransformerConfig
from collab.models.weights import gguf, layout
from collab.rl.traces import Synthesiser, TraceDoesNotFitError
from collab.rollout.state import Limits
from collab.rules import validate
from collab.tokenizers.bpe import byte_letters
from collab.types import action_names

CONFIG = pathlib.Path(__file__).parents[1] / "configs" / "smollm2.py"
PIECES = [*byte_letters(), "er"]
SPECIALS = ["<|im_start|>", "<|im_end|>"]
CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] "
    "+ '<|im_end|>\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% endif %}"
)
SHAPE = TransformerConfig(
    vocabulary=len(PIECES) + len(SPECIALS),
    width=32,
    layers=2,
    heads=4,
    kv_heads=2,
    head_channels=8,
    feed_forward=64,
)
# One token a byte: a question has up to 1,000. Everything else is as little as runs every part.
TINY = {
    "compile_cache": "",
    "task.train": 16,
    "task.validation": 2,
    "task.test": 2,
    "model.preset": "",
    "model.remat": False,
    "rollout.rows": 4,
    "rollout.capacity": 1536,
    "rollout.max_segments": 4,
    "rollout.max_asks": 2,
    "rollout.think_tokens": 48,
    "rollout.answer_tokens": 16,
    "cold_start.steps": 1,
    "cold_start.batch": 4,
    "cold_start.label_problems": 2,
    "cold_start.label_steps": 2,
    "rl.iterations": 1,
    "rl.problems": 2,
    "rl.warmup": 0,
    "log.tensorboard": False,
    "evaluate.bootstrap": 20,
}


def load_config() -> ml_collections.ConfigDict:
    config: ml_collections.ConfigDict = runpy.run_path(str(CONFIG))["get_config"]()
    return config


def write_gguf(path: pathlib.Path) -> None:
    """Random weights, one token a byte, ChatML: what the published file has, but tiny."""
    writer = gguf_package.GGUFWriter(str(path), "llama")
    writer.add_block_count(SHAPE.layers)
    writer.add_embedding_length(SHAPE.width)
    writer.add_feed_forward_length(SHAPE.feed_forward)
    writer.add_head_count(SHAPE.heads)
    writer.add_head_count_kv(SHAPE.kv_heads)
    writer.add_rope_freq_base(SHAPE.rope_theta)
    writer.add_layer_norm_rms_eps(SHAPE.norm_epsilon)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list([*PIECES, *SPECIALS])
    writer.add_token_types([1] * len(PIECES) + [3] * len(SPECIALS))
    writer.add_token_merges(["e r"])
    writer.add_bos_token_id(len(PIECES))
    writer.add_eos_token_id(len(PIECES) + 1)
    writer.add_chat_template(CHATML)
    rng = np.random.default_rng(0)
    for leaf in layout.leaves(SHAPE).values():
        for layer in range(SHAPE.layers if "{}" in leaf.name else 1):
            array = rng.normal(0.0, 0.1, leaf.published_shape).astype(np.float32)
            writer.add_tensor(gguf._gguf_name(leaf.name.format(layer)), array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class CountingBackend(ScriptedBackend):
    """Counts the requests that arrive, by thread-safe append."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.kinds: list[str] = []
        self.threads: set[int] = set()

    def complete(self, messages: Sequence[Message], **kwargs: Any) -> Completion:
        self.kinds.append(messages[-1].content.split("]")[0].lstrip("["))
        self.threads.add(threading.get_ident())
        return super().complete(messages, **kwargs)


class RecordingEvaluator(Evaluator):
    """Keeps the weights that it was given."""

    seen: ClassVar[list[tuple[Any, Any]]] = []

    def __init__(self, assembly: Any, params: Any, cold: Any) -> None:
        self.seen.append(jax.device_get((params, cold)))
        super().__init__(assembly, params, cold)


def test_trains_checkpoints_and_evaluates_over_a_socket(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(run, "Evaluator", RecordingEvaluator)
    write_gguf(tmp_path / "model.gguf")
    config = load_config()
    config.update_from_flattened_dict(TINY)
    config.model.weights = f"gguf:{tmp_path / 'model.gguf'}"
    workdir = str(tmp_path / "run")
    with config.llm.unlocked():
        config.llm.helpers = {"smollm2": {"hops": 3}}  # the name that the server lists
    task = tasks.make_task(config, str(tmp_path / "data"))
    backend = CountingBackend.from_config(config.llm, knowledge=task.knowledge, seed=0)
    with serving(backend) as url:
        config.llm.base_url = url
        run.prepare(config, workdir)
        run.train(config, workdir, "")
        trained = json.loads((tmp_path / "run" / "evaluation.json").read_text())
        asked = len(backend.kinds)
        run.evaluate(config, workdir, "")
        again = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    metrics = {row["stage"]: row for row in map(json.loads, lines)}
    assert set(metrics) >= {"solve_rate", "policy_gradient"}
    assert metrics["policy_gradient"]["sampler_gap"] < 1e-3
    assert metrics["policy_gradient"]["status_context_full"] == 0.0
    assert metrics["policy_gradient"].get("failures", 0.0) == 0.0
    assert (tmp_path / "run" / "checkpoints" / "3").is_dir()
    assert asked > 0
    assert set(backend.kinds) <= set(config.requests)
    assert threading.get_ident() not in backend.threads
    assert trained["rows"] == again["rows"]
    in_memory, from_disk = RecordingEvaluator.seen
    jax.tree.map(np.testing.assert_array_equal, from_disk, in_memory)
    params, cold = (jax.tree.leaves(tree) for tree in from_disk)
    assert any((a != b).any() for a, b in zip(params, cold, strict=True))
    published, _ = weights.read(config.model.weights)
    step = 2 * config.cold_start.learning_rate  # Adam moves no weight further in one step
    lm = from_disk[1]["lm"]
    published = weights.extend_vocabulary(published, len(lm["embed"]["embedding"]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=step), lm, published)
    assert {row["strategy"] for row in again["rows"]} == set(config.evaluate.strategies)


@pytest.mark.parametrize(("name", "share"), [("gsm", 0.8), ("fanout", 0.35)])
def test_prompts_and_worked_solutions_fit_the_limits(name: str, share: float) -> None:
    config = load_config()
    config.task.name = name
    validate(config)
    task = tasks.make_task(config, "")
    tokenizer = tokenizers.make_tokenizer(config, corpus=task.corpus)
    names = action_names(tuple(config.requests))
    limits = Limits.of(config.rollout, len(names))
    client = Client(
        make_backend("scripted", config.llm, knowledge=task.knowledge), config.llm, config.requests
    )
    synthesiser = Synthesiser(
        task=task,
        tokenizer=tokenizer,
        names=names,
        limits=limits,
        settings=config.cold_start,
        teacher=lambda request: client.submit(request).result(),
        helpers=[""],
    )
    fitting, rng = 0, np.random.default_rng(0)
    problems = task.problems("train")
    for problem in problems:
        prompt = tokenizer.prompt(problem.question, problem.notes)
        assert len(prompt) + limits.room_needed[0] < limits.capacity
        try:
            synthesiser.episode(problem, rng)
            fitting += 1
        except TraceDoesNotFitError:
            continue
    assert fitting / len(problems) > share


def test_the_file_is_deltas_only() -> None:
    assert len(CONFIG.read_text().splitlines()) < 40
