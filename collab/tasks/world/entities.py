"""Entities, facts and the SLM's memory of them, all drawn from one seed.

Names are two made-up words: the first is one entity's alone, the second is shared by a few of the
same type, as surnames are. No word serves two types. A world is cheap to draw (milliseconds), so it
is never stored.
"""

from __future__ import annotations

import enum
import itertools

import numpy as np

from collab.tasks.world.schema import (
    PERSON,
    RELATIONS,
    TYPES,
    WORLD_RELATIONS,
    Fact,
    Settings,
)
from collab.types import Step

# No product of these is a word of the task's language (tested).
_ONSETS = (
    *("ba", "de", "fo", "gu", "ka", "lo", "mi", "nu"),
    *("pe", "ra", "so", "ti", "vu", "ze", "ja", "he"),
)
_ENDINGS = (
    *("no", "bel", "rim", "sa", "tok", "len", "dar", "vi"),
    *("mos", "ku", "fen", "lo", "gan", "pur", "zet", "hil"),
)
_NAMES_PER_SECOND_WORD = 4
_PEOPLE_PER_STRANGER = 4


class Recall(enum.Enum):
    """How the SLM's memory holds a fact."""

    KNOWN = "known"
    FAINT = "faint"  # right half the time
    STALE = "stale"  # always the same wrong answer
    UNKNOWN = "unknown"  # a new guess each time


class World:
    """Entities by type, facts, which facts are held out of training, and the SLM's memory."""

    relations = RELATIONS

    def __init__(self, settings: Settings) -> None:
        rng = np.random.default_rng([settings.seed, 1])
        self.settings = settings
        self.entities: dict[str, tuple[str, ...]] = {}
        self.strangers: tuple[str, ...] = ()  # unused names of people, for users
        self._name(rng)
        self.type_of = {name: kind for kind in TYPES for name in self.entities[kind]}
        self.facts: dict[Fact, str] = {
            (relation.name, subject): self.guess(relation.target, rng)
            for relation in WORLD_RELATIONS
            for subject in self.entities[relation.source]
        }
        self.held_out = self._held_out(rng)
        self.memory, self._stale = self._remember(rng)
        self._fact_list = list(self.facts)

    def guess(self, kind: str, rng: np.random.Generator) -> str:
        """Any entity of a type."""
        return self.entities[kind][int(rng.integers(len(self.entities[kind])))]

    def step(self, relation: str, subject: str) -> Step | None:
        """The true world step, or None where the relation does not apply to the subject."""
        answer = self.facts.get((relation, subject))
        if answer is None:
            return None
        kind = self.memory[relation, subject]
        is_known = None if kind is Recall.FAINT else kind is Recall.KNOWN
        return Step(f"{relation} of {subject}", answer, is_known=is_known)

    def recall(self, fact: Fact, rng: np.random.Generator) -> str:
        """What the SLM's memory gives for a fact: truth, a fixed error, or a guess."""
        kind = self.memory[fact]
        if kind is Recall.STALE:
            return self._stale[fact]
        if kind is Recall.KNOWN or (kind is Recall.FAINT and rng.random() < 0.5):
            return self.facts[fact]
        return self.guess(RELATIONS[fact[0]].target, rng)

    def drill(self, rng: np.random.Generator) -> Step:
        """Any fact as memory has it; of what memory lacks, each drill is another guess."""
        relation, subject = self._fact_list[int(rng.integers(len(self._fact_list)))]
        return Step(f"{relation} of {subject}", self.recall((relation, subject), rng))

    # --- how it is drawn -------------------------------------------------------------------

    def _name(self, rng: np.random.Generator) -> None:
        wanted = {kind: self.settings.count(kind) for kind in TYPES}
        wanted[PERSON] += max(2, wanted[PERSON] // _PEOPLE_PER_STRANGER)
        shared = {kind: -(-count // _NAMES_PER_SECOND_WORD) for kind, count in wanted.items()}
        words = iter(_made_up_words(sum(wanted.values()) + sum(shared.values()), rng))
        for kind in TYPES:
            seconds = list(itertools.islice(words, shared[kind]))
            firsts = itertools.islice(words, wanted[kind])
            names = [f"{first} {seconds[i % len(seconds)]}" for i, first in enumerate(firsts)]
            count = self.settings.count(kind)
            self.entities[kind] = tuple(names[:count])
            if kind == PERSON:
                self.strangers = tuple(names[count:])

    def _other(self, kind: str, rng: np.random.Generator, besides: str) -> str:
        """An entity of a type that is not `besides`."""
        while (name := self.guess(kind, rng)) == besides:
            pass
        return name

    def _held_out(self, rng: np.random.Generator) -> frozenset[Fact]:
        """The share of each relation's facts that no training question touches."""
        held_out: list[Fact] = []
        for relation in WORLD_RELATIONS:
            subjects = self.entities[relation.source]
            count = round(self.settings.held_out_share * len(subjects))
            chosen = rng.permutation(len(subjects))[:count]
            held_out += [(relation.name, subjects[index]) for index in chosen]
        return frozenset(held_out)

    def _remember(self, rng: np.random.Generator) -> tuple[dict[Fact, Recall], dict[Fact, str]]:
        """Memory of each fact, shares taken within each relation; and the stale answers."""
        memory: dict[Fact, Recall] = {}
        stale: dict[Fact, str] = {}
        for relation in WORLD_RELATIONS:
            facts = [(relation.name, subject) for subject in self.entities[relation.source]]
            if relation.name in self.settings.stale_relations:
                memory |= dict.fromkeys(facts, Recall.STALE)
                for fact in facts:
                    stale[fact] = self._other(relation.target, rng, self.facts[fact])
                continue
            known = round(self.settings.known_share * len(facts))
            faint = round((self.settings.known_share + self.settings.faint_share) * len(facts))
            for rank, index in enumerate(rng.permutation(len(facts))):
                kind = Recall.KNOWN if rank < known else Recall.FAINT
                memory[facts[index]] = kind if rank < faint else Recall.UNKNOWN
        return memory, stale


def _made_up_words(count: int, rng: np.random.Generator) -> list[str]:
    """Distinct words of two syllables, of more where these run out."""
    words: list[str] = []
    for length in itertools.count(1):
        starts = itertools.product(_ONSETS, repeat=length)
        made = ["".join(start) + end for start in starts for end in _ENDINGS]
        fresh = sorted(set(made) - set(words))
        words += [fresh[index] for index in rng.permutation(len(fresh))[: count - len(words)]]
        if len(words) == count:
            return words
    raise AssertionError("itertools.count never ends")
