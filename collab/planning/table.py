"""A plan as a record for JSON, and as text."""

from __future__ import annotations

import dataclasses
import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from collab import sharding
from collab.chips import CHIPS, Chip
from collab.models.lora import split
from collab.planning import memory
from collab.planning.memory import Moment
from collab.planning.programs import Planned, Program
from collab.planning.slices import Slice

UPDATES = ("imitate", "policy_gradient")
WIDTH = 110  # characters of a line
LABELS = {
    "parameters": "parameters",
    "optimiser": "optimiser state (Adam's two moments)",
    "reference": "reference, of the same kind",
    "cache": "key-value cache",
    "records": "records of the rows",
    "imitate": "imitate: a step of imitation",
    "policy_gradient": "policy_gradient: a step of it",
    "admit": "admit: prompts are read",
    "feed": "feed: replies are read",
    "advance": "advance: a token in every row",
    memory.HAND_OVER: "hand-over to policy gradient, or a restore (at most)",
}
NOTES = """\
Exact: what is kept, and gradients, from shapes and shardings. Compiled: temporaries, work and
collectives. {compiler}
Sizes are the largest that the config allows: episodes and prompts as long as may be, none packed.
The attention's scores are real: `attend` has no flash attention.
Times are bounds, not forecasts: FLOPs / peak bf16 rate, bytes that must move / memory bandwidth,
collectives' bytes / link bandwidth. No program is faster than the slowest of its three."""
COMPILERS = {
    "XLA:cpu": """They are by XLA's CPU back end, for as many fake devices: an accelerator's
compiler fuses more, pads to its tiles and plans its collectives otherwise, so that temporaries may
differ by half or more, either way. It multiplies in float32, so that what is cast to bfloat16, the
weights in `advance` above all, takes twice the room here.""",
    "XLA:tpu": "They are by the compiler of this very TPU, though nothing ran on one.",
}


@dataclasses.dataclass(frozen=True)
class Bound:
    """Seconds that a program takes at least on a chip."""

    compute_s: float
    memory_s: float
    links_s: float


def bound(program: Program, chip: Chip, item_bytes: int) -> Bound:
    """item_bytes: of what matmuls read. Arguments, too, are read once at least."""
    moved = max(program.argument_bytes, program.work.matmul_items * item_bytes)
    return Bound(
        compute_s=program.work.flops / chip.flops_per_s,
        memory_s=moved / chip.memory_bytes_per_s,
        links_s=program.work.collective_bytes / chip.link_bytes_per_s,
    )


def to_record(plan: Planned, programs: Sequence[Program], place: Slice | None) -> dict[str, Any]:
    """All that the table says, in bytes, FLOPs and seconds per device."""
    kept = memory.kept_bytes(plan)
    found = memory.moments(plan, programs)
    peak = max(found, key=lambda moment: moment.total_bytes)
    trained = jax.numpy.dtype(plan.config.model.dtype).itemsize
    served = jax.numpy.dtype(plan.config.rollout.weights or plan.config.model.dtype).itemsize
    record: dict[str, Any] = {
        "model": plan.config.model.preset or plan.config.model.weights,
        "parameters": sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(plan.state.params)),
        "kept_as": sorted({str(leaf.dtype) for leaf in jax.tree.leaves(plan.state.params)}),
        "vocabulary": plan.policy.config.vocabulary,
        "mesh": {axis: plan.mesh.shape[axis] for axis in sharding.AXES},
        "compiler": f"XLA:{plan.mesh.devices.flat[0].platform}",
        "jax": jax.__version__,
        "kept_bytes": kept,
        "gradient_bytes": memory.shard_bytes(split(plan.state.params)[0]),
        "moments": [dataclasses.asdict(moment) for moment in found],
        "peak": peak.name,
        "peak_bytes": peak.total_bytes,
        "programs": [dataclasses.asdict(program) for program in programs],
        "fits": {name: memory.verdict(peak.total_bytes, chip) for name, chip in CHIPS.items()},
        "advice": memory.advice(kept, peak, plan.config),
    }
    if place:
        record["slice"] = dataclasses.asdict(place)
        record["at_least_s"] = {
            program.name: dataclasses.asdict(
                bound(program, place.chip, trained if program.name in UPDATES else served)
            )
            for program in programs
        }
    return record


