"""The helpers of a run: who is drawn for an episode or a request, and what the head may know.

What the head is told of a helper is off by default (`model.helper_features`): a policy that reads
the name of its helper does not carry over to another one; price and measured strength may.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from collab.llm.budget import Prices

ID = "id:"  # "id:NAME" is 1 for the helper of that name, 0 for any other
PRICE = "price"  # of completion tokens, in PRICE_UNIT_USD per million
STRENGTH = "strength"  # measured share of probe requests answered right, in [0, 1]
PRICE_UNIT_USD = 10.0


@dataclasses.dataclass(frozen=True)
class Pool:
    """Helpers by name with their weights, > 0 in sum; "" is the one helper of a plain backend.

    draws: helpers per episode: 1, or one for each request it may make. features: as the config has
    them. completion_usd: dollars per million completion tokens by helper. strength: by helper; one
    that was not measured counts as 0.
    """

    weights: Mapping[str, float]
    draws: int = 1
    features: tuple[str, ...] = ()
    completion_usd: Mapping[str, float] = dataclasses.field(default_factory=dict)
    strength: Mapping[str, float] = dataclasses.field(default_factory=dict)

    @classmethod
    def from_config(
        cls, config: Any, names: Sequence[str], *, strength: Mapping[str, float] | None = None
    ) -> Pool:
        """Those rows of `llm.helpers` that the backend has, by `names`; else one helper named "".

        Raises: ValueError for an unknown feature.
        """
        for name in config.model.helper_features:
            if name not in (PRICE, STRENGTH) and not name.startswith(ID):
                raise ValueError(
                    f"model.helper_features: {name!r} must be {PRICE}, {STRENGTH} or {ID}NAME of a "
                    f"helper; try model.helper_features={PRICE},{STRENGTH}"
                )
        llm = config.llm
        weights = {
            name: row.get("weight", llm.scripted.weight)
            for name, row in llm.helpers.items()
            if name in names
        } or {"": 1.0}
        prices = Prices(llm.prices)
        return cls(
            weights=weights,
            draws=config.rollout.max_asks if llm.draw == "request" else 1,
            features=tuple(config.model.helper_features),
            completion_usd={n: prices.completion_usd(llm.model or n) for n in weights},
            strength=strength or {},
        )

    def draw(self, count: int, rng: np.random.Generator) -> list[tuple[str, ...]]:
        """Helpers for each of `count` problems: the k-th request goes to the k-th, in a circle."""
        names, weight = list(self.weights), np.array(list(self.weights.values()))
        drawn = rng.choice(len(names), (count, self.draws), p=weight / weight.sum())
        return [tuple(names[index] for index in row) for row in drawn.tolist()]

    def features_of(self, helper: str) -> np.ndarray:
        """What the head is told of a helper, f32 [E]."""
        values = {
            PRICE: self.completion_usd.get(helper, 0.0) / PRICE_UNIT_USD,
            STRENGTH: self.strength.get(helper, 0.0),
        }
        return np.array(
            [values.get(name, float(name == f"{ID}{helper}")) for name in self.features],
            np.float32,
        )


def together(helpers: Sequence[str]) -> str:
    """The helpers of one episode in a word."""
    return "+".join(dict.fromkeys(helpers))
