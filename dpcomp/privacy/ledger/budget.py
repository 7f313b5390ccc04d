"""Budget: the largest (ε, δ) that may be spent, and how many steps of an event it allows."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from dp_accounting import (  # pyright: ignore[reportMissingTypeStubs]  # the package ships no types
    ComposedDpEvent,
    DpEvent,
)

from dpcomp.core.checks import real_number
from dpcomp.privacy.accounting.epsilon import check_delta, epsilon, rdp_epsilon
from dpcomp.privacy.accounting.events import MOST_STEPS, composed
from dpcomp.privacy.plan import Plan

GROWTH = 1.05  # the full rule usually allows less than this times the steps that RDP allows


@dataclass(frozen=True)
class Budget:
    """An upper bound (ε, δ) on what the charges of each client may cost.

    A ledger with a budget refuses a charge that would exceed it, before any noise is drawn. ε is computed as for a
    guarantee. The first charge of an event takes seconds, since its largest number of steps is computed then; later
    charges compare two numbers.

    Args:
        epsilon: ε, a finite number above 0.
        delta: δ, in (0, 1).

    Raises:
        TypeError: `epsilon` or `delta` is not a number.
        ValueError: `epsilon` or `delta` lies outside its range.

    Examples:
        >>> import dpcomp as dp
        >>> pipeline = dp.Pipeline(mechanism=(dp.Clip(1.0), dp.Gaussian(1.0)))
        >>> ledger = dp.Ledger(budget=dp.Budget(epsilon=8.0, delta=1e-5))
        >>> permit = ledger.charge(pipeline.cost, dp.Address(run=0, client=7, round=0), steps=2)
        >>> ledger.charge(pipeline.cost, dp.Address(run=0, client=7, round=1), steps=2)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        dpcomp.core.errors.BudgetExhausted: charging Address(run=0, client=7, round=1) would take client 7 to 4 steps...
    """

    epsilon: float
    delta: float

    def __post_init__(self):
        largest = real_number(self.epsilon, "Budget(epsilon)", "ε, a finite number above 0")
        if not 0 < largest < math.inf:
            raise ValueError(f"Budget(epsilon={largest}): ε is a finite number above 0")
        check_delta(self.delta)
        object.__setattr__(self, "epsilon", largest)
        object.__setattr__(self, "delta", float(self.delta))

    def allows(self, spent: Mapping[DpEvent, int], *, departed: bool = False) -> bool:
        """Return whether the given number of steps of each event is within the budget.

        Steps of a single event count as a schedule that was fixed in advance: up to `admissible_steps` are allowed.
        Several events, or a departure from a plan, may have been chosen from released results, so their Rényi DP must
        be within the budget at some order (a Rényi filter: Feldman & Zrnic 2021, Thm 4.3; over several orders: Lécuyer
        2021, arXiv 2103.01379).

        Args:
            spent: The number of steps of each event.
            departed: Whether a plan said otherwise, so that even a single event was not fixed in advance.
        """
        if len(spent) == 1 and not departed:
            ((event, steps),) = spent.items()
            return steps <= admissible_steps(event, self)
        mixed = ComposedDpEvent([composed(event, steps) for event, steps in spent.items()])
        return epsilon(mixed, self.delta, adaptive=True)[0] <= self.epsilon

    def allows_planned(self, plan: Plan, steps: int) -> bool:
        """Return whether the first releases of a plan, which compose like a fixed schedule, are within the budget.

        Args:
            plan: The plan.
            steps: How many of its releases, from 0 to `plan.steps`.
        """
        return steps <= _admissible_steps_of_plan(plan, self)


@lru_cache(maxsize=1024)
def admissible_steps(event: DpEvent, budget: Budget) -> int:
    """Return the largest number of steps of an event, on a schedule fixed in advance, whose ε is within the budget.

    ε by RDP alone is never below the ε of the guarantee, and it is cheap. So the number of steps that RDP allows is a
    safe start, from which the search goes on with the guarantee. The search relies on ε growing with the steps.
    """

    def by_rdp(steps: int) -> float:
        return rdp_epsilon(composed(event, steps), budget.delta)

    def by_guarantee(steps: int) -> float:
        return epsilon(composed(event, steps), budget.delta)[0]

    safe = _largest_within(by_rdp, budget.epsilon, 0, 1)
    if safe == MOST_STEPS:
        return safe
    return _largest_within(by_guarantee, budget.epsilon, safe, max(safe + 1, math.ceil(GROWTH * safe)))


@lru_cache(maxsize=64)
def _admissible_steps_of_plan(plan: Plan, budget: Budget) -> int:
    """Return the largest number of first releases of a plan whose ε is within the budget."""

    def by_guarantee(steps: int) -> float:
        return epsilon(
            ComposedDpEvent([composed(cost.event, count) for cost, count in plan.first(steps)]), budget.delta
        )[0]

    if by_guarantee(plan.steps) <= budget.epsilon:
        return plan.steps
    return _largest_within(by_guarantee, budget.epsilon, 0, plan.steps)


def _largest_within(cost: Callable[[int], float], limit: float, low: int, high: int) -> int:
    """Return the largest number up to MOST_STEPS whose cost is within the limit, for a cost that grows.

    `cost(low)` must be within the limit; `cost(high)` need not be. The bracket grows by doubling and shrinks by linear
    interpolation, since a call may take seconds; each third cut halves it, because interpolation alone is slow where
    the cost bends sharply.
    """
    below, above = cost(low), cost(high)
    while above <= limit and high < MOST_STEPS:
        low, below = high, above
        high = min(2 * high, MOST_STEPS)
        above = cost(high)
    if above <= limit:
        return high
    cuts = 0
    while high - low > 1:
        cuts += 1
        share = 0.5 if cuts % 3 == 0 or math.isinf(above) else (limit - below) / (above - below)
        middle = min(max(low + round(share * (high - low)), low + 1), high - 1)
        value = cost(middle)
        if value <= limit:
            low, below = middle, value
        else:
            high, above = middle, value
    return low
