"""Adapters: zero at first, alone in gradient and optimiser, merged where they are served."""

from __future__ import annotations

import dataclasses
import functools
import re
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
import pytest

import runs
from collab import restore, sharding
from collab.assembly import Assembly, assemble
from collab.metrics import read_jsonl
from collab.models import weights
from collab.models.lora import ADAPTER, Lora, base_of, joined, merged, split
from collab.models.policy import Policy, init_params, unstacked
from collab.models.transformer import Transformer, TransformerConfig, empty_cache
from collab.planning import memory, programs
from collab.rl.grpo import Grpo
from collab.rl.update import Learner, TrainState, make_optimizer
from collab.rollout.state import FEATURES
from collab.train import Trainer
from collab.types import PROJECTIONS, Params
from compiling import quick_jit
from episodes import NAMES
from test_update import IS_BARRED, WEIGHTS, make_batch

pytestmark = pytest.mark.usefixtures("quick")

LORA = Lora(3, 6.0, PROJECTIONS)
PLAIN = TransformerConfig(
    vocabulary=32,
    width=20,
    layers=2,
    heads=4,
    kv_heads=2,
    head_channels=6,
    feed_forward=28,
    has_qkv_bias=True,
)
ADAPTED = dataclasses.replace(PLAIN, lora=LORA)
FEW = dataclasses.replace(PLAIN, lora=Lora(2, 1.0, ("key", "out", "up")))
A, F = len(NAMES), len(FEATURES)


@functools.cache
def made(network: TransformerConfig) -> tuple[Policy, Params]:
    """A policy with a critic and a hidden layer, as it is made at first."""
    policy = Policy(network, A, head_width=5, has_value=True)
    return policy, quick_jit(lambda key: init_params(policy, key, F))(jax.random.key(0))


def noisy(params: Params) -> Params:
    """Noise in every leaf: no zero hides a mistake."""
    random = np.random.default_rng(1)
    return jax.tree.map(
        lambda leaf: leaf + (0.1 * random.standard_normal(leaf.shape)).astype(leaf.dtype), params
    )


def learner_of(policy: Policy) -> Learner:
    optimizer = make_optimizer(lambda step: 0.01, clip_norm=1.0, head_rate=2.0, feature_rate=3.0)
    return Learner(policy, optimizer, IS_BARRED, 0.8)


def update(
    learner: Learner, state: TrainState, reference: Params, batch: Any
) -> tuple[TrainState, dict[str, jax.Array]]:
    """A step of imitation, then one of the policy gradient."""
    state, _ = learner.imitate(state, batch, 0.2)
    weighted = {**WEIGHTS, "value_weight": 0.5, "gae_lambda": 1.0, "standardise": True}
    return learner.policy_gradient(state, reference, batch, objective=Grpo(), weights=weighted)


def logits(network: TransformerConfig, lm: Params, cache: Any = None) -> np.ndarray:
    tokens = np.random.default_rng(2).integers(0, network.vocabulary, (2, 7))
    positions = np.broadcast_to(np.arange(7), tokens.shape)

    @quick_jit
    def read(lm: Params, cache: Any) -> jax.Array:
        hidden, _ = Transformer(network).apply({"params": lm}, tokens, positions, cache)
        return Transformer(network).apply({"params": lm}, hidden, method=Transformer.unembed)

    return np.asarray(read(lm, cache))


def by_path(tree: Any) -> dict[str, np.ndarray]:
    return dict(zip(sharding.leaf_paths(tree), jax.tree.leaves(jax.device_get(tree)), strict=True))


def is_trained(path: str) -> bool:
    return "lm/" not in path or f"/{ADAPTER}/" in path


# --- the network ---------------------------------------------------------------------------


