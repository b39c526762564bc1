"""The whole study on a laptop: a tiny SLM from scratch, the generated world, scripted helpers."""

from collab.config import default_config


def get_config():
    config = default_config()
    config.compile_cache = ""
    return config
