"""Puts the parts of a run together from its config: task, tokenizer, network, helper, engine."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Callable
from typing import Any

import jax

from collab import sharding, tasks, tokenizers
from collab.config import request_names
from collab.llm import Backend, Identified, make_backend
from collab.llm.client import Client
from collab.llm.fingerprint import Fingerprint
from collab.llm.journal import Journal
from collab.llm.keys import api_key
from collab.llm.one_asks import OneAsks
from collab.llm.pool import Pool
from collab.llm.probe import probe_set, take
from collab.llm.replay import ReplayBackend
from collab.llm.replay_store import ReplayStore
from collab.llm.scripted import HONEST
from collab.models import weights
from collab.models.lora import base_of, joined
from collab.models.policy import Policy, init_params
from collab.models.presets import transformer_config
from collab.privacy.audit import AuditLog
from collab.privacy.gate import Gate
from collab.privacy.panel import Panel
from collab.rl.traces import Synthesiser
from collab.rollout.engine import Engine
from collab.types import (
    FEATURES,
    Feedback,
    HelpRequest,
    Params,
    Task,
    TeachableTask,
    action_names,
)


@dataclasses.dataclass(frozen=True)
class Assembly:
    """Everything that training, evaluation and interactive use share."""

    config: Any
    workdir: pathlib.Path
    mesh: jax.sharding.Mesh
    task: Task
    tokenizer: tokenizers.Tokenizer
    policy: Policy
    backend: Backend
    client: Client | OneAsks
    gate: Gate
    panel: Panel  # judges of leaks
    engine: Engine
    pool: Pool
    fingerprints: dict[str, Fingerprint] = dataclasses.field(default_factory=dict)  # if probed

    @property
    def helper(self) -> str:
        """Who helps, in a word: the one helper or served model, "mixed" where several are drawn."""
        if len(self.pool.weights) > 1:
            return "mixed"
        return next(iter(self.pool.weights)) or self.config.llm.model or self.config.llm.backend

    def close(self) -> None:
        """End the help: connections, files of replies, the audit log."""
        self.client.close()
        self.gate.close()
        self.panel.close()

    def probed(self, requests: int) -> Assembly:
        """The same with fingerprints of all helpers, taken now with so many requests each."""
        found = take(
            self.client,
            self.gate,
            probe_set(self.task, requests),
            list(self.pool.weights),
            kind=self.config.chain_request,
            reply_tokens=self.config.llm.reply_tokens,
        )
        strength = {helper: fingerprint.strength for helper, fingerprint in found.items()}
        self.engine.pool = dataclasses.replace(self.pool, strength=strength)
        return dataclasses.replace(self, fingerprints=found, pool=self.engine.pool)

    def teacher(self) -> Callable[[HelpRequest], Feedback]:
        """Who answers in synthesised traces, free of charge: the scripted expert."""
        llm = self.config.llm.copy_and_resolve_references()
        llm.update({"requests_per_minute": 0, "tokens_per_minute": 0})
        for limits in llm.budget.values():
            limits.update({"usd": 0.0, "requests": 0, "tokens": 0})
        for row in (llm.scripted, *llm.helpers.values()):
            row.update({key: value for key, value in HONEST.items() if key in row})
        backend = make_backend("scripted", llm, knowledge=self.task.knowledge, seed=0)
        client = Client(backend, llm, self.config.requests)
        gate = Gate("off")  # it is in this process
        return lambda request: client.submit(gate.screen(request, ())).result()

    def synthesiser(self) -> Synthesiser:
        """Makes the traces that the cold start imitates; for a task with worked solutions."""
        assert isinstance(self.task, TeachableTask)
        return Synthesiser(
            task=self.task,
            tokenizer=self.tokenizer,
            names=self.engine.names,
            limits=self.engine.limits,
            settings=self.config.cold_start,
            teacher=self.teacher(),
            helpers=list(self.pool.weights),
        )

    def param_shapes(self) -> Params:
        """The parameter tree with shapes and dtypes instead of arrays."""
        features = self.engine.limits.features
        return jax.eval_shape(lambda: init_params(self.policy, jax.random.key(0), features))

    def initial_params(self) -> Params:
        """Random parameters on the mesh, with the trunk's weights loaded where config says so."""
        config, policy, features = self.config, self.policy, self.engine.limits.features
        layout = sharding.param_shardings(self.param_shapes(), self.mesh)
        make = jax.jit(
            lambda seed: init_params(policy, jax.random.key(seed), features),
            out_shardings=layout,
        )
        params = make(config.seed)
        if config.model.weights:
            trunk = weights.load(config.model.weights, policy.config)
            placed = jax.device_put(trunk, base_of(layout["lm"]))
            params = {**params, "lm": joined(params["lm"], placed)}
        return params


