"""The squared error of layers at each width of a uniform quantiser, with the step that makes it least."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Float64, Int32, Int64

from dpcomp.codec.magnitudes import UNITS, Magnitudes, sorted_magnitudes
from dpcomp.codec.rate import MAX_LEVEL_BITS

WIDTHS = np.array([0, *range(2, MAX_LEVEL_BITS + 1)])  # what a uniform quantiser can have
STEPS_AN_OCTAVE = 4  # a step off by an eighth of an octave costs below 1 % of the error
STEPS = 2.0 ** -np.arange(0.0, 16.0, 1 / STEPS_AN_OCTAVE)  # that are tried, ÷ the largest magnitude
TOPS = 2 ** (np.maximum(WIDTHS, 1) - 1) - 1  # the largest level of each width; of width 0 no level but 0
ENDS = TOPS * STEPS[:, None]  # the largest decoded magnitude of each step and width, ÷ the largest magnitude
WIDEST_COUNTED = 8  # the width up to which magnitudes suffice that are rounded to fractions of the largest
FEWEST_BORDERS = 8  # the width up to which the levels have so few borders that sums between these cost little
ROUNDED_AT_ONCE = 2**14  # values, so that temporary arrays stay in a core's own cache


def error_curves(
    magnitudes: Magnitudes, widest: Int64[np.ndarray, "layers"]
) -> tuple[Float64[np.ndarray, "layers widths"], Float64[np.ndarray, "layers widths"]]:
    """Return the least squared error of each layer at each of WIDTHS up to a largest, and the steps that give it.

    A step that spans the largest magnitude wastes most levels on a heavy tail; a smaller one clips it. So every step
    of a grid counts: values within its levels are rounded, values beyond them are clipped. A finer step clips more:
    where clipping alone exceeds the least error, finer ones are left out. Where a layer has fewer values than the
    levels have borders, each value is rounded; else sums between the borders give the same error.

    Args:
        magnitudes: The magnitudes of each layer.
        widest: The width up to which the errors of each layer are computed; at larger ones 0 stands.

    Returns:
        The errors, and the steps.
    """
    errors, steps = np.zeros((len(widest), len(WIDTHS))), np.zeros((len(widest), len(WIDTHS)))
    few = (widest > FEWEST_BORDERS) & (np.diff(magnitudes.edges) < 2**widest)
    for width, rounded in sorted(set(zip(widest.tolist(), few.tolist(), strict=True))):
        numbers = np.flatnonzero((widest == width) & (few == rounded) & (magnitudes.largest > 0))
        if width and len(numbers):
            errors_of = _errors_by_rounding if rounded else _errors_by_borders
            least, best = _least(errors_of, magnitudes, numbers, width)
            scales = magnitudes.largest[numbers, None]
            errors[numbers, :width], steps[numbers, :width] = least * scales**2, STEPS[best] * scales
    return errors, steps


def _least(
    errors_of: Callable[[Magnitudes, Int64[np.ndarray, "_"], int, int, int], Float64[np.ndarray, "_ steps widths"]],
    magnitudes: Magnitudes,
    numbers: Int64[np.ndarray, "some"],
    widest: int,
) -> tuple[Float64[np.ndarray, "some widths"], Int64[np.ndarray, "some widths"]]:
    """Return the least squared errors of layers, and at which of STEPS; finer ones are left out where they are worse.

    Args:
        errors_of: Computes the errors of layers at each width up to a largest, from one of STEPS to another.
        magnitudes: The magnitudes of all layers.
        numbers: Which layers.
        widest: The largest width.
    """
    if widest > WIDEST_COUNTED:
        magnitudes, numbers = _each_value(magnitudes, numbers)
    first = min(STEPS_AN_OCTAVE * (widest + 1), len(STEPS))  # to a quarter of the step that spans the layer
    tried = errors_of(magnitudes, numbers, widest, 0, first)
    best = tried.argmin(axis=1)
    least = np.take_along_axis(tried, best[:, None], axis=1)[:, 0]
    # What is not clipped at the last step has an error of step²/4 a value or less; finer steps clip at least as much.
    clipped = tried[:, -1, 1:] - magnitudes.sizes(numbers)[:, None] * STEPS[first - 1] ** 2 / 4
    rest = np.flatnonzero((clipped < least[:, 1:]).any(axis=1))
    if len(rest) and first < len(STEPS):
        finer = errors_of(*_each_value(magnitudes, numbers[rest]), widest, first, len(STEPS))
        better = finer.min(axis=1) < least[rest]
        best[rest] = np.where(better, first + finer.argmin(axis=1), best[rest])
        least[rest] = np.where(better, finer.min(axis=1), least[rest])
    return least, best


def _each_value(
    magnitudes: Magnitudes, numbers: Int64[np.ndarray, "some"]
) -> tuple[Magnitudes, Int64[np.ndarray, "some"]]:
    """Return magnitudes in which those of these layers are not rounded to fractions; and the numbers of the layers."""
    if not magnitudes.counted[numbers].any():
        return magnitudes, numbers
    return sorted_magnitudes([magnitudes.layers[number] for number in numbers]), np.arange(len(numbers))


@dataclass(frozen=True, kw_only=True, eq=False)
class _Borders:
    """Hold the borders between the levels of some steps, and what each adds to the squared error.

    A value x that reaches k of the borders (j − ½)·Δ has the level k, and (x − kΔ)² = x² + Σ ((2j − 1)Δ² − 2Δx) over
    these.

    Attributes:
        borders: In units, ascending.
        constants: (2j − 1)Δ² of each.
        slopes: 2Δ of each, a unit.
        order: Where the borders stand step after step, each ascending.
        starts: Where among these the borders begin that a step and a width have, and the next smaller width has not.
        cells: For each of the starts, step × widths + width.
    """

    borders: Int32[np.ndarray, "borders"]
    constants: Float64[np.ndarray, "borders"]
    slopes: Float64[np.ndarray, "borders"]
    order: Int64[np.ndarray, "borders"]
    starts: Int64[np.ndarray, "starts"]
    cells: Int64[np.ndarray, "starts"]


@lru_cache(maxsize=64)
def _borders(widest: int, first: int, stop: int) -> _Borders:
    """Return the borders within the largest magnitude of a width's levels, at the steps from first to stop."""
    levels = np.arange(1, 2 ** (widest - 1))
    reached = [levels[: np.count_nonzero((levels - 0.5) * step <= 1)] for step in STEPS[first:stop]]
    numbers = np.repeat(np.arange(stop - first), [len(each) for each in reached])
    flat, steps = np.concatenate(reached), STEPS[first:stop][numbers]
    borders = (flat - 0.5) * steps
    ascending = borders.argsort(kind="stable")
    order = np.empty_like(ascending)
    order[ascending] = np.arange(len(ascending))
    starts = np.flatnonzero(np.isin(flat, TOPS + 1))
    return _Borders(
        borders=np.ceil(borders[ascending] * UNITS).astype(np.int32),
        constants=((2 * flat - 1) * steps**2)[ascending],
        slopes=(2 * steps / UNITS)[ascending],
        order=order,
        starts=starts,
        cells=numbers[starts] * widest + TOPS.searchsorted(flat[starts]),
    )


