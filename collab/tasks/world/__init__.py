"""The world task: questions over a generated world and a user's private notes."""

from collab.tasks.world.task import WorldTask

__all__ = ["WorldTask"]
