"""Worked solutions that are chains through a graph of facts: half of `types.TeachableTask`."""

from __future__ import annotations

from collections.abc import Callable

from collab.tasks.world import language
from collab.tasks.world.schema import FactGraph
from collab.types import Problem, Step


class ChainSolutions:
    """Steps and requests of problems whose every step starts from the answer of the one before."""

    def __init__(self, graph: FactGraph, canonical: Callable[[str], str]) -> None:
        """canonical: an entity's name from a text that may be spelt otherwise."""
        self._graph, self._canonical = graph, canonical

    def next_step(self, problem: Problem, index: int, belief: str) -> Step | None:
        """The true step from any believed entity; `belief` is not read where a step has none.

        A second local hop is told of the true entity only.
        """
        if index >= len(problem.steps):
            return None
        step = problem.steps[index]
        found = language.relation_of(step.query, self._graph.relations)
        if index == 0 or found is None:
            return step
        believed = self._canonical(belief)
        if step.is_local:
            return step if believed == found[1] else None
        return self._graph.step(found[0], believed)

    def chain_request(self, problem: Problem, index: int, belief: str) -> str:
        """`belief` may be "": then the chain starts as the problem's own step does."""
        found = [
            language.relation_of(step.query, self._graph.relations)
            for step in problem.steps[index:]
        ]
        relations = [pair[0] for pair in found if pair is not None]
        if belief:
            return language.nested(relations, self._canonical(belief))
        first = found[0]
        return language.nested(relations, first[1] if first else problem.steps[0].query)