def test_at_first_an_adapter_changes_nothing() -> None:
    """Nor the matrices, which are drawn as they are without one."""
    plain, adapted = made(PLAIN)[1]["lm"], made(ADAPTED)[1]["lm"]
    jax.tree.map(np.testing.assert_array_equal, base_of(adapted), plain)
    np.testing.assert_array_equal(logits(ADAPTED, adapted), logits(PLAIN, plain))
    for name in PROJECTIONS:
        layer = adapted["layers"][name]
        kernel, into, out = layer["kernel"], layer[ADAPTER]["a"], layer[ADAPTER]["b"]
        assert into.shape[-1] == out.shape[1] == LORA.rank
        assert (*into.shape[:-1], *out.shape[2:]) == kernel.shape
        assert not out.any()
        inputs = into[0].size / LORA.rank
        assert 0.5 < np.std(into) * inputs**0.5 < 1.5
    assert (
        np.abs(logits(ADAPTED, noisy(adapted)) - logits(PLAIN, base_of(noisy(adapted)))).max() > 0.1
    )


def test_only_targets_have_adapters() -> None:
    layers = made(FEW)[1]["lm"]["layers"]
    assert {name for name in PROJECTIONS if ADAPTER in layers[name]} == {"key", "out", "up"}


def test_an_adapter_by_hand() -> None:
    """alpha / rank = 2: twice the product is added to the matrix."""
    lm = noisy(made(ADAPTED)[1])["lm"]
    down = lm["layers"]["down"]
    expected = down["kernel"] + 2 * np.einsum(
        "lfr,lrd->lfd", down[ADAPTER]["a"], down[ADAPTER]["b"]
    )
    found = merged(lm, LORA)
    np.testing.assert_allclose(found["layers"]["down"]["kernel"], expected, atol=1e-5)
    out = lm["layers"]["out"]
    expected = out["kernel"] + 2 * np.einsum("lhcr,lrd->lhcd", out[ADAPTER]["a"], out[ADAPTER]["b"])
    np.testing.assert_allclose(found["layers"]["out"]["kernel"], expected, atol=1e-5)
    assert jax.tree.structure(found) == jax.tree.structure(base_of(lm))
    assert merged(lm, None) is lm


@pytest.mark.parametrize("network", [ADAPTED, FEW], ids=["all", "few"])
def test_what_decodes_with_merged_matrices_says_the_same(network: TransformerConfig) -> None:
    """Joined or not, and through the cache with adapters as they are."""
    params = noisy(made(network)[1])
    expected = logits(network, params["lm"])
    cache = empty_cache(network, rows=2, capacity=8)
    np.testing.assert_allclose(logits(network, params["lm"], cache), expected, atol=1e-4)
    for is_joined in (False, True):
        copy = unstacked(params, network, is_joined=is_joined)
        assert not any(ADAPTER in path for path in by_path(copy))
        np.testing.assert_allclose(logits(network, copy["lm"], cache), expected, atol=1e-4)


def test_an_exported_folder_holds_the_sum(tmp_path: Path) -> None:
    lm = noisy(made(ADAPTED)[1])["lm"]
    weights.export(tmp_path, lm, ADAPTED)
    found, network = weights.read(f"hf:{tmp_path}")
    assert network == PLAIN
    jax.tree.map(np.testing.assert_array_equal, found, jax.device_get(merged(lm, LORA)))
    np.testing.assert_allclose(logits(PLAIN, found), logits(ADAPTED, lm), atol=1e-4)


# --- the update ----------------------------------------------------------------------------


@pytest.mark.parametrize("network", [ADAPTED, FEW], ids=["all", "few"])
def test_only_adapters_and_heads_are_trained(network: TransformerConfig) -> None:
    """The rest stays bit for bit, and has no moments."""
    policy, params = made(network)
    learner, batch = learner_of(policy), make_batch()
    before = learner.start(noisy(params))
    moments = {path for path in by_path(before.optimizer) if re.search("/(mu|nu)/", path)}
    assert moments and all(is_trained(path) for path in moments)
    assert len(moments) == 2 * len(jax.tree.leaves(split(params)[0]))
    reference = split(noisy(params))[0]
    after, metrics = quick_jit(functools.partial(update, learner))(before, reference, batch)
    assert np.isfinite(list(metrics.values())).all()
    old, new = by_path(before.params), by_path(after.params)
    assert old.keys() == new.keys()
    moved = {path for path in new if not np.array_equal(old[path], new[path])}
    assert moved == {path for path in new if is_trained(path)}


