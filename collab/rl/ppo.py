"""Proximal policy optimisation: the clipped ratio, with a critic in place of the siblings."""

from __future__ import annotations

from collab.rl.grpo import Grpo


class Ppo(Grpo):
    """The clipped objective, all of whose advantages come from the value head.

    A segment's tokens have the advantage of the decision that they follow; the group's rewards are
    only looked at for the metrics. The value loss is the plain squared error, unclipped; it has its
    weight `rl.value_weight`, and reads the trunk without teaching it, so that what differs from
    GRPO is the credit. Needs `rl.credit="value"`, which `collab.rules` sees to.
    Source: Schulman et al. 2017, arXiv 1707.06347, equations 7 and 9.
    """

    has_critic = True
