"""The ranking of a vector's coordinates, how much two supports overlap, and the energy that a support captures.

All values must be finite. A share of nothing (of an empty support, of the energy of zeros) is NaN.
"""

import numpy as np
from jaxtyping import Float, Int64

from dpcomp.core.support import Everywhere, Listed, Support
from dpcomp.sparsify.top_k_indices import top_k_indices


def ranking(vector: Float[np.ndarray, "d"], depth: int) -> Int64[np.ndarray, "depth"]:
    """Order the positions of the `depth` largest magnitudes, the largest first, equal ones by position as `TopK` does.

    Raises:
        ValueError: The depth is outside of [0, d], or a value is not finite.

    Examples:
        >>> ranking(np.array([1.0, -3.0, 2.0, 3.0]), depth=3).tolist()
        [1, 3, 2]
    """
    positions = top_k_indices(vector, depth)
    magnitudes = np.abs(vector[positions])
    if magnitudes.dtype != np.float32:
        return positions[np.argsort(-magnitudes, kind="stable")]
    # A float's bits rank as its magnitude does: sorted with the place behind them, they take a sixth of the time.
    keys = (~magnitudes.view(np.uint32)).astype(np.uint64) << np.uint64(32)
    keys |= np.arange(depth, dtype=np.uint64)
    keys.sort()
    return positions[(keys & np.uint64(2**32 - 1)).astype(np.int64)]


def support_overlap(reference: Int64[np.ndarray, "n"], support: Int64[np.ndarray, "m"]) -> float:
    """Compute the share of a support's coordinates that are also in a reference support.

    Given the support before as reference, it is the overlap of consecutive supports; given the clean top-k, the
    precision of a noisy support, which is its recall too where both have k coordinates. NaN for an empty support.

    Examples:
        >>> support_overlap(np.array([0, 3, 5, 8]), np.array([3, 4, 5, 9]))
        0.5
    """
    in_reference = np.zeros(1 + max(reference.max(initial=0), support.max(initial=0)), dtype=bool)
    in_reference[reference] = True
    return int(np.count_nonzero(in_reference[support])) / len(support) if len(support) else np.nan


def captured_energy(clean: Float[np.ndarray, "d"], support: Support) -> float:
    """Compute the share of the clean vector's squared norm that lies on a support; NaN for a vector of zeros.

    Raises:
        ValueError: A value is not finite, or the support has a coordinate that the vector has not.

    Examples:
        >>> captured_energy(np.array([3.0, 0.0, 4.0]), Listed(np.array([1, 2])))
        0.64
    """
    largest = _largest_magnitude(clean)
    if largest == 0:
        return np.nan
    there = clean if isinstance(support, Everywhere) else clean[support.indices(len(clean))]
    return min(1.0, _relative_energy(there, largest) / _relative_energy(clean, largest))


def smallest_support(clean: Float[np.ndarray, "d"], noisy: Float[np.ndarray, "d"], share: float) -> Listed:
    """Select the smallest top-k of a noisy vector that holds a given share of the clean vector's squared norm.

    **Privacy:** None: k is a function of the clean vector. For measurements only.

    Args:
        clean: The vector whose energy counts (d,).
        noisy: The vector whose magnitudes rank the coordinates (d,); of equal ones the lower position comes first.
        share: The share of the clean vector's squared norm that the support shall hold, in [0, 1].

    Returns:
        The positions of the k largest magnitudes of the noisy vector, for the smallest sufficient k.

    Raises:
        ValueError: The vectors differ in shape, a value is not finite, the share is outside of [0, 1], or the clean
            vector is zero.

    Examples:
        >>> smallest_support(np.array([3.0, 0.0, 4.0]), np.array([2.0, 5.0, 4.0]), share=0.6).positions.tolist()
        [1, 2]
    """
    if clean.shape != noisy.shape:
        raise ValueError(
            f"smallest_support: a clean vector of shape {clean.shape} and a noisy one of shape {noisy.shape}; give two "
            "with the same coordinates"
        )
    largest = _largest_magnitude(clean)
    if not 0 <= share <= 1 or largest == 0:
        raise ValueError(
            f"smallest_support: share = {share} of a clean vector with largest magnitude {largest}; give a share in "
            "[0, 1] and a vector that is not all zero"
        )
    ranked = np.divide(clean[ranking(noisy, len(noisy))], largest, dtype=np.float64)
    held = np.concatenate([[0.0], np.cumsum(np.square(ranked))])
    return Listed(top_k_indices(noisy, int(np.searchsorted(held, share * held[-1]))))


def _largest_magnitude(vector: Float[np.ndarray, "d"]) -> float:
    """Find the largest magnitude; energies are taken relative to it, lest squares overflow or vanish."""
    largest = max(float(vector.max()), -float(vector.min())) if len(vector) else 0.0
    if not np.isfinite(largest):
        raise ValueError("the vector holds values that are NaN or infinite, which have no energy; give finite values")
    return largest


def _relative_energy(values: Float[np.ndarray, "k"], largest: float) -> float:
    scaled = np.divide(values, largest, dtype=np.float64)
    return float(np.einsum("i,i->", scaled, scaled))
