"""Plan: releases that differ, in an order that was fixed before the first of them."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any, cast

from dpcomp.core.checks import check_type, whole_number
from dpcomp.privacy.accounting.events import MOST_STEPS
from dpcomp.privacy.cost import Cost, guarantee_of
from dpcomp.privacy.guarantee import Guarantee


@dataclass(frozen=True)
class Plan:
    """A sequence of releases that is fixed before the first of them, such as a schedule of noise multipliers.

    Releases that differ and may have been chosen from results are accounted by Rényi DP alone. Those of a plan compose
    like a fixed schedule, whose ε is usually a tenth smaller. `dp.Ledger(plan=...)` and `dp.Ledger.create(path,
    plan=...)` record the plan before any charge, and each client's charges count as planned as long as they are the
    plan's in its order; from the first one that departs on, all charges of that client are accounted by Rényi DP.

    **Privacy:** nothing in a plan may depend on the protected data, or on anything that was released from them. Ending
    a plan early is like having planned the part that was released, so the moment of it must not depend on the results
    either; if it does, the guarantee is that of the whole plan, `plan.guarantee(delta)` (PRIVACY_RULES 23).

    Args:
        releases: (cost, steps) pairs in their order, at least one pair; all costs have the same unit and trust.

    Raises:
        TypeError: A pair is not a `Cost` with a whole number.
        ValueError: There is no pair, steps are below 1, or two units or trusts are mixed.

    Examples:
        >>> import dpcomp as dp
        >>> def cost(noise_multiplier):
        ...     mechanism = (dp.Clip(1.0), dp.Gaussian(noise_multiplier))
        ...     return dp.Pipeline(mechanism=mechanism, sampling=dp.Poisson(0.02)).cost
        >>> plan = dp.Plan([(cost(1.5), 1000), (cost(1.0), 1000)])
        >>> print(plan.guarantee(delta=1e-5))  # doctest: +ELLIPSIS
        ε ≤ 4.46 at δ = 1e-05 · one example, add/remove · Poisson 0.02 × 2000 · PLD · ...
        >>> ledger = dp.Ledger(plan=plan)
        >>> permit = ledger.charge(cost(1.5), dp.Address(run=0, client=7, round=0), steps=1000)
        >>> permit = ledger.charge(cost(1.0), dp.Address(run=0, client=7, round=1), steps=1000)
        >>> ledger.guarantee(delta=1e-5).epsilon == plan.guarantee(delta=1e-5).epsilon
        True
    """

    releases: tuple[tuple[Cost, int], ...]

    def __init__(self, releases: Sequence[tuple[Cost, int]]):
        pairs: list[tuple[Cost, int]] = []
        for pair in cast("Sequence[Any]", releases):
            cost, steps = cast("tuple[Any, Any]", pair if _is_pair(pair) else (None, None))
            check_type(cost, Cost, f"Plan: {pair!r} is no release: give pairs such as (pipeline.cost, 100)")
            steps = whole_number(steps, "Plan(steps)", least=1, most=MOST_STEPS)
            if pairs and pairs[0][0].trust_model != cost.trust_model:
                raise ValueError(
                    f"Plan: {pairs[0][0]} and {cost} have different units or trusts, which do not compose: make a plan "
                    "for each"
                )
            if pairs and pairs[-1][0] == cost:
                steps += pairs.pop()[1]
            pairs.append((cost, steps))
        if not pairs:
            raise ValueError("Plan: nothing is planned: give pairs such as (pipeline.cost, 100)")
        object.__setattr__(self, "releases", tuple(pairs))

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash(self.releases)

    @property
    def steps(self) -> int:
        """The number of releases."""
        return self._ends[-1]

    @cached_property
    def _ends(self) -> tuple[int, ...]:
        return tuple(accumulate(steps for _, steps in self.releases))

    def after(self, done: int, cost: Cost, steps: int) -> int | None:
        """Return how many releases are done after so many more, or None if these are not the plan's next ones.

        Args:
            done: How many releases are done.
            cost: What the next ones cost.
            steps: How many they are, 1 or more.
        """
        return done + steps if steps <= self.left(done, cost) else None

    def left(self, done: int, cost: Cost) -> int:
        """Return how many releases of a cost the plan has next, before one of another cost or its end.

        Args:
            done: How many releases are done.
            cost: What the next ones cost.
        """
        place = bisect_right(self._ends, done)
        if place == len(self._ends) or self.releases[place][0] != cost:
            return 0
        return self._ends[place] - done

    def first(self, steps: int) -> tuple[tuple[Cost, int], ...]:
        """Return the (cost, steps) pairs of the first releases.

        Args:
            steps: How many releases, from 0 to `self.steps`.
        """
        return tuple(self._first(steps))

    def _first(self, steps: int) -> Iterator[tuple[Cost, int]]:
        for cost, planned in self.releases:
            if steps <= 0:
                return
            yield cost, min(planned, steps)
            steps -= planned

    def guarantee(self, delta: float, *, population: int | None = None) -> Guarantee:
        """Return the guarantee of all releases of the plan.

        Args:
            delta: δ, in (0, 1).
            population: The public number of units N; the guarantee then says whether δ is below 1/N.

        Raises:
            TypeError: `delta` is not a number.
            ValueError: `delta` or `population` lies outside its range.
        """
        return guarantee_of(self.releases, delta, population=population, planned=True)


def _is_pair(value: object) -> bool:
    return isinstance(value, tuple) and len(cast("tuple[Any, ...]", value)) == 2
