"""Problems of generated worlds, for the tests of what the world task is made of."""

from __future__ import annotations

from collab.tasks.splits import SPLITS
from collab.tasks.world.entities import World
from collab.tasks.world.generate import Generator
from collab.types import Problem, Step

EACH = 300  # problems of each split


def problems_of(world: World) -> list[Problem]:
    generator = Generator(world)
    return [generator.problem(split, index) for split in SPLITS for index in range(EACH)]


def world_steps(problem: Problem) -> tuple[Step, ...]:
    """The steps that the notes do not state."""
    return tuple(step for step in problem.steps if not step.is_local)
