"""The privatise task: another task's questions with a user's private profile around them."""

from collab.tasks.privatise.task import privatise_task

__all__ = ["privatise_task"]
