"""What the study leaves out or exchanges, in the order it is run: what tells most first.

In the tables of variants `world` is the run of configs/study.py that `experiments.main` makes, too.
Whether a run may begin with the imitation of `world` is checked by `collab.restore`: what the head
is told, its labels, the reward and the policy gradient change nothing in it; the shape of the head
and the traces do.
"""

from __future__ import annotations

from typing import Any

from experiments.variants import Variant

BASE = "world"
# Nothing is fitted to the few that remain.
NO_LABELS = {"cold_start.label_steps": 0, "cold_start.label_problems": 8}
NO_FEATURES: dict[str, Any] = {"model.features": ()}
LINEAR = {"model.head_width": 0}
# Every test episode is logged with the terms of its reward, to be graded anew.
ADDITIVE = {"reward.gated": False, "log.test_episodes": 384}
NO_DEVIATION = {"rl.standardise": False}
TWICE = {"rl.updates": 2}

# What tells the policy when to ask: labels, what the head is told, its shape, who decides.
WHEN = (
    Variant(
        "no_labels", "no labels", NO_LABELS, BASE, BASE, is_needed=True, is_constant=True
    ),
    Variant(
        "no_features", "no features", NO_FEATURES, BASE, BASE, is_needed=True, is_constant=True
    ),
    Variant(
        "no_labels_features", "no labels, no features",
        {**NO_LABELS, **NO_FEATURES}, BASE, "no_labels", is_constant=True,
    ),
    Variant("linear", "linear head", LINEAR, "", BASE, is_needed=True, is_constant=False),
    Variant(
        "bare", "linear head, no features",
        {**LINEAR, **NO_FEATURES}, "linear", "linear", is_constant=True,
    ),
    Variant(
        "bare_no_labels", "linear head, no features, no labels",
        {**LINEAR, **NO_FEATURES, **NO_LABELS}, "linear", "bare", is_constant=True,
    ),
    Variant(
        "tokens", "special tokens decide, no labels",
        {"model.head": "tokens", **NO_LABELS}, "", "no_labels", is_needed=True, is_constant=True,
    ),
    Variant(
        "uninformed", "traces ask at random, no labels",
        {"cold_start.ask_lean": 0.0, **NO_LABELS}, "", "no_labels",
        is_needed=True, is_constant=True,
    ),
    Variant(
        "surprise_only", "of features only the surprise",
        {"model.features": ("max_nll",)}, BASE, BASE, is_constant=False,
    ),
)  # fmt: skip

REWARD = (
    Variant("additive", "additive cost", ADDITIVE, BASE, BASE, is_needed=True),
    Variant("no_deviation", "not divided by the group's deviation", NO_DEVIATION, BASE, BASE),
)  # fmt: skip

# With one update a batch the ratio to the sampler is 1: DAPO is GRPO then, and REINFORCE with its
# leave-one-out baseline GRPO times G / (G - 1). So DAPO is compared where the clip counts.
LEARNING = (
    Variant("value", "credit by a value head", {"rl.credit": "value"}, BASE, BASE),
    Variant("branch", "credit by paired branching", {"rl.credit": "branch"}, BASE, BASE),
    Variant(
        "ppo", "PPO", {"rl.objective": "ppo", "rl.credit": "value"}, BASE, "value"
    ),
    Variant(
        "dr_grpo", "Dr. GRPO",
        {"rl.objective": "dr_grpo", **NO_DEVIATION}, BASE, "no_deviation",
    ),
    Variant("reinforce", "REINFORCE", {"rl.objective": "reinforce"}, BASE, BASE),
    Variant("twice", "two updates a batch", TWICE, BASE, BASE),
    Variant(
        "dapo_twice", "DAPO, two updates a batch",
        {"rl.objective": "dapo", **TWICE}, BASE, "twice",
    ),
    Variant("no_kl", "no KL to the cold start", {"rl.kl_weight": 0.0}, BASE, BASE),
    Variant("pairs", "2 samples of 64 questions", {"rl.samples": 2, "rl.problems": 64}, BASE, BASE),
)  # fmt: skip

VARIANTS = (*WHEN, *REWARD, *LEARNING)
