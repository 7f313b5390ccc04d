"""Every measure is what its definition says, on vectors with ties, zeros, and nothing in them."""

import time
from itertools import combinations

import jaxtyping
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import kendalltau, pearsonr, spearmanr

import dpcomp as dp
from analysis.measures.supports import (
    SupportChange,
    captured_energy,
    coordinates_for_energy,
    jaccard,
    kendall_tau,
    overlap,
    overlap_of_rankings,
    rank_biased_overlap,
    ranking,
    spearman_rho,
    top_k_energy,
)

TIED = st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0, -3.0])


def finite(dtype):
    return st.floats(allow_nan=False, allow_infinity=False, width=8 * np.dtype(dtype).itemsize)


@st.composite
def pairs(draw, most=24):
    """Two vectors of one length: of few values, of any, constant, or zero."""
    d, dtype = draw(st.integers(1, most)), draw(st.sampled_from([np.float32, np.float64]))
    kinds = st.one_of(
        arrays(dtype, d, elements=TIED),
        arrays(dtype, d, elements=finite(dtype)),
        TIED.map(lambda x: np.full(d, x, dtype)),
    )
    return draw(kinds), draw(kinds)


@st.composite
def pairs_and_k(draw):
    reference, other = draw(pairs())
    return reference, other, draw(st.integers(0, len(reference)))


def ranked(vector):
    return sorted(range(len(vector)), key=lambda position: (-abs(vector[position]), position))


def top(vector, k):
    return set(ranked(vector)[:k])


def share(part, whole):
    return part / whole if whole else np.nan


def energy(vector, positions):
    """Exact: fractions of whole numbers."""
    return sum(int(numerator) ** 2 for numerator in whole_numbers(vector)[sorted(positions)])


