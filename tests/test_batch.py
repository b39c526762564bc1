"""Collation by hand: where everything of a trace stands, what padding holds, what does not fit."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from collab.rl.batch import LENGTH_BUCKET, Batch, bucket, collate
from collab.rollout.state import FEATURES
from collab.types import ANSWER_ID, FIRST_REQUEST_ID, THINK_ID, Trace
from episodes import NAMES, make_trace

LONG = make_trace([THINK_ID, FIRST_REQUEST_ID, ANSWER_ID])
SHORT = make_trace([ANSWER_ID])


def collated(traces: Sequence[Trace], **sizes: int) -> Batch:
    known = {"rows": 3, "capacity": 40, "decisions": 4}
    return collate(traces, **{**known, **sizes}, actions=len(NAMES), features=len(FEATURES))


def test_layout() -> None:
    """Prompt 0-2; think 3, 4 5; request 6, 7 8, reply 9 10; answer 11, 12 13."""
    batch = collated([LONG, SHORT])
    assert batch.tokens_BS[0, :14].tolist() == list(range(1, 15))
    assert batch.written_at_BN[0, :6].tolist() == [4, 5, 7, 8, 12, 13]
    np.testing.assert_allclose(
        batch.sampler_logp_BN[0, :6], [-0.04, -0.05, -0.07, -0.08, -0.12, -0.13], rtol=1e-6
    )
    assert batch.decided_at_BK.tolist() == [[2, 5, 10, 0], [2, 0, 0, 0], [0, 0, 0, 0]]
    assert batch.action_BK[0, :3].tolist() == [THINK_ID, FIRST_REQUEST_ID, ANSWER_ID]
    np.testing.assert_allclose(batch.sampler_action_logp_BK[0], [-0.1, -0.2, -0.3, 0], rtol=1e-6)
    np.testing.assert_array_equal(batch.features_BKF[0, :3], LONG.features_KF)
    assert batch.tokens_BS[1, :6].tolist() == [1, 2, 3, 4, 5, 6]
    assert batch.written_at_BN[1, :2].tolist() == [4, 5]


def test_padding_is_no_token_no_choice_and_no_advantage() -> None:
    batch = collated([LONG, SHORT])
    assert batch.written_BN.sum(axis=1).tolist() == [6, 2, 0]
    assert batch.choice_BK.sum(axis=1).tolist() == [3, 1, 0]
    assert batch.decided_BK.sum(axis=1).tolist() == [3, 1, 0]
    assert (batch.written_at_BN[~batch.written_BN] == 1).all()
    assert not batch.tokens_BS[0, 14:].any() and not batch.tokens_BS[2].any()
    assert not batch.sampler_logp_BN[~batch.written_BN].any()
    assert not batch.advantage_BN.any() and not batch.decision_advantage_BK.any()
    assert batch.legal_BKA[2].all()  # so that a softmax over padding is finite


def test_a_forced_action_is_no_choice() -> None:
    legal_KA = np.ones((3, len(NAMES)), bool)
    legal_KA[1] = np.arange(len(NAMES)) == FIRST_REQUEST_ID
    batch = collated([dataclasses.replace(LONG, legal_KA=legal_KA)])
    assert batch.choice_BK[0].tolist() == [True, False, True, False]
    assert batch.decided_BK[0].tolist() == [True, True, True, False]
    np.testing.assert_array_equal(batch.legal_BKA[0, :3], legal_KA)


def test_dtypes() -> None:
    batch = collated([LONG])
    dtypes = {name: str(array.dtype) for name, array in vars(batch).items()}
    assert {name for name, dtype in dtypes.items() if dtype == "bool"} == {
        "written_BN",
        "legal_BKA",
        "choice_BK",
        "decided_BK",
    }
    assert set(dtypes.values()) == {"bool", "int32", "float32"}


def test_no_traces_give_an_empty_batch() -> None:
    batch = collated([], capacity=96)
    assert batch.tokens_BS.shape == (3, LENGTH_BUCKET)
    assert not batch.written_BN.any()


@pytest.mark.parametrize(
    ("count", "limit", "expected"),
    [(0, 192, 64), (1, 192, 64), (64, 192, 64), (65, 192, 128), (65, 70, 70)],
)
def test_bucket(count: int, limit: int, expected: int) -> None:
    assert bucket(count, limit) == expected


def test_lengths_are_bucketed_apart() -> None:
    """30 segments of 3 tokens and a prompt of 3 fill two buckets, 60 written tokens one."""
    batch = collated([make_trace([THINK_ID] * 30)], capacity=192, decisions=30)
    assert batch.tokens_BS.shape == (3, 128)
    assert batch.written_at_BN.shape == (3, 64)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"rows": 1}, "2 traces do not fit 1 rows"),
        ({"capacity": 13}, "14 tokens or 3 decisions does not fit 13 and 4"),
        ({"decisions": 2}, "14 tokens or 3 decisions does not fit 40 and 2"),
    ],
)
def test_what_does_not_fit_is_an_error(sizes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        collated([LONG, SHORT], **sizes)
