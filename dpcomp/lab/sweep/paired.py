"""Differences that are paired by seed, with their intervals."""

import math
from collections.abc import Mapping

import numpy as np
from scipy.special import stdtrit

LEVEL = 0.95


def paired_difference(values: Mapping[int, float], others: Mapping[int, float]) -> tuple[float, float]:
    """Return the mean difference between two methods over the seeds that both have, and its 95 % interval.

    The difference of a seed is that of two runs with the same examples, first weights and draws of batches, so what the
    seed does to both leaves it. The interval is Student's, of n - 1 degrees of freedom: it holds if the differences of
    seeds are independent and normal.

    Args:
        values: Seed → value of a method.
        others: Seed → value of the method that it is compared with.

    Returns:
        The mean of values - others, and half the width of its interval; NaN for a mean of no seed, and for an interval
        of one.

    Source: Student, "The Probable Error of a Mean", Biometrika 6, 1908.
    """
    differences = np.array([values[seed] - others[seed] for seed in values if seed in others])
    count = len(differences)
    if count < 2:
        return (float(differences[0]) if count else math.nan), math.nan
    spread = float(differences.std(ddof=1)) / math.sqrt(count)
    return float(differences.mean()), float(stdtrit(count - 1, (1 + LEVEL) / 2)) * spread
