"""What the studies share: a world of three hops, helpers that chain one, two or three."""

import ml_collections

from collab.config import default_config


def get_config() -> ml_collections.ConfigDict:
    """One core trains and evaluates it in minutes; a study changes a few keys of it."""
    config = default_config()
    config.task.world.update({"max_world_hops": 3, "known_share": 0.5})
    config.rollout.temperature = 0.7
    config.cold_start.update({"steps": 500, "label_problems": 768, "label_samples": 2})
    config.rl.update({"iterations": 24, "learning_rate": 1e-4, "final_learning_rate": 1e-5})
    config.rl.update({"head_rate": 20.0, "feature_rate": 100.0})  # the SLM's skills hardly move
    config.log.update({"tensorboard": False, "test_episodes": 32, "train_episodes": 4})
    return config
