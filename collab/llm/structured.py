"""Structured output: the forms of `response_format` in use, and which of them a server takes.

A server that knows none says so with an error, which costs nothing, and is asked without one from
then on; those few tries are not counted as requests. A server that ignores the field replies as
ever, so replies are always parsed.
"""

from __future__ import annotations

import logging
import threading
from typing import Any

from collab import naming
from collab.llm import errors
from collab.llm.prompts import FEEDBACK_SCHEMA

MODES = ("auto", "on", "off")
# OpenAI's, which vLLM, llama.cpp's own server and Ollama take, too; and that of Anyscale's JSON
# mode, the only one that llama-cpp-python's server knows.
FORMS: tuple[dict[str, Any], ...] = (
    {
        "type": "json_schema",
        "json_schema": {"name": "feedback", "strict": True, "schema": FEEDBACK_SCHEMA},
    },
    {"type": "json_object", "schema": FEEDBACK_SCHEMA},
)


class Structure:
    """What one server takes, learned from its replies. Thread-safe.

    mode: a row of MODES. auto: each form in turn, then none; on: none is no choice; off: none.
    """

    def __init__(self, mode: str) -> None:
        naming.check("llm.structured=", mode, MODES)
        without: tuple[dict[str, Any] | None, ...] = (None,)
        self._forms = {"auto": FORMS + without, "on": FORMS, "off": without}[mode]
        self._lock = threading.Lock()  # guards the two below
        self._at = 0  # the first form that has not been refused
        self._is_proven = False  # a reply came with it

    @property
    def at(self) -> int:
        """Which form to try first; `form` has it."""
        return self._at

    def form(self, at: int) -> dict[str, Any] | None:
        """The `response_format` to send; None = leave it out."""
        return self._forms[at]

    def next_after(
        self, at: int, failure: errors.HelpError, *, status: int, body: bytes
    ) -> int | None:
        """The form to try where a request with form `at` was refused; None: it is not the form.

        status, body: what the failure was made of.
        Until a reply came with a form, any bad request may be its fault; whether it was, the next
        try shows. llama-cpp-python's server calls it an error of its own (500), and names it.
        """
        with self._lock:
            is_known = self._is_proven and at == self._at
        if type(failure) is errors.BadRequest:
            is_the_form = status in (400, 422) and (not is_known or is_format_named(body))
        else:
            is_the_form = isinstance(failure, errors.ServerFailed) and is_format_named(body)
            is_the_form &= not is_known
        return at + 1 if is_the_form and at + 1 < len(self._forms) else None

    def note_reply(self, at: int) -> None:
        """A reply came with form `at`: those before it are done with."""
        with self._lock:
            if at < self._at:  # an answer to an older question
                return
            is_news, self._at, self._is_proven = at > self._at, at, True
        if is_news and self._forms[at] is None:
            logging.warning("the server takes no response_format; replies are read without it")


def is_format_named(body: bytes) -> bool:
    """Whether the body of an error is about the form of the reply."""
    return b"response_format" in body or b"json_schema" in body
