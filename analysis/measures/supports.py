"""How alike two vectors rank their coordinates by magnitude, and how much of one lies where the other is large.

Of equal magnitudes the lower position ranks first, as in `TopK`. What would be a share of nothing is NaN: of k = 0
coordinates, of the energy of zeros, a correlation with a constant. All values must be finite.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np
from jaxtyping import Float, Int64
from scipy.stats import kendalltau, spearmanr

from dpcomp.core.support import Everywhere, Listed, Support
from dpcomp.sparsify.top_k_indices import top_k_indices

DEEPEST = 40  # × 1/(1 − p): what a ranking holds below weighs e⁻⁴⁰ of the rank-biased overlap


def overlap(reference: Float[np.ndarray, "d"], other: Float[np.ndarray, "d"], k: int) -> float:
    """overlap@k: the share of the reference's top k that is in the other's top k (recall, and precision too)."""
    common = _in_both_tops(reference, other, k)
    return common / k if k else np.nan


def jaccard(reference: Float[np.ndarray, "d"], other: Float[np.ndarray, "d"], k: int) -> float:
    """Coordinates in both tops ÷ coordinates in either; with overlap r it is r/(2 − r)."""
    common = _in_both_tops(reference, other, k)
    return common / (2 * k - common) if k else np.nan


def kendall_tau(reference: Float[np.ndarray, "d"], other: Float[np.ndarray, "d"]) -> float:
    """Kendall's τ-b of the magnitudes, corrected for ties (Kendall 1945), as SciPy computes it in O(d log d)."""
    return _correlation(kendalltau, reference, other)


def spearman_rho(reference: Float[np.ndarray, "d"], other: Float[np.ndarray, "d"]) -> float:
    """Spearman's ρ of the magnitudes: the correlation of their ranks, those of ties averaged."""
    return _correlation(spearmanr, reference, other)


def ranking(vector: Float[np.ndarray, "d"], depth: int) -> Int64[np.ndarray, "depth"]:
    """The positions of the `depth` largest magnitudes, the largest first."""
    positions = top_k_indices(vector, depth)
    magnitudes = np.abs(vector[positions])
    if magnitudes.dtype != np.float32:
        return positions[np.argsort(-magnitudes, kind="stable")]
    # A float's bits rank as its magnitude does: sorted with the place behind them, they take a sixth of the time.
    keys = (~magnitudes.view(np.uint32)).astype(np.uint64) << np.uint64(32)
    keys |= np.arange(depth, dtype=np.uint64)
    keys.sort()
    return positions[(keys & np.uint64(2**32 - 1)).astype(np.int64)]


def rank_biased_overlap(
    reference: Float[np.ndarray, "d"], other: Float[np.ndarray, "d"], p: float, depth: int | None = None
) -> float:
    """`overlap_of_rankings` of two vectors' largest magnitudes, down to a depth.

    None: down to where what lies below weighs less than rounding does.

    Raises:
        ValueError: p lies outside [0, 1), or the depth outside [0, d].
    """
    _refuse_unlike(reference, other)
    _refuse_improbable(p)
    if depth is None:
        depth = min(len(reference), ceil(DEEPEST / (1 - p)))
    return overlap_of_rankings(ranking(reference, depth), ranking(other, depth), p)


def overlap_of_rankings(first: Int64[np.ndarray, "n"], second: Int64[np.ndarray, "m"], p: float) -> float:
    """Extrapolated rank-biased overlap (Webber, Moffat & Zobel 2010, eq. 32) of rankings, which may differ in length.

    A reader of both goes on to the next depth with probability p, so looks 1/(1 − p) deep on average; the value is
    the expected share that the two have in common where the reader stops. With X_i common ones down to depth i of
    rankings of s ≤ l:

        (1 − p)/p · (Σ_{i ≤ l} X_i/i pⁱ + Σ_{s < i ≤ l} X_s (i − s)/(s i) pⁱ) + ((X_l − X_s)/l + X_s/s) pˡ

    Rankings are distinct positions, the best first, as `ranking` gives them. O(n + m + the largest position). At
    p = 0 the best alone count.

    Raises:
        ValueError: p lies outside [0, 1).
    """
    _refuse_improbable(p)
    short, long = sorted((first, second), key=len)
    s = len(short)
    if s == 0:
        return np.nan
    depths = np.arange(1, len(long) + 1)
    place = np.zeros(1 + max(short.max(), long.max()), dtype=np.int64)
    place[short] = depths[:s]
    met = place[long]
    common = np.cumsum(np.bincount(np.maximum(met, depths)[met > 0], minlength=len(long) + 1)[1:])
    agreement = common / depths
    agreement[s:] += common[s - 1] * (depths[s:] - s) / (s * depths[s:])
    beyond = (common[-1] - common[s - 1]) / len(long) + common[s - 1] / s
    return float(agreement @ ((1 - p) * p ** (depths - 1.0)) + beyond * p ** len(long))


