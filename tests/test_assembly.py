"""What a run's parts have to do with each other: one vocabulary, one mesh, one pool of helpers."""

from __future__ import annotations

import dataclasses
import re
import types
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
import pytest

from collab import assembly as assembly_module
from collab import tasks
from collab.assembly import Assembly, assemble
from collab.llm import make_backend
from collab.llm.errors import HelperUnusable
from collab.llm.openai import OpenAIBackend
from collab.llm.scripted import ScriptedBackend
from collab.llm.serve import serving
from collab.models import weights
from collab.models.policy import HEAD
from collab.rollout.episodes import Job
from collab.types import FeedbackKind, HelpRequest, Problem
from fake_llm import passed

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture
def assembled(tiny_config: ml_collections.ConfigDict, tmp_path: Path) -> Assembly:
    return assemble(tiny_config, str(tmp_path))


def test_the_parts_agree(assembled: Assembly, tmp_path: Path) -> None:
    names = assembled.engine.names
    assert names == ("think", "answer", "reply", "ask_fact", "ask_solve")
    assert assembled.policy.actions == len(names)
    assert assembled.policy.config.vocabulary == assembled.tokenizer.size
    assert set(names) <= assembled.tokenizer.control.keys()
    assert assembled.engine.client is assembled.client
    assert assembled.mesh.size == 1
    assert len(assembled.task.problems("train")) == assembled.config.task.train
    assert (tmp_path / "data").is_dir() and (tmp_path / "tokenizer").is_dir()


def test_the_policy_has_the_heads_that_the_config_uses(
    tiny_config: ml_collections.ConfigDict, tmp_path: Path, assembled: Assembly
) -> None:
    """And where control tokens decide, they are those that the rollout writes."""
    assert assembled.param_shapes().keys() == {"lm", *HEAD}
    tiny_config.model.head, tiny_config.rl.credit = "tokens", "value"
    other = assemble(tiny_config, str(tmp_path))
    assert other.param_shapes().keys() == {"lm", "value_head"}
    assert other.policy.action_tokens == tuple(other.engine.decoder.action_token_A)


def test_the_policy_is_told_the_features_that_the_config_names(
    tiny_config: ml_collections.ConfigDict, tmp_path: Path, assembled: Assembly
) -> None:
    """The rollout notes all of them, for rules that read them."""
    assert assembled.policy.unseen == ()
    tiny_config.model.features = ("mean_nll", "max_nll", "asks_used")
    other = assemble(tiny_config, str(tmp_path))
    assert other.policy.unseen == (2, 3, 4, 6)
    assert other.param_shapes() == assembled.param_shapes()


def test_data_may_stand_elsewhere(tiny_config: ml_collections.ConfigDict, tmp_path: Path) -> None:
    tiny_config.task.data_dir = str(tmp_path / "shared")
    assemble(tiny_config, str(tmp_path / "run"))
    assert (tmp_path / "shared").is_dir() and not (tmp_path / "run" / "data").exists()


