"""The atlas task: the world task's questions over real geography, for a pretrained SLM."""

from collab.tasks.atlas.task import AtlasTask

__all__ = ["AtlasTask"]
