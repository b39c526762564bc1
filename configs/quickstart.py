"""The whole study on a laptop: a tiny SLM from scratch, the generated world, scripted helpers."""

import ml_collections

from collab.config import default_config


def get_config() -> ml_collections.ConfigDict:
    """Questions of one or two world hops, helpers that chain one or both of them."""
    config = default_config()
    config.task.world.update({"max_world_hops": 2, "known_share": 0.5})
    config.llm.helpers = {
        "one_hop": {"hops": 1, "weight": 3.0},
        "two_hops": {"hops": 2, "weight": 1.0},
    }
    config.rollout.temperature = 0.7
    config.cold_start.update({"steps": 500, "label_problems": 512, "label_samples": 2})
    config.rl.update({"iterations": 40, "learning_rate": 1e-4, "final_learning_rate": 1e-5})
    config.rl.update({"head_rate": 20.0, "feature_rate": 100.0})  # the SLM's skills hardly move
    return config
