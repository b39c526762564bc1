"""Who is drawn, for an episode or a request, and what the head is told of the helper."""

from __future__ import annotations

from collections import Counter
from typing import Any

import ml_collections
import numpy as np
import pytest

from collab.llm.pool import Pool, together


def pool_of(config: Any, strength: dict[str, float] | None = None, **changes: Any) -> Pool:
    config.update_from_flattened_dict(changes)
    return Pool.from_config(config, tuple(config.llm.helpers), strength=strength)


def test_helpers_are_drawn_by_weight_and_by_the_generator(
    tiny_config: ml_collections.ConfigDict,
) -> None:
    tiny_config.llm.helpers = ml_collections.ConfigDict(
        {"often": {"weight": 3.0}, "never": {"weight": 0.0}, "once": {}}
    )
    pool = pool_of(tiny_config)
    drawn = pool.draw(4000, np.random.default_rng(0))
    assert drawn == pool.draw(4000, np.random.default_rng(0))
    assert set(drawn) == {("often",), ("once",)}
    assert abs(drawn.count(("often",)) / 4000 - 0.75) < 0.03


def test_per_request_each_request_of_an_episode_has_a_draw_of_its_own(
    tiny_config: ml_collections.ConfigDict,
) -> None:
    pool = pool_of(tiny_config, **{"llm.draw": "request"})
    drawn = pool.draw(3000, np.random.default_rng(0))
    assert {len(helpers) for helpers in drawn} == {tiny_config.rollout.max_asks}
    for place in range(tiny_config.rollout.max_asks):
        counts = Counter(helpers[place] for helpers in drawn)
        assert min(counts.values()) > 900
        assert len(counts) == 3
    pairs = Counter(helpers[:2] for helpers in drawn)
    assert len(pairs) == 9  # independent of each other


def test_a_served_model_is_one_nameless_helper(tiny_config: ml_collections.ConfigDict) -> None:
    pool = Pool.from_config(tiny_config, ("big",))
    assert pool.draw(2, np.random.default_rng(0)) == [("",), ("",)]


def test_the_head_is_told_nothing_unless_asked_to(tiny_config: ml_collections.ConfigDict) -> None:
    assert pool_of(tiny_config, {"one_hop": 0.5}).features_of("one_hop").shape == (0,)


def test_features_are_identity_price_and_measured_strength(
    tiny_config: ml_collections.ConfigDict,
) -> None:
    tiny_config.llm.prices = (("", 1.0, 1.0, 2.0), ("three_hops", 1.0, 1.0, 15.0))
    tiny_config.model.helper_features = ("id:one_hop", "price", "strength", "id:three_hops")
    pool = pool_of(tiny_config, {"one_hop": 0.25, "three_hops": 0.875})
    np.testing.assert_allclose(pool.features_of("one_hop"), [1.0, 0.2, 0.25, 0.0])
    np.testing.assert_allclose(pool.features_of("three_hops"), [0.0, 1.5, 0.875, 1.0])
    # A helper that the policy was not trained with, and that was not measured.
    np.testing.assert_allclose(pool.features_of("new"), [0.0, 0.0, 0.0, 0.0])


@pytest.mark.parametrize("name", ["cost", "id", ""])
def test_an_unknown_feature_is_refused_with_the_names(
    name: str, tiny_config: ml_collections.ConfigDict
) -> None:
    tiny_config.model.helper_features = (name,)
    with pytest.raises(ValueError, match=r"must be price, strength or id:NAME"):
        pool_of(tiny_config)


def test_the_helpers_of_an_episode_in_a_word() -> None:
    assert together(("a", "b", "a")) == "a+b"
    assert together(("",)) == ""
