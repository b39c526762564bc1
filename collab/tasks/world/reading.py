"""Reading requests: whatever reaches the expert in the world's language, glued together or not.

    chain   := word "of" chain | base ("'s" word)*        relation words in either wording
    base    := entity | "my" word
    text    := anything with chains in it; "L = E", "L is E", "E is L" tell what a local L is

The asked chain is the last one with a world relation that no statement tells. Linear in the text's
length, without recursion; the reader never changes, so threads share it.
"""

from __future__ import annotations

import dataclasses
import itertools
import re

import numpy as np

from collab.tasks.world.language import EQUALS, POSSESSIVE, Chain, relation_of
from collab.tasks.world.schema import FactGraph
from collab.types import Resolution, Step

_TOKEN = re.compile(r"'s\b|[^\W_]+|[=;.?!,]")
_ARTICLES = frozenset({"the", "a", "an"})
_ADJECTIVES = frozenset({"favourite", "own"})
_NOT_REFERENCES = frozenset({"name", "birthday", "condition"})
_LONGEST_PHRASE = 3

Local = tuple[str, str]  # ("my", "clinic") or (local relation, subject)


@dataclasses.dataclass(frozen=True)
class _Found:
    """A chain that was read, where it begins and ends, and whether it tells of the world."""

    chain: Chain
    start: int
    end: int
    is_world: bool

    @property
    def is_entity(self) -> bool:
        return not self.chain.relations and not self.chain.is_mine