def captured_energy(clean: Float[np.ndarray, "d"], support: Support) -> float:
    """The share of the clean vector's squared norm that lies on the support."""
    largest = _largest(clean)
    if largest == 0:
        return np.nan
    there = clean if isinstance(support, Everywhere) else clean[support.indices(len(clean))]
    return min(1.0, _energy(there, largest) / _energy(clean, largest))


def top_k_energy(clean: Float[np.ndarray, "d"], other: Float[np.ndarray, "d"], k: int) -> float:
    """The share of the clean vector's squared norm that the other's top k selects."""
    _refuse_unlike(clean, other)
    return captured_energy(clean, Listed(top_k_indices(other, k)))


def coordinates_for_energy(clean: Float[np.ndarray, "d"], other: Float[np.ndarray, "d"], share: float) -> int:
    """The smallest k with which the other's top k holds that share of the clean vector's squared norm.

    Raises:
        ValueError: the share lies outside [0, 1], or the clean vector is zero.
    """
    _refuse_unlike(clean, other)
    largest = _largest(clean)
    if not 0 <= share <= 1 or largest == 0:
        raise ValueError(f"coordinates_for_energy: there is no share {share} of a squared norm whose root is {largest}")
    ranked = np.divide(clean[ranking(other, len(other))], largest, dtype=np.float64)
    held = np.concatenate([[0.0], np.cumsum(np.square(ranked))])
    return int(np.searchsorted(held, share * held[-1]))


@dataclass(frozen=True, kw_only=True)
class SupportChange:
    """What became of a support from one message to the next: how many of its coordinates were kept, and how many are
    new or dropped, among `coordinates` in all.
    """

    kept: int
    new: int
    dropped: int
    coordinates: int

    @classmethod
    def between(
        cls, previous: Int64[np.ndarray, "k_before"], current: Int64[np.ndarray, "k"], coordinates: int
    ) -> "SupportChange":
        """The change between ascending positions below `coordinates`."""
        kept = _in_both(previous, current)
        return cls(kept=kept, new=len(current) - kept, dropped=len(previous) - kept, coordinates=coordinates)

    @property
    def overlap(self) -> float:
        """The share of the current support that was there before."""
        return self.kept / (self.kept + self.new) if self.kept + self.new else np.nan

    @property
    def turnover(self) -> float:
        """The share of the current support that is new: what its reader has to be told of it."""
        return self.new / (self.kept + self.new) if self.kept + self.new else np.nan


def _in_both_tops(reference: Float[np.ndarray, "d"], other: Float[np.ndarray, "d"], k: int) -> int:
    _refuse_unlike(reference, other)
    return _in_both(top_k_indices(reference, k), top_k_indices(other, k))


def _in_both(first: Int64[np.ndarray, "n"], second: Int64[np.ndarray, "m"]) -> int:
    """How many positions two rows have in common."""
    there = np.zeros(1 + max(first.max(initial=0), second.max(initial=0)), dtype=bool)
    there[first] = True
    return int(np.count_nonzero(there[second]))


def _refuse_unlike(reference: Float[np.ndarray, "_"], other: Float[np.ndarray, "_"]) -> None:
    if reference.shape != other.shape:
        raise ValueError(f"vectors of shapes {reference.shape} and {other.shape} do not have the same coordinates")


def _refuse_improbable(p: float) -> None:
    if not 0 <= p < 1:
        raise ValueError(f"rank-biased overlap: p = {p} is no probability below 1 of reading on; 1 − 1/k looks k deep")


def _correlation(
    measure: Callable[..., Any], reference: Float[np.ndarray, "d"], other: Float[np.ndarray, "d"]
) -> float:
    magnitudes = [np.abs(vector) for vector in (reference, other)]
    if not all(np.isfinite(vector).all() for vector in magnitudes):
        raise ValueError("a vector holds values that are NaN or infinite: nothing ranks them")
    if not all(len(vector) > 1 and vector.min() < vector.max() for vector in magnitudes):
        return np.nan
    return float(measure(*magnitudes).statistic)


def _largest(vector: Float[np.ndarray, "d"]) -> float:
    """The largest magnitude; energies are taken relative to it, lest squares overflow or vanish."""
    largest = max(float(vector.max()), -float(vector.min())) if len(vector) else 0.0
    if not np.isfinite(largest):
        raise ValueError("a vector holds values that are NaN or infinite: it has no energy to take a share of")
    return largest


def _energy(values: Float[np.ndarray, "k"], largest: float) -> float:
    scaled = np.divide(values, largest, dtype=np.float64)
    return float(np.einsum("i,i->", scaled, scaled))
