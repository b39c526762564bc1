"""Record what an LLM replies, and replay it without one.

`ReplayBackend` stands between the client and a backend; its mode is a row of MODES. The file is in
`replay_store`, its form as text in `replay_jsonl`; `python -m collab.llm.replay --help` moves
exchanges from one to the other and counts them.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path

from collab import naming
from collab.llm import Backend, Completion, Message, errors, prompts
from collab.llm.replay_jsonl import export_jsonl, import_jsonl
from collab.llm.replay_store import (
    Asked,
    ReplayStore,
    StoreFailed,
    Tally,
    exchange_key,
    is_same_reply,
    storable,
)

MODES = {
    "off": "call, store nothing",
    "record": "always call, then store; a key that has a reply keeps and returns that",
    "replay": "never call; what is not stored is a failure",
    "replay_or_call": "call for what is not stored, then store; resumes a recording",
}
METERS = (
    "replayed",  # replies from the file
    "recorded",  # replies that were called for and stored
    "joined",  # requests that waited for an identical one in flight
    "not_recorded",  # refused in mode replay
    "differed",  # new replies, paid for, that gave way to another that was stored first
)
SHORTEST_SECRET = 8  # shorter keys are stand-ins such as "EMPTY" or "ollama", words of any text


class NotRecorded(errors.HelpError):
    """Mode replay, and the request is not in the file."""

    name = "not_recorded"


class ReplayBackend:
    """A backend whose exchanges are stored, or come from the store.

    is_local: as the backend's; true besides in mode replay, where nothing is waited for and the
    order of replies must not depend on threads. Every reply names its latency, measured here where
    the backend names none, so that recording and replaying give the client the same numbers.
    """

    def __init__(
        self,
        backend: Backend,
        store: ReplayStore | None,
        mode: str,
        *,
        backend_name: str,
        model: str,
        temperature: float,
        structured: str = "off",
        secret: str = "",
        joins: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """backend_name, model, temperature: part of every key, as in the config.

        The name of a backend that is `Identified` must carry its digest.
        structured: as in the config. A reply is stored as it was asked for, with or without a form;
        auto finds either, first the one with. What was recorded without is as good where the
        server's own choice is.
        store: None in mode off; closed with this. secret: the API key, which becomes *** wherever a
        stored text holds it. joins: whether a request waits for an identical one in flight; False
        where the second is meant, as a hedge is. clock: seconds.
        Raises: ValueError for an unknown mode, or one without its store.
        """
        naming.check("llm.replay=", mode, MODES)
        if store is None and mode != "off":
            raise ValueError(f"llm.replay={mode!r} needs a replay file")
        self.is_local = backend.is_local or mode == "replay"
        self.where = "" if mode == "replay" else backend.where
        self.helper_names = backend.helper_names
        self._backend, self._store, self._mode = backend, store, mode
        self._name, self._model, self._temperature = backend_name, model, temperature
        self._secret = secret if len(secret) >= SHORTEST_SECRET else ""
        self._joins, self._clock = joins, clock
        self._structured = {"off": (False,), "on": (True,), "auto": (True, False)}[structured]
        self._lock = threading.Lock()  # guards the two below
        self._flights: dict[str, Future[Completion]] = {}
        self._counters = dict.fromkeys(METERS, 0.0)

    def complete(
        self, messages: Sequence[Message], *, reply_tokens: int, deadline_s: float, helper: str
    ) -> Completion:
        """The reply as the mode says. Identical requests in flight are one, and fail as one.

        Raises: a `HelpError`: the backend's, NotRecorded, or StoreFailed (a reply is not kept).
        """

        def call() -> Completion:
            return self._backend.complete(
                messages, reply_tokens=reply_tokens, deadline_s=deadline_s, helper=helper
            )

        if self._store is None or self._mode == "off":
            return call()
        if self._mode == "replay":
            kept = self.recall(messages, reply_tokens=reply_tokens, helper=helper)
            if kept is None:
                self._count("not_recorded")
                raise NotRecorded(
                    f"this request is not in the replay file {self._store.path}; "
                    "record it in mode replay_or_call"
                )
            return kept
        ways = self._asked(messages, reply_tokens, helper)
        fetch = functools.partial(self._fetched, self._store, ways, call)
        return self._once(exchange_key(ways[0]), deadline_s, fetch) if self._joins else fetch()

    def recall(
        self, messages: Sequence[Message], *, reply_tokens: int, helper: str
    ) -> Completion | None:
        """The stored reply, in the two modes that read the file; None where there is none.

        It is free and at once: whoever limits what is sent or spent may look here first.
        Raises: StoreFailed.
        """
        if self._store is None or self._mode not in ("replay", "replay_or_call"):
            return None
        return self._kept(self._store, self._asked(messages, reply_tokens, helper))

    def check(self) -> None:
        """In mode replay: whether the file holds anything of this model. Else the backend's check.

        Raises: HelperUnusable with the fix.
        """
        if self._store is None or self._mode != "replay":
            self._backend.check()
            return
        tallies = self._store.tallies()
        wanted = _title(self._name, self._model, prompts.INSTRUCTION_VERSION)
        held = {_title(row.backend, row.model, row.instruction_version) for row in tallies}
        if wanted not in held:
            raise errors.HelperUnusable(
                f"replay file {self._store.path} holds no reply of {wanted}, but of "
                f"{'; '.join(sorted(held)) or 'nobody'}; record it first in mode replay_or_call"
            )

    def counters(self) -> dict[str, float]:
        """Totals of METERS since the start."""
        with self._lock:
            return dict(self._counters)

    def close(self) -> None:
        """Close the backend, then the store."""
        try:
            self._backend.close()
        finally:
            if self._store is not None:
                self._store.close()

    # --- one request -----------------------------------------------------------------------

    def _once(self, key: str, deadline_s: float, fetch: Callable[[], Completion]) -> Completion:
        """Fetch in one of the threads that ask the same; the others wait for its result."""
        with self._lock:
            flight = self._flights.get(key)
            is_first = flight is None
            if flight is None:
                flight = self._flights[key] = Future()
            self._counters["joined"] += not is_first
        if not is_first:
            try:
                return flight.result(timeout=max(0.0, deadline_s))
            except TimeoutError:
                raise errors.TimedOut("an identical request in flight got no reply") from None
        with contextlib.ExitStack() as stack:
            stack.push(functools.partial(self._crash, key))
            completion = fetch()  # it looks into the store first: who comes later finds either
            stack.pop_all()
        self._landed(key).set_result(completion)
        return completion

    def _crash(self, key: str, _kind: object, error: BaseException | None, _trace: object) -> None:
        """Whoever waits for the flight fails as it did; a call that was stopped is not theirs."""
        is_stopped = not isinstance(error, Exception)
        shared = errors.Closed("an identical request was stopped") if is_stopped else error
        self._landed(key).set_exception(shared)

    def _fetched(
        self, store: ReplayStore, ways: Sequence[Asked], call: Callable[[], Completion]
    ) -> Completion:
        kept = None if self._mode == "record" else self._kept(store, ways)
        if kept is not None:
            return kept
        started_s = self._clock()
        completion = call()
        if completion.latency_s is None:
            completion = dataclasses.replace(completion, latency_s=self._clock() - started_s)
        fresh = storable(dataclasses.replace(completion, text=self._hidden(completion.text)))
        asked = dataclasses.replace(ways[0], is_structured=fresh.is_structured)
        kept = store.put(asked, fresh)
        self._count("recorded" if is_same_reply(kept, fresh) else "differed")
        return kept

    def _kept(self, store: ReplayStore, ways: Sequence[Asked]) -> Completion | None:
        for asked in ways:
            kept = store.get(exchange_key(asked))
            if kept is not None:
                self._count("replayed")
                return kept
        return None

    def _asked(self, messages: Sequence[Message], reply_tokens: int, helper: str) -> list[Asked]:
        """The ways in which the reply may have been asked for, the likeliest first."""
        talk = tuple(Message(message.role, self._hidden(message.content)) for message in messages)
        asked = Asked(self._name, self._model, helper, talk, reply_tokens, self._temperature)
        return [dataclasses.replace(asked, is_structured=way) for way in self._structured]

    def _landed(self, key: str) -> Future[Completion]:
        with self._lock:
            return self._flights.pop(key)

    def _count(self, meter: str) -> None:
        with self._lock:
            self._counters[meter] += 1

    def _hidden(self, text: str) -> str:
        return text.replace(self._secret, "***") if self._secret else text


def _title(backend: str, model: str, version: int) -> str:
    return f"{backend}, model {model!r}, wording {version}"


# --- command line --------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit status: 0, or 2 after one clear line."""
    flags = _parser().parse_args(arguments)
    try:
        with contextlib.ExitStack() as stack:
            if flags.command == "import" and not flags.file.is_file():
                raise ValueError(f"{flags.file} does not exist; name a file that export wrote")
            store = ReplayStore(flags.store, create=flags.command == "import")
            stack.callback(store.close)
            if flags.command == "export":
                print(f"{export_jsonl(store, flags.file)} exchanges written to {flags.file}")
            elif flags.command == "import":
                lines, new = import_jsonl(store, flags.file)
                print(f"{lines} exchanges read, {new} of them new in {flags.store}")
            else:
                print(_table(store.tallies()))
    except (ValueError, OSError, StoreFailed) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m collab.llm.replay",
        description="Move recorded LLM replies in and out of a replay file, and count them.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    helps = {
        "export": "write every exchange of STORE to FILE, a line of JSON each",
        "import": "add the exchanges of FILE to STORE, all or none; STORE is made if need be",
        "stats": "count exchanges and tokens of STORE by backend, model and helper",
    }
    for name, text in helps.items():
        command = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        command.add_argument("store", metavar="STORE", type=Path, help="a replay file (SQLite)")
        if name != "stats":
            command.add_argument("file", metavar="FILE", type=Path, help="a JSONL file")
    return parser


def _table(tallies: Sequence[Tally]) -> str:
    """Aligned columns: names to the left, counts to the right, a last line with the totals."""
    heads = ("backend", "model", "helper", "wording", "exchanges", "prompt_tokens",
             "completion_tokens", "without_usage")  # fmt: skip
    rows = [
        (t.backend, t.model, t.helper, t.instruction_version, t.exchanges, t.prompt_tokens,
         t.completion_tokens, t.without_usage)
        for t in tallies
    ]  # fmt: skip
    sums = [sum(column) for column in list(zip(*rows, strict=True))[4:]] if rows else [0] * 4
    cells = [[str(cell) or "-" for cell in row] for row in (heads, *rows, ("all", *"---", *sums))]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if at < 3 else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    )


if __name__ == "__main__":
    sys.exit(main())
