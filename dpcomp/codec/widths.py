"""Bit widths and steps of layers with the least squared error within a budget (multiple-choice knapsack)."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32, Float64, Int64

from dpcomp.codec.error_curves import WIDTHS, error_curves
from dpcomp.codec.magnitudes import magnitudes_of
from dpcomp.codec.rate import MAX_LEVEL_BITS

MORE_BITS = 1  # above the rate that the variance of a layer lets expect, up to which its error is computed
NEAR = 2e-4  # a choice is taken whose error is proven to be this close to the least, relatively
FEW_STATES = 2**6  # partial choices up to which none is dropped
STATES = 2**12  # partial choices that are followed at once


def best_widths(layers: Sequence[Float32[np.ndarray, "_"]], bits: float) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Return the widths with the least total squared error at `bits` a value on average or less; and their steps.

    The errors of a layer are computed up to the rate that its variance lets expect and MORE_BITS more; at larger widths
    they count as 0, which they are at least. So the best choice has at least this error. Where it has one of these
    larger widths, the largest width that is known takes its place, if this adds a share of NEAR or less; else the
    errors are computed up to MORE_BITS more than the choice, and the choice is made anew.
    """
    magnitudes = magnitudes_of(layers)
    sizes = np.array([len(layer) for layer in layers])
    budget, costs, rows = float(bits * sizes.sum()), sizes[:, None] * WIDTHS, np.arange(len(sizes))
    rates = expected_rates(magnitudes.squares * magnitudes.largest**2, sizes, budget)
    more = np.where(sizes > sizes.sum() / 16, MORE_BITS, MORE_BITS + 1)
    widest = np.clip(_even(rates + more), 4, MAX_LEVEL_BITS)
    errors, steps = error_curves(magnitudes, widest)
    while True:
        chosen = best_columns(errors, costs, budget)
        last = np.minimum(chosen, widest - 1)  # the column of each width but 0 is one less
        guessed = chosen > last
        if errors[rows, last][guessed].sum() <= NEAR * errors[rows, chosen].sum():
            return tuple(WIDTHS[last].tolist()), tuple(steps[rows, last].tolist())
        widest[guessed] = np.minimum(_even(WIDTHS[chosen[guessed]] + MORE_BITS), MAX_LEVEL_BITS)
        more_errors, more_steps = error_curves(magnitudes, np.where(guessed, widest, 0))
        errors[guessed], steps[guessed] = more_errors[guessed], more_steps[guessed]


def _even(widths: Float64[np.ndarray, "some"] | Int64[np.ndarray, "some"]) -> Int64[np.ndarray, "some"]:
    """Round widths up to even ones, so that layers share tables."""
    return 2 * np.ceil(widths / 2).astype(np.int64)


def expected_rates(
    squares: Float64[np.ndarray, "layers"], sizes: Int64[np.ndarray, "layers"], budget: float
) -> Float64[np.ndarray, "layers"]:
    """Return the rates of reverse water-filling over independent Gaussian layers (Cover & Thomas 2006, §10.3.3).

    Args:
        squares: The sum of the squared values of each layer.
        sizes: How many values each layer has.
        budget: The bits of all values together.

    Returns:
        (layers,) bits a value, from 0.
    """
    filled = squares > 0
    rates = np.zeros(len(sizes))
    rates[filled] = 0.5 * np.log2(squares[filled] / sizes[filled])
    while filled.any():
        water = (float(rates[filled] @ sizes[filled]) - budget) / float(sizes[filled].sum())
        dry = filled & (rates <= water)
        if not dry.any():
            return np.where(filled, rates - water, 0.0)
        filled &= ~dry
    return np.zeros(len(sizes))


def best_columns(
    errors: Float64[np.ndarray, "layers widths"], costs: Int64[np.ndarray, "layers widths"], budget: float
) -> Int64[np.ndarray, "layers"]:
    """Choose one column in each row with the least sum of errors within a budget (multiple-choice knapsack).

    A Lagrange multiplier gives a lower bound of the least error, and a choice on the convex hull of all choices
    (Shoham & Gersho 1988), which leaves much of the budget unused where one layer has most of the values. Dynamic
    programming finds the best of the choices between the two: columns and partial choices are dropped that
    the bound excludes, and partial ones that cost no less and have no less error than another (as in Pisinger 1995,
    A minimal algorithm for the multiple-choice knapsack problem).

    Args:
        errors: The error of each row at each column.
        costs: The cost of each row at each column, in bits, ascending; column 0 costs 0.
        budget: The largest sum of costs.

    Returns:
        (layers,) the chosen columns, whose error is the least up to a share of NEAR, unless more than STATES partial
        choices are left: then the most promising are followed.
    """
    rows = np.arange(len(errors))
    low = errors.argmin(axis=1)
    if costs[rows, low].sum() <= budget:
        return low
    chosen, multiplier = _hull_choice(errors, costs, budget, low)
    losses = errors + multiplier * costs
    least = losses.min(axis=1)
    losses -= least[:, None]
    found, bound = float(errors[rows, chosen].sum()), float(least.sum()) - multiplier * budget
    if found - bound <= NEAR * found:
        return chosen
    near = errors[:, :-1] <= errors.min(axis=1, keepdims=True) + NEAR / len(errors) * max(bound, 0.0)
    losses[:, 1:][near] = np.inf  # such a column costs more than the one before, which is as good
    better = _within_gap(losses, costs, budget, multiplier, found - bound)
    return chosen if better is None else better


