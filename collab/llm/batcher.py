"""Many threads, one model: a worker thread keeps rows of the jitted generation filled.

A request takes a free row, its prompt is read in pieces, all rows write together, and whoever is
done makes room at once: nobody waits for a batch to fill or for the longest of it. A reply depends
on its own prompt and key, not on who sits in the other rows.

The worker computes while its callers wait for something else, a training step on the same devices
included; it takes no lock that such a caller could hold.
"""

from __future__ import annotations

import collections
import dataclasses
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

import jax
import numpy as np

from collab import sharding
from collab.llm import errors
from collab.models.generate import Generator, Piece, Replies
from collab.types import Params

PIECE_TOKENS = 128  # of a prompt, read at once


@dataclasses.dataclass(frozen=True)
class Prompt:
    """What a row is asked to continue. key_U: uint32 [2]. until_s: given up then, by the clock."""

    tokens: Sequence[int]
    reply_tokens: int
    key_U: np.ndarray
    until_s: float
    reply: Future[list[int]]


class Batcher:
    """Continues prompts with one model. `submit` may be called from any thread."""

    def __init__(
        self,
        generator: Generator,
        params: Params,
        mesh: jax.sharding.Mesh,
        *,
        rows: int,
        capacity: int,
        prompts_per_call: int,
        steps_per_call: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """params: on `mesh` already. rows: answered together, a multiple of the mesh's row parts.

        capacity: tokens of a row. prompts_per_call: read together. steps_per_call: tokens written
        before deadlines are looked at and free rows are filled. clock: seconds.
        """
        self._generator, self._params, self._mesh = generator, params, mesh
        self._rows_count, self._prompts, self._steps = rows, prompts_per_call, steps_per_call
        self._clock = clock
        layout = sharding.row_sharding(mesh)
        make = jax.jit(lambda: generator.empty(rows=rows, capacity=capacity), out_shardings=layout)
        self._rows: Replies = make()
        out = jax.tree.map(lambda leaf: leaf.sharding, self._rows)
        self._read = jax.jit(generator.read, donate_argnums=1, out_shardings=out)
        self._advance = jax.jit(generator.advance, donate_argnums=1, out_shardings=out)
        self._taken: list[Prompt | None] = [None] * rows
        self._changed = threading.Condition()  # guards the three below
        self._queue: collections.deque[Prompt] = collections.deque()
        self._is_closing = False
        self._end: errors.HelpError | None = None  # why nothing is answered any more
        self._worker = threading.Thread(target=self._work, name="local-llm", daemon=True)
        self._worker.start()

    def submit(
        self, tokens: Sequence[int], *, reply_tokens: int, key_U: np.ndarray, deadline_s: float
    ) -> Future[list[int]]:
        """The reply's tokens, an end token included where one came before `reply_tokens`.

        Prompt and reply must fit a row. The future fails with TimedOut, Closed or ServerFailed.
        """
        until_s = self._clock() + deadline_s
        prompt = Prompt(tokens, reply_tokens, key_U, until_s, Future())
        with self._changed:
            if self._end is not None or self._is_closing:
                raise self._end or errors.Closed("the local model is closed")
            self._queue.append(prompt)
            self._changed.notify()
        return prompt.reply

    def programs(self) -> dict[str, int]:
        """Compiled programs by function."""
        return {name: getattr(self, f"_{name}")._cache_size() for name in ("read", "advance")}

    def close(self) -> None:
        """Fail what is not answered yet, and end the worker."""
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        self._worker.join()

    # --- the worker ------------------------------------------------------------------------

    def _work(self) -> None:
        """Turns until closed; whatever ends this thread, nobody is left waiting."""
        end: errors.HelpError = errors.ServerFailed("the local model stopped; see the log")
        try:
            while self._await_work():
                self._turn()
            end = errors.Closed("the local model is closed")
        finally:
            with self._changed:
                self._end = end
                left = [*self._queue, *(prompt for prompt in self._taken if prompt is not None)]
                self._queue.clear()
            for prompt in left:
                prompt.reply.set_exception(end)

    def _await_work(self) -> bool:
        """Sleep until there is something to do; False once closed."""
        with self._changed:
            while not (self._is_closing or self._queue or any(self._taken)):
                self._changed.wait()
            return not self._is_closing

    def _turn(self) -> None:
        """Give up who is late, fill free rows, write, hand out what is finished."""
        for row, prompt in enumerate(self._taken):
            if prompt is not None and self._gave_up(prompt):
                self._taken[row] = None
        self._fill()
        is_live_B = np.array([prompt is not None for prompt in self._taken])
        if not is_live_B.any():
            return
        live, steps = self._whole((is_live_B, np.int32(self._steps)))
        self._rows = self._advance(self._params, self._rows, live, steps)
        rows = self._rows
        is_done_B, length_B, tokens_BT = jax.device_get(
            (rows.is_done_B, rows.length_B, rows.tokens_BT)
        )
        for row, prompt in enumerate(self._taken):
            if prompt is not None and is_done_B[row]:
                self._taken[row] = None
                reply = tokens_BT[row, len(prompt.tokens) : length_B[row]]
                prompt.reply.set_result(reply.tolist())

    def _gave_up(self, prompt: Prompt) -> bool:
        is_late = self._clock() >= prompt.until_s
        if is_late:
            prompt.reply.set_exception(errors.TimedOut("the local model took too long"))
        return is_late

    def _fill(self) -> None:
        """Move waiting prompts into free rows and read them, `prompts_per_call` at once."""
        new: list[tuple[int, Prompt]] = []
        free = [row for row, prompt in enumerate(self._taken) if prompt is None]
        with self._changed:
            while free and self._queue:
                prompt = self._queue.popleft()
                if not self._gave_up(prompt):
                    self._taken[free[0]] = prompt
                    new.append((free.pop(0), prompt))
        for first in range(0, len(new), self._prompts):
            together = new[first : first + self._prompts]
            longest = max(len(prompt.tokens) for _, prompt in together)
            for at in range(0, longest, PIECE_TOKENS):
                self._rows = self._read(self._params, self._rows, self._piece(together, at))

    def _piece(self, together: Sequence[tuple[int, Prompt]], at: int) -> Piece:
        """Tokens `at` and following of each prompt that is as long as that."""
        F = self._prompts
        tokens_FC = np.zeros((F, PIECE_TOKENS), np.int32)
        row_F = np.full(F, self._rows_count, np.int32)  # no such row: an unused place
        first_F, count_F = np.full(F, at, np.int32), np.ones(F, np.int32)
        limit_F, key_FU = np.zeros(F, np.int32), np.zeros((F, 2), np.uint32)
        for place, (row, prompt) in enumerate(together):
            part = prompt.tokens[at : at + PIECE_TOKENS]
            if part:
                tokens_FC[place, : len(part)] = part
                row_F[place], count_F[place] = row, len(part)
                limit_F[place] = len(prompt.tokens) + prompt.reply_tokens
                key_FU[place] = prompt.key_U
        return Piece(*self._whole((tokens_FC, row_F, first_F, count_F, limit_F, key_FU)))

    def _whole(self, tree: Any) -> Any:
        """Host arrays to the mesh, whole on every device."""
        return jax.device_put(tree, sharding.replicated(self._mesh))
