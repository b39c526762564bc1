"""All sentences of the world task: notes, questions, requests, and the corpus for a tokenizer.

The language is lower case and regular, words and punctuation stand between single spaces: a small
transformer learns it from scratch in a minute or two. `reading` is the way back.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from collab.tasks.world.schema import REFERENCES, RELATIONS, Relation
from collab.types import Problem

CONDITIONS = ("asthma", "gout", "eczema", "anemia", "migraine", "diabetes", "epilepsy", "insomnia")
MONTHS = (
    *("january", "february", "march", "april", "may", "june"),
    *("july", "august", "september", "october", "november", "december"),
)
POSSESSIVE = "'s"
EQUALS = "="
UNKNOWN = "i do not know"

_NOTES = {  # two wordings of each line; the value stands last, where copying is learned soonest
    "name": ("my name is {}", "i am {}"),
    "birth date": ("i was born on {}", "my birthday is {}"),
    "condition": ("my condition is {}", "i have {}"),
    "doctor": ("my doctor is {}", "my own doctor is {}"),
    "friend": ("my friend is {}", "my own friend is {}"),
    "clinic": ("my clinic is {}", "my own clinic is {}"),
    "film": ("my film is {}", "my favourite film is {}"),
    "home": ("my home is {}", "i live in {}"),
}
_OPENERS = ("what is {} ?", "which is {} ?", "tell me {} .", "i need {} .")


@dataclasses.dataclass(frozen=True)
class Chain:
    """What a question asks for: relations, innermost first, from an entity or a reference.

    anchor: an entity's name, or a key of `REFERENCES` when `is_mine`.
    """

    anchor: str
    relations: tuple[str, ...]
    is_mine: bool = False

    @property
    def start(self) -> str:
        return f"my {self.anchor}" if self.is_mine else self.anchor


def note_lines(
    lines: Mapping[str, str], hop: tuple[str, str, str], rng: np.random.Generator
) -> str:
    """The private notes: every line in one of its wordings, in any order.

    lines: key of a line -> its value. hop: a local relation, its subject and its object.
    """
    relation, subject, value = hop
    said = [_NOTES[key][int(rng.integers(2))].format(value) for key, value in lines.items()]
    phrases = (f"the {relation} of {subject}", f"{subject} {POSSESSIVE} {relation}")
    said.append(f"{phrases[int(rng.integers(2))]} is {value}")
    return " . ".join(said[index] for index in rng.permutation(len(said))) + " ."


def read_notes(notes: str) -> list[tuple[str, str]]:
    """What the notes tell of references, as (query, value): ("my clinic", "tibel fosa")."""
    found = []
    for line in notes.removesuffix(" .").split(" . "):
        for key in REFERENCES:
            for wording in _NOTES[key]:
                start = wording.removesuffix("{}")
                if line.startswith(start):
                    found.append((f"my {key}", line.removeprefix(start)))
        for name, relation in RELATIONS.items():
            told, separator, value = line.partition(" is ")
            if relation.is_local and separator:
                before, after = f"the {name} of ", f" {POSSESSIVE} {name}"
                if told.startswith(before):
                    found.append((f"{name} of {told.removeprefix(before)}", value))
                elif told.endswith(after):
                    found.append((f"{name} of {told.removesuffix(after)}", value))
    return found


def question(chain: Chain, rng: np.random.Generator) -> str:
    """A natural question: an opener, and the chain with "of", with "'s", or mixed."""
    phrase = chain.start
    possessives = int(rng.integers(len(chain.relations) + 1))  # innermost hops told with "'s"
    for depth, name in enumerate(chain.relations):
        relation = RELATIONS[name]
        word = relation.name if rng.random() < 0.5 else relation.other
        if depth < possessives:
            phrase = f"{phrase} {POSSESSIVE} {word}"
        else:
            phrase = f"the {word} of {phrase}"
    return _OPENERS[int(rng.integers(len(_OPENERS)))].format(phrase)


def nested(relations: Sequence[str], belief: str) -> str:
    """The canonical request "outer of inner of belief"; relations innermost first."""
    return " of ".join([*reversed(relations), belief])


def relation_of(
    query: str, relations: Mapping[str, Relation] = RELATIONS
) -> tuple[str, str] | None:
    """Relation and subject of a canonical one-hop query; None for "my clinic"."""
    relation, separator, subject = query.partition(" of ")
    return (relation, subject) if separator and relation in relations else None


def date_text(year: int, month: int, day: int) -> str:
    """A date as the notes write it: "3 may 1984"."""
    return f"{day} {MONTHS[month - 1]} {year}"


def corpus(
    *,
    people: Sequence[str],
    statements: Iterable[str],
    problems: Sequence[Problem],
) -> list[str]:
    """Texts that cover the wording; the default vocabulary holds every word of a name whole."""
    texts = [f"which {reference}" for reference in REFERENCES]
    texts += [
        f"which {relation.name} of {person}"
        for relation in RELATIONS.values()
        if relation.is_local
        for person in people
    ]
    texts += [UNKNOWN, UNKNOWN.replace("i ", "I "), "right"] * 8
    texts += statements
    for month in MONTHS:
        texts += [f"i was born on 1 {month} 1970"] * 8
    for problem in problems:
        steps = [step.statement for step in problem.steps]
        texts += [problem.notes, problem.question, " ; ".join(steps)]
        relations = [found[0] for step in problem.steps if (found := relation_of(step.query))]
        texts += [nested(relations, problem.steps[0].answer), *problem.answers]
    return texts
