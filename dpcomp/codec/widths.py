"""Bit widths and steps of layers with the least squared error within a budget, from measured error curves."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32, Float64, Int64

from dpcomp.codec.rate import MAX_LEVEL_BITS

CURVE_SAMPLE = 2**13  # values of a layer that its curve is measured on
WIDTHS = np.array([0, *range(2, MAX_LEVEL_BITS + 1)])  # what a uniform quantiser can have
BUDGET_UNITS = 2**13  # into which the budget is cut
EXACT_SAMPLE = 2**9  # values of a sample up to which rounding to every step is measured
FINE = 4  # the root mean square ÷ the steps below which it is not
ROUNDED_AT_ONCE = 2**14  # values, so that temporary arrays stay in a core's own cache
STEPS_AN_OCTAVE = 4  # a step off by an eighth of an octave costs below 1 % of the error
STEPS = 2.0 ** -np.arange(0.0, 16.0, 1 / STEPS_AN_OCTAVE)  # that are tried, ÷ the largest magnitude
TOPS = 2 ** (np.maximum(WIDTHS, 1) - 1) - 1  # the largest level of each width; of width 0 no level but 0


def best_widths(layers: Sequence[Float32[np.ndarray, "_"]], bits: float) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Return the widths with the least total squared error at `bits` a value on average or less; and their steps."""
    sizes = np.array([len(layer) for layer in layers])
    curves = [error_curve(layer) for layer in layers]
    errors = np.stack([size * errors for size, (errors, _) in zip(sizes, curves, strict=True)])
    chosen = best_columns(errors, sizes[:, None] * WIDTHS, float(bits * sizes.sum()))
    steps = tuple(float(steps[column]) for (_, steps), column in zip(curves, chosen, strict=True))
    return tuple(int(width) for width in WIDTHS[chosen]), steps


def best_columns(
    errors: Float64[np.ndarray, "layers widths"], costs: Int64[np.ndarray, "layers widths"], budget: float
) -> Int64[np.ndarray, "layers"]:
    """Choose one column in each row with the least sum of errors within a budget (multiple-choice knapsack).

    Dynamic programming over the budget in BUDGET_UNITS parts, every cost rounded up to whole ones: exact where the
    budget is no larger than that. The part of the budget that the rounding leaves is spent greedily, where a bit
    removes the most error. Lagrange multipliers alone (Shoham & Gersho 1988) reach only the corners of the convex hull:
    a layer that has most of the values then jumps past the budget, and leaves it unused.

    Args:
        errors: The error of each row at each column.
        costs: The cost of each row at each column, in bits; column 0 costs 0.
        budget: The largest sum of costs.

    Returns:
        (layers,) the chosen columns.
    """
    unit = max(1.0, budget / BUDGET_UNITS)
    places = int(budget / unit)
    units = np.ceil(costs / unit - 1e-9).astype(np.int64)
    least = [np.zeros(places + 1)]  # after each row, the least error so far within each part of the budget
    sums = np.empty(places + 1)
    for error, cost in zip(errors.tolist(), units.tolist(), strict=True):
        reached = least[-1] + error[0]  # column 0 costs nothing
        for column, spent in enumerate(cost[1:], start=1):
            if spent <= places:
                tried = np.add(least[-1][: places + 1 - spent], error[column], out=sums[spent:])
                np.minimum(reached[spent:], tried, out=reached[spent:])
        least.append(reached)
    chosen, place = np.zeros(len(errors), dtype=np.int64), places
    for row in range(len(errors) - 1, -1, -1):
        before = least[row][np.maximum(place - units[row], 0)]
        reached = np.where(units[row] <= place, before + errors[row], np.inf)
        chosen[row] = int(reached.argmin())
        place -= units[row, chosen[row]]
    return _spend_the_rest(errors, costs, chosen, budget)


