"""Word problems for a tiny SLM from scratch: it learns to set up sums, and to do the easy ones.

Questions of up to three sums in whole numbers up to 100. The helpers calculate one, two or three
sums at a time, of what the SLM writes down: a sum set up wrongly comes back as asked.
"""

import pathlib

import ml_collections

from collab.config import load_config


def get_config() -> ml_collections.ConfigDict:
    """As `study.py` in all but the task, its lengths and a longer cold start."""
    config = load_config(str(pathlib.Path(__file__).with_name("study.py")))
    config.task.name = "gsm"
    config.task.gsm.update({"max_steps": 3, "max_number": 100})
    config.tokenizer.vocabulary = 1024
    config.rollout.update({"max_segments": 10, "think_tokens": 32, "request_tokens": 48})
    config.rollout.reply_tokens = 64
    # No draft of a trace is false by itself, and a reply that only repeats drafts is not read.
    config.cold_start.update({"steps": 600, "batch": 40, "spoil_share": 0.2, "ask_lean": 0.0})
    config.cold_start.curriculum = ((500, 128),)
    return config
