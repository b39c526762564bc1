"""The quickstart with a private profile of twelve kinds around each question."""

import pathlib

import ml_collections

from collab.config import load_config


def get_config() -> ml_collections.ConfigDict:
    """The base is the world; for word problems or FanOutQA see `smollm2.py`."""
    config = load_config(str(pathlib.Path(__file__).with_name("quickstart.py")))
    config.task.name = "privatise"
    config.tokenizer.vocabulary = 1024  # at 832 one word of a name in eight is split
    return config