def test_no_gradient_of_a_matrix_is_ever_made() -> None:
    """No product in the traced steps has a matrix's shape; without adapters some have."""

    def products(network: TransformerConfig) -> set[tuple[int, ...]]:
        policy, params = made(network)
        learner = learner_of(policy)
        state = learner.start(params)
        traced = jax.make_jaxpr(functools.partial(update, learner))(
            state, split(params)[0], make_batch()
        )
        found = re.findall(r"f32\[([\d,]+)\] = dot_general", str(traced))
        return {tuple(sorted(map(int, shape.split(",")))) for shape in found}

    shapes = {
        tuple(sorted(leaf["kernel"].shape[1:]))
        for name, leaf in made(PLAIN)[1]["lm"]["layers"].items()
        if name in PROJECTIONS
    }
    assert products(PLAIN) >= shapes
    assert not products(ADAPTED) & shapes


def test_a_tree_without_adapters_is_trained_whole() -> None:
    params = made(PLAIN)[1]
    assert split(params) == (params, {})
    trained, frozen = split(made(ADAPTED)[1])
    assert set(trained) == set(params) and set(frozen) == {"lm"}
    jax.tree.map(np.testing.assert_array_equal, joined(trained, frozen), made(ADAPTED)[1])


def imitate(state: TrainState, batch: Any) -> tuple[TrainState, dict[str, jax.Array]]:
    return learner_of(made(ADAPTED)[0]).imitate(state, batch, 0.2)


@functools.cache
def imitated() -> tuple[TrainState, TrainState, dict[str, jax.Array]]:
    """A state, and what a step on one device makes of it."""
    policy, params = made(ADAPTED)
    state = learner_of(policy).start(noisy(params))
    return state, *quick_jit(imitate)(state, make_batch())


def test_numbers_do_not_depend_on_the_mesh(mesh: jax.sharding.Mesh) -> None:
    state, alone, metrics = imitated()
    layout = sharding.param_shardings(state, mesh)
    batch = sharding.put_rows(make_batch(shards=sharding.row_parts(mesh)), mesh)
    step = quick_jit(imitate, out_shardings=(layout, sharding.replicated(mesh)))
    new, found = step(jax.device_put(state, layout), batch)
    for name, value in metrics.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-3, atol=1e-5, err_msg=name)
    # Adam's division magnifies the order of sums.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-3),
        sharding.fetch(new.params),
        sharding.fetch(alone.params),
    )


# --- a run ---------------------------------------------------------------------------------


def small_config() -> ml_collections.ConfigDict:
    config = runs.small_config()
    config.model.lora.update({"rank": 2, "targets": ("query", "value", "down")})
    config.cold_start.steps, config.rl.iterations = 2, 2
    return config


def everything(trainer: Trainer) -> dict[str, np.ndarray]:
    return by_path({"learner": trainer.state, "reference": trainer.reference})


