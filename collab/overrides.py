"""Flags that override keys of a config: `--config.KEY=VALUE`, read against the schema."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from collab.config import OPEN_TABLES, flatten, load_config, near_matches


def read_arguments(arguments: Sequence[str]) -> list[str]:
    """A command line whose overrides are read against its --config, which may stand as two words.

    Raises: ValueError as `load_config` and `read_overrides`.
    """
    read = list(arguments)
    for index, argument in enumerate(read[:-1]):
        if argument.lstrip("-") == "config":
            read[index : index + 2] = [f"{argument}={read[index + 1]}"]
            break
    given = dict(argument.lstrip("-").split("=", 1) for argument in read if "=" in argument)
    if "config" not in given:
        return read
    return [*read[:1], *read_overrides(read[1:], flatten(load_config(given["config"])))]


def read_overrides(arguments: Sequence[str], known: Mapping[str, Any]) -> list[str]:
    """Refuse a `--config.KEY=VALUE` whose key is unknown or whose value has another type.

    known: the flattened config. Returns the arguments, lists (a,b) spelled as Python has them.
    Raises: ValueError with the nearest keys, or the type and the default.
    """
    read = []
    for argument in arguments:
        name, _, text = argument.lstrip("-").partition("=")
        path = name.removeprefix("no").removeprefix("config.")  # --noconfig.KEY: false
        is_override = argument.startswith("-") and name.endswith(f"config.{path}")
        if is_override and path not in known:
            table = next((table for table in OPEN_TABLES if path.startswith(table)), "")
            hint = f"; a config file may add rows to {table[:-1]}" if table else ""
            near = near_matches(path, list(known))
            raise ValueError(f"config key {path!r} is unknown{near}{hint}")
        if is_override and "=" in argument:
            argument = f"--{name}={_spelled(path, text, known[path])}"
        read.append(argument)
    return read


def _spelled(path: str, text: str, default: Any) -> str:
    """The text of an override as ml_collections reads it."""
    wanted = type(default)
    is_right = True
    if wanted in (int, float):
        try:
            wanted(text)
        except ValueError:
            is_right = False
    elif wanted is bool:
        is_right = text.lower() in ("true", "false", "1", "0")
    elif wanted is tuple and not text.startswith("("):
        return repr(tuple(part for part in text.split(",") if part))
    if not is_right:
        raise ValueError(
            f"{path}={text!r} must be of type {wanted.__name__}, such as its default {default!r}"
        )
    return text