def _errors_by_borders(
    magnitudes: Magnitudes, numbers: Int64[np.ndarray, "some"], widest: int, first: int, stop: int
) -> Float64[np.ndarray, "some steps widths"]:
    """Return the squared errors of layers at the steps from first to stop, and at each width up to a largest.

    Args:
        magnitudes: The magnitudes of all layers.
        numbers: Which layers.
        widest: The largest width.
        first: The first step.
        stop: The step after the last one.
    """
    table = _borders(widest, first, stop)
    places = np.array([magnitudes.of(number).searchsorted(table.borders) for number in numbers.tolist()])
    places += magnitudes.edges[numbers, None]
    ends = magnitudes.edges[numbers + 1, None]
    counts = ends - places if magnitudes.counts is None else magnitudes.counts[ends] - magnitudes.counts.take(places)
    parts = table.constants * counts
    parts -= table.slopes * (magnitudes.sums[ends] - magnitudes.sums.take(places))
    errors = np.zeros((len(numbers), (stop - first) * widest))
    errors[:, table.cells] = np.add.reduceat(parts.take(table.order, axis=1), table.starts, axis=1)
    errors = errors.reshape(len(numbers), stop - first, widest)
    errors[:, :, 0] = magnitudes.squares[numbers, None]
    np.cumsum(errors, axis=2, out=errors)
    return np.maximum(errors, 0.0, out=errors)


