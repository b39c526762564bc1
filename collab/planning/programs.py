"""The programs of training, traced from shapes and compiled for described devices.

They are those that `collab.train` and `collab.rollout.engine` run, at the largest shapes that a
config allows: episodes that fill the capacity, prompts as long as leave room for the answer, no two
episodes in a row of the batch. No array is made.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from collab import sharding
from collab.assembly import make_policy
from collab.config import request_names
from collab.models import weights
from collab.models.policy import Policy, init_params
from collab.models.presets import PUBLISHED_VOCABULARY
from collab.planning.hlo import Work, count_work
from collab.rl.batch import Batch, collate
from collab.rl.steps import Steps
from collab.rollout.decode import Decoder
from collab.rollout.engine import decoding_copy, row_rules
from collab.rollout.flight import FEED_PARTS, PROMPT_BUCKET, live_lengths
from collab.rollout.state import GOLD_STEPS, Admission, Limits, Replies, Rule, empty_rows
from collab.tokenizers import control_names
from collab.tokenizers.base import SIZE_MULTIPLE
from collab.types import Trace, action_names

# What a plan needs is known before machine code is made, so that is made with the least effort.
QUICKLY: dict[str, Any] | None = {"xla_backend_optimization_level": 0}


@dataclasses.dataclass(frozen=True)
class Program:
    """What the compiler says of one program, bytes per device. temporary_bytes: at its peak.

    argument_bytes: without those that it does not read.
    """

    name: str
    work: Work
    argument_bytes: int
    output_bytes: int
    alias_bytes: int  # of the outputs, written over arguments
    temporary_bytes: int


@dataclasses.dataclass(frozen=True)
class Planned:
    """Shapes with shardings of all that training keeps on the mesh, and its programs by name.

    inputs: what each program is given beside what is kept. lower: functions that trace and lower.
    """

    config: Any
    mesh: jax.sharding.Mesh
    policy: Policy
    state: Any
    reference: Any
    rows: Any
    inputs: dict[str, Any]
    lower: dict[str, Callable[[], Any]]


def planned(config: Any, mesh: jax.sharding.Mesh) -> Planned:
    """All parts of a config's training on a mesh of its sizes. Raises: ValueError with the fix."""
    names = action_names(request_names(config))
    vocabulary = vocabulary_of(config)
    tokens_A = np.arange(vocabulary - len(names), vocabulary, dtype=np.int32)
    policy = make_policy(
        config, mesh, vocabulary=vocabulary, action_tokens=tuple(tokens_A.tolist())
    )
    limits = Limits.of(
        config.rollout, len(names), helper_features=len(config.model.helper_features)
    )
    is_barred_V = np.zeros(vocabulary, bool)
    steps = Steps(
        config,
        policy,
        mesh,
        param_shapes=jax.eval_shape(
            lambda: init_params(policy, jax.random.key(0), limits.features)
        ),
        is_barred_V=is_barred_V,
    )
    kept = steps.checkpoint_layout()
    learner, reference = kept["learner"], kept["reference"]
    rows = _placed(
        jax.eval_shape(
            lambda: empty_rows(policy.config, limits, rows=config.rollout.rows, steps=GOLD_STEPS)
        ),
        sharding.row_sharding(mesh),
    )
    decoder = Decoder(
        policy=policy,
        limits=limits,
        action_token_A=tokens_A,
        is_barred_V=is_barred_V,
        end_id=0,
        temperature=config.rollout.temperature,
        rules=row_rules(),
    )
    batch = _batch(config, limits, mesh, rows=config.rl.problems * config.rl.samples)
    read, copies = learner.params, tuple[Any, ...]()
    if config.rollout.unstack_layers:
        with as_on_accelerator():
            shapes = jax.eval_shape(decoding_copy(config, policy, mesh), learner.params)
        read = jax.tree.map(_placed, shapes, sharding.param_shardings(shapes, mesh))
        copies = (read,)
    whole = sharding.replicated(mesh)
    admission, replies = _admission(config, limits, mesh), _replies(config, limits, mesh)
    settings = _placed(
        tuple(jax.ShapeDtypeStruct((), kind) for kind in ("float32", "int32", "int32", "bool")),
        whole,
    )
    inputs = {
        "imitate": _batch(config, limits, mesh, rows=config.cold_start.batch),
        "policy_gradient": batch,
        "admit": (*copies, admission),
        "feed": (*copies, replies),
        "advance": (*copies, settings),
    }
    out = jax.tree.map(lambda leaf: leaf.sharding, rows)
    longest = live_lengths(config.rollout)[-2:][0]  # a copy of so much of the cache takes most

    def rollout(function: Any, out: Any, *more: Any) -> Callable[[], Any]:
        jitted = jax.jit(function, donate_argnums=1, out_shardings=out)
        return lambda: jitted.lower(read, rows, *more)

    return Planned(
        config=config,
        mesh=mesh,
        policy=policy,
        state=learner,
        reference=reference,
        rows=rows,
        inputs=inputs,
        lower={
            "imitate": lambda: steps.imitate.lower(learner, inputs["imitate"]),
            "policy_gradient": lambda: steps.policy_gradient.lower(learner, reference, batch),
            "admit": rollout(decoder.admit, out, admission),
            "feed": rollout(decoder.feed, out, replies),
            "advance": rollout(
                functools.partial(decoder.advance, live=longest), (out, whole), *settings
            ),
        },
    )


