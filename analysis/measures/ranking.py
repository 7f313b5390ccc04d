"""How alike two vectors rank their coordinates by magnitude: rank correlations, overlap of tops, captured energy.

As a rule the reference is the clean vector and the other the noisy one. Of equal magnitudes the lower position ranks
first, as in `TopK`; the two correlations treat them as ties. All values must be finite. A share of nothing (of k = 0
coordinates, of the energy of zeros) and a correlation with a constant are NaN.
"""

from collections.abc import Callable
from math import ceil
from typing import Any

import numpy as np
from jaxtyping import Float, Int64
from scipy.stats import kendalltau, spearmanr

from analysis.measures.supports import captured_energy, ranking, support_overlap
from dpcomp.core.support import Listed
from dpcomp.sparsify.top_k_indices import top_k_indices

MEAN_DEPTHS = 40  # Read so many times the mean depth 1/(1 − p): what ranks below it has a weight of at most e⁻⁴⁰


def kendall_tau(reference: Float[np.ndarray, "d"], other: Float[np.ndarray, "d"]) -> float:
    """Compute Kendall's τ-b of the magnitudes, (P − Q)/√((P + Q + T)(P + Q + U)), by SciPy in O(d log d).

    P pairs of coordinates have the same order in both vectors, Q have opposite orders, T are ties in the reference
    only and U in the other only. NaN where a vector's magnitudes are all equal.

    Source: Kendall (1945), The treatment of ties in ranking problems, Biometrika 33(3).

    Raises:
        ValueError: The vectors differ in shape, or a value is not finite.

    Examples:
        >>> round(kendall_tau(np.array([1.0, -2.0, 3.0, 4.0]), np.array([1.0, 3.0, 2.0, -4.0])), 3)
        0.667
    """
    return _correlation(kendalltau, reference, other)


def spearman_rho(reference: Float[np.ndarray, "d"], other: Float[np.ndarray, "d"]) -> float:
    """Compute Spearman's ρ of the magnitudes, Pearson's correlation of their ranks, by SciPy in O(d log d).

    Ties have the mean of their ranks. Without ties ρ = 1 − 6 Σ δᵢ²/(d (d² − 1)), with the difference δᵢ of coordinate
    i's two ranks. NaN where a vector's magnitudes are all equal.

    Source: Spearman (1904), The proof and measurement of association between two things, Am. J. Psychol. 15(1).

    Raises:
        ValueError: The vectors differ in shape, or a value is not finite.

    Examples:
        >>> round(spearman_rho(np.array([1.0, -2.0, 3.0, 4.0]), np.array([1.0, 3.0, 2.0, -4.0])), 3)
        0.8
    """
    return _correlation(spearmanr, reference, other)


def overlap(reference: Float[np.ndarray, "d"], other: Float[np.ndarray, "d"], k: int) -> float:
    """Compute the overlap at k, |R ∩ S|/k, of the reference's top k, R, with the other's, S.

    It is the recall of R by S, and the precision too, as both have k coordinates.

    Args:
        reference: The vector whose top k is wanted (d,).
        other: The vector whose top k is selected (d,).
        k: Number of coordinates, in [0, d].

    Returns:
        A share in [0, 1]; NaN for k = 0.

    Raises:
        ValueError: The vectors differ in shape, k is outside of [0, d], or a value is not finite.

    Examples:
        >>> overlap(np.array([1.0, -5.0, 3.0, 4.0]), np.array([6.0, 5.0, -3.0, 4.0]), k=2)
        0.5
    """
    _require_same_shape(reference, other)
    return support_overlap(top_k_indices(reference, k), top_k_indices(other, k))


def jaccard(reference: Float[np.ndarray, "d"], other: Float[np.ndarray, "d"], k: int) -> float:
    """Compute Jaccard's index |R ∩ S|/|R ∪ S| of two vectors' top k, R and S: r/(2 − r), r the overlap.

    Source: Jaccard (1912), The distribution of the flora in the alpine zone, New Phytologist 11(2).

    Args:
        reference: One vector (d,).
        other: The other vector (d,); the index is symmetric.
        k: Number of coordinates, in [0, d].

    Returns:
        A share in [0, 1]; NaN for k = 0.

    Raises:
        ValueError: The vectors differ in shape, k is outside of [0, d], or a value is not finite.
    """
    share = overlap(reference, other, k)
    if k == 0:
        return np.nan
    common = round(k * share)  # whole again, so that the index is rounded once
    return common / (2 * k - common)