def test_a_folder_keeps_its_tokenizer(
    tiny_config: ml_collections.ConfigDict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trained vocabulary is read back, not trained anew."""
    tiny_config.tokenizer.kind, tiny_config.tokenizer.vocabulary = "sentencepiece", 512
    first = assemble(tiny_config, str(tmp_path)).tokenizer

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("a second tokenizer was made")

    monkeypatch.setattr(assembly_module.tokenizers, "make_tokenizer", never)
    again = assemble(tiny_config, str(tmp_path)).tokenizer
    assert again.vocabulary_digest == first.vocabulary_digest
    assert again.encode("my doctor is here .") == first.encode("my doctor is here .")


def test_without_a_pool_there_is_one_nameless_helper(
    tiny_config: ml_collections.ConfigDict, tmp_path: Path
) -> None:
    tiny_config.llm.helpers = ml_collections.ConfigDict()
    assembled = assemble(tiny_config, str(tmp_path))
    assert assembled.pool.draw(3, np.random.default_rng(0)) == [("",)] * 3
    reply = assembled.client.submit(
        passed(HelpRequest("e", "ask_fact", "nonsense", helper=""))
    ).result()
    assert reply.failure is None


@pytest.mark.parametrize(
    ("helpers", "backend", "model", "expected"),
    [
        ({"one_hop": {"hops": 1}, "two_hops": {"hops": 2}}, "scripted", "", "mixed"),
        ({"one_hop": {"hops": 1}}, "scripted", "", "one_hop"),
        ({}, "scripted", "", "scripted"),
        ({"one_hop": {"hops": 1}, "two_hops": {"hops": 2}}, "openai", "smollm2", "smollm2"),
        ({"one_hop": {"hops": 1}, "two_hops": {"hops": 2}}, "openai", "", "mixed"),
    ],
)
def test_who_helps_in_a_word(
    helpers: dict[str, Any],
    backend: str,
    model: str,
    expected: str,
    tiny_config: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(OpenAIBackend, "check", lambda self: None)
    tiny_config.llm.helpers = ml_collections.ConfigDict(helpers)
    tiny_config.llm.update({"backend": backend, "model": model})
    assert assemble(tiny_config, str(tmp_path)).helper == expected


def test_a_pool_behind_one_server_is_asked_by_the_helpers_names(
    tiny_config: ml_collections.ConfigDict, tmp_path: Path
) -> None:
    task = tasks.make_task(tiny_config, str(tmp_path / "data"))
    asked = []

    class Watching(ScriptedBackend):
        def complete(self, *args: Any, **kwargs: Any) -> Any:
            asked.append(kwargs["helper"])
            return super().complete(*args, **kwargs)

    backend = Watching.from_config(tiny_config.llm, knowledge=task.knowledge, seed=0)
    with serving(backend) as url:
        tiny_config.llm.update({"backend": "openai", "base_url": url, "model": ""})
        assembled = assemble(tiny_config, str(tmp_path))
        jobs = [
            Job(Problem("p", "who ?", ("x",)), (0, index, 0), "ask_first", helpers=(helper,))
            for index, helper in enumerate(tiny_config.llm.helpers)
        ]
        assembled.engine.run(assembled.initial_params(), jobs, temperature=1.0)
        assembled.client.close()
    assert set(asked) == set(tiny_config.llm.helpers)


def test_several_processes_need_a_helper_beside_their_mesh(
    tiny_config: ml_collections.ConfigDict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made(*_: Any, **__: Any) -> Any:  # up to here nothing depends on the count
        monkeypatch.setattr(jax, "process_count", lambda: 2)
        return types.SimpleNamespace(is_local=False, where="")

    monkeypatch.setattr(assembly_module, "make_backend", made)
    with pytest.raises(ValueError, match=r"several processes.*llm\.backend='openai'"):
        assemble(tiny_config, str(tmp_path))


def test_the_teacher_does_not_spend_the_budget(
    tiny_config: ml_collections.ConfigDict, tmp_path: Path
) -> None:
    tiny_config.llm.budget.run.usd = 1e-9
    tiny_config.llm.requests_per_minute = 1
    assembled = assemble(tiny_config, str(tmp_path))
    teacher = assembled.teacher()
    for text in ("one", "two", "three"):
        assert teacher(HelpRequest("trace", "ask_fact", text, helper="one_hop")).failure is None


def test_the_teacher_is_the_scripted_expert_whatever_helps(assembled: Assembly) -> None:
    teacher = assembled.teacher()
    problem = next(p for p in assembled.task.problems("train") if not p.steps[-1].is_local)
    step = next(step for step in problem.steps if not step.is_local)
    reply = teacher(HelpRequest("trace", "ask_fact", step.query, helper="one_hop"))
    assert reply.kind in (FeedbackKind.ANSWER, FeedbackKind.HINT)
    assert reply.text == step.statement
    assert assembled.client.counters()["requests"] == 0  # it is not metered as help


def test_the_teacher_words_replies_as_traces_are_read_and_injects_nothing(
    tiny_config: ml_collections.ConfigDict, tmp_path: Path
) -> None:
    tiny_config.llm.scripted.update({"style": "prose", "injection_rate": 1.0})
    tiny_config.llm.helpers = {
        "it": {"style": "answers", "refuse_rate": 0.0},
        "mute": {"refuse_rate": 1.0, "injection_rate": 0.0},
    }
    assembled = assemble(tiny_config, str(tmp_path))
    problem = next(p for p in assembled.task.problems("train") if not p.steps[-1].is_local)
    step = next(step for step in problem.steps if not step.is_local)
    request = HelpRequest("trace", "ask_fact", step.query, helper="it")
    teacher = assembled.teacher()
    assert teacher(request).text == step.statement
    mute = dataclasses.replace(request, helper="mute")
    assert teacher(mute).kind is FeedbackKind.REFUSE  # imitation, too, learns to go on alone
    assert assembled.client.submit(passed(request)).result().text != step.statement


def test_parameters_have_the_shapes_and_places_that_were_said(
    tiny_config: ml_collections.ConfigDict, tmp_path: Path
) -> None:
    tiny_config.mesh.update({"data": 2, "fsdp": 2, "model": 2})
    assembled = assemble(tiny_config, str(tmp_path))
    params, shapes = assembled.initial_params(), assembled.param_shapes()
    assert jax.tree.structure(params) == jax.tree.structure(shapes)
    for leaf, shape in zip(jax.tree.leaves(params), jax.tree.leaves(shapes), strict=True):
        assert (leaf.shape, leaf.dtype) == (shape.shape, shape.dtype)
        assert leaf.sharding.mesh.size == 8
    kernel = params["lm"]["layers"]["query"]["kernel"]
    assert not kernel.sharding.is_fully_replicated
    tiny_config.mesh.update({"data": 1, "fsdp": 1, "model": 1})
    alone = assemble(tiny_config, str(tmp_path)).initial_params()
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(params), jax.device_get(alone))


def test_the_seed_draws_the_parameters(
    tiny_config: ml_collections.ConfigDict, tmp_path: Path
) -> None:
    def first_row(seed: int) -> np.ndarray:
        tiny_config.seed = seed
        params = assemble(tiny_config, str(tmp_path)).initial_params()
        return np.asarray(params["lm"]["embed"]["embedding"][0])

    assert np.array_equal(first_row(0), first_row(0))
    assert not np.array_equal(first_row(0), first_row(1))


def test_weights_fill_the_trunk_and_leave_the_heads(
    assembled: Assembly, monkeypatch: pytest.MonkeyPatch
) -> None:
    trunk = jax.tree.map(lambda leaf: np.full(leaf.shape, 0.25), assembled.param_shapes()["lm"])
    asked = []

    def load(source: str, config: Any) -> Any:
        asked.append((source, config))
        return trunk

    random = assembled.initial_params()
    monkeypatch.setattr(weights, "load", load)
    assembled.config.model.weights = "hf:folder"
    params = assembled.initial_params()
    assert asked == [("hf:folder", assembled.policy.config)]
    assert {float(leaf.min()) for leaf in jax.tree.leaves(params["lm"])} == {0.25}
    assert isinstance(params["lm"]["embed"]["embedding"], jax.Array)
    for name in HEAD:
        jax.tree.map(np.testing.assert_array_equal, params[name], random[name])


def test_a_task_without_worked_solutions_has_no_cold_start(
    tiny_config: ml_collections.ConfigDict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Plain:
        name = "plain"
        knowledge = None

        def corpus(self) -> list[str]:
            return ["a b c"]

    monkeypatch.setattr(assembly_module.tasks, "make_task", lambda config, folder: Plain())
    tiny_config.cold_start.steps = 1
    with pytest.raises(ValueError, match=r"task.name='plain' has no.*try cold_start\.steps=0"):
        assemble(tiny_config, str(tmp_path))


def test_an_unusable_helper_ends_the_start(
    tiny_config: ml_collections.ConfigDict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the engine, whose programs take seconds to compile."""
    tiny_config.llm.update({"backend": "openai", "base_url": "http://127.0.0.1:9/v1", "model": "m"})
    monkeypatch.setattr(assembly_module, "Engine", None)
    with pytest.raises(HelperUnusable, match="no reply"):
        assemble(tiny_config, str(tmp_path))


# --- who replied, in replay keys -----------------------------------------------------------


def replay_name(config: ml_collections.ConfigDict, folder: Path) -> str:
    task = tasks.make_task(config, str(folder))
    backend = make_backend(
        config.llm.backend, config.llm, knowledge=task.knowledge, seed=config.task.world.seed
    )
    return assembly_module._replay_name(backend, config)


@pytest.mark.parametrize(
    ("key", "value", "is_same"),
    [
        ("llm.scripted.error_rate", 0.5, False),
        ("llm.scripted.latency_s", 0.5, False),
        ("llm.helpers.one_hop", {"hops": 2}, False),
        ("task.world.seed", 1, False),
        ("task.world.people", 9, False),
        ("llm.scripted.weight", 2.0, True),
        ("llm.deadline_s", 9.0, True),
        ("task.data_dir", "elsewhere", True),
        ("task.world.graded_sensitivity", True, True),
    ],
)
def test_a_scripted_helper_of_another_kind_is_another_in_replay_keys(
    tiny_config: ml_collections.ConfigDict, tmp_path: Path, key: str, value: Any, is_same: bool
) -> None:
    before = replay_name(tiny_config, tmp_path)
    assert re.fullmatch("scripted-[0-9a-f]{12}", before)
    assert replay_name(tiny_config, tmp_path) == before
    table, _, leaf = key.rpartition(".")
    section: Any = tiny_config
    for part in table.split("."):
        section = section[part]
    section[leaf] = ml_collections.ConfigDict(value) if isinstance(value, dict) else value
    assert (replay_name(tiny_config, tmp_path) == before) is is_same


def test_runs_with_other_strengths_share_a_replay_file_but_no_reply(
    tiny_config: ml_collections.ConfigDict, tmp_path: Path
) -> None:
    """The same question to a helper of the same name, in one file."""
    tiny_config.llm.update({"replay": "replay_or_call", "replay_file": str(tmp_path / "r.sqlite")})
    said = []
    for hops in (1, 2, 1):
        tiny_config.llm.helpers.one_hop.hops = hops
        assembly = assemble(tiny_config, str(tmp_path / "run"))
        (mayor, city) = next(key for key in assembly.task.world.facts if key[0] == "mayor")  # type: ignore[attr-defined]
        asked = HelpRequest("e", "ask_solve", f"employer of {mayor} of {city}", helper="one_hop")
        said.append(assembly.client.submit(passed(asked)).result().text)
        counted = assembly.backend.counters()  # type: ignore[attr-defined]
        assembly.close()
    assert said[0] == said[2] != said[1]
    assert counted["replayed"] == 1  # the third found the first one's


def test_a_server_is_known_by_its_model_alone(
    tiny_config: ml_collections.ConfigDict, tmp_path: Path
) -> None:
    """So that files that were paid for stay good."""
    tiny_config.llm.update({"backend": "openai", "model": "big"})
    assert replay_name(tiny_config, tmp_path) == "openai"