def to_text(record: Mapping[str, Any], config: Any) -> str:
    """The table that the command prints."""
    mesh = ", ".join(f"{axis}={size}" for axis, size in record["mesh"].items())
    lines = [
        f"{record['model']}: {record['parameters'] / 1e9:.3f} billion parameters, "
        f"{record['vocabulary']:,} tokens, kept as {', '.join(record['kept_as'])}, matmuls in "
        f"{config.model.dtype}; mesh {mesh}",
        f"{config.rollout.rows} rows of {config.rollout.capacity} tokens; a batch of "
        f"{config.rl.problems * config.rl.samples} episodes",
    ]
    chip = record.get("slice", {}).get("chip")
    if chip:
        lines.append(
            f"{record['slice']['name']}: {record['slice']['devices']} x {chip['name']}, each "
            f"{chip['memory_bytes'] / 1e9:.1f} GB at {chip['memory_bytes_per_s'] / 1e9:.0f} GB/s, "
            f"{chip['flops_per_s'] / 1e12:.0f} TFLOP/s bf16 ({chip['source']})"
        )
    lines += ["", *_kept_lines(record), "", *_moment_lines(record), "", *_verdict_lines(record)]
    lines += [
        "",
        *_work_lines(record),
        "",
        *_collective_lines(record),
        "",
        NOTES.format(compiler=COMPILERS[record["compiler"]]),
    ]
    return "\n".join(lines)


def _kept_lines(record: Mapping[str, Any]) -> list[str]:
    kept = record["kept_bytes"]
    rows = [(LABELS[name], size) for name, size in kept.items()]
    return [
        f"{'kept on each device (exact)':<54}{'GB':>9}",
        *(f"  {label:<52}{size / 1e9:>9.3f}" for label, size in rows),
        f"  {'in all':<52}{sum(kept.values()) / 1e9:>9.3f}",
    ]


def _moment_lines(record: Mapping[str, Any]) -> list[str]:
    lines = [f"{'on each device while it runs':<54}{'more, GB':>9}{'temporary':>11}{'total':>9}"]
    for each in (Moment(**row) for row in record["moments"]):
        mark = "  <- peak" if each.name == record["peak"] else ""
        lines.append(
            f"  {LABELS[each.name]:<52}{each.more_bytes / 1e9:>9.3f}"
            f"{each.temporary_bytes / 1e9:>11.3f}{each.total_bytes / 1e9:>9.3f}{mark}"
        )
    return [
        *lines,
        f"  gradients, within an update's temporaries: {record['gradient_bytes'] / 1e9:.3f} GB",
    ]


def _verdict_lines(record: Mapping[str, Any]) -> list[str]:
    fits, peak = record["fits"], f"{record['peak_bytes'] / 1e9:.2f}"
    every = [
        f"{said} {', '.join(name for name in fits if fits[name] == said)}"
        for said in dict.fromkeys(fits.values())
    ]
    lines = [f"any chip, with this mesh: {'; '.join(every)}"]
    chip = record.get("slice", {}).get("chip")
    if chip:
        said = fits[chip["name"]]
        memory_gb = chip["memory_bytes"] / 1e9
        lines.insert(0, f"{said.upper()}: {peak} of {memory_gb:.1f} GB at {record['peak']}"
                        f" ({memory.TIGHT}: above {100 * (1 - memory.RESERVE):.0f} %)")  # fmt: skip
    return [*lines, *textwrap.wrap(record["advice"], WIDTH)]


def _work_lines(record: Mapping[str, Any]) -> list[str]:
    head = f"{'work of each device':<38}{'TFLOP':>12}{'collective GB':>15}"
    bounds = record.get("at_least_s", {})
    lines = [head + (f"{'compute ms':>13}{'memory ms':>12}{'links ms':>11}" if bounds else "")]
    for row in record["programs"]:
        moved = sum(size for _, size in row["work"]["collectives"].values())
        line = (
            f"  {LABELS[row['name']]:<36}{row['work']['flops'] / 1e12:>12.4f}{moved / 1e9:>15.3f}"
        )
        if bounds:
            least = bounds[row["name"]]
            line += f"{least['compute_s'] * 1e3:>13.3f}{least['memory_s'] * 1e3:>12.3f}"
            line += f"{least['links_s'] * 1e3:>11.3f}"
        lines.append(line)
    return lines


def _collective_lines(record: Mapping[str, Any]) -> list[str]:
    lines = ["collectives (how many, GB of their results on each device)"]
    for row in record["programs"]:
        kinds = row["work"]["collectives"]
        said = ", ".join(f"{n:,} {kind} {size / 1e9:.3f}" for kind, (n, size) in kinds.items())
        lines.append(f"  {row['name']:<17}{said or 'none'}")
    return lines
