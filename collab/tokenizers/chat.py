"""Chat templates: from a model's Jinja template to the parts of one prompt.

The template is rendered once with marks in place of the messages, so that its own special tokens
can become special ids while whatever stands in a question or in notes stays inert text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NoReturn

from collab.tokenizers.base import require

# Two sentences; the model has not seen the help actions before its cold start.
SYSTEM = (
    "Solve the question in short steps, one thought at a time, and finish with the shortest "
    "possible final answer. When you are not sure of a step you may ask a larger model for help: "
    "write only what it needs to know and keep the private notes to yourself."
)
SYSTEM_MARK, USER_MARK = "\ue582system\ue582", "\ue582user\ue582"


def user_message(question: str, notes: str) -> str:
    """The text of the user's turn."""
    return f"Private notes:\n{notes}\n\nQuestion: {question}" if notes else f"Question: {question}"


PROMPT = (("system", SYSTEM_MARK), ("user", USER_MARK))  # role and mark of an episode's messages


def talk_of(roles: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Role and mark of every message of a longer talk."""
    return tuple((role, f"\ue582{index}\ue582") for index, role in enumerate(roles))


def template_parts(
    template: str, *, bos: str, eos: str, talk: Sequence[tuple[str, str]] = PROMPT
) -> list[str]:
    """The rendered conversation, the assistant's turn opened, cut at the messages' marks.

    Raises: ValueError if the template is broken or leaves out a message other than the system's.
    """
    jinja = require("jinja2")
    sandbox = require("jinja2.sandbox")
    environment = sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = _refuse
    messages: list[dict[str, Any]] = [{"role": role, "content": mark} for role, mark in talk]
    try:
        text = environment.from_string(template).render(
            messages=messages,
            add_generation_prompt=True,
            enable_thinking=False,  # Qwen3: thinking is a help action here, not a tag
            bos_token=bos,
            eos_token=eos,
        )
    except jinja.TemplateError as error:
        raise ValueError(f"the model's chat template does not render: {error}") from error
    for role, mark in talk:
        if role != "system" and mark not in text:
            raise ValueError(f"the model's chat template shows no {role} message")
    marks = "|".join(mark for _, mark in talk)
    return [part for part in re.split(f"({marks})", text) if part]


def _refuse(message: str) -> NoReturn:
    raise ValueError(f"the model's chat template refuses a system and a user message: {message}")
