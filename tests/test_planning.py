"""The plan against what it plans: the engine's own shapes, sizes by hand, counted loops."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from collab import sharding
from collab.assembly import assemble
from collab.chips import CHIPS
from collab.config import default_config
from collab.planning import memory, programs, table
from collab.planning.hlo import Work, count_work
from collab.planning.programs import Planned, Program
from collab.planning.slices import MESH_AXES, read_mesh, read_slice, suited_mesh
from collab.rollout import state
from collab.rollout.episodes import Job
from collab.types import Exchange, Feedback, FeedbackKind, Problem
from conftest import MESHES, TINY

FSDP = {"data": 1, "fsdp": 8, "model": 1}
TENSOR = {"data": 1, "fsdp": 2, "model": 2}
ONE = {"data": 1, "fsdp": 1, "model": 1}


def small(mesh: dict[str, int]) -> ml_collections.ConfigDict:
    config = default_config()
    config.update_from_flattened_dict(TINY)
    config.mesh.update(mesh)
    return config


@functools.cache
def plan_on(*sizes: int) -> Planned:
    config = small(dict(zip(MESH_AXES, sizes, strict=True)))
    return programs.planned(config, sharding.make_mesh(config.mesh))


@functools.cache
def compiled(name: str, *sizes: int) -> Program:
    return programs.compiled(name, plan_on(*sizes).lower[name])


def plan_of(mesh: dict[str, int]) -> Planned:
    return plan_on(*mesh.values())


# --- chips, slices, meshes -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "chip", "devices"),
    [
        ("v5p-8", "v5p", 4),  # cores
        ("v4-32", "v4", 16),
        ("v5e-256", "v5e", 256),  # chips
        ("v5litepod-8", "v5e", 8),
        ("v6e-4", "v6e", 4),
        ("H100-8", "h100", 8),
    ],
)
def test_a_slice_names_its_chips(text: str, chip: str, devices: int) -> None:
    found = read_slice(text)
    assert (found.chip.name, found.devices) == (chip, devices)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("v5p-7", "v5p slices count TensorCores, 2 a chip; try --slice=v5p-14 for 7 chips"),
        ("v5x-8", "did you mean v5"),
        ("v5e", "must say how many; try --slice=v5e-8"),
        ("v5e-0", "must say how many; try --slice=v5e-8"),
        ("8", "must name one of v4, v5e, v5p, v6e, a100, h100, h200"),
    ],
)
def test_a_wrong_slice_names_the_fix(text: str, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        read_slice(text)
    assert message in str(caught.value)


def test_a_slice_of_tpus_has_a_shape() -> None:
    """A size that no slice has, or GPUs, have none."""
    shapes = ("v5p-8", "v4-32", "v5e-256", "v6e-8", "v5e-3", "h100-8")
    assert [read_slice(text).topology for text in shapes] == [
        "2x2x1", "2x2x4", "16x16", "2x4", "", "",
    ]  # fmt: skip


def test_a_mesh_is_read_and_its_mistakes_are_named() -> None:
    assert read_mesh("fsdp=8") == FSDP
    assert read_mesh("data=2, model=4") == {"data": 2, "fsdp": 1, "model": 4}
    for text in ("tensor=2", "fsdp", "fsdp=0", "fsdp=x", "8"):
        with pytest.raises(ValueError, match=r"try --mesh=data=1,fsdp=8,model=1"):
            read_mesh(text)
    assert MESH_AXES == sharding.AXES


def test_a_mesh_fills_the_slice_or_says_which_would() -> None:
    assert suited_mesh(ONE, 8) == FSDP
    assert suited_mesh(TENSOR, 4) == TENSOR
    with pytest.raises(ValueError, match=r"4 devices, the slice has 8; .*data=1,fsdp=4,model=2"):
        suited_mesh(TENSOR, 8)
    with pytest.raises(ValueError, match=r"try --mesh=data=1,fsdp=8,model=1"):
        suited_mesh({"data": 3, "fsdp": 1, "model": 1}, 8)


def test_every_chip_has_figures_and_says_where_from() -> None:
    for chip in CHIPS.values():
        assert 10e9 < chip.memory_bytes < 200e9 and chip.source
        # Matmuls of 100 to 600 FLOP a byte are where compute and memory balance, on all of them.
        assert 100 < chip.flops_per_s / chip.memory_bytes_per_s < 600
        assert chip.link_bytes_per_s < chip.memory_bytes_per_s


# --- counting ------------------------------------------------------------------------------

TEXT = """\
HloModule hand, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%product (p: f32[4,8], q: f32[8,2]) -> f32[4,2] {
  %p = f32[4,8]{1,0} parameter(0)
  %q = f32[8,2]{1,0} parameter(1)
  ROOT %dot.1 = f32[4,2]{1,0} dot(%p, %q), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%nothing (n: f32[4,2]) -> f32[4,2] {
  ROOT %n = f32[4,2]{1,0} parameter(0)
}

%body (s: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %s = (s32[], /*index=1*/f32[4,8]{1,0}) parameter(0)
  %x = f32[4,8]{1,0} get-tuple-element(%s), index=1
  %g = bf16[16,8]{1,0} all-gather(%x), replica_groups={{0,1,2,3}}, dimensions={0}
  %f = f32[4,2]{1,0} fusion(%x, %x), kind=kCustom, calls=%product
  ROOT %t = (s32[], f32[4,8]{1,0}) tuple(%s, %x)
}

%condition (s: (s32[], f32[4,8])) -> pred[] {
  ROOT %c = pred[] constant(true)
}

ENTRY %main (m: f32[4,8]) -> f32[4,2] {
  %m = f32[4,8]{1,0} parameter(0)
  %w = (s32[], f32[4,8]{1,0}) while(%m), condition=%condition, body=%body, backend_config={TRIPS}
  %r = (f32[3]{0}, f32[5]{0}) all-reduce(%m, %m), replica_groups={}, to_apply=%add
  %i = f32[4,2]{1,0} conditional(%m, %m, %m), branch_computations={%nothing, %product}
  ROOT %o = f32[4,2]{1,0} fusion(%m, %m), kind=kOutput, calls=%product
}
"""
DOT, ITEMS = 2 * 4 * 2 * 8, 4 * 2 + 4 * 8 + 8 * 2


def test_a_body_counts_as_often_as_it_runs() -> None:
    counted = count_work(TEXT.replace("TRIPS", '{"known_trip_count":{"n":"3"},"x":{}}'))
    assert counted.flops == (3 + 2) * DOT  # the loop's, the conditional's, the last
    assert counted.matmul_items == 5 * ITEMS
    assert counted.collectives == {"all-gather": (3, 3 * 16 * 8 * 2.0), "all-reduce": (1, 32.0)}
    assert counted.collective_bytes == 3 * 256 + 32
    assert counted.open_loops == 0


def test_a_loop_of_unknown_length_counts_once_and_is_told() -> None:
    counted = count_work(TEXT.replace("TRIPS", "{}"))
    assert (counted.flops, counted.open_loops) == (3 * DOT, 1)
    assert counted.collectives["all-gather"] == (1, 256.0)
    with pytest.raises(ValueError, match="no entry"):
        count_work("HloModule empty")


def test_scanned_matmuls_on_a_mesh_are_counted_whole() -> None:
    """Five layers of [16, 32] x [32, 32], rows over 8 devices, weights gathered for each."""
    mesh = sharding.make_mesh(FSDP)
    rows, kernels = (NamedSharding(mesh, P(*axes)) for axes in (("fsdp",), (None, "fsdp")))
    x = jax.ShapeDtypeStruct((16, 32), jnp.float32, sharding=rows)
    w = jax.ShapeDtypeStruct((5, 32, 32), jnp.float32, sharding=kernels)

    def layers(x: jax.Array, w: jax.Array) -> jax.Array:
        whole = NamedSharding(mesh, P())
        return jax.lax.scan(
            lambda x, one: (jnp.tanh(x @ jax.lax.with_sharding_constraint(one, whole)), None), x, w
        )[0]

    found = count_work(jax.jit(layers, out_shardings=rows).lower(x, w).compile().as_text())
    assert found.flops == 5 * 2 * 16 * 32 * 32 / 8
    assert found.collectives["all-gather"] == (5, 5 * 32 * 32 * 4.0)
    assert found.open_loops == 0


def test_what_a_compiler_refuses_is_said() -> None:
    class Refused:
        def compile(self, **_: Any) -> None:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Ran out of memory\n  in hbm")

    with pytest.raises(ValueError, match=r"admit does not fit, .*: .*memory in hbm;"):
        programs.compiled("admit", Refused)


# --- what is planned is what runs ----------------------------------------------------------


def shapes(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: (leaf.shape, str(leaf.dtype), leaf.sharding), tree)


def test_the_rollout_is_given_the_planned_shapes(
    tiny_config: ml_collections.ConfigDict, tmp_path: Path
) -> None:
    """The engine's own calls, recorded instead of compiled."""
    tiny_config.mesh.update(MESHES["2x2x2"])
    tiny_config.model.helper_features = ("price",)
    plan = programs.planned(tiny_config, sharding.make_mesh(tiny_config.mesh))
    assembly = assemble(tiny_config, str(tmp_path))
    engine, given = assembly.engine, {}

    def record(name: str) -> Any:
        def call(params: Any, rows: Any, *more: Any, live: int = 0) -> Any:
            given[name] = (params, *more)
            return (rows, state.Work.none()) if name == "advance" else rows

        return call

    for name in ("admit", "feed", "advance"):
        setattr(engine, f"_{name}", record(name))
    problem = Problem("p", "who ?", ("x",), notes="n")
    run = engine.flight(temperature=1.0)
    run.add([Job(problem, (0, 0, s)) for s in range(8)])
    run.turn(assembly.initial_params())
    request = engine.gate.screen  # a request under way, by hand
    assert request is not None and run.row[0] is not None
    run.row[0].exchanges.append(Exchange("ask_fact", "q", Feedback(FeedbackKind.HINT, "")))
    run.futures[0] = concurrent.futures.Future()
    run.futures[0].set_result(Feedback(FeedbackKind.HINT, "so"))
    run._feed()
    assembly.close()

    assert shapes(plan.rows) == shapes(engine.rows)
    assert shapes(plan.inputs["feed"]) == shapes(given["feed"])
    assert shapes(plan.inputs["advance"][0]) == shapes(given["advance"][0])
    assert shapes(plan.inputs["advance"][1]) == shapes(given["advance"][1:])
    admitted, planned = given["admit"][1], plan.inputs["admit"][1]
    P_, S = planned.prompts_PS.shape
    assert admitted.prompts_PS.shape[0] == P_ and admitted.prompts_PS.shape[1] <= S
    rest = [dataclasses.replace(each, prompts_PS=()) for each in (admitted, planned)]
    assert shapes(rest[0]) == shapes(rest[1])
    assert plan.policy == assembly.policy
    assert jax.tree.map(lambda leaf: leaf.shape, plan.reference) == jax.tree.map(
        lambda leaf: leaf.shape, assembly.param_shapes()
    )


@pytest.mark.parametrize("mesh", [FSDP, TENSOR], ids=["fsdp", "tensor"])
@pytest.mark.parametrize("name", ["policy_gradient", "advance"])
def test_compiled_arguments_are_the_analytic_ones(name: str, mesh: dict[str, int]) -> None:
    """But for inputs that a program does not read, which the compiler leaves out."""
    plan, found = plan_of(mesh), compiled(name, *mesh.values())
    kept = memory.kept_bytes(plan)
    inputs = memory.shard_bytes(plan.inputs[name])
    given = sum(kept[part] for part in ("parameters", "optimiser", "reference"))
    if name == "advance":
        copy = memory.shard_bytes(plan.inputs[name][0])
        assert copy == kept["parameters"]  # in float32
        given, inputs = copy + kept["cache"] + kept["records"], inputs - copy
    assert given > 10 * inputs or name == "policy_gradient"
    assert given - 0.01 * given <= found.argument_bytes <= given + inputs
    if name == "policy_gradient":  # the new state is written over the old one
        assert found.alias_bytes == kept["parameters"] + kept["optimiser"]
        assert found.temporary_bytes > kept["parameters"]  # the gradients among them


def test_parts_of_a_device_by_hand() -> None:
    plan = plan_of(FSDP)
    config, kept = plan.policy.config, memory.kept_bytes(plan)
    items = 2 * config.layers * 96 * config.kv_heads * config.head_channels  # keys and values
    assert kept["cache"] == items * 4  # one of 8 rows, float32
    assert kept["optimiser"] == 2 * kept["parameters"] + 3 * 4  # three counts of steps
    every = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(plan.reference)) * 4
    assert every / 8 < kept["parameters"] < every / 8 + 0.1 * every  # norms and heads stay whole
    assert memory.kept_bytes(plan_of(ONE))["parameters"] == every


