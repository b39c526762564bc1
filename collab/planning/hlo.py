"""What a compiled program does on each device, counted from its text.

XLA's own cost analysis counts the body of a loop once, however often it runs; scanned layers and
chunks of rows are loops. Here a body counts as often as the compiler says that it runs. A loop
whose count depends on data counts once, and of a conditional the branch that does the most.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Mapping

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_ITEM_BYTES = {"pred": 1, "bf16": 2, "f16": 2, "f32": 4, "f64": 8, "token": 0}
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([a-z][\w\-]*)\((.*)$")
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\]")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CALLED = re.compile(r"\b(?:calls|to_apply|body|condition)=%?([\w.\-]+)")
_BRANCHES = re.compile(
    r"\b(?:branch_computations=\{([^}]*)\}|(?:true|false)_computation=%?([\w.\-]+))"
)


@dataclasses.dataclass(frozen=True)
class Work:
    """flops: of matmuls. matmul_items: array elements that they read and write.

    collectives: kind -> (how many run, bytes that each device holds of their results).
    open_loops: loops that were counted once because their count is not known.
    """

    flops: float = 0.0
    matmul_items: float = 0.0
    collectives: Mapping[str, tuple[int, float]] = dataclasses.field(default_factory=dict)
    open_loops: int = 0

    def __add__(self, other: Work) -> Work:
        collectives = dict(self.collectives)
        for kind, (count, size) in other.collectives.items():
            before = collectives.get(kind, (0, 0.0))
            collectives[kind] = (before[0] + count, before[1] + size)
        return Work(
            self.flops + other.flops,
            self.matmul_items + other.matmul_items,
            collectives,
            self.open_loops + other.open_loops,
        )

    def times(self, count: int) -> Work:
        """All of it so often; open loops are places in the text, so they stay."""
        return Work(
            self.flops * count,
            self.matmul_items * count,
            {kind: (n * count, size * count) for kind, (n, size) in self.collectives.items()},
            self.open_loops,
        )

    @property
    def collective_bytes(self) -> float:
        return sum(size for _, size in self.collectives.values())


@dataclasses.dataclass(frozen=True)
class _Instruction:
    name: str
    shape: str
    opcode: str
    rest: str  # operands and attributes


def count_work(text: str) -> Work:
    """The work of one run on one device. text: of an optimised, partitioned HLO module.

    Raises: ValueError if it holds no entry computation.
    """
    computations, entry = _parse(text)
    if not entry:
        raise ValueError("the compiler's text holds no entry computation")

    @functools.cache
    def of(name: str) -> Work:
        body = computations.get(name, [])
        shapes = {instruction.name: instruction.shape for instruction in body}
        return sum((_work(each, shapes) for each in body), Work())

    def _work(each: _Instruction, shapes: Mapping[str, str]) -> Work:
        kind = each.opcode.removesuffix("-start")
        if each.opcode in ("dot", "convolution"):
            return _matmul(each, shapes)
        if kind in COLLECTIVES:
            return Work(collectives={kind: (1, _payload(each))})
        if each.opcode == "while":
            inner = sum((of(name) for name in _CALLED.findall(each.rest)), Work())
            trips = _TRIPS.search(each.rest)
            return inner.times(int(trips[1])) if trips else inner + Work(open_loops=1)
        if each.opcode == "conditional":
            found = _BRANCHES.findall(each.rest)
            names = [n.strip(" %") for pair in found for part in pair for n in part.split(",") if n]
            return max((of(name) for name in names), key=lambda work: work.flops, default=Work())
        if each.opcode in ("fusion", "call", "async-start", "custom-call"):
            return sum((of(name) for name in _CALLED.findall(each.rest)), Work())
        return Work()

    return of(entry)


def _parse(text: str) -> tuple[dict[str, list[_Instruction]], str]:
    """Computations by name, and the name of the entry."""
    computations: dict[str, list[_Instruction]] = {}
    entry, body = "", []
    for line in text.splitlines():
        if header := _HEADER.match(line):
            body = computations[header[2]] = []
            entry = header[2] if header[1] else entry
        elif found := _INSTRUCTION.match(line):
            body.append(_Instruction(*found.groups()))
    return computations, entry


def _arrays(shape: str) -> list[tuple[str, tuple[int, ...]]]:
    return [
        (kind, tuple(int(size) for size in sizes.split(",") if size))
        for kind, sizes in _ARRAY.findall(shape)
    ]


def _payload(each: _Instruction) -> float:
    """Bytes of the result; a `-start` shows its operand before it."""
    arrays = _arrays(each.shape)
    if each.opcode.endswith("-start") and len(arrays) > 1 and not each.opcode.startswith("all-red"):
        arrays = arrays[len(arrays) // 2 :]
    return float(sum(_item_bytes(kind) * math.prod(sizes) for kind, sizes in arrays))


def _item_bytes(kind: str) -> float:
    if kind in _ITEM_BYTES:
        return _ITEM_BYTES[kind]
    bits = re.search(r"\d+", kind)
    return int(bits[0]) / 8 if bits else 0


def _matmul(each: _Instruction, shapes: Mapping[str, str]) -> Work:
    """2 * outputs * contracted sizes, and the items of both operands and the result."""
    operands = re.findall(r"%([\w.\-]+)", each.rest.partition(")")[0])
    sizes = [(_arrays(shapes.get(name, "")) or [("", ())])[0][1] for name in operands[:2]]
    out = math.prod((_arrays(each.shape) or [("", ())])[0][1])
    items = out + sum(math.prod(size) for size in sizes)
    contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", each.rest)
    if contracted:
        inner = math.prod(sizes[0][int(axis)] for axis in contracted[1].split(",") if axis)
        return Work(2.0 * out * inner, items)
    # XLA:TPU writes a matmul as a convolution: of the kernel all but its output features counts.
    labels = re.search(r"dim_labels=\w+_(\w+)->", each.rest)
    kernel = sizes[1] if len(sizes) > 1 else ()
    features = kernel[labels[1].index("o")] if labels and len(kernel) == len(labels[1]) else 1
    return Work(2.0 * out * math.prod(kernel) / max(features, 1), items)