def compiled(
    name: str, lower: Callable[[], Any], options: dict[str, Any] | None = QUICKLY
) -> Program:
    """Trace as on an accelerator, compile for the mesh's devices, and read what came of it.

    Raises: ValueError where the compiler of a real chip finds that the program can't fit it.
    """
    with as_on_accelerator():
        lowered = lower()
    try:
        executable = lowered.compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        said = " ".join(str(error).split())[:300]
        raise ValueError(
            f"{name} does not fit, says its compiler: {said}; --compiler=cpu names the largest term"
        ) from error
    memory = executable.memory_analysis()
    return Program(
        name=name,
        work=count_work(executable.as_text()),
        argument_bytes=memory.argument_size_in_bytes,
        output_bytes=memory.output_size_in_bytes,
        alias_bytes=memory.alias_size_in_bytes,
        temporary_bytes=memory.temp_size_in_bytes,
    )


@contextlib.contextmanager
def as_on_accelerator() -> Iterator[None]:
    """Have our code choose chunks and matmuls as it does on an accelerator, though a CPU compiles.

    What is traced so must not run here: XLA's CPU can't multiply some bf16 pairs.
    """
    ours = jax.default_backend
    jax.default_backend = lambda: "tpu"
    try:
        yield
    finally:
        jax.default_backend = ours


def vocabulary_of(config: Any) -> int:
    """Tokens of the network, controls and padding included, without the tokenizer itself.

    One more multiple than with it, where a model's own tokens serve as controls and that is enough
    to need none. Raises: ValueError if nothing says how many tokens there are.
    """
    kind, model = config.tokenizer.kind, config.model
    if kind == "byte":
        base = 256
    elif kind == "sentencepiece":
        base = config.tokenizer.vocabulary
    elif model.weights and (not model.preset or _is_here(model.weights)):
        base = weights.shape(model.weights).vocabulary
    elif model.preset in PUBLISHED_VOCABULARY:
        base = PUBLISHED_VOCABULARY[model.preset]
    else:
        raise ValueError(
            f"tokenizer.kind={kind!r} takes its tokens from model.weights, and for "
            f"model.preset={model.preset!r} no number is published; try "
            "tokenizer.kind=sentencepiece, or model.preset=" + ", ".join(PUBLISHED_VOCABULARY)
        )
    controls = len(control_names(request_names(config)))
    return -(-(base + controls) // SIZE_MULTIPLE) * SIZE_MULTIPLE


def _is_here(source: str) -> bool:
    """Whether the weights lie on this machine."""
    kind, _, where = source.partition(":")
    return kind != "package" and pathlib.Path(where).exists()


def _placed(tree: Any, place: jax.sharding.NamedSharding) -> Any:
    """Arrays or shapes as shapes, all with one sharding."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), tree
    )


def _batch(config: Any, limits: Limits, mesh: jax.sharding.Mesh, *, rows: int) -> Batch:
    """The batch of episodes that fill the capacity, every token written by the policy."""
    S, K, A, F = limits.capacity, limits.max_segments, limits.actions, limits.features
    full = Trace(
        tokens_S=np.zeros(S, np.int32),
        sampled_S=np.ones(S, bool),
        logp_S=np.zeros(S, np.float32),
        decided_at_K=np.zeros(K, np.int32),
        action_K=np.zeros(K, np.int32),
        action_logp_K=np.zeros(K, np.float32),
        action_logp_KA=np.zeros((K, A), np.float32),
        legal_KA=np.ones((K, A), bool),
        features_KF=np.zeros((K, F), np.float32),
    )
    shards = sharding.row_parts(mesh)
    batch = collate(
        [full] * rows, rows=rows, capacity=S, decisions=K, actions=A, features=F, shards=shards
    )
    return _placed(batch, sharding.row_sharding(mesh))


def _admission(config: Any, limits: Limits, mesh: jax.sharding.Mesh) -> Any:
    """An `Admission` of as many prompts as are read together, each as long as may be."""
    B = config.rollout.rows
    P = min(B, config.rollout.prompts_per_call)
    longest = limits.capacity - limits.answer_room
    S = min(-(-longest // PROMPT_BUCKET) * PROMPT_BUCKET, limits.capacity)

    def of_rows(dtype: Any, *shape: int) -> Any:
        place = sharding.row_sharding(mesh)
        return jax.ShapeDtypeStruct((B, *shape), dtype, sharding=place)

    def whole(*shape: int) -> Any:
        return jax.ShapeDtypeStruct(shape, jnp.int32, sharding=sharding.replicated(mesh))

    ints, floats, bools = of_rows(jnp.int32), of_rows(jnp.float32), of_rows(jnp.bool_)
    return Admission(
        prompts_PS=whole(P, S),
        length_P=whole(P),
        source_B=ints,
        identity_BI=of_rows(jnp.uint32, 3),
        phase_B=ints,
        asks_B=ints,
        rule=Rule(ints, ints, floats, ints, bools),
        gold_BH=of_rows(jnp.uint32, GOLD_STEPS),
        gold_is_local_BH=of_rows(jnp.bool_, GOLD_STEPS),
        helper_BE=of_rows(jnp.float32, limits.helper_features),
    )


def _replies(config: Any, limits: Limits, mesh: jax.sharding.Mesh) -> Replies:
    """As many replies as are fed at once."""
    F, R = max(1, config.rollout.rows // FEED_PARTS), limits.reply_tokens

    def whole(dtype: Any, *shape: int) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding.replicated(mesh))

    return Replies(
        row_F=whole(jnp.int32, F),
        tokens_FR=whole(jnp.int32, F, R),
        count_F=whole(jnp.int32, F),
        is_asked_back_F=whole(jnp.bool_, F),
        helper_FE=whole(jnp.float32, F, limits.helper_features),
    )
