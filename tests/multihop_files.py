"""Small files of made-up questions as HotpotQA, 2WikiMultihopQA and MuSiQue are published."""

from __future__ import annotations

import json
import pathlib
from typing import Any

_SYLLABLES = ("ba", "do", "fi", "gu", "ke", "lo", "mi", "nu", "pe", "ra", "si", "to", "vu", "ze")


def word(number: int) -> str:
    """A made-up name, another for each number."""
    text = ""
    for _ in range(4):
        number, digit = divmod(number, len(_SYLLABLES))
        text += _SYLLABLES[digit]
    return text.capitalize()


def name(kind: int, number: int) -> str:
    return f"{word(1000 * kind + number)} {word(7000 + 1000 * kind + number % 9)}"


def date(number: int) -> str:
    return f"{1 + number % 28} March {1800 + number % 150}"


def hotpot(number: int) -> dict[str, Any]:
    """A comparison or a bridge question."""
    first, second = name(1, number), name(2, number)
    question, answer = (
        (f"Were {first} and {second} of the same nationality?", ("yes", "no")[number % 4 // 2])
        if number % 2
        else (f"Which position did the woman who played {first} hold?", f"Chief of {second}")
    )
    return {
        "_id": f"5a{number:022x}",
        "answer": answer,
        "question": question,
        "supporting_facts": [[first, 0], [second, 1]],
        "context": [[first, [f"{first} is a person.", " Nothing else is known."]], [second, ["-"]]],
        "type": "comparison" if number % 2 else "bridge",
        "level": "hard",
    }


def two_wiki(number: int) -> dict[str, Any]:
    """One of the four types: compositional, inference, comparison, bridge_comparison."""
    film, other = name(1, number), name(2, number)
    one, two = name(3, number), name(4, number)
    kind = ("compositional", "inference", "comparison", "bridge_comparison")[number % 4]
    question, answer, evidences = {
        "compositional": (
            f"Where was the director of film {film} born?",
            two,
            [[film, "director", one], [one, "place of birth", two]],
        ),
        "inference": (
            f"Who is the paternal grandfather of {film}?",
            two,
            [[film, "father", one], [one, "father", two]],
        ),
        "comparison": (
            f"Are {film} and {other} located in the same country?",
            "no",
            [[film, "country", "Germany"], [other, "country", "Chile"]],
        ),
        "bridge_comparison": (
            f"Which film has the director born first, {film} or {other}?",
            film,
            [
                [film, "director", one],
                [other, "director", two],
                [one, "date of birth", date(number)],
                [two, "date of birth", date(number + 31)],
            ],
        ),
    }[kind]
    return {
        **hotpot(number),
        "_id": f"{number:08x}0bdd11eba7f7acde48001122",
        "type": kind,
        "question": question,
        "answer": answer,
        "evidences": evidences,
        "entity_ids": f"Q{number}_Q{number + 1}",
        "evidences_id": [],
        "answer_id": f"Q{number}",
    }


def musique(number: int) -> dict[str, Any]:
    """Two hops, or three where the number is odd."""
    song, one, two, three = (name(kind, number) for kind in (1, 2, 3, 4))
    hops = [
        (f"{song} >> performer", one),
        ("Where did #1 grow up ?", two),
        (f"how many bridges are in #2 and {song}", str(number + 2)),
    ][: 2 + number % 2]
    answer = hops[-1][1]
    return {
        "id": f"{len(hops)}hop__{number}_{number + 1}",
        "paragraphs": [
            {"idx": 0, "title": song, "paragraph_text": f"{one} sang it.", "is_supporting": True}
        ],
        "question": f"How about {song}, whose performer grew up where {three} lives?",
        "question_decomposition": [
            {"id": number, "question": query, "answer": value, "paragraph_support_idx": 0}
            for query, value in hops
        ],
        "answer": answer,
        "answer_aliases": [f"the town of {answer}"],
        "answerable": True,
    }


MAKERS = {"HotpotQA": hotpot, "2WikiMultihopQA": two_wiki, "MuSiQue": musique}


def write(path: pathlib.Path, kind: str, records: list[Any]) -> pathlib.Path:
    """Write records as their data set is published: MuSiQue one a line, the others as one array."""
    if kind == "MuSiQue":
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    else:
        path.write_text(json.dumps(records))
    return path


def make(path: pathlib.Path, kind: str, count: int) -> pathlib.Path:
    """A file of the first `count` made-up questions of a data set."""
    return write(path, kind, [MAKERS[kind](number) for number in range(count)])
