"""Every measure of two rankings is what its definition says, on vectors with ties, zeros, and nothing in them."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kendalltau, pearsonr, spearmanr

import dpcomp as dp
from analysis.measures.ranking import (
    jaccard,
    kendall_tau,
    overlap,
    overlap_of_rankings,
    rank_biased_overlap,
    spearman_rho,
    top_k_energy,
)
from analysis.measures.supports import captured_energy
from tests.analysis.vector_pairs import pairs, pairs_and_k, ranked

SOME_P = st.floats(0.01, 0.99)


def share(part, whole):
    return part / whole if whole else np.nan


@given(drawn=pairs_and_k())
def test_overlap_and_jaccard_are_those_of_the_sets(drawn):
    reference, other, k = drawn
    first, second = set(ranked(reference)[:k]), set(ranked(other)[:k])
    np.testing.assert_equal(overlap(reference, other, k), share(len(first & second), k))
    np.testing.assert_equal(jaccard(reference, other, k), share(len(first & second), len(first | second)))


@settings(deadline=None)
@given(vectors=pairs())
def test_kendall_counts_pairs(vectors):
    magnitudes = [np.abs(vector) for vector in vectors]
    signs = [np.array([np.sign(v[j] - v[i]) for i, j in combinations(range(len(v)), 2)]) for v in magnitudes]
    root = np.sqrt(float(np.count_nonzero(signs[0])) * np.count_nonzero(signs[1]))
    computed = kendall_tau(*vectors)
    assert computed == pytest.approx(share(signs[0] @ signs[1], root), nan_ok=True)
    if len(vectors[0]) > 1:
        np.testing.assert_equal(computed, kendalltau(*magnitudes).statistic)


@settings(deadline=None)
@given(vectors=pairs())
def test_spearman_correlates_the_ranks(vectors):
    magnitudes = [np.abs(vector) for vector in vectors]
    if any(len(set(vector.tolist())) < 2 for vector in magnitudes):
        assert np.isnan(spearman_rho(*vectors))
        return
    ranks = [[np.sum(v < value) + (np.sum(v == value) + 1) / 2 for value in v] for v in magnitudes]
    assert spearman_rho(*vectors) == pytest.approx(pearsonr(*ranks).statistic)
    assert spearman_rho(*vectors) == spearmanr(*magnitudes).statistic


def equation_32(first, second, p):
    """As it is written in the paper, from sets; of rankings of s and of n ≥ s."""
    short, long = sorted((list(first), list(second)), key=len)
    s, n = len(short), len(long)
    x = [len(set(short[:i]) & set(long[:i])) for i in range(n + 1)]
    agreed = sum(x[i] / i * p**i for i in range(1, n + 1))
    assumed = sum(x[s] * (i - s) / (s * i) * p**i for i in range(s + 1, n + 1))
    return (1 - p) / p * (agreed + assumed) + ((x[n] - x[s]) / n + x[s] / s) * p**n


@given(first=st.permutations(range(12)), second=st.permutations(range(12)), data=st.data(), p=SOME_P)
def test_the_overlap_of_uneven_rankings_is_equation_32(first, second, data, p):
    rankings = [np.array(positions[: data.draw(st.integers(1, 12))]) for positions in (first, second)]
    computed = overlap_of_rankings(*rankings, p)
    assert computed == pytest.approx(equation_32(*rankings, p))
    assert computed == overlap_of_rankings(*reversed(rankings), p)


@given(drawn=pairs_and_k(), p=SOME_P)
def test_the_rank_biased_overlap_of_vectors_is_that_of_their_rankings(drawn, p):
    reference, other, depth = drawn
    expected = equation_32(ranked(reference)[:depth], ranked(other)[:depth], p) if depth else np.nan
    assert rank_biased_overlap(reference, other, p, depth) == pytest.approx(expected, nan_ok=True)
    assert rank_biased_overlap(reference, reference, p) == pytest.approx(1)


def test_rank_biased_overlap_worked_by_hand():
    # Common down to depths 1, 2, 3: 0, 2, 2. ½(0 + 1·½ + ⅔·¼) + ⅔·⅛ = ⅓ + 1/12.
    assert overlap_of_rankings(np.array([0, 1, 2]), np.array([1, 0, 3]), 0.5) == pytest.approx(5 / 12)
    # Common: 0, 1, 2, with s = 2. (½·¼ + ⅔·⅛) + 1·1/(2·3)·⅛ = 11/48; beyond it ((2 − 1)/3 + ½)·⅛ = 5/48.
    assert overlap_of_rankings(np.array([1, 2, 0]), np.array([0, 1]), 0.5) == pytest.approx(1 / 3)
    assert overlap_of_rankings(np.array([5, 7]), np.array([5, 3]), 0.0) == 1
    assert np.isnan(overlap_of_rankings(np.array([5, 7]), np.array([], dtype=np.int64), 0.5))


def test_the_default_depth_leaves_out_nothing_of_weight():
    rng = np.random.default_rng(0)
    reference, other = rng.standard_normal((2, 20_000))
    for p in (0.0, 0.9, 0.99):
        whole = rank_biased_overlap(reference, other, p, len(reference))
        assert rank_biased_overlap(reference, other, p) == pytest.approx(whole, rel=1e-12)


@pytest.mark.parametrize("p", [-0.1, 1.0, 1.5, float("nan")])
def test_a_p_that_is_no_probability_below_1_is_refused(p):
    with pytest.raises(ValueError, match=r"p = .* in \[0, 1\)"):
        rank_biased_overlap(np.ones(3), np.ones(3), p)
    with pytest.raises(ValueError, match=r"p = .* in \[0, 1\)"):
        overlap_of_rankings(np.arange(3), np.arange(3), p)


@pytest.mark.parametrize("depth", [-1, 4])
def test_a_depth_outside_of_the_vector_is_refused(depth):
    with pytest.raises(ValueError, match=f"k = {depth} of an array of shape"):
        rank_biased_overlap(np.ones(3), np.ones(3), 0.5, depth)


@given(drawn=pairs_and_k())
def test_the_top_k_energy_is_what_the_support_captures(drawn):
    clean, other, k = drawn
    support = dp.Listed(np.array(sorted(ranked(other)[:k]), dtype=np.int64))
    np.testing.assert_equal(top_k_energy(clean, other, k), captured_energy(clean, support))


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(wrong):
    sound, broken = np.array([1.0, 2.0, 3.0]), np.array([1.0, wrong, 3.0])
    for measure in (
        kendall_tau,
        spearman_rho,
        lambda a, b: rank_biased_overlap(a, b, 0.5),
        *(lambda a, b, f=f: f(a, b, 1) for f in (overlap, jaccard, top_k_energy)),
    ):
        for vectors in ((sound, broken), (broken, sound)):
            with pytest.raises(ValueError, match="NaN or infinite"):
                measure(*vectors)


@pytest.mark.usefixtures("unchecked_shapes")
def test_vectors_of_two_lengths_are_refused():
    for measure in (
        kendall_tau,
        spearman_rho,
        *(lambda a, b, f=f: f(a, b, 0) for f in (overlap, jaccard, top_k_energy, rank_biased_overlap)),
    ):
        for vectors in ((np.ones(3), np.ones(4)), (np.ones(4), np.ones(3))):
            with pytest.raises(ValueError, match="with the same coordinates"):
                measure(*vectors)
