"""Bit widths and steps of layers with the least squared error within a budget, from measured error curves."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from jaxtyping import Float32, Float64, Int64

from dpcomp.codec.rate import MAX_LEVEL_BITS

CURVE_SAMPLE = 2**13  # values of a layer that its curve is measured on
WIDTHS = np.array([0, *range(2, MAX_LEVEL_BITS + 1)])  # what a uniform quantiser can have
EXACT_BUDGET = 2**13  # bits up to which a budget is cut into single bits
BUDGET_UNITS = 2**11  # into which a larger one is cut
EXACT_SAMPLE = 2**8  # values of a layer up to which each is rounded to every step; more are counted by magnitude
STEPS_AN_OCTAVE = 4  # a step off by an eighth of an octave costs below 1 % of the error
STEPS = 2.0 ** -np.arange(0.0, 16.0, 1 / STEPS_AN_OCTAVE)  # that are tried, ÷ the largest magnitude
TOPS = 2 ** (np.maximum(WIDTHS, 1) - 1) - 1  # the largest level of each width; of width 0 no level but 0
ENDS = TOPS * STEPS[:, None]  # the largest decoded magnitude of each step and width, ÷ the largest magnitude
CLASSES_AN_OCTAVE = 8  # of magnitudes, by which they are counted
OCTAVES = 16  # below the largest magnitude that are cut into classes; what is smaller is one class


def best_widths(layers: Sequence[Float32[np.ndarray, "_"]], bits: float) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Return the widths with the least total squared error at `bits` a value on average or less; and their steps."""
    sizes = np.array([len(layer) for layer in layers])
    errors, steps = error_curves(layers)
    chosen = best_columns(sizes[:, None] * errors, sizes[:, None] * WIDTHS, float(bits * sizes.sum()))
    return tuple(WIDTHS[chosen].tolist()), tuple(steps[np.arange(len(chosen)), chosen].tolist())


def best_columns(
    errors: Float64[np.ndarray, "layers widths"], costs: Int64[np.ndarray, "layers widths"], budget: float
) -> Int64[np.ndarray, "layers"]:
    """Choose one column in each row with the least sum of errors within a budget (multiple-choice knapsack).

    Dynamic programming over the budget in BUDGET_UNITS parts, every cost rounded up to whole ones; exact up to
    EXACT_BUDGET. The part of the budget that the rounding leaves is spent greedily, where a bit
    removes the most error. Lagrange multipliers alone (Shoham & Gersho 1988) reach only the corners of the convex hull:
    a layer that has most of the values then jumps past the budget, and leaves it unused.

    Args:
        errors: The error of each row at each column.
        costs: The cost of each row at each column, in bits; column 0 costs 0.
        budget: The largest sum of costs.

    Returns:
        (layers,) the chosen columns.
    """
    unit = 1.0 if budget <= EXACT_BUDGET else budget / BUDGET_UNITS
    places = int(budget / unit)
    units = np.ceil(costs / unit - 1e-9).astype(np.int64)
    order = np.argsort(units.max(axis=1), kind="stable")  # the sums of the cheap rows have few values
    least = [np.zeros(1)]  # after each row, the least error so far within each part of the budget, up to all it can use
    for row in order[:-1]:
        before, room = least[-1], min(places, len(least[-1]) - 1 + int(units[row].max())) + 1
        shifted = np.full(2 * room, np.inf)
        shifted[room : room + len(before)] = before
        shifted[room + len(before) :] = before[-1]
        windows = np.ndarray((room + 1, room), shifted.dtype, shifted, 0, 2 * shifted.strides)
        tried = windows[room - np.minimum(units[row], room)]
        tried += errors[row][:, None]
        least.append(np.minimum.reduce(tried, axis=0))
    chosen, place = np.zeros(len(errors), dtype=np.int64), places
    for row, before in zip(order[::-1], least[::-1], strict=True):
        after = place - units[row]
        reached = np.where(after < 0, np.inf, before.take(after, mode="clip") + errors[row])
        chosen[row] = column = int(reached.argmin())
        place -= int(units[row, column])
    rows, fits = np.arange(len(errors)), np.flatnonzero(costs.sum(axis=0) <= budget)
    together = errors.sum(axis=0)[fits]
    if together.min() < errors[rows, chosen].sum():  # one column may use up a budget that rounded costs exceed
        chosen[:] = fits[together.argmin()]
    return _spend_the_rest(errors, costs, chosen, budget)


