"""Every measure is what its definition says, on vectors with ties, zeros, and nothing in them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dpcomp as dp
from analysis.measures.supports import captured_energy, ranking, smallest_support, support_overlap
from tests.analysis.vector_pairs import pairs, pairs_and_k, ranked


def top(vector, k):
    return dp.Listed(np.array(sorted(ranked(vector)[:k]), dtype=np.int64))


def energy(vector, positions):
    """Exact: fractions of whole numbers."""
    return sum(int(numerator) ** 2 for numerator in whole_numbers(vector)[sorted(positions)])


def whole_numbers(vector):
    """The values times a power of two that makes them whole."""
    ratios = [float(value).as_integer_ratio() for value in vector]
    common = max(denominator for _, denominator in ratios)
    return np.array([numerator * (common // denominator) for numerator, denominator in ratios], dtype=object)


@given(vectors=pairs(), data=st.data())
def test_a_ranking_begins_with_the_largest_and_of_equal_ones_with_the_lower_position(vectors, data):
    vector, _ = vectors
    depth = data.draw(st.integers(0, len(vector)))
    assert ranking(vector, depth).tolist() == ranked(vector)[:depth]


def test_a_ranking_deeper_than_the_vector_is_refused():
    with pytest.raises(ValueError, match="k = 4 of an array of shape"):
        ranking(np.ones(3), 4)


SUBSETS = st.sets(st.integers(0, 19)).map(lambda positions: np.array(sorted(positions), dtype=np.int64))


@given(reference=SUBSETS, support=SUBSETS)
def test_the_overlap_is_that_of_the_sets(reference, support):
    common = set(reference.tolist()) & set(support.tolist())
    np.testing.assert_equal(support_overlap(reference, support), len(common) / len(support) if len(support) else np.nan)


@settings(deadline=None)
@given(drawn=pairs_and_k())
def test_captured_energy_is_a_share_of_sums_of_squares(drawn):
    clean, noisy, k = drawn
    whole, there = energy(clean, range(len(clean))), energy(clean, ranked(noisy)[:k])
    expected = there / whole if whole else np.nan
    assert captured_energy(clean, top(noisy, k)) == pytest.approx(expected, rel=1e-12, nan_ok=True)
    np.testing.assert_equal(captured_energy(clean, dp.Everywhere()), 1.0 if whole else np.nan)


def test_a_seeded_support_captures_its_share_of_a_constant():
    assert captured_energy(np.full(50, -3.0), dp.Seeded(7, 20)) == pytest.approx(0.4)


@settings(deadline=None)
@given(vectors=pairs(), share=st.floats(0, 1))
def test_no_smaller_top_k_holds_the_energy(vectors, share):
    clean, noisy = vectors
    if not clean.any():
        with pytest.raises(ValueError, match="not all zero"):
            smallest_support(clean, noisy, share)
        return
    support = smallest_support(clean, noisy, share)
    k = len(support.positions)
    assert support == top(noisy, k)
    assert captured_energy(clean, support) >= share * (1 - 1e-12)
    if k:
        assert captured_energy(clean, top(noisy, k - 1)) < share * (1 + 1e-12)


@pytest.mark.parametrize("share", [-0.1, 1.1, np.nan])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(ValueError, match=r"share = .* in \[0, 1\]"):
        smallest_support(np.ones(3), np.ones(3), share)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(wrong, dtype):
    sound, broken = np.array([1.0, 2.0, 3.0], dtype), np.array([1.0, wrong, 3.0], dtype)
    for vectors in ((sound, broken), (broken, sound)):
        with pytest.raises(ValueError, match="NaN or infinite"):
            smallest_support(*vectors, 0.5)
    with pytest.raises(ValueError, match="NaN or infinite"):
        captured_energy(broken, dp.Everywhere())


@pytest.mark.usefixtures("unchecked_shapes")
def test_vectors_of_two_lengths_are_refused():
    for vectors in ((np.ones(3), np.ones(4)), (np.ones(4), np.ones(3))):
        with pytest.raises(ValueError, match="with the same coordinates"):
            smallest_support(*vectors, 0.5)
