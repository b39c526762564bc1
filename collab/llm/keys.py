"""The API key, from a variable or from a file; nothing else reads it, and no config holds it."""

from __future__ import annotations

import os
from pathlib import Path

from ml_collections import ConfigDict

LONGEST_BYTES = 2**13  # of a key file: a token of a cloud has up to a few thousand
SHORTEST_SECRET = 8  # shorter keys are stand-ins such as "EMPTY" or "x", parts of any text


def api_key(llm: ConfigDict) -> str:
    """The key that `llm.api_key_env` or `llm.api_key_file` names; "" where neither has one.

    Raises: ValueError, which never quotes a key: a file that can't be read or holds no key, or two
    keys that differ.
    """
    named = key_in_variable(llm.api_key_env)
    filed = key_in_file(llm.api_key_file) if llm.api_key_file else ""
    if named and filed and named != filed:
        raise ValueError(
            f"the variable {llm.api_key_env} (llm.api_key_env) and the file {llm.api_key_file} "
            "(llm.api_key_file) hold two different keys; unset one, e.g. llm.api_key_env=''"
        )
    return filed or named


def key_in_variable(variable: str) -> str:
    """Its value without blanks around it; "" where it is not set, or `variable` is ""."""
    return os.environ.get(variable, "").strip() if variable else ""


def key_in_file(path: str) -> str:
    """The one line of a file, such as a mounted secret. Raises: ValueError with the fix."""
    place = f"llm.api_key_file={path!r}"
    try:
        with open(Path(path).expanduser(), "rb") as file:
            data = file.read(LONGEST_BYTES + 1)
    except (OSError, ValueError, RuntimeError) as error:  # the last: "~" of nobody
        reason = getattr(error, "strerror", None) or "no path"
        raise ValueError(
            f"{place} can't be read ({reason}); name a file with the key, or leave it ''"
        ) from None
    lines = data.split()
    if not lines:
        raise ValueError(f"{place} is empty; write the key into it, or leave llm.api_key_file ''")
    if len(lines) > 1 or len(data) > LONGEST_BYTES or not lines[0].isascii():
        raise ValueError(f"{place} must hold the key alone: one line of ASCII, no blanks")
    return lines[0].decode("ascii")


def hidden(text: str, key: str) -> str:
    """`text` with the key as ***: a server may say it. A stand-in for a key is left alone."""
    return text.replace(key, "***") if len(key) >= SHORTEST_SECRET else text


def key_place(*, variable: str, path: str) -> str:
    """Where the key is, or should be: for a message."""
    if path:
        return f"the file {path} (llm.api_key_file)"
    return f"the variable {variable or '(no variable)'} (llm.api_key_env)"
