"""Paths through a graph of facts, each in one split only.

A composition is the entity that heads the world part of a question and the path of relations from
it. Every composition belongs to one split only. `held_out_share` of the facts occur in no training
composition; about half of the validation and test questions touch such a fact, the others combine
facts of the training questions in a way that no training question does (the fact of a single-hop
one may be part of longer training compositions). The SLM's memory knows no splits: it may hold a
held-out fact.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict

import numpy as np

from collab.tasks.splits import SPLITS
from collab.tasks.world.schema import FactGraph

_CLEAN_SHARES = (0.7, 0.1, 0.2)  # of compositions without a held-out fact, by split
_HELD_OUT_SHARES = (0.0, 1 / 3, 2 / 3)


@dataclasses.dataclass(frozen=True)
class Composition:
    """The world part of a question. entities: the head, then the object of each relation."""

    relations: tuple[str, ...]
    entities: tuple[str, ...]
    is_held_out: bool

    @property
    def head(self) -> str:
        return self.entities[0]


def compositions(graph: FactGraph) -> list[Composition]:
    """Every path of 1..max_world_hops relations from every entity that meets no entity twice."""
    relations_from = defaultdict(list)
    for relation, subject in graph.facts:
        relations_from[subject].append(relation)
    found: list[Composition] = []
    front = [Composition((), (name,), False) for name in graph.type_of]
    for _ in range(graph.settings.max_world_hops):
        longer = []
        for path in front:
            last = path.entities[-1]
            for name in relations_from[last]:
                answer = graph.facts[name, last]
                if answer not in path.entities:
                    is_held_out = path.is_held_out or (name, last) in graph.held_out
                    entities = (*path.entities, answer)
                    longer.append(Composition((*path.relations, name), entities, is_held_out))
        found += longer
        front = longer
    return found


def split_compositions(graph: FactGraph) -> dict[str, list[Composition]]:
    """Every composition in its one split, drawn within head type, hops and held out or not."""
    groups: dict[tuple[str, int, bool], list[Composition]] = defaultdict(list)
    for item in compositions(graph):
        groups[graph.type_of[item.head], len(item.relations), item.is_held_out].append(item)
    rng = np.random.default_rng([graph.settings.seed, 3])
    splits: dict[str, list[Composition]] = {split: [] for split in SPLITS}
    for (_, _, is_held_out), group in groups.items():
        ends = np.cumsum(_HELD_OUT_SHARES if is_held_out else _CLEAN_SHARES)
        for rank, index in enumerate(rng.permutation(len(group))):
            place = int(np.searchsorted(ends, (rank + 0.5) / len(group)))
            splits[SPLITS[min(place, 2)]].append(group[index])
    return splits


def pools(graph: FactGraph) -> dict[tuple[str, str | None, int, bool], list[Composition]]:
    """Compositions by split, type of head (None = any), hops and whether held out."""
    found: dict[tuple[str, str | None, int, bool], list[Composition]] = defaultdict(list)
    for split, members in split_compositions(graph).items():
        for item in members:
            for kind in (graph.type_of[item.head], None):
                found[split, kind, len(item.relations), item.is_held_out].append(item)
    return found
