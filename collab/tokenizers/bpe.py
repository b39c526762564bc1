"""Byte-pair tokenizers of pretrained models, from a GGUF's own vocabulary or a `tokenizer.json`.

Special tokens are known here by id only: text that spells one ("<|im_end|>") becomes ordinary
pieces, and only the chat template produces the real id.
"""

from __future__ import annotations

import json
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ml_collections

from collab.config import request_names
from collab.tokenizers import chat, gguf_file
from collab.tokenizers.base import Tokenizer, read_json, require

MODEL_FILE = "tokenizer.json"
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED = 1, 2, 3, 4, 5  # GGUF token types
CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# GGUF's tokenizer.ggml.pre -> how words are cut before merging; "" = GPT-2's own rule.
SPLITS = {
    "default": "",
    "gpt-2": "",
    "smollm": "",  # after cutting digits one by one
    "qwen2": CONTRACTIONS + r"\p{N}" + REST,
    "llama-bpe": CONTRACTIONS + r"\p{N}{1,3}" + REST,
}


class BpeTokenizer(Tokenizer):
    """A `tokenizers` back end. specials: text -> id of every token that text must not reach."""

    def __init__(
        self,
        requests: Sequence[str],
        *,
        backend: Any,
        specials: Mapping[str, int],
        base_size: int,
        end: str,
        bos: str = "",
        template: str = "",
    ) -> None:
        if end not in specials:
            raise ValueError(f"the model's end token {end!r} is not among its special tokens")
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = True  # as ordinary text, that is
        vocabulary = backend.get_vocab(with_added_tokens=True)
        filler = range(max(vocabulary.values()) + 1, base_size)
        controls = {"end": specials[end]}
        if bos in specials and bos != end:
            controls["bos"] = specials[bos]
        super().__init__(
            requests=requests,
            base_size=base_size,
            special_ids=[*specials.values(), *filler],
            base_controls=controls,
        )
        self._backend, self._specials = backend, dict(specials)
        self._end, self._bos, self._template = end, bos, template
        self._parts = chat.template_parts(template, bos=bos, eos=end) if template else []
        self._missing_bytes: frozenset[int] = frozenset()
        if "ByteLevel" in str(json.loads(backend.to_str())["pre_tokenizer"]):
            letters = byte_letters()
            self._missing_bytes = frozenset(b for b in range(256) if letters[b] not in vocabulary)

    @classmethod
    def restore(cls, folder: pathlib.Path, settings: Mapping[str, Any]) -> BpeTokenizer:
        """Read the model file that stands beside the settings."""
        backend = require("tokenizers").Tokenizer.from_file(str(folder / MODEL_FILE))
        names = ("specials", "base_size", "end", "bos", "template")
        return cls(settings["requests"], backend=backend, **{n: settings[n] for n in names})

    def prompt(self, question: str, notes: str) -> list[int]:
        """The model's chat template; the layout of the base class where it has none."""
        if not self._parts:
            return super().prompt(question, notes)
        ids: list[int] = []
        for part in self._parts:
            if part == chat.SYSTEM_MARK:
                ids += self.encode(chat.SYSTEM)
            elif part == chat.USER_MARK:
                ids += self.encode(chat.user_message(question, notes))
            else:
                ids += self._encode_template(part)
        return ids

    def chat(self, talk: Sequence[tuple[str, str]]) -> list[int]:
        """Ids of a talk in the model's own template, the assistant's turn opened.

        talk: role and text of each message, in order; texts are inert, whatever they hold.
        Raises: ValueError where the model has no template, or it does not take these roles.
        """
        if not self._template:
            raise ValueError("the model has no chat template; use an instruction-tuned one")
        marked = chat.talk_of([role for role, _ in talk])
        parts = chat.template_parts(self._template, bos=self._bos, eos=self._end, talk=marked)
        texts = {mark: text for (_, mark), (_, text) in zip(marked, talk, strict=True)}
        lost = [role for role, mark in marked if mark not in parts]
        if lost:
            raise ValueError(f"the model's chat template leaves out the {lost[0]} message")
        return [
            token
            for part in parts
            for token in (
                self.encode(texts[part]) if part in texts else self._encode_template(part)
            )
        ]

    def _encode_template(self, text: str) -> list[int]:
        names = sorted(self._specials, key=len, reverse=True)
        ids: list[int] = []
        for piece in re.split("(" + "|".join(map(re.escape, names)) + ")", text):
            ids += [self._specials[piece]] if piece in self._specials else self.encode(piece)
        return ids

    def _encode(self, text: str) -> list[int]:
        if not self._missing_bytes.isdisjoint(text.encode("utf-8")):
            # The vocabulary lacks some bytes (rare planes, control characters) and would drop them.
            is_missing = self._missing_bytes.isdisjoint
            text = "".join(c if is_missing(c.encode("utf-8")) else "?" for c in text)
        ids: list[int] = self._backend.encode(text, add_special_tokens=False).ids
        if self.is_control_V[ids].any():  # an unknown-token id, in a vocabulary that has one
            mark = self._backend.encode("?", add_special_tokens=False).ids
            ids = [j for i in ids for j in (mark if self.is_control_V[i] else [i])]
        return ids

    def _decode(self, ids: list[int]) -> str:
        text: str = self._backend.decode(ids, skip_special_tokens=False)
        return text

    def _fingerprint(self) -> bytes:
        rest = json.dumps([self._specials, self._template], sort_keys=True)
        return (self._backend.to_str() + rest).encode("utf-8")

    def _settings(self) -> dict[str, Any]:
        return {
            "specials": self._specials,
            "base_size": self.base_size,
            "end": self._end,
            "bos": self._bos,
            "template": self._template,
        }

    def _write(self, folder: pathlib.Path) -> None:
        self._backend.save(str(folder / MODEL_FILE))


