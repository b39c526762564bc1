"""Numbers that blew up: what is told, and what is saved."""

from __future__ import annotations

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from collab.finite import WATCHED, check_finite
from collab.rl.batch import collate
from collab.rollout.state import FEATURES
from episodes import NAMES, answer, make_episode, think

BATCH = collate(
    [make_episode(think(), answer()).trace],
    rows=2,
    capacity=64,
    decisions=4,
    actions=len(NAMES),
    features=len(FEATURES),
)
PARAMS = {"good": jnp.zeros(2), "bad": {"w": jnp.array([0.0, jnp.inf])}}


def test_finite_numbers_pass_whatever_else_the_metrics_hold(tmp_path: Path) -> None:
    metrics = {"loss": 1e30, "reward": float("nan")}
    check_finite(metrics, BATCH, params=PARAMS, step=3, into=tmp_path, key="rl.learning_rate")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", WATCHED)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_the_batch_is_saved_and_parameters_and_the_key_are_named(
    name: str, value: float, tmp_path: Path
) -> None:
    with pytest.raises(FloatingPointError) as caught:
        check_finite({name: value}, BATCH, params=PARAMS, step=3, into=tmp_path, key="rl.rate")
    path = tmp_path / "bad_batch_3.npz"
    assert str(caught.value) == (
        f"{name} not finite at step 3; parameters affected: ['bad']['w']; "
        f"the batch is in {path}; lower rl.rate"
    )
    saved = np.load(path)
    assert set(saved) == set(vars(BATCH))
    assert np.array_equal(saved["tokens_QRS"], BATCH.tokens_QRS)
