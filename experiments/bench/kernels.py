"""What a decode step hangs on: how the matrices of a layer lie, and how far attention reads.

`taskset -c 0 python -m experiments.bench.kernels` (some minutes) prints a table and writes
results/kernels.json. First the matrices of SmolLM2-135M's thirty layers, f32, which no cache of a
CPU holds, times few rows, as XLA compiles them: rows [N, D] times [D, F], and [F, D] times columns,
which is `collab.models.projection.linear`. Beside them stands what NumPy's BLAS makes of the same
product. Then 64 steps of the tiny network in 128 rows, by the tokens that attention reads, all of
256 or fewer.
"""

from __future__ import annotations

import argparse
import functools
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from collab.models.presets import PRESETS
from collab.models.projection import linear
from collab.models.transformer import Transformer, TransformerConfig, empty_cache
from experiments.bench import records

RESULTS = pathlib.Path(__file__).parent / "results" / "kernels.json"
OURS, PLAIN, BLAS = "[F, D] times columns", "rows times [D, F]", "rows times [D, F], NumPy"
SPEED, STEP = "GFLOP/s", "ms a step"
ROWS = (1, 2, 8, 32, 64, 128)
REACH, TINY_ROWS, STEPS, VOCABULARY = (256, 192, 128), 128, 64, 512
ALL = f"attention reads {REACH[0]}"


def layer_shapes() -> list[tuple[int, int]]:
    """(D, F) of a layer's matrices, those of one input joined."""
    shape = PRESETS["smollm2_135m"]
    width, channels, hidden = shape["width"], shape["head_channels"], shape["feed_forward"]
    heads, kv_heads = shape["heads"], shape["kv_heads"]
    return [
        (width, channels * (heads + 2 * kv_heads)),
        (channels * heads, width),
        (width, 2 * hidden),
        (hidden, width),
    ]


def seconds(call: Callable[[], Any]) -> float:
    began = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - began


def products(rows: int, repeats: int) -> list[records.Taken]:
    """GFLOP/s of each layout."""
    rng, shapes = np.random.default_rng(0), layer_shapes() * PRESETS["smollm2_135m"]["layers"]
    matrices = [rng.standard_normal(shape, np.float32) for shape in shapes]
    inputs = [rng.standard_normal((rows, D), np.float32) for D in {D for D, _ in shapes}]
    x_of = {x.shape[1]: x for x in inputs}

    @jax.jit
    def plain(x_of: Mapping[int, jax.Array], kernels: list[jax.Array]) -> list[jax.Array]:
        return [x_of[len(kernel)] @ kernel for kernel in kernels]

    @jax.jit
    def turned(x_of: Mapping[int, jax.Array], kernels: list[jax.Array]) -> list[jax.Array]:
        return [linear(x_of[kernel.shape[1]], kernel) for kernel in kernels]

    on_device = jax.device_put((x_of, matrices))
    on_device_turned = jax.device_put((x_of, [matrix.T.copy() for matrix in matrices]))
    systems: dict[str, Callable[[], Any]] = {
        OURS: functools.partial(turned, *on_device_turned),
        PLAIN: functools.partial(plain, *on_device),
        BLAS: lambda: [x_of[len(matrix)] @ matrix for matrix in matrices],
    }
    work = 2e-9 * rows * sum(matrix.size for matrix in matrices)
    return records.repeated(
        lambda: {name: {SPEED: work / seconds(call)} for name, call in systems.items()}, repeats
    )


def steps(reach: int) -> Callable[[], Any]:
    """Decode steps at the end of a cache of so many tokens."""
    config = TransformerConfig(vocabulary=VOCABULARY, **PRESETS["tiny"])
    network = Transformer(config)
    one_BS = jnp.ones((TINY_ROWS, 1), jnp.int32)
    params = jax.jit(network.init)(jax.random.key(0), one_BS, one_BS)

    @jax.jit
    def decoded(params: Any) -> jax.Array:
        def step(index: jax.Array, carry: Any) -> Any:
            cache, _ = carry
            at_BS = jnp.full_like(one_BS, reach - STEPS) + index
            hidden, cache = network.apply(params, one_BS, at_BS, cache)
            return cache, hidden

        cache = empty_cache(config, rows=TINY_ROWS, capacity=reach)
        first = jnp.zeros((TINY_ROWS, 1, config.width), config.dtype)
        return jax.lax.fori_loop(0, STEPS, step, (cache, first))[1]

    return functools.partial(decoded, params)


def attention(repeats: int) -> list[records.Taken]:
    """Milliseconds a step, by what attention reads."""
    systems = {f"attention reads {reach}": steps(reach) for reach in REACH}
    return records.repeated(
        lambda: {name: {STEP: 1e3 * seconds(call) / STEPS} for name, call in systems.items()},
        repeats,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=9)
    flags = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for batch in ROWS:
        rows += records.rows_of(
            products(batch, flags.repeats), ours=OURS, batch=batch, of=f", {batch} rows"
        )
    rows += records.rows_of(attention(flags.repeats), ours=ALL, batch=TINY_ROWS)
    records.show(rows)
    records.write(RESULTS, rows, repeats=flags.repeats)


if __name__ == "__main__":
    main()