def _hull_choice(
    errors: Float64[np.ndarray, "layers widths"],
    costs: Int64[np.ndarray, "layers widths"],
    budget: float,
    low: Int64[np.ndarray, "layers"],
) -> tuple[Int64[np.ndarray, "layers"], float]:
    """Return the last choice within the budget on the convex hull of all choices, and the hull's slope after it.

    Args:
        errors: The error of each row at each column.
        costs: The cost of each row at each column.
        budget: The largest sum of costs.
        low: The choice with the least error; it exceeds the budget.
    """
    rows = np.arange(len(errors))
    high = np.zeros(len(errors), dtype=np.int64)
    low_error, low_cost = float(errors[rows, low].sum()), int(costs[rows, low].sum())
    high_error, high_cost = float(errors[:, 0].sum()), 0
    while True:
        slope = (high_error - low_error) / (low_cost - high_cost)
        between = (errors + slope * costs).argmin(axis=1)
        error, cost = float(errors[rows, between].sum()), int(costs[rows, between].sum())
        if error + slope * cost >= (high_error + slope * high_cost) * (1 - 1e-12):
            return high, slope
        if cost <= budget:
            high, high_error, high_cost = between, error, cost
        else:
            low_error, low_cost = error, cost


def _within_gap(
    losses: Float64[np.ndarray, "layers widths"],
    costs: Int64[np.ndarray, "layers widths"],
    budget: float,
    multiplier: float,
    gap: float,
) -> Int64[np.ndarray, "layers"] | None:
    """Return the choice with the least error, if it is less than `gap` above the bound; else None.

    Args:
        losses: How much error + multiplier × cost of each column exceeds the least in its row. The error of a choice
            is the bound + the sum of its losses + multiplier × the unused part of the budget.
        costs: The cost of each row at each column.
        budget: The largest sum of costs.
        multiplier: The least error that a bit of the budget removes on the convex hull.
        gap: The gap, in units of errors.
    """
    rows = np.arange(len(costs))
    kept = losses < gap
    chosen = losses.argmin(axis=1)
    cheapest = costs[rows, kept.argmax(axis=1)]
    extras = (costs - cheapest[:, None]).astype(np.float64)
    errors = losses - multiplier * extras
    spans = np.where(kept, extras, 0.0).max(axis=1)
    order = spans.argsort(kind="stable")[::-1][: np.count_nonzero(spans)]  # of large costs first: little is left then
    left, ahead = budget - float(cheapest.sum()), float(spans.sum())
    limit = gap - multiplier * left
    error, extra = np.zeros(1), np.zeros(1)
    trail: list[tuple[int, np.ndarray, np.ndarray]] = []
    for row in order.tolist():
        columns = np.flatnonzero(kept[row])
        ahead -= float(spans[row])
        error = np.add.outer(error, errors[row, columns]).reshape(-1)
        extra = np.add.outer(extra, extras[row, columns]).reshape(-1)
        states = np.arange(len(extra))
        if len(extra) > FEW_STATES or row == order[-1]:
            promise = error - multiplier * np.minimum(left - extra, ahead)  # what the rows ahead can remove
            states = np.flatnonzero((promise < limit) & (extra <= left))
            if len(states) > STATES:
                states = states[np.argpartition(promise[states], STATES)[:STATES]]
            if not len(states):
                return None
            states = states[extra[states].argsort(kind="stable")]
            error, extra = error[states], extra[states]
            best = np.flatnonzero(error[1:] < np.minimum.accumulate(error)[:-1]) + 1
            best = np.concatenate([[0], best])
            states, error, extra = states[best], error[best], extra[best]
        trail.append((row, columns, states))
    state = int(error.argmin())
    for row, columns, states in reversed(trail):
        state, column = divmod(int(states[state]), len(columns))
        chosen[row] = columns[column]
    return chosen
