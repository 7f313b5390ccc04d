"""Budget: what may be spent at most, and how much of an event that is."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from dp_accounting import ComposedDpEvent, DpEvent

from dpcomp.privacy.epsilon import check_delta, epsilon, rdp_epsilon
from dpcomp.privacy.events import MOST_STEPS, composed

GROWTH = 1.05  # of the steps that RDP allows: the first guess at what the full rule refuses


@dataclass(frozen=True)
class Budget:
    """An (ε, δ) that no client's charges may exceed, under the rule by which guarantees are given.

    The first charge of an event finds how many of its steps there may be, in seconds; later ones compare two numbers.

    Raises:
        TypeError, ValueError: ε is no finite number above 0, or δ none in (0, 1).
    """

    epsilon: float
    delta: float

    def __post_init__(self):
        if isinstance(self.epsilon, bool) or not isinstance(self.epsilon, (int, float)):
            raise TypeError(f"Budget(epsilon={self.epsilon!r}): ε is a number above 0")
        if not 0 < self.epsilon < math.inf:
            raise ValueError(f"Budget(epsilon={self.epsilon}): ε is a finite number above 0")
        check_delta(self.delta)
        object.__setattr__(self, "epsilon", float(self.epsilon))

    def allows(self, spent: Mapping[DpEvent, int]) -> bool:
        """Whether so many steps of each event lie within it.

        Of one event, repeated as planned: up to `admissible_steps`. Of several, which may have been chosen from
        released results: while their Rényi DP, at one order or another, does, a filter (Feldman & Zrnic 2021, Thm 4.3;
        over several orders: Lécuyer 2021, 2103.01379).
        """
        if len(spent) == 1:
            ((event, steps),) = spent.items()
            return steps <= admissible_steps(event, self)
        mixed = ComposedDpEvent([composed(event, steps) for event, steps in spent.items()])
        return epsilon(mixed, self.delta, adaptive=True)[0] <= self.epsilon


@lru_cache(maxsize=1024)
def admissible_steps(event: DpEvent, budget: Budget) -> int:
    """The most steps of an event, repeated on a schedule fixed in advance, whose ε is within the budget.

    RDP is never below the guarantee, so what it allows is safe, and cheap to find; from there on the full rule is
    asked. ε grows with the steps: fewer of them than a number that was found to fit do fit.
    """

    def by_rdp(steps: int) -> float:
        return rdp_epsilon(composed(event, steps), budget.delta)

    def by_guarantee(steps: int) -> float:
        return epsilon(composed(event, steps), budget.delta)[0]

    safe = _last_within(by_rdp, budget.epsilon, 0, 1)
    if safe == MOST_STEPS:
        return safe
    return _last_within(by_guarantee, budget.epsilon, safe, max(safe + 1, math.ceil(GROWTH * safe)))


def _last_within(cost: Callable[[int], float], limit: float, low: int, high: int) -> int:
    """The last number up to MOST_STEPS whose cost is within the limit: `low` is one; `high` may be the first beyond.

    Chords find it in a handful of costs, which may take seconds each; every third cut is a halving, for what is steep.
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
        found = cost(middle)
        if found <= limit:
            low, below = middle, found
        else:
            high, above = middle, found
    return low