def rank_biased_overlap(
    reference: Float[np.ndarray, "d"], other: Float[np.ndarray, "d"], p: float, depth: int | None = None
) -> float:
    """Compute the rank-biased overlap of two vectors' rankings by magnitude, extrapolated from a depth.

    `overlap_of_rankings` has the formula. The first k ranks have most of the weight for p = 1 − 1/k.

    Source: Webber, Moffat & Zobel (2010), A similarity measure for indefinite rankings, ACM TOIS 28(4), equation 32.

    Args:
        reference: One vector (d,).
        other: The other vector (d,); the measure is symmetric.
        p: Probability in [0, 1) that a reader of the rankings goes on to the next rank.
        depth: Number of ranks that are compared, in [0, d]; None for as many as have a weight above rounding.

    Returns:
        A share in [0, 1]; NaN for depth 0.

    Raises:
        ValueError: The vectors differ in shape, a value is not finite, p is outside of [0, 1), or the depth is outside
            of [0, d].

    Examples:
        >>> round(rank_biased_overlap(np.array([3.0, 2.0, 1.0]), np.array([2.0, -3.0, 1.0]), p=0.5), 3)
        0.5
    """
    _require_same_shape(reference, other)
    _require_probability(p)
    if depth is None:
        depth = min(len(reference), ceil(MEAN_DEPTHS / (1 - p)))
    return overlap_of_rankings(ranking(reference, depth), ranking(other, depth), p)


def overlap_of_rankings(first: Int64[np.ndarray, "n"], second: Int64[np.ndarray, "m"], p: float) -> float:
    """Compute the extrapolated rank-biased overlap of two rankings, which may differ in length.

    A reader of both goes on to the next rank with probability p, and so reads 1/(1 − p) ranks on average. The measure
    is the expected share of common positions at the rank where the reader stops. With lengths s ≤ l, and X_i common
    positions among the first i of both, it is

        (1 − p)/p · (Σ_{i ≤ l} X_i/i pⁱ + Σ_{s < i ≤ l} X_s (i − s)/(s i) pⁱ) + ((X_l − X_s)/l + X_s/s) pˡ

    and for p = 0 it compares the first ranks only. The time is O(n + m + the largest position).

    Source: Webber, Moffat & Zobel (2010), A similarity measure for indefinite rankings, ACM TOIS 28(4), equation 32.

    Args:
        first: Distinct positions from 0 (n,), the first rank first, as from `ranking`.
        second: The same of the other ranking (m,).
        p: Probability in [0, 1) of reading the next rank.

    Returns:
        A share in [0, 1]; NaN if a ranking is empty.

    Raises:
        ValueError: p is outside of [0, 1).
    """
    _require_probability(p)
    short, long = sorted((first, second), key=len)
    s = len(short)
    if s == 0:
        return np.nan
    depths = np.arange(1, len(long) + 1)
    rank_in_short = np.zeros(1 + max(short.max(), long.max()), dtype=np.int64)  # from 1; 0 where it is not ranked
    rank_in_short[short] = depths[:s]
    ranks = rank_in_short[long]
    first_common_depths = np.maximum(ranks, depths)[ranks > 0]
    common = np.cumsum(np.bincount(first_common_depths, minlength=len(long) + 1)[1:])
    agreement = common / depths
    agreement[s:] += common[s - 1] * (depths[s:] - s) / (s * depths[s:])
    extrapolated = (common[-1] - common[s - 1]) / len(long) + common[s - 1] / s
    return float(agreement @ ((1 - p) * p ** (depths - 1.0)) + extrapolated * p ** len(long))


def top_k_energy(clean: Float[np.ndarray, "d"], other: Float[np.ndarray, "d"], k: int) -> float:
    """Compute the share of the clean vector's energy on the other's top k: Σ_{i ∈ S} cᵢ²/Σᵢ cᵢ², S the other's top k.

    No k coordinates hold more than the clean vector's own top k, `top_k_energy(clean, clean, k)`.

    Args:
        clean: The vector c whose energy counts (d,).
        other: The vector whose magnitudes select the coordinates (d,).
        k: Number of coordinates, in [0, d].

    Returns:
        A share in [0, 1]; NaN for a clean vector of zeros.

    Raises:
        ValueError: The vectors differ in shape, k is outside of [0, d], or a value is not finite.

    Examples:
        >>> top_k_energy(np.array([3.0, 0.0, 4.0]), np.array([2.0, 5.0, -4.0]), k=2)
        0.64
    """
    _require_same_shape(clean, other)
    return captured_energy(clean, Listed(top_k_indices(other, k)))


def _correlation(
    correlate: Callable[..., Any], reference: Float[np.ndarray, "d"], other: Float[np.ndarray, "d"]
) -> float:
    """Compute one of SciPy's rank correlations of the magnitudes; NaN, without its warning, where one is constant."""
    _require_same_shape(reference, other)
    magnitudes = [np.abs(vector) for vector in (reference, other)]
    if not all(np.isfinite(values).all() for values in magnitudes):
        raise ValueError("a vector holds values that are NaN or infinite, which have no rank; give finite values")
    if not all(len(values) and values.min() < values.max() for values in magnitudes):
        return np.nan
    return float(correlate(*magnitudes).statistic)


def _require_same_shape(reference: Float[np.ndarray, "_"], other: Float[np.ndarray, "_"]) -> None:
    if reference.shape != other.shape:
        raise ValueError(f"vectors of shapes {reference.shape} and {other.shape}; give two with the same coordinates")


def _require_probability(p: float) -> None:
    if not 0 <= p < 1:
        raise ValueError(
            f"rank-biased overlap: p = {p} is the probability of reading the next rank, which lies in [0, 1); give "
            "1 − 1/k for a mean depth of k"
        )