def assemble(config: Any, workdir: str) -> Assembly:
    """Build all parts. Raises: ValueError or HelperUnusable, before anything compiles."""
    folder = pathlib.Path(workdir)
    mesh = sharding.make_mesh(config.mesh)

    def prepared() -> tuple[Task, tokenizers.Tokenizer]:
        task = tasks.make_task(config, config.task.data_dir or str(folder / "data"))
        return task, _tokenizer(config, folder, task)

    task, tokenizer = sharding.first_process_first(prepared)
    if config.cold_start.steps and not isinstance(task, TeachableTask):
        raise ValueError(
            f"task.name={task.name!r} has no worked solutions to imitate; try cold_start.steps=0"
        )
    backend = make_backend(
        config.llm.backend,
        config.llm,
        knowledge=task.knowledge,
        seed=config.task.world.seed,
        mesh=mesh,
    )
    backend = _replayed(backend, config, folder)
    if jax.process_count() > 1 and not backend.is_local and not backend.where:
        raise ValueError(
            f"llm.backend={config.llm.backend!r}: a model on the mesh of several processes can't "
            "answer one of them; run one process, or serve it and use llm.backend='openai'"
        )
    client = _client(config, backend, folder)
    audit, audit_path = None, folder / "audit.jsonl"
    if backend.where and config.privacy.gate != "off" and sharding.is_first_process():
        audit = AuditLog(audit_path, where=backend.where)
    gate = Gate(config.privacy.gate, audit)
    names = action_names(request_names(config))
    control = tuple(tokenizer.control[name] for name in names)
    policy = make_policy(config, mesh, vocabulary=tokenizer.size, action_tokens=control)
    if config.model.weights:
        weights.check_fit(config.model.weights, policy.config)
    pool = Pool.from_config(config, backend.helper_names)
    return Assembly(
        config=config,
        workdir=folder,
        mesh=mesh,
        task=task,
        tokenizer=tokenizer,
        policy=policy,
        backend=backend,
        client=client,
        gate=gate,
        panel=Panel.from_config(config, knowledge=task.knowledge, mesh=mesh, audit_path=audit_path),
        pool=pool,
        engine=Engine(policy, tokenizer, client, config, mesh, gate, pool),
    )


def _client(config: Any, backend: Backend, folder: pathlib.Path) -> Client | OneAsks:
    """Who asks: each process where the helper is fast and in it, else one for all."""

    def made() -> Client:
        backend.check()
        # Of a helper in this process the checkpoint tells: what it "costs" is of the experiment.
        journal = None if not backend.where else Journal(folder / "spend.jsonl")
        return Client(backend, config.llm, config.requests, journal=journal)

    return made() if jax.process_count() == 1 or backend.is_local else OneAsks(made)


def make_policy(
    config: Any, mesh: jax.sharding.Mesh, *, vocabulary: int, action_tokens: tuple[int, ...]
) -> Policy:
    """The network that a config asks for. action_tokens: the control token of each action."""
    rows = sharding.row_sharding(mesh) if mesh.size > 1 else None
    return Policy(
        dataclasses.replace(transformer_config(config.model, vocabulary), row_sharding=rows),
        len(action_tokens),
        head_width=config.model.head_width,
        has_value=config.rl.credit == "value",
        action_tokens=action_tokens if config.model.head == "tokens" else (),
        unseen=tuple(i for i, name in enumerate(FEATURES) if name not in config.model.features),
    )


def _replayed(backend: Backend, config: Any, folder: pathlib.Path) -> Backend:
    """The backend behind the file of replies that `llm.replay` asks for."""
    llm = config.llm
    if llm.replay == "off":
        return backend
    store = ReplayStore(llm.replay_file or folder / "replay.sqlite", create=llm.replay != "replay")
    return ReplayBackend(
        backend,
        store,
        llm.replay,
        backend_name=_replay_name(backend, config),
        model=llm.local.weights if llm.backend == "local" else llm.model,
        temperature=llm.temperature,
        structured=llm.structured if llm.backend == "openai" else "off",
        secret=api_key(llm),
        joins=not llm.hedge_after_s,  # a hedge is a second request on purpose
    )


def _replay_name(backend: Backend, config: Any) -> str:
    """Who replied, as in the keys of replies: one that knows the task is another for another task.

    Like scripted-1f2e3d4c5b6a; the plain name for a backend that no digest identifies.
    """
    name: str = config.llm.backend
    if not isinstance(backend, Identified):
        return name
    task = {key: value for key, value in config.task.to_dict().items() if key != "data_dir"}
    del task["world"]["graded_sensitivity"]  # what a unit weighs changes no reply
    text = json.dumps([backend.identity, task], sort_keys=True)
    return f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def _tokenizer(config: Any, folder: pathlib.Path, task: Task) -> tokenizers.Tokenizer:
    """The run's own tokenizer if it has been saved, else a new one, saved at once."""
    place = folder / "tokenizer"
    if place.is_dir():
        return tokenizers.load_tokenizer(place)
    tokenizer = tokenizers.make_tokenizer(config, corpus=task.corpus)
    tokenizer.save(place)
    return tokenizer
