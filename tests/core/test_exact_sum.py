"""Sums that do not depend on their order, against whole numbers and fractions of Python."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpcomp.core import exact_sum
from dpcomp.core.exact_sum import ExactSum

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)


def summed(vectors, size):
    total = ExactSum(size)
    for vector in vectors:
        total.add(np.asarray(vector))
    return total.rounded()


@settings(max_examples=150, deadline=None)
@given(st.lists(FLOATS, min_size=1, max_size=30), st.randoms())
def test_a_sum_of_any_float32_is_that_of_fractions_in_any_order(values, random):
    vectors = [np.full(1, value, np.float32) for value in values]
    found = summed(vectors, 1)
    exact = sum(map(Fraction, values))
    assert abs(Fraction(float(found[0])) - exact) <= abs(exact) * Fraction(2, 2**53)
    if Fraction(float(exact)) == exact:
        assert found[0] == exact
    random.shuffle(vectors)
    assert summed(vectors, 1).tobytes() == found.tobytes()


def test_a_sum_that_float64_holds_is_the_float64_sum():
    rng = np.random.default_rng(0)
    vectors = (rng.integers(-(2**20), 2**20, (50, 1000)) * 2.0**-30).astype(np.float32)
    assert summed(vectors, 1000).tobytes() == np.sum(vectors.astype(np.float64), axis=0).tobytes()


def test_fsum_agrees_where_values_cancel_over_the_whole_range():
    rng = np.random.default_rng(1)
    vectors = (rng.standard_normal((40, 200)) * 2.0 ** rng.integers(-100, 60, (40, 200))).astype(np.float32)
    vectors = np.concatenate([vectors, -vectors[:39]])
    expected = np.array([math.fsum(column.tolist()) for column in vectors.T])
    np.testing.assert_allclose(summed(vectors, 200), expected, rtol=2**-52)
    assert (summed(vectors, 200) == vectors[39]).all()


def test_values_are_added_at_their_positions_over_several_blocks(monkeypatch):
    monkeypatch.setattr(exact_sum, "BLOCK", 7)
    rng = np.random.default_rng(2)
    total, expected = ExactSum(100), np.zeros(100)
    for _ in range(20):
        positions = np.sort(rng.choice(100, 33, replace=False))
        values = rng.integers(-1000, 1000, 33).astype(np.float32)
        total.add(values, positions)
        expected[positions] += values
    assert total.rounded().tobytes() == (expected + 0.0).tobytes()


def test_few_digits_are_kept_for_values_like_gradients():
    total = ExactSum(1000)
    for seed in range(20):
        total.add(np.random.default_rng(seed).standard_normal(1000).astype(np.float32))
    assert len(total._digits) <= 3


def test_more_terms_than_digits_can_bear_are_refused(monkeypatch):
    monkeypatch.setattr(exact_sum, "MOST_TERMS", 2)
    total = ExactSum(1)
    total.add(np.ones(1))
    total.add(np.ones(1))
    with pytest.raises(OverflowError, match="do not fit"):
        total.add(np.ones(1))


def test_nothing_added_is_zero():
    assert ExactSum(3).rounded().tolist() == [0.0, 0.0, 0.0]
