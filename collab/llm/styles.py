"""How a scripted helper words what it states: as the cold start reads it, or as others might.

A new style is one row of STYLES. The text "query = answer ; query = answer" is what an expert says;
a style says the same in other words, or less of it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

JOINER, EQUALS = " ; ", " = "  # between statements "query = answer", and within one
STATEMENTS = "statements"
_STATEMENT_END = re.compile(rf"\s;|;(?=[^;]*{EQUALS})")
Statements = Sequence[tuple[str, str]]  # query and answer, in order

STYLES: dict[str, Callable[[Statements], str]] = {
    STATEMENTS: lambda said: JOINER.join(f"{query}{EQUALS}{answer}" for query, answer in said),
    "answers": lambda said: JOINER.join(answer for _, answer in said),
    "prose": lambda said: " ".join(f"the {query} is {answer} ." for query, answer in said),
    "bullets": lambda said: "\n".join(f"- {query}: {answer}" for query, answer in said),
}


def worded(text: str, style: str) -> str:
    """The statements of `text` in a style; a text without statements as it is."""
    said = statements(text)
    return text if style == STATEMENTS or not said else STYLES[style](said)


def statements(text: str) -> list[tuple[str, str]]:
    """Query and answer of every part of `text` that reads "query = answer".

    Parts end at " ; ", or at a ";" before another statement; "cast = A; B" is one with a list.
    """
    parts = (part.split(EQUALS, 1) for part in _STATEMENT_END.split(text))
    return [(part[0].strip(), part[1].strip()) for part in parts if len(part) == 2]