class GgufTokenizer(BpeTokenizer):
    """The tokenizer inside a GGUF (`model.weights` = gguf:PATH or package:NAME)."""

    kind = "gguf"

    @classmethod
    def from_config(
        cls, config: ml_collections.ConfigDict, *, corpus: Callable[[], Sequence[str]]
    ) -> GgufTokenizer:
        """Raises: ValueError if the file's tokenizer is of a kind not known here."""
        del corpus
        require("tokenizers")
        return cls.from_file(gguf_file.resolve(config.model.weights), request_names(config))

    @classmethod
    def from_file(cls, path: pathlib.Path, requests: Sequence[str]) -> GgufTokenizer:
        """Build from vocabulary, merges, token types and template in the file's metadata."""
        file = gguf_file.read(path)
        tokens: list[str] = file.get("tokenizer.ggml.tokens")
        kinds: list[int] = file.get("tokenizer.ggml.token_type")
        if file.get("tokenizer.ggml.model") != "gpt2":
            model = file.get("tokenizer.ggml.model")
            raise ValueError(f"{path.name}: tokenizer.ggml.model={model!r} must be 'gpt2' (BPE)")
        is_special = [
            kind in (UNKNOWN, CONTROL, UNUSED) or (kind == USER_DEFINED and looks_like_mark(token))
            for token, kind in zip(tokens, kinds, strict=True)
        ]
        specials = {token: i for i, token in enumerate(tokens) if is_special[i]}
        added = [token for i, token in enumerate(tokens) if kinds[i] == USER_DEFINED]
        merges = [_pair(merge) for merge in file.get("tokenizer.ggml.merges")]
        backend = _byte_level(
            {token: i for i, token in enumerate(tokens)},
            [(left, right) for left, right in merges if left + right not in specials],
            pre=file.metadata.get("tokenizer.ggml.pre", "default"),
            added=[token for token in added if token not in specials],
        )
        bos = file.metadata.get("tokenizer.ggml.bos_token_id")
        return cls(
            requests,
            backend=backend,
            specials=specials,
            base_size=len(tokens),
            end=tokens[file.get("tokenizer.ggml.eos_token_id")],
            bos="" if bos is None else tokens[bos],
            template=file.metadata.get("tokenizer.chat_template", ""),
        )


