"""Meshes, path rules and row helpers, on 8 fake devices and on 2 processes of 4."""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import processes
from collab import sharding
from collab.models.transformer import Transformer, TransformerConfig

TOKENS = np.zeros((2, 4), np.int32)
NETWORK = TransformerConfig(
    vocabulary=16,
    width=8,
    layers=3,
    heads=4,
    kv_heads=2,
    head_channels=4,
    feed_forward=16,
    is_tied=False,
    has_qkv_bias=True,
    has_qk_norm=True,
)
CUBE = {"data": 2, "fsdp": 2, "model": 2}


def init(network: TransformerConfig) -> dict:
    """Parameters of a network with the three heads that a policy puts on top of it."""
    model = Transformer(network)
    params = jax.jit(model.init)(jax.random.key(0), TOKENS, TOKENS)["params"]
    heads = {
        name: {"kernel": jnp.ones((network.width, 4)), "bias": jnp.ones(4)}
        for name in ("action_head", "feature_head", "value_head")
    }
    return {"trunk": params, **heads}


def specs(tree: object, mesh: jax.sharding.Mesh) -> dict[str, P]:
    shardings = jax.tree.leaves(sharding.param_shardings(tree, mesh))
    return {
        path: placed.spec for path, placed in zip(sharding.leaf_paths(tree), shardings, strict=True)
    }


# --- meshes --------------------------------------------------------------------------------


def test_mesh_has_the_sizes_of_the_config_and_auto_axes(
    mesh: jax.sharding.Mesh, mesh_config: dict[str, int]
) -> None:
    assert dict(mesh.shape) == mesh_config
    assert mesh.axis_types == (AxisType.Auto,) * 3


def test_mesh_takes_the_first_devices_and_says_that_others_idle(
    caplog: pytest.LogCaptureFixture,
) -> None:
    mesh = sharding.make_mesh({"data": 2, "fsdp": 1, "model": 1})
    assert list(mesh.devices.flat) == jax.devices()[:2]
    assert "use 2 of 8 devices" in caplog.text


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((16, 1, 1), r"mesh.data=16.* take 16 devices.* 8 present; try mesh.data=8"),
        ((1, 1, 3), None),
        ((4, 1, 3), r"mesh.model=3 take 12 devices.*; try mesh.data=8, mesh.fsdp=1, mesh.model=1"),
        ((4, 2, 2), r"try mesh.data=2"),
        ((0, 1, 1), r"mesh.data=0 must be at least 1"),
        ((1, 1, -1), r"mesh.model=-1 must be at least 1"),
    ],
)
def test_mesh_errors_name_key_value_and_fix(sizes: tuple[int, ...], message: str | None) -> None:
    config = dict(zip(sharding.AXES, sizes, strict=True))
    if message is None:
        assert sharding.make_mesh(config).size == 3
        return
    with pytest.raises(ValueError, match=message):
        sharding.make_mesh(config)


# --- parameters ----------------------------------------------------------------------------


def test_every_parameter_lands_where_the_rules_say() -> None:
    found = specs(jax.eval_shape(lambda: init(NETWORK)), sharding.make_mesh(CUBE))
    layers = "trunk/layers"
    expected = {
        "trunk/embed/embedding": P("model", "fsdp"),
        "trunk/unembedding/kernel": P("fsdp", "model"),
        f"{layers}/query/kernel": P(None, "fsdp", "model", None),
        f"{layers}/key/kernel": P(None, "fsdp", "model", None),
        f"{layers}/value/kernel": P(None, "fsdp", "model", None),
        f"{layers}/query/bias": P(None, "model", None),
        f"{layers}/key/bias": P(None, "model", None),
        f"{layers}/value/bias": P(None, "model", None),
        f"{layers}/out/kernel": P(None, "model", None, "fsdp"),
        f"{layers}/gate/kernel": P(None, "fsdp", "model"),
        f"{layers}/up/kernel": P(None, "fsdp", "model"),
        f"{layers}/down/kernel": P(None, "model", "fsdp"),
    }
    assert {path: spec for path, spec in found.items() if spec != P()} == expected
    whole = {path for path, spec in found.items() if spec == P()}
    assert all(re.search(r"norm/scale$|_head/", path) for path in whole), whole


def test_an_axis_that_does_not_divide_leaves_its_dimension_whole() -> None:
    mesh = sharding.make_mesh({"data": 1, "fsdp": 2, "model": 4})
    found = specs(jax.eval_shape(lambda: init(NETWORK)), mesh)
    assert found["trunk/layers/query/kernel"] == P(None, "fsdp", "model", None)
    assert found["trunk/layers/key/kernel"] == P(None, "fsdp", None, None)  # 2 heads over 4
    assert found["trunk/layers/key/bias"] == P()


def test_optimizer_state_follows_its_parameters() -> None:
    mesh = sharding.make_mesh(CUBE)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    params = jax.eval_shape(lambda: init(NETWORK))
    state = jax.eval_shape(optimizer.init, params)
    by_param, by_state = specs(params, mesh), specs(state, mesh)
    moments = {path: spec for path, spec in by_state.items() if re.search("/(mu|nu)/", path)}
    assert len(moments) == 2 * len(by_param)
    for path, spec in moments.items():
        assert spec == by_param[re.sub(r"^.*/(mu|nu)/", "", path)], path
    assert all(spec == P() for path, spec in by_state.items() if path not in moments)