def _spend_the_rest(
    errors: Float64[np.ndarray, "layers widths"],
    costs: Int64[np.ndarray, "layers widths"],
    chosen: Int64[np.ndarray, "layers"],
    budget: float,
) -> Int64[np.ndarray, "layers"]:
    """Change a column at a time, within the budget, where a bit removes the most error, until none removes any."""
    rows = np.arange(len(chosen))
    more = costs - costs[rows, chosen][:, None]
    less = errors[rows, chosen][:, None] - errors
    slopes = np.where(more > 0, less / np.maximum(more, 1), 0.0)
    left = budget - float(costs[rows, chosen].sum())
    while True:
        affordable = np.where(more <= left, slopes, 0.0)
        row, column = divmod(int(affordable.argmax()), affordable.shape[1])
        if affordable[row, column] <= 0:
            return chosen
        left -= float(more[row, column])
        chosen[row] = column
        more[row] -= more[row, column]
        slopes[row] = np.where(more[row] > 0, (errors[row, column] - errors[row]) / np.maximum(more[row], 1), 0.0)


def error_curve(
    layer: Float32[np.ndarray, "n"],
) -> tuple[Float64[np.ndarray, "widths"], Float64[np.ndarray, "widths"]]:
    """Return the least mean squared error of a layer at each of WIDTHS, and the steps that give it."""
    errors, steps = error_curves([layer])
    return errors[0], steps[0]