class FolderTokenizer(BpeTokenizer):
    """The tokenizer of a Hugging Face folder (`model.weights` = hf:FOLDER)."""

    kind = "hf"

    @classmethod
    def from_config(
        cls, config: ml_collections.ConfigDict, *, corpus: Callable[[], Sequence[str]]
    ) -> FolderTokenizer:
        """Raises: ValueError if model.weights names no folder."""
        del corpus
        scheme, _, folder = config.model.weights.partition(":")
        if scheme != "hf":
            raise ValueError(
                f"tokenizer.kind='hf' needs model.weights=hf:FOLDER, not {config.model.weights!r}"
            )
        return cls.from_folder(pathlib.Path(folder).expanduser(), request_names(config))

    @classmethod
    def from_folder(cls, folder: pathlib.Path, requests: Sequence[str]) -> FolderTokenizer:
        """Build from tokenizer.json, tokenizer_config.json and, if there, config.json."""
        path = folder / MODEL_FILE
        if not path.is_file():
            raise ValueError(f"tokenizer.kind='hf': {path} does not exist; save it with the model")
        model = read_json(path)
        if not isinstance(model.get("model"), dict) or "added_tokens" not in model:
            raise ValueError(f"{path} lacks model or added_tokens; fetch it again")
        if model["model"].get("type", "BPE") != "BPE":
            raise ValueError(f"{path}: tokenizer of type {model['model']['type']!r} must be 'BPE'")
        for token in model["added_tokens"]:
            token["special"] = token["special"] or looks_like_mark(token["content"])
        specials = {t["content"]: t["id"] for t in model["added_tokens"] if t["special"]}
        settings, shape = (
            read_json(folder / name) if (folder / name).is_file() else {}
            for name in ("tokenizer_config.json", "config.json")
        )
        end, bos = _content(settings.get("eos_token")), _content(settings.get("bos_token"))
        if not end:
            raise ValueError(f"{folder}: tokenizer_config.json names no eos_token")
        library = require("tokenizers")
        try:
            backend = library.Tokenizer.from_str(json.dumps(model))
        except Exception as error:  # the library raises no narrower kind
            raise ValueError(f"{path} cannot be read ({error}); fetch it again") from error
        base_size = max(max(backend.get_vocab().values()) + 1, shape.get("vocab_size", 0))
        return cls(
            requests,
            backend=backend,
            specials=specials,
            base_size=base_size,
            end=end,
            bos=bos,
            template=_template(folder, settings),
        )


def looks_like_mark(token: str) -> bool:
    """An added token such as "<think>" that steers a model, even if not flagged as special."""
    return len(token) > 2 and (token[0], token[-1]) in {("<", ">"), ("[", "]")}


def byte_letters() -> list[str]:
    """The letter that stands for each byte in a byte-level vocabulary.

    Source: GPT-2's encoder (Radford et al. 2019): printable bytes are themselves, the others take
    the code points from 256 upwards in order.
    """
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(b) if b in printable else chr(256 + others.index(b)) for b in range(256)]


def _byte_level(
    vocabulary: dict[str, int], merges: list[tuple[str, str]], *, pre: str, added: list[str]
) -> Any:
    """A byte-level BPE back end with the word splitting that the GGUF names."""
    if pre not in SPLITS:
        raise ValueError(f"tokenizer.ggml.pre={pre!r} must be one of {', '.join(SPLITS)}")
    library = require("tokenizers")
    split = library.pre_tokenizers
    ignore_merges = pre == "llama-bpe"  # a word that is a token needs no merges
    backend = library.Tokenizer(library.models.BPE(vocabulary, merges, ignore_merges=ignore_merges))
    steps: list[Any] = [split.Digits(individual_digits=True)] if pre == "smollm" else []
    if SPLITS[pre]:
        steps.append(split.Split(library.Regex(SPLITS[pre]), "isolated"))
    steps.append(split.ByteLevel(add_prefix_space=False, use_regex=not SPLITS[pre]))
    backend.pre_tokenizer = split.Sequence(steps)
    backend.decoder = library.decoders.ByteLevel()
    backend.add_tokens([library.AddedToken(token, normalized=False) for token in added])
    return backend


def _pair(merge: str) -> tuple[str, str]:
    left, _, right = merge.partition(" ")
    return left, right


def _content(token: str | Mapping[str, Any] | None) -> str:
    """A token's text, which the folder writes plain or as a record."""
    return token["content"] if isinstance(token, Mapping) else token or ""


def _template(folder: pathlib.Path, settings: Mapping[str, Any]) -> str:
    """The chat template: its own file, or an entry of the settings (plain or a list of named)."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    found = settings.get("chat_template", "")
    if isinstance(found, list):
        found = next((entry["template"] for entry in found if entry["name"] == "default"), "")
    return found or ""
