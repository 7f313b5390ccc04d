"""Intervals of means over seeds."""

import math
from collections.abc import Sequence

import numpy as np
from scipy.special import stdtrit

LEVEL = 0.95


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """Compute a mean and half the width of its 95 % interval.

    The interval is Student's, of n - 1 degrees of freedom: it holds if the values are independent and normal.

    Args:
        values: One for each seed.

    Returns:
        The mean, and half the width; NaN for a width of one value.

    Source: Student, "The Probable Error of a Mean", Biometrika 6, 1908.

    Examples:
        >>> mean, half = mean_interval([1.0, 2.0, 3.0])
        >>> mean, round(half, 2)
        (2.0, 2.48)
    """
    found = np.asarray(values, dtype=np.float64)
    if len(found) < 2:
        return float(found.mean()), math.nan
    return float(found.mean()), float(stdtrit(len(found) - 1, (1 + LEVEL) / 2) * found.std(ddof=1) / len(found) ** 0.5)