def test_the_update_gathers_weights_and_no_activations() -> None:
    """What is summed over devices are gradients, the size of the parameters, and little else."""
    plan, work = plan_of(FSDP), compiled("policy_gradient", *FSDP.values()).work
    every = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(plan.reference)) * 4
    _, summed_bytes = work.collectives["all-reduce"]
    assert every < summed_bytes < 1.2 * every


def test_collectives_come_with_the_axes_that_need_them() -> None:
    assert compiled("policy_gradient", 1, 1, 1).work.collectives == {}
    for mesh in (FSDP, TENSOR):
        kept = memory.kept_bytes(plan_of(mesh))
        work = compiled("policy_gradient", *mesh.values()).work
        assert {"all-gather", "all-reduce", "reduce-scatter"} & work.collectives.keys()
        assert work.collective_bytes > kept["parameters"]  # weights or their gradients, at least
    assert compiled("advance", *TENSOR.values()).work.collectives["all-reduce"][0] >= 2 * 3


def test_work_of_an_update_is_what_the_network_asks_for() -> None:
    """One device: forward of policy and reference, and a backward of twice a forward."""
    plan, found = plan_of(ONE), compiled("policy_gradient", 1, 1, 1).work
    config, batch = plan.policy.config, plan.inputs["policy_gradient"]
    tokens, length = math.prod(batch.tokens_QRS.shape), batch.tokens_QRS.shape[-1]
    kernels = plan.reference["lm"]["layers"]
    layers = sum(
        math.prod(kernels[name]["kernel"].shape)
        for name in ("query", "key", "value", "out", "gate", "up", "down")
    )
    attention = 2 * config.layers * config.heads * config.head_channels * length
    unembedding = config.vocabulary * config.width * batch.written_QM.size / tokens
    forward = 2 * tokens * (layers + attention + unembedding)
    # The embedding's gradient is a matmul with one-hot tokens; heads are small.
    embedding = 2 * tokens * config.vocabulary * config.width
    assert found.flops == pytest.approx(4 * forward + embedding, rel=0.02)
    assert found.open_loops == 0
    assert compiled("advance", 1, 1, 1).work.open_loops == 1  # its decode steps


