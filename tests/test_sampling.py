"""Drawing by one uniform: known distributions, rounding at the edges, keys of rows."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from collab.models.sampling import CDF_BLOCK, inverse_cdf, row_key, token_logp, two_uniforms


@pytest.mark.parametrize(
    ("uniform", "expected"),
    # Running sums of 0.25, 0, 0.5, 0.25, 0: an index is taken up to and with its sum.
    [(1e-9, 0), (0.25, 0), (0.26, 2), (0.75, 2), (0.76, 3), (1.0, 3)],
)
def test_inverse_cdf_by_hand(uniform: float, expected: int) -> None:
    logp_1N = jnp.log(jnp.array([[0.25, 0.0, 0.5, 0.25, 0.0]]))
    assert inverse_cdf(logp_1N, jnp.array([uniform]))[0] == expected


def test_rows_are_drawn_by_their_own_uniform_over_several_blocks() -> None:
    """Even odds on 2 * CDF_BLOCK places: uniform (i + 0.5) / N falls to place i."""
    N = 2 * CDF_BLOCK
    logp_NN = jnp.full((N, N), -jnp.log(N))
    drawn_N = inverse_cdf(logp_NN, (jnp.arange(N) + 0.5) / N)
    assert drawn_N.tolist() == list(range(N))


def test_rounding_never_picks_the_impossible() -> None:
    """Uniforms within a few roundings of the border between two blocks, whose edges are barred."""
    rng, B, N = np.random.default_rng(0), 512, 5 * CDF_BLOCK
    is_barred_BN = rng.random((B, N)) < 0.5
    is_barred_BN[:, ::CDF_BLOCK] = is_barred_BN[:, CDF_BLOCK - 1 :: CDF_BLOCK] = True
    logits_BN = jnp.where(is_barred_BN, -1e30, 3.0 * rng.normal(size=(B, N)))
    logp_BN = jax.nn.log_softmax(logits_BN.astype(jnp.float32), axis=-1)
    sum_BJ = jnp.exp(logp_BN).reshape(B, -1, CDF_BLOCK).sum(axis=-1)
    border_B = np.asarray(jnp.cumsum(sum_BJ, axis=-1)[:, 1] / sum_BJ.sum(axis=-1))
    draw = jax.jit(inverse_cdf)
    for roundings in range(-3, 4):
        token_B = draw(logp_BN, border_B + np.float32(roundings) * np.spacing(border_B))
        assert not is_barred_BN[np.arange(B), token_B].any()
    assert not is_barred_BN[np.arange(B), draw(logp_BN, jnp.ones(B))].any()


def test_token_logp_scales_then_bars() -> None:
    """Logits 0, 2, 9 at temperature 2, the last barred: 1 and e out of 1 + e."""
    is_barred_V = jnp.array([False, False, True])
    logp_V = token_logp(jnp.array([0.0, 2.0, 9.0]), is_barred_V, jnp.float32(2.0))
    np.testing.assert_allclose(jnp.exp(logp_V), [1 / (1 + np.e), np.e / (1 + np.e), 0], rtol=1e-6)


def test_keys_differ_by_each_part_of_the_identity() -> None:
    identities = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 1, 1)]
    keys = [tuple(np.asarray(row_key(jnp.array(i, jnp.uint32))).tolist()) for i in identities]
    assert len(set(keys)) == len(keys)


def test_uniforms_depend_on_key_and_position_and_are_never_0() -> None:
    key_U = row_key(jnp.array([0, 1, 2], jnp.uint32))
    uniform_T2 = jax.vmap(two_uniforms, in_axes=(None, 0))(key_U, jnp.arange(1000))
    assert len(np.unique(uniform_T2)) == 2000
    assert (uniform_T2 > 0.0).all() and (uniform_T2 <= 1.0).all()
    np.testing.assert_allclose(uniform_T2.mean(axis=0), 0.5, atol=0.03)
    np.testing.assert_array_equal(uniform_T2[7], two_uniforms(key_U, jnp.int32(7)))