def test_a_leaf_of_lower_rank_than_its_rule_stays_whole() -> None:
    """Factored optimizers keep vectors under the names of matrices."""
    mesh = sharding.make_mesh(CUBE)
    assert specs({"v_row": {"down": {"kernel": jnp.ones(8)}}}, mesh) == {"v_row/down/kernel": P()}


def hidden(params: dict, tokens_BS: jax.Array, positions_BS: jax.Array) -> jax.Array:
    return Transformer(NETWORK).apply({"params": params}, tokens_BS, positions_BS)[0]


@pytest.fixture(scope="module")
def unsharded() -> tuple[dict, tuple[np.ndarray, np.ndarray], np.ndarray]:
    """Parameters, a batch, and its hidden states computed without any mesh."""
    params = init(NETWORK)["trunk"]
    tokens_BS = np.arange(32, dtype=np.int32).reshape(8, 4) % 16
    positions_BS = np.tile(np.arange(4, dtype=np.int32), (8, 1))
    return params, (tokens_BS, positions_BS), jax.jit(hidden)(params, tokens_BS, positions_BS)


def test_numbers_do_not_depend_on_the_mesh(mesh: jax.sharding.Mesh, unsharded: tuple) -> None:
    params, batch, expected = unsharded
    placed = jax.device_put(params, sharding.param_shardings(params, mesh))
    compute = jax.jit(hidden, out_shardings=sharding.row_sharding(mesh))
    got = compute(placed, *sharding.put_rows(batch, mesh))
    np.testing.assert_allclose(sharding.fetch(got), expected, atol=1e-5)


# --- rows ----------------------------------------------------------------------------------


def test_rows_are_split_over_data_and_fsdp_and_come_back_whole() -> None:
    mesh = sharding.make_mesh(CUBE)
    batch = {"tokens": np.arange(24).reshape(8, 3), "done": np.arange(8) % 2 == 0}
    placed = sharding.put_rows(batch, mesh)
    assert placed["tokens"].sharding == NamedSharding(mesh, P(("data", "fsdp")))
    assert {shard.data.shape for shard in placed["tokens"].addressable_shards} == {(2, 3)}
    assert jax.tree.all(jax.tree.map(np.array_equal, sharding.fetch(placed), batch))


def test_rows_that_do_not_divide_are_an_error_with_a_fix() -> None:
    with pytest.raises(ValueError, match=r"shape \(6, 2\).*data\*mesh.fsdp=4; try a multiple of 4"):
        sharding.put_rows(np.zeros((6, 2)), sharding.make_mesh(CUBE))


def test_replicated_puts_the_whole_array_everywhere() -> None:
    mesh = sharding.make_mesh(CUBE)
    placed = jax.device_put(np.arange(5), sharding.replicated(mesh))
    assert {shard.data.shape for shard in placed.addressable_shards} == {(5,)}


# --- several processes ---------------------------------------------------------------------


def worker(*, address: str, process: int, folder: Path) -> None:
    """One of two processes with four devices: put rows, compute on a 4x1x2 mesh, fetch."""
    jax.distributed.initialize(address, num_processes=2, process_id=process)

    def made() -> str:
        if not (folder / "made").exists():
            time.sleep(1.0)  # the other process would be here by now
            with (folder / "made").open("x") as file:
                file.write(f"by {process}")
        return (folder / "made").read_text()

    assert sharding.first_process_first(made) == "by 0"
    with pytest.raises(ValueError, match="must take all of the 8 present"):
        sharding.make_mesh({"data": 4, "fsdp": 1, "model": 1})
    mesh = sharding.make_mesh({"data": 4, "fsdp": 1, "model": 2})
    rows = np.arange(24, dtype=np.float32).reshape(8, 3)
    kernel = np.arange(12, dtype=np.float32).reshape(3, 4)
    placed = sharding.put_rows(rows, mesh)
    assert not placed.is_fully_addressable
    params = {"up": {"kernel": kernel}}
    shardings = sharding.param_shardings(params, mesh)
    params = jax.tree.map(
        lambda leaf, at: jax.make_array_from_callback(leaf.shape, at, lambda index: leaf[index]),
        params,
        shardings,
    )
    product = jax.jit(lambda rows, kernel: (rows @ kernel, rows.sum()))(
        placed, params["up"]["kernel"]
    )
    assert np.array_equal(sharding.fetch(placed), rows)
    fetched, total = sharding.fetch(product)
    assert np.array_equal(fetched, rows @ kernel)
    assert total == rows.sum()
    print(f"process {process} right", flush=True)


def test_two_processes_of_four_devices_agree(tmp_path: Path) -> None:
    said = processes.outputs(__file__, str(tmp_path), devices=4, timeout_s=120)
    for process, text in enumerate(said):
        assert f"process {process} right" in text


if __name__ == "__main__":
    worker(address=sys.argv[1], process=int(sys.argv[2]), folder=Path(sys.argv[3]))
