"""Agreement and kappa: tables by hand, and by counting every pair."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collab.privacy.agreement import Agreement, compare

VERDICTS = st.lists(st.tuples(*[st.sampled_from([True, False, None])] * 2), max_size=40)


def test_a_table_by_hand() -> None:
    """20 both, 5 and 10 alone, 15 neither: rate 0.7; by chance 0.5*0.6 + 0.5*0.4 = 0.5."""
    found = Agreement(both=20, first_only=5, second_only=10, neither=15)
    assert found.pairs == 50
    assert found.rate == pytest.approx(0.7)
    assert found.kappa == pytest.approx(0.4)


def test_what_either_has_no_verdict_on_does_not_count() -> None:
    found = compare([True, None, False, True, None], [True, True, None, False, None])
    assert found == Agreement(both=1, first_only=1)


@pytest.mark.parametrize("found", [Agreement(), Agreement(neither=3), Agreement(both=3)])
def test_kappa_is_undefined_where_nothing_varies(found: Agreement) -> None:
    assert found.kappa is None
    assert (found.rate is None) == (found.pairs == 0)


def test_opposites_agree_less_than_by_chance() -> None:
    assert compare([True, False], [False, True]).kappa == pytest.approx(-1.0)


@given(VERDICTS)
def test_kappa_by_counting(pairs: list[tuple[bool | None, bool | None]]) -> None:
    found = compare([a for a, _ in pairs], [b for _, b in pairs])
    told = [(a, b) for a, b in pairs if None not in (a, b)]
    assert found.pairs == len(told)
    if not told:
        return
    agreed = sum(a == b for a, b in told) / len(told)
    chance = sum(a == b for a, _ in told for _, b in told) / len(told) ** 2
    assert found.rate == pytest.approx(agreed)
    if found.kappa is not None:
        assert found.kappa == pytest.approx((agreed - chance) / (1 - chance))
        assert found.kappa <= 1.0