def test_nothing_is_traced_as_for_a_cpu() -> None:
    """Matmuls of scores stay in bf16, and the context manager puts things back."""
    before = jax.default_backend
    with programs.as_on_accelerator():
        assert jax.default_backend() != "cpu"
    assert jax.default_backend is before
    with pytest.raises(KeyError), programs.as_on_accelerator():
        raise KeyError
    assert jax.default_backend is before


# --- vocabulary ----------------------------------------------------------------------------


def test_the_vocabulary_is_the_tokenizers_or_the_published_one() -> None:
    config = small(ONE)
    config.tokenizer.kind, config.model.preset = "hf", "qwen2_5_7b"
    config.model.weights = "hf:no/such/folder"
    assert programs.vocabulary_of(config) == 152_128  # 152,064 and controls
    config.model.update({"preset": "tiny", "weights": ""})
    with pytest.raises(ValueError, match=r"no number is published; try tokenizer.kind=sentencep"):
        programs.vocabulary_of(config)


# --- moments, verdicts, words --------------------------------------------------------------


def program(name: str, **sizes: int) -> Program:
    none = {"argument_bytes": 0, "output_bytes": 0, "alias_bytes": 0, "temporary_bytes": 0}
    work = Work(4e12, 1e6, {"all-gather": (3, 6e9)})
    return Program(name=name, work=work, **{**none, **sizes})