def test_a_run_with_adapters_stops_and_goes_on_bit_for_bit(tmp_path: Path) -> None:
    """Its sampler, with merged matrices, is its trainer, without; the base is never touched."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    first = dict[str, np.ndarray]()

    def note(trainer: Trainer, step: int) -> bool:
        if not step:
            first.update(everything(trainer))
        return False

    _, trainer = runs.train(small_config(), whole, note)
    for stop in (1, 4, 5):
        _, again = runs.train(small_config(), broken, lambda _, step, stop=stop: step == stop)
    expected, found = everything(trainer), everything(again)
    assert trainer.step == again.step == trainer.total == 5
    assert found.keys() == expected.keys()
    assert [path for path in found if not np.array_equal(found[path], expected[path])] == []
    frozen = [path for path in first if path.startswith("learner/params") and not is_trained(path)]
    assert all(np.array_equal(first[path], expected[path]) for path in frozen)
    adapters = [path for path in first if path.endswith(f"{ADAPTER}/b")]
    assert any(np.any(expected[path]) for path in adapters)
    assert all(is_trained(path) for path in found if path.startswith("reference"))
    written = read_jsonl(whole / "metrics.jsonl")
    gaps = [line["sampler_gap"] for line in written if line["stage"] == "policy_gradient"]
    assert len(gaps) == 2 and max(gaps) < 1e-4
    run = restore.restored(small_config(), str(whole), "")
    assert jax.tree.structure(run.reference) == jax.tree.structure(run.params)
    for tree in (run.params, run.reference):
        np.testing.assert_array_equal(
            tree["lm"]["embed"]["embedding"], first["learner/params/lm/embed/embedding"]
        )


def test_a_folder_is_of_its_adapters(tmp_path: Path) -> None:
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "checkpoints" / "1").mkdir(parents=True)
    config = small_config()
    restore.write_config(config, tmp_path)
    config.model.lora.rank = 3
    with pytest.raises(ValueError, match=r"model\.lora\.rank=3, but .* with model\.lora\.rank=2"):
        restore.check_same_run(config, tmp_path, is_resumed=True)


@pytest.fixture
def assembled(tiny_config: ml_collections.ConfigDict, tmp_path: Path) -> Assembly:
    tiny_config.model.lora.rank = 2
    tiny_config.mesh.update({"fsdp": 2, "model": 2})
    return assemble(tiny_config, str(tmp_path))


def test_loaded_weights_are_the_base(assembled: Assembly, monkeypatch: pytest.MonkeyPatch) -> None:
    random = assembled.initial_params()
    trunk = jax.tree.map(lambda leaf: np.full(leaf.shape, 0.25), base_of(random["lm"]))
    monkeypatch.setattr(weights, "load", lambda source, config: trunk)
    assembled.config.model.weights = "hf:folder"
    params = assembled.initial_params()
    assert jax.tree.structure(params) == jax.tree.structure(random)
    assert {float(leaf.min()) for leaf in jax.tree.leaves(base_of(params["lm"]))} == {0.25}
    trained, expected = by_path(split(params)[0]), by_path(split(random)[0])
    for path, value in expected.items():
        np.testing.assert_array_equal(trained[path], value, err_msg=path)


def test_adapters_lie_where_their_matrix_does(assembled: Assembly) -> None:
    """An axis of A as the matrix's input, one of B as its output; the rank is nowhere split."""
    params = assembled.initial_params()
    for name, layer in params["lm"]["layers"].items():
        if name not in PROJECTIONS:
            continue
        adapter = layer[ADAPTER]
        kernel, into, out = (
            (*leaf.sharding.spec, *[None] * leaf.ndim)
            for leaf in (layer["kernel"], adapter["a"], adapter["b"])
        )
        rank_at = adapter["a"].ndim - 1
        assert into[1:rank_at] == kernel[1:rank_at], name
        assert out[2] == kernel[rank_at], name
        assert into[rank_at] is out[1] is None
    query = params["lm"]["layers"]["query"][ADAPTER]
    assert not query["a"].sharding.is_fully_replicated
    assert not query["b"].sharding.is_fully_replicated


def test_a_plan_has_no_moments_of_the_base() -> None:
    kept = {}
    for rank in (0, 2):
        config = small_config()
        config.model.lora.rank = rank
        config.mesh.update({"fsdp": 2, "model": 2})
        plan = programs.planned(config, sharding.make_mesh(config.mesh))
        kept[rank] = memory.kept_bytes(plan)
        trained = memory.shard_bytes(split(plan.state.params)[0])
        assert kept[rank]["reference"] == trained
        assert kept[rank]["optimiser"] == pytest.approx(2 * trained, rel=0.01)
    assert kept[2]["parameters"] > kept[0]["parameters"]
    assert kept[2]["optimiser"] < 0.2 * kept[0]["optimiser"]
    programs.compiled("policy_gradient", plan.lower["policy_gradient"])