class WorldKnowledge:
    """Answers requests in plain text from a graph's facts (`types.Knowledge`)."""

    def __init__(self, graph: FactGraph) -> None:
        self._graph = graph
        self._relations = graph.relations
        self._names = {tuple(_tokens(name)): name for name in graph.type_of}
        self._name_sizes = sorted({len(words) for words in self._names}, reverse=True)
        self._phrases = {
            tuple(wording.split()): relation.name
            for relation in self._relations.values()
            for wording in (relation.name, relation.other)
        }
        self._openings = frozenset(phrase[0] for phrase in self._phrases)
        first_words = {words[0] for words in self._names}
        self._starts = self._openings | _ARTICLES | first_words | {"my"}

    def resolve(self, text: str) -> Resolution | None:
        """The world steps that answer the request; local ones that it tells are followed only.

        missing: the first reference that the text leaves open: "my clinic", "home of kano bel".
        None: nothing asked, a relation does not apply, or nothing that an expert can add.
        """
        tokens = _tokens(text)
        found = self._scan(tokens)
        told, stated = self._statements(tokens, found)
        asked = [item for item in found if item.is_world and item not in stated]
        asked = asked or [item for item in found if item.is_world]
        asked = asked or [
            item for item in found if not item.is_entity and item not in stated
            and item.chain.anchor not in _NOT_REFERENCES
        ]  # fmt: skip
        return self._follow(asked[-1].chain, told) if asked else None

    def wrong_answer(self, step: Step, rng: np.random.Generator) -> str:
        """Another entity of the type that the step asks for."""
        found = relation_of(step.query, self._relations)
        kind = self._relations[found[0]].target if found else self._graph.type_of[step.answer]
        others = [name for name in self._graph.entities[kind] if name != step.answer]
        return others[int(rng.integers(len(others)))]

    # --- meaning ---------------------------------------------------------------------------

    def _follow(self, chain: Chain, told: dict[Local, str]) -> Resolution | None:
        """Walk a chain; stops at the first local hop that is not told."""
        belief = told.get(("my", chain.anchor)) if chain.is_mine else chain.anchor
        if belief is None:
            return Resolution((), missing=chain.start)
        steps: list[Step] = []
        for name in chain.relations:
            if self._relations[name].is_local:
                value = told.get((name, belief))
                if value is None:
                    return Resolution((), missing=f"{name} of {belief}")
                belief = value
                continue
            step = self._graph.step(name, belief)
            if step is None:
                return None
            steps.append(step)
            belief = step.answer
        return Resolution(tuple(steps)) if steps else None

    def _statements(
        self, tokens: list[str], found: list[_Found]
    ) -> tuple[dict[Local, str], list[_Found]]:
        """What the text tells about local references, and the chains that tell it."""
        told: dict[Local, str] = {}
        stated: list[_Found] = []
        later: list[tuple[Chain, str]] = []  # "home of my friend": once the friend is known
        for item in found:
            if item.is_entity and tokens[max(item.start - 2, 0) : item.start] == ["live", "in"]:
                told["my", "home"] = item.chain.anchor
        for left, right in itertools.pairwise(found):
            if tokens[left.end : right.start] not in ([EQUALS], ["is"]):
                continue
            if not left.is_entity:
                stated.append(left)
            if not right.is_entity:
                stated.append(right)
            if right.is_entity and not left.is_world:
                later.append((left.chain, right.chain.anchor))
            elif left.is_entity and not right.is_world:
                later.append((right.chain, left.chain.anchor))
        for chain, value in sorted(later, key=lambda pair: len(pair[0].relations)):
            if chain.is_mine and not chain.relations:
                told["my", chain.anchor] = value
            elif len(chain.relations) == 1:
                subject = told.get(("my", chain.anchor)) if chain.is_mine else chain.anchor
                if subject is not None:
                    told[chain.relations[0], subject] = value
        return told, stated

    # --- grammar ---------------------------------------------------------------------------

    def _scan(self, tokens: list[str]) -> list[_Found]:
        found: list[_Found] = []
        position = 0
        while position < len(tokens):
            if tokens[position] not in self._starts:
                position += 1
                continue
            chain, end = self._chain(tokens, position)
            if chain is not None:
                is_world = any(not self._relations[name].is_local for name in chain.relations)
                found.append(_Found(chain, position, end, is_world))
            position = max(end, position + 1)
        return found

    def _chain(self, tokens: list[str], position: int) -> tuple[Chain | None, int]:
        """The chain that begins here and its end; (None, where to go on) if there is none."""
        outer: list[str] = []
        while True:
            position = _past(tokens, position, _ARTICLES)
            name, end = self._relation(tokens, position)
            if name is None or tokens[end : end + 1] != ["of"]:
                break
            outer.append(name)
            position = end + 1
        base, position = self._base(tokens, position)
        if base is None:
            return None, position
        inner: list[str] = []
        while tokens[position : position + 1] == [POSSESSIVE]:
            name, end = self._relation(tokens, position + 1)
            if name is None:
                break
            inner.append(name)
            position = end
        relations = (*inner, *reversed(outer))
        return Chain(base.anchor, relations, base.is_mine), position

    def _base(self, tokens: list[str], position: int) -> tuple[Chain | None, int]:
        for size in self._name_sizes:
            name = self._names.get(tuple(tokens[position : position + size]))
            if name is not None:
                return Chain(name, ()), position + size
        if tokens[position : position + 1] == ["my"]:
            at = _past(tokens, position + 1, _ADJECTIVES)
            relation, end = self._relation(tokens, at)
            if relation is not None:
                return Chain(relation, (), is_mine=True), end
            if at < len(tokens) and tokens[at].isalnum():
                return Chain(tokens[at], (), is_mine=True), at + 1
        return None, position

    def _relation(self, tokens: list[str], position: int) -> tuple[str | None, int]:
        """The relation whose longest wording stands here, and its end."""
        if position < len(tokens) and tokens[position] in self._openings:
            for size in range(_LONGEST_PHRASE, 0, -1):
                name = self._phrases.get(tuple(tokens[position : position + size]))
                if name is not None:
                    return name, position + size
        return None, position


def _tokens(text: str) -> list[str]:
    return _TOKEN.findall(text.lower().replace("\u2019", "'"))


def _past(tokens: list[str], position: int, skipped: frozenset[str]) -> int:
    while position < len(tokens) and tokens[position] in skipped:
        position += 1
    return position