def whole_numbers(vector):
    """The values times a power of two that makes them whole."""
    ratios = [float(value).as_integer_ratio() for value in vector]
    common = max(denominator for _, denominator in ratios)
    return np.array([numerator * (common // denominator) for numerator, denominator in ratios], dtype=object)


@given(drawn=pairs_and_k())
def test_overlap_and_jaccard_are_those_of_the_sets(drawn):
    reference, other, k = drawn
    first, second = top(reference, k), top(other, k)
    np.testing.assert_equal(overlap(reference, other, k), share(len(first & second), k))
    np.testing.assert_equal(jaccard(reference, other, k), share(len(first & second), len(first | second)))


@settings(deadline=None)
@given(vectors=pairs())
def test_kendall_counts_pairs(vectors):
    magnitudes = [np.abs(vector) for vector in vectors]
    signs = [np.array([np.sign(v[j] - v[i]) for i, j in combinations(range(len(v)), 2)]) for v in magnitudes]
    root = np.sqrt(float(np.count_nonzero(signs[0])) * np.count_nonzero(signs[1]))
    found = kendall_tau(*vectors)
    assert found == pytest.approx(share(signs[0] @ signs[1], root), nan_ok=True)
    if len(vectors[0]) > 1:
        np.testing.assert_equal(found, kendalltau(*magnitudes).statistic)


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


@given(vectors=pairs(), data=st.data())
def test_a_ranking_begins_with_the_largest_and_of_ties_with_the_lower_position(vectors, data):
    vector, _ = vectors
    depth = data.draw(st.integers(0, len(vector)))
    assert ranking(vector, depth).tolist() == ranked(vector)[:depth]


def equation_32(first, second, p):
    """As it is written in the paper, from sets; of rankings of s and of n ≥ s."""
    short, long = sorted((list(first), list(second)), key=len)
    s, n = len(short), len(long)
    x = [len(set(short[:i]) & set(long[:i])) for i in range(n + 1)]
    agreed = sum(x[i] / i * p**i for i in range(1, n + 1))
    assumed = sum(x[s] * (i - s) / (s * i) * p**i for i in range(s + 1, n + 1))
    return (1 - p) / p * (agreed + assumed) + ((x[n] - x[s]) / n + x[s] / s) * p**n


SOME_P = st.floats(0.01, 0.99)


@given(first=st.permutations(range(12)), second=st.permutations(range(12)), data=st.data(), p=SOME_P)
def test_the_overlap_of_uneven_rankings_is_equation_32(first, second, data, p):
    rows = [np.array(row[: data.draw(st.integers(1, 12))]) for row in (first, second)]
    found = overlap_of_rankings(*rows, p)
    assert found == pytest.approx(equation_32(*rows, p))
    assert found == overlap_of_rankings(*reversed(rows), p)


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


def test_left_to_itself_it_reads_as_deep_as_it_matters():
    rng = np.random.default_rng(0)
    reference, other = rng.standard_normal((2, 20_000))
    for p in (0.0, 0.9, 0.99):
        whole = rank_biased_overlap(reference, other, p, len(reference))
        assert rank_biased_overlap(reference, other, p) == pytest.approx(whole, rel=1e-12)


@pytest.mark.parametrize("p", [-0.1, 1.0, 1.5, float("nan")])
def test_no_reader_reads_on_for_ever(p):
    with pytest.raises(ValueError, match="probability below 1"):
        rank_biased_overlap(np.ones(3), np.ones(3), p)


@settings(deadline=None)
@given(drawn=pairs_and_k())
def test_captured_energy_is_a_share_of_sums_of_squares(drawn):
    clean, other, k = drawn
    whole, there = energy(clean, range(len(clean))), energy(clean, top(other, k))
    expected = there / whole if whole else np.nan
    assert top_k_energy(clean, other, k) == pytest.approx(expected, rel=1e-12, nan_ok=True)
    assert captured_energy(clean, dp.Listed(np.array(sorted(top(other, k)), dtype=np.int64))) == pytest.approx(
        expected, rel=1e-12, nan_ok=True
    )
    np.testing.assert_equal(captured_energy(clean, dp.Everywhere()), 1.0 if whole else np.nan)


def test_a_seeded_support_captures_its_share_of_a_constant():
    assert captured_energy(np.full(50, -3.0), dp.Seeded(7, 20)) == pytest.approx(0.4)


@settings(deadline=None)
@given(vectors=pairs(), wanted=st.floats(0, 1))
def test_no_fewer_coordinates_hold_the_energy(vectors, wanted):
    clean, other = vectors
    if not clean.any():
        with pytest.raises(ValueError, match="no share"):
            coordinates_for_energy(clean, other, wanted)
        return
    k = coordinates_for_energy(clean, other, wanted)
    assert top_k_energy(clean, other, k) >= wanted * (1 - 1e-12)
    if k:
        assert top_k_energy(clean, other, k - 1) < wanted * (1 + 1e-12)


SUBSETS = st.sets(st.integers(0, 19)).map(lambda found: np.array(sorted(found), dtype=np.int64))


@given(previous=SUBSETS, current=SUBSETS)
def test_a_change_of_support_counts_what_stayed_came_and_went(previous, current):
    before, after = set(previous.tolist()), set(current.tolist())
    change = SupportChange.between(previous, current, 20)
    assert (change.kept, change.new, change.dropped) == (len(before & after), len(after - before), len(before - after))
    np.testing.assert_equal(change.turnover, share(len(after - before), len(after)))
    np.testing.assert_equal(change.overlap, share(len(after & before), len(after)))


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_what_nothing_ranks_is_refused(wrong):
    sound, broken = np.array([1.0, 2.0, 3.0]), np.array([1.0, wrong, 3.0])
    for measure in (
        kendall_tau,
        spearman_rho,
        *(lambda a, b, f=f: f(a, b, 1) for f in (overlap, jaccard, top_k_energy)),
    ):
        for vectors in ((sound, broken), (broken, sound)):
            with pytest.raises(ValueError, match="NaN or infinite"):
                measure(*vectors)


@pytest.fixture
def unchecked_shapes():
    """As in use, where nothing checks the signatures."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize("measure", [overlap, jaccard, top_k_energy, rank_biased_overlap, coordinates_for_energy])
def test_vectors_of_two_lengths_are_refused(measure):
    for vectors in ((np.ones(3), np.ones(4)), (np.ones(4), np.ones(3))):
        with pytest.raises(ValueError, match="do not have the same coordinates"):
            measure(*vectors, 0)


def test_overlap_and_captured_energy_cost_a_few_partitions():
    rng, fastest = np.random.default_rng(0), {}
    reference = rng.standard_normal(3_000_000).astype(np.float32)
    other = reference + rng.standard_normal(len(reference)).astype(np.float32)
    k = len(reference) // 100
    calls = {
        "partition": lambda: np.partition(np.abs(reference), len(reference) - k),
        "overlap": lambda: overlap(reference, other, k),
        "energy": lambda: top_k_energy(reference, other, k),
    }
    for _ in range(5):
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            fastest[name] = min(fastest.get(name, np.inf), time.perf_counter() - began)
    assert fastest["overlap"] < 8 * fastest["partition"]  # sorting the two vectors takes 80
    assert fastest["energy"] < 8 * fastest["partition"]
