"""Names that a user gave: whether they are known, and what was meant where they aren't."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def hint(name: object, known: Iterable[str]) -> str:
    """Like "; did you mean reward?"; empty where nothing is near."""
    near = difflib.get_close_matches(str(name), list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def check(where: str, name: object, known: Iterable[str]) -> None:
    """Raises: ValueError for a name that is not known. where: what leads to it: "task.name="."""
    known = list(known)
    if name not in known:
        raise ValueError(f"{where}{name!r} must be one of {', '.join(known)}{hint(name, known)}")
