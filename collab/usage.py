"""What an iteration's work comes to: the breakdown of its seconds, and how much of a chip it used.

Only useful work counts: real tokens, each read once forward and, by the policy, once backward;
nothing that padding or recomputing adds. Attention counts the live context. Pure arithmetic.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from collab.chips import Chip
from collab.models.transformer import TransformerConfig
from collab.stopwatch import Lap
from collab.types import Trace

# Forward of the reference, forward of the policy and twice that backward; with adapters once, for
# no matrix has a gradient of its own.
PASSES_OF_UPDATE, PASSES_WITH_ADAPTERS = 4, 3
WEIGHT_BYTES = {"": 4.0, "bfloat16": 2.0, "int8": 1.0}


def layer_params(network: TransformerConfig) -> int:
    """Parameters of the layers' matrices, which every token that is read meets once."""
    D, C = network.width, network.head_channels
    attention = (2 * network.heads + 2 * network.kv_heads) * C * D
    return network.layers * (attention + 3 * D * network.feed_forward)


def flops(network: TransformerConfig, *, read: float, seen: float, projected: float) -> float:
    """Of one pass forward. In tokens: read, seen by them in sum, projected to the vocabulary."""
    attention = 4 * network.layers * network.heads * network.head_channels
    vocabulary = network.vocabulary * network.width
    return 2.0 * layer_params(network) * read + attention * seen + 2.0 * vocabulary * projected


def update_flops(network: TransformerConfig, traces: Sequence[Trace]) -> float:
    """Of one optimiser step of the policy gradient on these episodes."""
    length_B = np.array([len(trace.tokens_S) for trace in traces], float)
    written = sum(int(trace.sampled_S.sum()) for trace in traces)
    seen = (length_B * (length_B + 1) / 2).sum()
    one = flops(network, read=length_B.sum(), seen=seen, projected=written)
    return (PASSES_WITH_ADAPTERS if network.lora else PASSES_OF_UPDATE) * one


def figures(
    lap: Lap, network: TransformerConfig, *, chip: Chip | None, devices: int, weights: str = ""
) -> dict[str, float]:
    """Of one iteration: time/* seconds, whose parts add up to wall_s, and engine/*.

    busy_share: of row-steps in which a row had work, or could have had it, those in which it
    decoded. prefill_ratio: tokens read as prompts and replies over distinct ones. With a known
    chip: mfu, update_mfu (useful over peak bf16 arithmetic), decode_bandwidth (weights once a step,
    keys and values of live contexts, over the peak).
    """
    seconds, done = lap.seconds, lap.counts
    out = {f"time/{name}_s": seconds[name] for name in seconds} | {"time/wall_s": lap.wall_s}
    rows = done["row_steps"] + done["idle_row_steps"]
    out["engine/decode_steps"] = float(done["decode_steps"])
    out["engine/prefilled"] = float(done["prefilled"])
    out["engine/prefill_ratio"] = done["prefilled"] / max(done["distinct"], 1)
    out["engine/busy_share"] = done["row_steps"] / max(rows, 1)
    if chip is None:
        return out
    decoded = flops(
        network, read=done["row_steps"], seen=done["context_read"], projected=done["row_steps"]
    )
    prefilled = flops(network, read=done["prefilled"], seen=0.0, projected=0.0)
    peak = devices * chip.flops_per_s
    out["engine/mfu"] = (decoded + prefilled + done["update_flops"]) / (lap.wall_s * peak)
    if seconds["update"]:
        out["engine/update_mfu"] = done["update_flops"] / (seconds["update"] * peak)
    if seconds["decode"]:
        read_bytes = decode_bytes(
            network,
            steps=done["decode_steps"],
            context_read=done["context_read"],
            weights=weights,
        )
        out["engine/decode_bandwidth"] = read_bytes / (
            seconds["decode"] * devices * chip.memory_bytes_per_s
        )
    return out


def decode_bytes(
    network: TransformerConfig, *, steps: float, context_read: float, weights: str = ""
) -> float:
    """What decoding must read: weights once a step; keys and values of what rows attend to.

    weights: `config.rollout.weights`, "" = f32.
    """
    cached = 2 * network.layers * network.kv_heads * network.head_channels
    cached_bytes = 2 if network.dtype == "bfloat16" else 4
    read = layer_params(network) + network.vocabulary * network.width
    return WEIGHT_BYTES[weights] * read * steps + cached * cached_bytes * context_read
