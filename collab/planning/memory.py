"""What lies on each device, term by term, and the moments at which most of it does.

What is kept is exact: it follows from shapes and shardings alone. What a program needs while it
runs is the compiler's, and that of XLA's CPU is not an accelerator's.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from collab.chips import Chip
from collab.planning.programs import Planned, Program
from collab.rl.reading import ROWS

# Of a chip's memory, for the runtime, fragments and what another compiler needs more: our choice.
RESERVE = 0.08
FITS, TIGHT, NOT = "fits", "tight", "does not fit"
HAND_OVER = "hand_over"


@dataclasses.dataclass(frozen=True)
class Moment:
    """More that is held beside what is kept, in bytes: inputs, new outputs, temporaries."""

    name: str
    more_bytes: int
    temporary_bytes: int  # of them
    total_bytes: int


def shard_bytes(tree: Any) -> int:
    """Bytes of a tree of placed shapes on one device."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def kept_bytes(plan: Planned) -> dict[str, int]:
    """What training keeps on each device from its first step to its last, exactly."""
    records = dataclasses.replace(plan.rows, cache=())
    return {
        "parameters": shard_bytes(plan.state.params),
        "optimiser": shard_bytes((plan.state.optimizer, plan.state.step)),
        "reference": shard_bytes(plan.reference),
        "cache": shard_bytes(plan.rows.cache),
        "records": shard_bytes(records),
    }


def moments(plan: Planned, programs: Sequence[Program]) -> list[Moment]:
    """Each program while it runs, and the hand-over from imitation to policy gradient."""
    kept = kept_bytes(plan)
    resident = sum(kept.values())
    found = []
    for program in programs:
        inputs = shard_bytes(plan.inputs[program.name])
        outputs = program.output_bytes - program.alias_bytes
        more = inputs + outputs + program.temporary_bytes
        found.append(Moment(program.name, more, program.temporary_bytes, resident + more))
    # The fitted parameters, and a whole new state made of them, before the old one goes. A restored
    # checkpoint stands beside the first state in the same way.
    more = 2 * kept["parameters"] + kept["optimiser"]
    found.append(Moment(HAND_OVER, more, 0, resident + more))
    return found


def verdict(total_bytes: int, chip: Chip) -> str:
    """FITS, TIGHT where less than the reserve stays free, or NOT."""
    if total_bytes > chip.memory_bytes:
        return NOT
    return FITS if total_bytes <= (1 - RESERVE) * chip.memory_bytes else TIGHT


def advice(kept: Mapping[str, int], peak: Moment, config: Any) -> str:
    """The largest term at the peak, and the keys that make it smaller."""
    state = kept["parameters"] + kept["optimiser"] + kept["reference"]
    terms = {
        "state": state + (peak.more_bytes if peak.name == HAND_OVER else 0),
        "cache": kept["cache"],
        "temporaries": peak.temporary_bytes,
    }
    largest = max(terms, key=lambda name: terms[name])
    size = f"{terms[largest] / 1e9:.2f} GB"
    if largest == "state":
        spread = (
            f"mesh.data={config.mesh.data} copies them; give its devices to mesh.fsdp"
            if config.mesh.data > 1
            else "raise mesh.fsdp or mesh.model (more devices)"
        )
        return (
            f"largest: parameters, optimiser state and reference, {size}; {spread}, or take a "
            "smaller model.preset"
        )
    if largest == "cache":
        wider = ", or model.dtype=bfloat16" if config.model.dtype == "float32" else ""
        return (
            f"largest: the key-value cache, {size}; lower rollout.rows={config.rollout.rows} or "
            f"rollout.capacity={config.rollout.capacity}{wider}"
        )
    return f"largest: temporaries of {peak.name}, {size}; {_less(peak.name, config)}"


def _less(name: str, config: Any) -> str:
    """The keys that make a program's temporaries smaller."""
    rollout = config.rollout
    if name in ("imitate", "policy_gradient"):
        fewer = "set model.remat='layers', " if config.model.remat != "layers" else ""
        narrow = "model.dtype=bfloat16, " if config.model.dtype == "float32" else ""
        at_once = config.rl.chunk_rows or ROWS
        episodes = config.rl.problems * config.rl.samples
        if at_once > 1 and episodes > config.mesh.data * config.mesh.fsdp:
            rows = f"lower rl.chunk_rows={at_once} (rows of a device that are read at once)"
        else:  # each device has one row; those of an fsdp group may be read by all of it
            rows = f"give devices of mesh.fsdp={config.mesh.fsdp} to mesh.data={config.mesh.data}"
        return f"{fewer}{narrow}{rows} or lower rollout.capacity={rollout.capacity}"
    if name == "admit":
        return (
            f"lower rollout.prompts_per_call={rollout.prompts_per_call} or "
            f"rollout.capacity={rollout.capacity}"
        )
    if name == "feed":
        return f"lower rollout.rows={rollout.rows} or rollout.reply_tokens={rollout.reply_tokens}"
    return (
        f"the weights are held as matmuls read them for the whole call: raise "
        f"mesh.fsdp={config.mesh.fsdp} or mesh.model={config.mesh.model} (more devices), or lower "
        f"rollout.rows={rollout.rows}"
    )