def error_curves(
    layers: Sequence[Float32[np.ndarray, "_"]],
) -> tuple[Float64[np.ndarray, "layers widths"], Float64[np.ndarray, "layers widths"]]:
    """Return the least mean squared errors of layers at each of WIDTHS, on samples, and the steps that give them.

    A step that spans the largest magnitude wastes most levels on a heavy tail; a smaller one clips it. Every step
    of a grid is tried: values within its levels are rounded, values beyond them are clipped. Magnitudes are counted by
    classes an eighth of an octave wide or less, in which they are taken to be spread evenly: the mean error of a class
    is known in advance, so that all errors of all layers are a single product of matrices. Of a short layer each value
    is rounded.

    Args:
        layers: The values of each layer.
    """
    samples = [layer[:: max(1, -(-len(layer) // CURVE_SAMPLE))] for layer in layers]
    sizes = np.array([len(sample) for sample in samples])
    magnitudes = np.abs(np.concatenate(samples))
    edges, largest = np.concatenate([[0], sizes.cumsum()]), np.zeros(len(layers), dtype=np.float32)
    largest[sizes > 0] = np.maximum.reduceat(magnitudes, edges[:-1][sizes > 0]) if len(magnitudes) else 0
    for number, (layer, sample) in enumerate(zip(layers, samples, strict=True)):
        if len(sample) < len(layer):
            largest[number] = max(layer.max(), -layer.min())
    divisors = np.where(largest > 0, largest, np.float32(1))
    magnitudes /= np.repeat(divisors, sizes)
    tried = np.empty((len(layers), *ENDS.shape))
    np.matmul(_counted(magnitudes, sizes), _class_errors(), out=tried.reshape(len(layers), -1))
    short = np.flatnonzero((sizes > 0) & (sizes <= EXACT_SAMPLE))
    if len(short):
        ratios = [samples[number].astype(np.float64) / float(divisors[number]) for number in short]
        tried[short] = _exact_errors([np.sort(np.abs(each)) for each in ratios])
    best = tried.argmin(axis=1)
    errors = np.take_along_axis(tried, best[:, None], axis=1)[:, 0]
    scales = largest.astype(np.float64)[:, None]
    return errors * scales**2 / np.maximum(sizes, 1)[:, None], scales * STEPS[best]


def _counted(
    ratios: Float32[np.ndarray, "n"], sizes: Int64[np.ndarray, "layers"]
) -> Float64[np.ndarray, "layers classes"]:
    """Count the magnitudes of each layer by classes, whose bits are the upper ones of a float32.

    Args:
        ratios: The (n,) magnitudes, each ÷ the largest of its layer, layer after layer.
        sizes: How many of them each layer has.
    """
    classes = CLASSES_AN_OCTAVE * OCTAVES + 2
    keys = ratios.view(np.int32) >> (23 - (CLASSES_AN_OCTAVE - 1).bit_length())
    keys -= CLASSES_AN_OCTAVE * (127 - OCTAVES) - 1
    np.maximum(keys, 0, out=keys)
    keys += np.repeat(np.arange(len(sizes), dtype=np.int32) * classes, sizes)
    return np.bincount(keys, minlength=len(sizes) * classes).reshape(len(sizes), classes).astype(np.float64)


@lru_cache(maxsize=1)
def _class_errors() -> Float64[np.ndarray, "classes steps_and_widths"]:
    """Return the mean squared error of each class of magnitudes at each step and width.

    The integral of the squared error from 0 to x is k·Δ³/12 + r³/3, where k is the level of x and r its error. The last
    class has the largest magnitude alone.
    """
    octaves = 2.0 ** np.arange(-OCTAVES, 0)[:, None] * (1 + np.arange(CLASSES_AN_OCTAVE) / CLASSES_AN_OCTAVE)
    edges = np.concatenate([[0.0], octaves.reshape(-1), [1.0]])[:, None, None]
    steps = STEPS[:, None]
    level = np.minimum(np.rint(edges / steps), TOPS)
    below = level * steps**3 / 12 + (edges - level * steps) ** 3 / 3
    means = np.diff(below, axis=0) / np.diff(edges, axis=0)
    last = (edges[-1] - level[-1] * steps) ** 2
    return np.ascontiguousarray(np.concatenate([means, last[None]]).reshape(len(means) + 1, -1))


@lru_cache(maxsize=1)
def _rounded_up_to() -> tuple[Float64[np.ndarray, "ends"], Int64[np.ndarray, "steps widths"]]:
    """Return the magnitudes below which each step and width rounds, and above which it clips, ascending; and where."""
    borders = (ENDS + 0.5 * STEPS[:, None]).reshape(-1)
    order = borders.argsort(kind="stable")
    where = np.empty(len(order), dtype=np.int64)
    where[order] = np.arange(len(order))
    return borders[order], where.reshape(ENDS.shape)


def _exact_errors(ratios: Sequence[Float64[np.ndarray, "_"]]) -> Float64[np.ndarray, "layers steps widths"]:
    """Return the sums of the squared errors of short layers at each step and width.

    Args:
        ratios: The magnitudes of each layer, ascending, ÷ the largest of them.
    """
    values, sizes = np.concatenate(ratios), np.array([len(each) for each in ratios])
    ends = sizes.cumsum()
    starts, layers = ends - sizes, np.repeat(np.arange(len(sizes)), sizes)
    borders, where = _rounded_up_to()
    columns = len(borders) + 1
    begins = borders.searchsorted(values, side="right") + layers * columns  # the first border above each value
    below = np.bincount(begins, minlength=len(sizes) * columns).reshape(len(sizes), columns).cumsum(axis=1)
    within = below.take(where, axis=1) + starts[:, None, None]  # where the values begin that are clipped
    parts = values / STEPS[:, None]
    parts -= np.rint(parts)
    parts *= parts
    sums = np.zeros((len(STEPS), len(values) + 1))
    np.cumsum(parts, axis=1, out=sums[:, 1:])
    errors = sums.reshape(-1).take(within + np.arange(len(STEPS))[:, None] * sums.shape[1])
    errors -= sums.T[starts][:, :, None]
    errors *= (STEPS**2)[:, None]
    powers = np.zeros((3, len(values) + 1))
    powers[0] = np.arange(len(values) + 1)
    np.cumsum(values, out=powers[1, 1:])
    np.cumsum(values**2, out=powers[2, 1:])
    for factor, power in zip((ENDS**2, -2 * ENDS, 1), powers, strict=True):
        errors += factor * (power[ends][:, None, None] - power.take(within))
    return np.maximum(errors, 0.0, out=errors)