def test_moments_add_up() -> None:
    plan = plan_of(FSDP)
    kept = memory.kept_bytes(plan)
    resident = sum(kept.values())
    update = program("policy_gradient", output_bytes=90, alias_bytes=60, temporary_bytes=1000)
    found, hand_over = memory.moments(plan, [update])
    batch = memory.shard_bytes(plan.inputs["policy_gradient"])
    assert found.more_bytes == batch + 30 + 1000
    assert found.total_bytes == resident + found.more_bytes
    assert hand_over.total_bytes == resident + 2 * kept["parameters"] + kept["optimiser"]


def test_a_verdict_leaves_a_reserve() -> None:
    chip = CHIPS["v5e"]
    assert memory.verdict(int(0.91 * 16e9), chip) == memory.FITS
    assert memory.verdict(int(0.95 * 16e9), chip) == memory.TIGHT
    assert memory.verdict(int(1.01 * 16e9), chip) == memory.NOT


KEPT = {"parameters": 10, "optimiser": 20, "reference": 10, "cache": 5, "records": 1}


@pytest.mark.parametrize(
    ("kept", "peak", "words"),
    [
        (KEPT, "policy_gradient", ("state", "raise mesh.fsdp or mesh.model")),
        (KEPT | {"cache": 90}, "advance", ("key-value cache", "rollout.rows=8")),
        (
            KEPT | {"parameters": 1},
            "policy_gradient",
            ("of policy_gradient", "model.remat='layers'"),
        ),
        (KEPT | {"parameters": 1}, "admit", ("of admit", "rollout.prompts_per_call=32")),
        (KEPT | {"parameters": 1}, "feed", ("of feed", "rollout.reply_tokens=12")),
        (KEPT | {"parameters": 1}, "advance", ("of advance", "mesh.fsdp=8")),
    ],
)
def test_advice_names_the_largest_term_and_keys_that_exist(
    kept: dict[str, int], peak: str, words: tuple[str, ...]
) -> None:
    config = small(FSDP)
    moment = memory.Moment(peak, 35, 35, 100)
    said = memory.advice(kept, moment, config)
    assert all(word in said for word in words), said
    for key in ("rollout.rows", "rollout.prompts_per_call", "rl.chunk_rows", "model.remat"):
        section, name = key.split(".")
        assert name in config[section]


def test_the_table_says_it_all_and_bounds_are_worked_out() -> None:
    plan, place = plan_of(FSDP), read_slice("v5e-8")
    names = list(plan.lower)
    record = table.to_record(
        plan, [program(name, argument_bytes=8 * 10**9) for name in names], place
    )
    assert record["at_least_s"]["advance"] == pytest.approx(
        {"compute_s": 4e12 / 197e12, "memory_s": 8e9 / 819e9, "links_s": 0.03}
    )
    assert record["peak"] == memory.HAND_OVER  # no temporaries were given
    assert record["fits"]["v5e"] == memory.FITS
    said = table.to_text(record, plan.config)
    for words in (
        *("mesh data=1, fsdp=8, model=1", "8 x v5e", "FITS: 0.00 of 16.0 GB", "20.305"),
        *("3 all-gather 6.000", "key-value cache", "XLA's CPU", "bounds, not forecasts"),
    ):
        assert words in said, words
    assert max(map(len, said.splitlines())) <= table.WIDTH
