"""Weighted sums of units in float64: exact enough that a unit moves them by its own norm and no more.

Why 10⁻⁵ of the clip norm C is more than all roundings of a sum of up to 10⁶ units add up to. Let u = 2⁻⁵³. A unit's
product with its factor is rounded by u of itself, which depends on that unit alone. At most `UNITS_PER_SUM` = 1,024
units are added at a time; whatever the order, that is off by at most 1,024²·u·C = 1.2·10⁻¹⁰·C in norm (Higham 2002,
"Accuracy and Stability of Numerical Algorithms", section 4.2, for each coordinate, and the triangle inequality over
the units). Groups of that size, blocks and micro-batches are added with compensation (`added`), which loses about u²
of the sum a time. So a sum of 10⁶ units, cut in any way, is off by at most 10⁶ ÷ 1,024 · 1.2·10⁻¹⁰·C + 10⁶·u·C
< 2·10⁻⁷·C, with and without any unit.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from array_api_compat import array_namespace
from jaxtyping import Bool, Float, Float64

UNITS_PER_SUM = 1024  # units added without compensation
BUFFER_SIZE = 2**18  # float64 values that are converted at a time, 2 MB: they stay in a cache
ROWS = 128  # units that are converted at a time; fewer than `UNITS_PER_SUM`, so that a block has long rows


def added(high: Any, low: Any, more: Any) -> tuple[Any, Any]:
    """Add an array to a sum that is held as two arrays, high + low, with nothing lost but what low is rounded by.

    Source: Knuth, "The Art of Computer Programming" 2, 4.2.2, theorem B; holds in any IEEE arithmetic, and under XLA,
    which does not reorder additions.

    Args:
        high: The leading part.
        low: What high was rounded by so far.
        more: What is added, of the same shape.

    Returns:
        The new high and low.
    """
    total = high + more
    mine = total - more
    return total, low + ((high - mine) + (more - (total - mine)))


def host_sum(
    factors: Float64[np.ndarray, "n"], finite: Bool[np.ndarray, "n"], layers: Sequence[Float[np.ndarray, "n _"]]
) -> list[Any]:
    """Return ∑ᵢ fᵢxᵢ over the units that are finite, layer by layer.

    The same operations run whatever the units hold: a unit that is not finite is copied like any other, but to a spare
    row that is not added up.

    Args:
        factors: (n,) factors, 0 for a unit that is not finite.
        finite: (n,) whether all values of a unit are finite; may be false for one of very large values, too.
        layers: An (n, m) array a layer.

    Returns:
        An (m,) float64 array a layer.
    """
    rows = max(1, min(len(factors), ROWS))
    # One buffer for all layers, small enough for a cache: a fresh one each would cost more page faults than the sums.
    columns = max(1, min(BUFFER_SIZE // (rows + 1), max((x.shape[1] for x in layers), default=1)))
    wide = np.zeros((rows + 1) * columns)
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is meant to be copied
        return [_host_sum_of_layer(factors, finite, x, rows, wide) for x in layers]


def _host_sum_of_layer(
    factors: Float64[np.ndarray, "n"],
    finite: Bool[np.ndarray, "n"],
    x: Float[np.ndarray, "n m"],
    rows: int,
    wide: Float64[np.ndarray, "_"],
) -> Float64[np.ndarray, "m"]:
    n, m = x.shape
    total = np.zeros(m)
    columns = len(wide) // (rows + 1)
    for left in range(0, m, columns):
        part = x[:, left : left + columns]
        block = wide[: (rows + 1) * part.shape[1]].reshape(rows + 1, part.shape[1])
        high = low = None
        for start in range(0, n, rows):
            group, valid = part[start : start + rows], finite[start : start + rows]
            k = len(group)
            # A row that gets nothing here holds numbers of before, which its factor 0 leaves out.
            block[np.where(valid, np.arange(k), rows)] = group
            more = factors[start : start + k] @ block[:k]
            high, low = (more, 0.0) if high is None else added(high, low, more)
        block[rows] = 0.0  # nothing that is not finite stays in the buffer
        if high is not None:
            total[left : left + columns] = high + low
    return total


def device_sum(factors: Float[Any, "n"], layers: Sequence[Float[Any, "n _"]]) -> list[Any]:
    """Return what `host_sum` does, on a device with float64 such as a GPU.

    Args:
        factors: (n,) float64 factors, 0 for a unit that is not finite.
        layers: An (n, m) array a layer.

    Returns:
        An (m,) float64 array a layer.
    """
    return [_device_sum_of_layer(factors, x) for x in layers]


def _device_sum_of_layer(factors: Float[Any, "n"], x: Float[Any, "n m"]) -> Float[Any, "m"]:
    xp = array_namespace(x)
    high = low = xp.sum(xp.astype(x[:0], factors.dtype), axis=0)
    for start in range(0, x.shape[0], UNITS_PER_SUM):
        part = xp.astype(x[start : start + UNITS_PER_SUM], factors.dtype)
        part = xp.where(xp.isfinite(part), part, xp.zeros_like(part))
        high, low = added(high, low, factors[start : start + UNITS_PER_SUM] @ part)
    return high + low