def _spend_the_rest(
    errors: Float64[np.ndarray, "layers widths"],
    costs: Int64[np.ndarray, "layers widths"],
    chosen: Int64[np.ndarray, "layers"],
    budget: float,
) -> Int64[np.ndarray, "layers"]:
    rows = np.arange(len(chosen))
    while True:
        less = errors[rows, chosen][:, None] - errors
        more = costs - costs[rows, chosen][:, None]
        left = budget - costs[rows, chosen].sum()
        slopes = np.where((more > 0) & (more <= left), less / np.maximum(more, 1), 0.0)
        if slopes.max() <= 0:
            return chosen
        row, column = np.unravel_index(int(slopes.argmax()), slopes.shape)
        chosen[row] = column


def error_curve(
    layer: Float32[np.ndarray, "n"],
) -> tuple[Float64[np.ndarray, "widths"], Float64[np.ndarray, "widths"]]:
    """Return the least mean squared error of a layer at each of WIDTHS, on a sample of it, and the steps that give it.

    A step that spans the largest magnitude wastes most levels on a heavy tail; a smaller one clips it. Every step
    of a grid is tried: values within its levels are rounded, values beyond them are clipped, and running sums
    over the sorted magnitudes give both errors for all widths at once. Of a large sample, rounding to a fine step is
    not measured: its squared error is step²/12 (Bennett 1948).
    """
    if not len(layer) or not (largest := max(float(layer.max()), -float(layer.min()))):
        return np.zeros(len(WIDTHS)), np.zeros(len(WIDTHS))
    sample = np.sort(np.abs(layer[:: 1 + (len(layer) - 1) // CURVE_SAMPLE].astype(np.float64)))
    n, squares = len(sample), np.square(sample)
    tails = np.zeros((3, n + 1))  # how many values lie from each place on, their sum, and that of their squares
    tails[0, :n] = np.arange(n, 0, -1)
    for tail, powers in zip(tails[1:], (sample, squares), strict=True):
        np.cumsum(powers[::-1], out=tail[:n][::-1])
    steps = largest * STEPS
    ends = TOPS * steps[:, None]
    within = sample.searchsorted(ends + 0.5 * steps[:, None])
    count, first, second = tails[:, within]
    clipped = second - 2 * ends * first + ends**2 * count
    rounded = within * (steps**2 / 12)[:, None]
    fine = np.sqrt(squares.sum() / n) / FINE if n > EXACT_SAMPLE else 0.0
    coarse, rows = int(np.count_nonzero(steps >= fine)), max(1, ROUNDED_AT_ONCE // n)
    for start in range(0, coarse, rows):
        here = slice(start, min(start + rows, coarse))
        rounded[here] = _rounding_errors(sample, steps[here], within[here])
    tried = np.maximum((rounded + clipped) / n, 0.0)
    best = tried.argmin(axis=0)
    return tried[best, np.arange(len(WIDTHS))], steps[best]


def _rounding_errors(
    sample: Float64[np.ndarray, "n"], steps: Float64[np.ndarray, "steps"], within: Int64[np.ndarray, "steps widths"]
) -> Float64[np.ndarray, "steps widths"]:
    """Return the squared error of rounding the first values of a sample to each step.

    Args:
        sample: The (n,) values.
        steps: The steps.
        within: For each step and width, how many values are rounded; ascending along the widths.
    """
    rows, n = len(steps), len(sample)
    squares = np.zeros((rows, n + 1))  # the last column is where a sum over no values begins
    errors = squares[:, :n]
    np.divide(sample, steps[:, None], out=errors)
    errors -= np.rint(errors)
    errors *= errors
    begins = np.zeros((rows, within.shape[1] + 1), dtype=np.int64)
    begins[:, 1:] = within
    sums = np.add.reduceat(squares.reshape(-1), (begins + np.arange(rows)[:, None] * (n + 1)).reshape(-1))
    between = sums.reshape(begins.shape)[:, :-1]
    between[begins[:, :-1] == begins[:, 1:]] = 0.0  # of no values, where reduceat gives the next one
    return between.cumsum(axis=1) * (steps**2)[:, None]
