"""Work and use of a chip by hand, and against what XLA counts of the compiled network."""

from __future__ import annotations

import collections
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from collab import usage
from collab.chips import Chip
from collab.models.lora import Lora
from collab.models.policy import Policy, init_params
from collab.stopwatch import Lap
from collab.types import ANSWER_ID, THINK_ID
from episodes import NAMES, make_trace
from networks import TINY

CHIP = Chip("made up", (), int(1e9), 1e9, 1e6, 1e6, "")
SECONDS = {"decode": 2.0, "wait": 1.0, "prefill": 0.5, "update": 4.0, "host": 0.5}


def lap(**counts: float) -> Lap:
    return Lap(8.0, SECONDS, collections.Counter(counts))


def shapes() -> dict:
    policy = Policy(TINY, len(NAMES))
    return jax.eval_shape(lambda: init_params(policy, jax.random.key(0), 8))["lm"]


def test_parameters_of_layers_are_those_of_the_tree() -> None:
    leaves = jax.tree_util.tree_leaves_with_path(shapes()["layers"])
    kernels = [leaf.size for path, leaf in leaves if "kernel" in jax.tree_util.keystr(path)]
    assert usage.layer_params(TINY) == sum(kernels)


def test_forward_operations_are_what_xla_counts() -> None:
    """Of one context, where all tokens attend to all: XLA does not skip what the mask hides."""
    network = dataclasses.replace(TINY, layers=1)  # the body of a scan is counted once
    policy, S = Policy(network, len(NAMES)), 64

    def forward(params: dict, tokens_1S: jax.Array) -> jax.Array:
        hidden, _ = policy.apply({"params": params}, tokens_1S, jnp.arange(S)[None])
        return policy.apply({"params": params}, hidden, method=Policy.token_logits)

    params = jax.eval_shape(lambda: init_params(policy, jax.random.key(0), 8))
    tokens = jax.ShapeDtypeStruct((1, S), jnp.int32)
    counted = jax.jit(forward).lower(params, tokens).compile().cost_analysis()["flops"]
    ours = usage.flops(network, read=S, seen=S * S, projected=S)
    assert ours < counted < 1.15 * ours  # norms, rotations and softmax come on top


def test_an_update_is_so_many_passes_over_real_tokens() -> None:
    traces = [make_trace([THINK_ID, ANSWER_ID]), make_trace([ANSWER_ID])]
    lengths = [len(trace.tokens_S) for trace in traces]
    seen = sum(sum(range(1, length + 1)) for length in lengths)
    written = sum(int(np.sum(trace.sampled_S)) for trace in traces)
    one = usage.flops(TINY, read=sum(lengths), seen=seen, projected=written)
    assert usage.update_flops(TINY, traces) == 4 * one
    adapted = dataclasses.replace(TINY, lora=Lora(2, 1.0, ("query",)))
    assert usage.update_flops(adapted, traces) == 3 * one  # no matrix has a gradient


def test_seconds_and_counts_by_name() -> None:
    found = usage.figures(
        lap(decode_steps=7, row_steps=30, idle_row_steps=10, prefilled=21, distinct=20),
        TINY,
        chip=None,
        devices=1,
    )
    assert found == {
        **{f"time/{part}_s": seconds for part, seconds in SECONDS.items()},
        "time/wall_s": 8.0,
        "engine/decode_steps": 7.0,
        "engine/prefilled": 21.0,
        "engine/prefill_ratio": 1.05,
        "engine/busy_share": 0.75,
    }


def test_use_of_a_known_chip() -> None:
    counts = {"decode_steps": 3, "row_steps": 12, "context_read": 100, "prefilled": 5}
    found = usage.figures(lap(update_flops=8e9, **counts), TINY, chip=CHIP, devices=2)
    decoded = usage.flops(TINY, read=12, seen=100, projected=12)
    prefilled = usage.flops(TINY, read=5, seen=0, projected=0)
    assert found["engine/update_mfu"] == pytest.approx(8e9 / (4.0 * 2e9))
    assert found["engine/mfu"] == pytest.approx((8e9 + decoded + prefilled) / (8.0 * 2e9))
    weights = usage.layer_params(TINY) + TINY.vocabulary * TINY.width
    cached = 100 * TINY.layers * 2 * TINY.kv_heads * TINY.head_channels
    expected = 4.0 * (3 * weights + cached) / (2.0 * 2e6)
    assert found["engine/decode_bandwidth"] == pytest.approx(expected)
    done = lap(update_flops=8e9, **counts)
    served = usage.figures(done, TINY, chip=CHIP, devices=2, weights="int8")
    expected = (3 * weights + 4.0 * cached) / (2.0 * 2e6)
    assert served["engine/decode_bandwidth"] == pytest.approx(expected)


def test_an_iteration_without_a_rollout_has_no_shares_to_tell() -> None:
    idle = Lap(1.0, dict.fromkeys(SECONDS, 0.0), collections.Counter())
    found = usage.figures(idle, TINY, chip=CHIP, devices=1)
    assert found["engine/mfu"] == found["engine/busy_share"] == found["engine/prefill_ratio"] == 0.0
    assert "engine/update_mfu" not in found and "engine/decode_bandwidth" not in found