def _errors_by_rounding(
    magnitudes: Magnitudes, numbers: Int64[np.ndarray, "some"], widest: int, first: int, stop: int
) -> Float64[np.ndarray, "some steps widths"]:
    """Return the squared errors of layers at the steps from first to stop, and at each width up to a largest.

    Args:
        magnitudes: The magnitudes of all layers.
        numbers: Which layers.
        widest: The largest width.
        first: The first step.
        stop: The step after the last one.
    """
    steps, ends = STEPS[first:stop], ENDS[first:stop, :widest]
    ratios = [np.sort(np.abs(magnitudes.layers[number])) / magnitudes.largest[number] for number in numbers.tolist()]
    values, sizes = np.concatenate(ratios), np.array([len(each) for each in ratios])
    stops = sizes.cumsum()
    begins = np.empty((len(numbers), len(steps), widest + 1), dtype=np.int64)  # of the values that each width adds
    begins[:, :, 0] = (stops - sizes)[:, None]
    for number, each in enumerate(ratios):
        begins[number, :, 1:] = each.searchsorted(ends + 0.5 * steps[:, None])
    begins[:, :, 1:] += begins[:, :, :1]
    errors = np.empty((len(numbers), len(steps), widest))
    for start in range(0, len(steps), rows := max(1, ROUNDED_AT_ONCE // len(values))):
        here = slice(start, start + rows)
        squares = np.zeros((len(steps[here]), len(values) + 1))  # the last column is where a sum over no values begins
        parts = squares[:, :-1]
        np.divide(values, steps[here, None], out=parts)
        parts -= np.rint(parts)
        parts *= parts
        places = begins[:, here].transpose(1, 0, 2).reshape(len(squares), -1)
        places = places + np.arange(len(squares))[:, None] * squares.shape[1]
        sums = np.add.reduceat(squares.reshape(-1), places.reshape(-1)).reshape(len(squares), len(numbers), -1)
        errors[:, here] = sums[:, :, :-1].transpose(1, 0, 2)
    errors[begins[:, :, :-1] == begins[:, :, 1:]] = 0.0  # of no values, where reduceat gives the next one
    np.cumsum(errors, axis=2, out=errors)
    errors *= (steps**2)[:, None]
    # Of values x beyond the largest level e, the sums of ((1 - e) - (1 - x))²; from the largest on, no digits cancel.
    powers = np.zeros((3, len(values) + len(numbers)))
    for number, (each, stop) in enumerate(zip(ratios, stops.tolist(), strict=True)):
        here = slice(stop - len(each) + number, stop + number)
        for power, terms in zip(powers, (np.ones(len(each)), 1 - each, (1 - each) ** 2), strict=True):
            np.cumsum(terms[::-1], out=power[here][::-1])
    clipped = begins[:, :, 1:] + np.arange(len(numbers))[:, None, None]
    for factor, power in zip(((1 - ends) ** 2, -2 * (1 - ends), 1), powers, strict=True):
        errors += factor * power.take(clipped)
    return np.maximum(errors, 0.0, out=errors)
