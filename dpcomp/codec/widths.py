"""Bit widths and steps of layers with the least squared error within a budget, from measured error curves."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32, Float64, Int64

from dpcomp.codec.rate import MAX_LEVEL_BITS

CURVE_SAMPLE = 2**13  # values of a layer that its curve is measured on
WIDTHS = np.array([0, *range(2, MAX_LEVEL_BITS + 1)])  # what a uniform quantiser can have
BUDGET_UNITS = 2**13  # into which the budget is cut
STEPS_AN_OCTAVE = 4  # a step off by an eighth of an octave costs below 1 % of the error


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
    best, choices = np.zeros(places + 1), []
    for error, cost in zip(errors, units, strict=True):
        reached = np.full((len(error), places + 1), np.inf)
        for column, spent in enumerate(cost):
            if spent <= places:
                reached[column, spent:] = best[: places + 1 - spent] + error[column]
        choices.append(np.argmin(reached, axis=0))
        best = np.min(reached, axis=0)
    chosen, place = np.zeros(len(errors), dtype=np.int64), places
    for row in range(len(errors) - 1, -1, -1):
        chosen[row] = choices[row][place]
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
    over the sorted magnitudes give both errors for all widths at once.
    """
    errors, best_steps = np.full(len(WIDTHS), np.inf), np.zeros(len(WIDTHS))
    if not len(layer) or not (largest := max(float(layer.max()), -float(layer.min()))):
        return np.zeros(len(WIDTHS)), best_steps
    sample = np.sort(np.abs(layer[:: 1 + (len(layer) - 1) // CURVE_SAMPLE].astype(np.float64)))
    tails = [np.concatenate([[0.0], np.cumsum(sample[::-1] ** power)])[::-1] for power in (0, 1, 2)]
    tops = 2 ** (np.maximum(WIDTHS, 1) - 1) - 1  # of width 0: no level but 0
    for step in largest * 2.0 ** -np.arange(0.0, 16.0, 1 / STEPS_AN_OCTAVE):
        rounded = np.concatenate([[0.0], np.cumsum((sample - step * np.rint(sample / step)) ** 2)])
        within = np.searchsorted(sample, (tops + 0.5) * step)
        ends = tops * step
        count, first, second = (tail[within] for tail in tails)
        tried = np.maximum((rounded[within] + second - 2 * ends * first + ends**2 * count) / len(sample), 0.0)
        better = tried < errors
        errors, best_steps = np.where(better, tried, errors), np.where(better, step, best_steps)
    return errors, best_steps
