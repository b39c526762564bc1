"""Collation and packing by hand: where everything stands, what padding holds, what does not fit."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from collab.rl.batch import LENGTH_BUCKET, Batch, bucket, collate, share
from collab.rl.packing import pack
from collab.rollout.state import FEATURES
from collab.types import ANSWER_ID, FIRST_REQUEST_ID, THINK_ID, Trace
from episodes import NAMES, make_trace

LONG = make_trace([THINK_ID, FIRST_REQUEST_ID, ANSWER_ID])
SHORT = make_trace([ANSWER_ID])


def collated(traces: Sequence[Trace], **sizes: int) -> Batch:
    known = {"rows": 3, "capacity": 40, "decisions": 4}
    return collate(traces, **{**known, **sizes}, actions=len(NAMES), features=len(FEATURES))


def test_layout() -> None:
    """Prompt 0-2; think 3, 4 5; request 6, 7 8, reply 9 10; answer 11, 12 13. The other at 14."""
    batch = collated([LONG, SHORT])
    assert batch.tokens_QRS.shape == (1, 1, 40)
    assert batch.tokens_QRS[0, 0, :20].tolist() == [*range(1, 15), *range(1, 7)]
    assert batch.positions_QRS[0, 0, :20].tolist() == [*range(14), *range(6)]
    assert batch.written_at_BN[0, :6].tolist() == [4, 5, 7, 8, 12, 13]
    np.testing.assert_allclose(
        batch.sampler_logp_BN[0, :6], [-0.04, -0.05, -0.07, -0.08, -0.12, -0.13], rtol=1e-6
    )
    assert batch.decided_at_BK.tolist() == [[2, 5, 10, 0], [16, 0, 0, 0], [0, 0, 0, 0]]
    assert batch.action_BK[0, :3].tolist() == [THINK_ID, FIRST_REQUEST_ID, ANSWER_ID]
    np.testing.assert_allclose(batch.sampler_action_logp_BK[0], [-0.1, -0.2, -0.3, 0], rtol=1e-6)
    np.testing.assert_array_equal(batch.features_BKF[0, :3], LONG.features_KF)
    assert batch.written_at_BN[1, :2].tolist() == [18, 19]
    assert batch.written_QM[0].tolist() == [0, 1, 2, 3, 4, 5, 40, 41, 120, 120]


def test_the_longest_goes_first_and_rows_stay() -> None:
    """Only where a context stands depends on its length, not which row of the others is its."""
    batch = collated([SHORT, LONG])
    assert batch.written_at_BN[:2, 0].tolist() == [18, 4]
    assert batch.action_BK[:2, 0].tolist() == [ANSWER_ID, THINK_ID]


def test_contexts_stay_with_the_rows_of_their_shard() -> None:
    """Two shards of two rows; the second, of one short episode, counts from its own start."""
    batch = collated([LONG, SHORT, SHORT], rows=4, shards=2)
    assert batch.tokens_QRS.shape == (2, 1, 40)
    assert batch.tokens_QRS[1, 0, :7].tolist() == [1, 2, 3, 4, 5, 6, 0]
    assert batch.written_at_BN[2, :2].tolist() == [4, 5] and batch.decided_at_BK[2, 0] == 2
    assert batch.written_QM[1].tolist() == [0, 1, *[80] * 8]


def test_padding_is_no_token_no_choice_and_no_advantage() -> None:
    batch = collated([LONG, SHORT])
    assert batch.written_BN.sum(axis=1).tolist() == [6, 2, 0]
    assert batch.choice_BK.sum(axis=1).tolist() == [3, 1, 0]
    assert batch.decided_BK.sum(axis=1).tolist() == [3, 1, 0]
    assert (batch.written_at_BN[~batch.written_BN] == 1).all()
    assert not batch.tokens_QRS[0, 0, 20:].any()
    assert (batch.positions_QRS[0, 0, 20:] == -1).all()
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
    assert batch.tokens_QRS.shape == (1, 1, LENGTH_BUCKET)
    assert not batch.written_BN.any() and (batch.written_QM == 3 * LENGTH_BUCKET).all()


@pytest.mark.parametrize(
    ("count", "limit", "expected"),
    [(0, 192, 64), (1, 192, 64), (64, 192, 64), (65, 192, 128), (65, 70, 70)],
)
def test_bucket(count: int, limit: int, expected: int) -> None:
    assert bucket(count, limit) == expected


@pytest.mark.parametrize(
    ("count", "whole", "expected"),
    [(0, 48, 6), (1, 48, 6), (6, 48, 6), (7, 48, 12), (48, 48, 48), (2, 3, 2), (1, 1, 1)],
)
def test_share(count: int, whole: int, expected: int) -> None:
    assert share(count, whole, 8) == expected


def test_sizes_are_bucketed() -> None:
    """30 segments of 3 tokens and a prompt of 3 fill two buckets; 60 written are half of them."""
    batch = collated([make_trace([THINK_ID] * 30)], capacity=192, decisions=30)
    assert batch.tokens_QRS.shape == (1, 1, 128)
    assert batch.written_QM.shape == (1, 64)
    assert batch.written_at_BN.shape == (3, 128)


@given(st.lists(st.integers(0, 20), max_size=24))
def test_packed_contexts_share_nothing(lengths: list[int]) -> None:
    """Each in one row; no two on one token; no two rows that would have fitted one."""
    start_E, rows = pack(lengths, 20)
    taken = np.zeros((rows, 20), int)
    for start, length in zip(start_E, lengths, strict=True):
        row, at = divmod(int(start), 20)
        if length:
            assert at + length <= 20
            taken[row, at : at + length] += 1
    assert taken.max(initial=0) <= 1 and taken.sum() == sum(lengths)
    used = np.sort(taken.sum(axis=1))
    assert rows < 2 or used[0] + used[1] > 20 or not any(lengths)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"rows": 1}, "2 traces do not fit 1 rows"),
        ({"shards": 2}, "3 rows must divide by 2 shards"),
        ({"capacity": 13}, "14 tokens or 3 decisions does not fit 13 and 4"),
        ({"decisions": 2}, "14 tokens or 3 decisions does not fit 40 and 2"),
    ],
)
def test_what_does_not_fit_is_an_error(sizes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        collated([LONG, SHORT], **sizes)
