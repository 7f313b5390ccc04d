"""What a ledger holds, as a value that charges nothing."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from dp_accounting import (  # pyright: ignore[reportMissingTypeStubs]  # the package ships no types
    DpEvent,
    NonPrivateDpEvent,
)

from dpcomp.core.address import Address
from dpcomp.privacy.accounting.events import read_event, write_event
from dpcomp.privacy.budget import Budget
from dpcomp.privacy.cost import Cost, guarantee_of
from dpcomp.privacy.guarantee import Guarantee
from dpcomp.privacy.ledger.ledger_file import LedgerMark
from dpcomp.privacy.plan import Plan

CostText = tuple[str, str]  # a cost as two columns of a row: its event; and its basis, which is all else


@dataclass(frozen=True, kw_only=True)
class History:
    """What a client has spent, and how far it has followed its plan.

    Attributes:
        spent: The steps at each cost.
        followed: How many steps of the plan are done; None if there is no plan, or a charge departed from it.
    """

    spent: Mapping[CostText, int] = field(default_factory=Counter[CostText])
    followed: int | None = None

    @staticmethod
    def begin(plan: Plan | None) -> "History":
        """Return the history of a client that has spent nothing."""
        return History(followed=None if plan is None else 0)

    def charged(self, charge: CostText, steps: int, plan: Plan | None) -> "History":
        """Return the history after a charge.

        Args:
            charge: What each release costs.
            steps: The number of releases, 1 or more.
            plan: The ledger's plan, if it has one.
        """
        followed = None
        if plan is not None and self.followed is not None:
            followed = plan.after(self.followed, cost_from_text(*charge), steps)
        return History(spent=Counter(self.spent) + Counter({charge: steps}), followed=followed)


@dataclass(frozen=True, kw_only=True)
class LedgerEntry:
    """A charge of a ledger.

    Attributes:
        time: When it was charged, to the second, in UTC.
        address: Where the releases are made.
        steps: The number of releases.
        cost: The cost of each of them.
    """

    time: datetime
    address: Address
    steps: int
    cost: Cost


@dataclass(frozen=True, kw_only=True, repr=False)
class LedgerRecord:
    """What a ledger held at a moment; `Ledger.read` returns it. It charges nothing, and does not change.

    Attributes:
        name: The ledger's path.
        budget: The largest (ε, δ) of each client; None for no limit.
        plan: What each client was to release, as it was recorded before the first charge; None if nothing was.
        research: Whether noise from numbered seeds may be charged.
        seeded: Whether noise from a numbered seed was charged.
        assumed: What those who released assumed, in clauses.
        entries: The charges, in the order in which they were made.
        mark: How far the ledger had come.
    """

    name: str
    budget: Budget | None
    plan: Plan | None
    research: bool
    seeded: bool
    assumed: tuple[str, ...]
    entries: tuple[LedgerEntry, ...]
    mark: LedgerMark

    def guarantee(self, delta: float, population: int | None = None) -> Guarantee:
        """Return the guarantee of these charges: the largest over clients, whose data are disjoint.

        Args:
            delta: δ, in (0, 1).
            population: The public number of units N; the guarantee then says whether δ is below 1/N.

        Raises:
            TypeError: `delta` is not a number.
            ValueError: `delta` or `population` lies outside its range.
        """
        histories: dict[int, History] = {}
        for entry in self.entries:
            before = histories.get(entry.address.client, History.begin(self.plan))
            histories[entry.address.client] = before.charged(cost_as_text(entry.cost), entry.steps, self.plan)
        return guarantee_of_histories(
            histories.values(), delta, self.plan, population=population, seeded=self.seeded, assumed=self.assumed
        )

    def __repr__(self) -> str:
        return f"LedgerRecord({self.name!r}, {len(self.entries)} charges)"


def guarantee_of_histories(
    histories: Iterable[History],
    delta: float,
    plan: Plan | None,
    *,
    population: int | None,
    seeded: bool,
    assumed: tuple[str, ...],
) -> Guarantee:
    """Return the guarantee of what clients have spent: the largest over clients, whose data are disjoint.

    ε grows with each number of steps, so it is computed for histories alone of which no other has as many steps of
    each event.

    Args:
        histories: The history of each client.
        delta: δ, in (0, 1).
        plan: The ledger's plan, if it has one.
        population: The public number of units N; the guarantee then says whether δ is below 1/N.
        seeded: Whether noise was drawn from a number, which somebody may know.
        assumed: What those who released assumed, in clauses.

    Raises:
        TypeError: `delta` is not a number.
        ValueError: `delta` or `population` lies outside its range.
    """
    followed, spent = 0, dict[frozenset[tuple[CostText, int]], Mapping[CostText, int]]()
    for history in histories:
        if history.followed is None:
            spent[frozenset(history.spent.items())] = history.spent
        else:
            followed = max(followed, history.followed)
    planned = [] if plan is None or not followed else [(plan.first(followed), True)]
    departed = None if plan is None else False
    others = [([(cost_from_text(*text), n) for text, n in each.items()], departed) for each in _largest(spent.values())]
    guarantees = [
        guarantee_of(charges, delta, population=population, planned=is_planned, seeded=seeded, assumed=assumed)
        for charges, is_planned in (*planned, *others)
    ]
    if guarantees:
        return max(guarantees, key=lambda guarantee: guarantee.epsilon)
    # Zero steps of any event cost nothing, but a guarantee has to name a unit and a trust.
    nothing = Cost(event=NonPrivateDpEvent(), unit="example", trust="nobody", sampling="none")
    return nothing.guarantee(0, delta, population=population)


def _largest(spent: Iterable[Mapping[CostText, int]]) -> list[Mapping[CostText, int]]:
    """Return those of which no other one has as many steps at each cost."""
    largest: list[Mapping[CostText, int]] = []
    for here in sorted(spent, key=lambda each: sum(each.values()), reverse=True):
        if not any(all(other.get(cost, 0) >= steps for cost, steps in here.items()) for other in largest):
            largest.append(here)
    return largest


def steps_of_events(spent: Mapping[CostText, int]) -> dict[DpEvent, int]:
    """Sum the steps of each event that a client has spent, over the bases on which they were charged."""
    steps_of: dict[DpEvent, int] = {}
    for (event, _), steps in spent.items():
        steps_of[read_event(event)] = steps_of.get(read_event(event), 0) + steps
    return steps_of


def cost_as_text(cost: Cost) -> CostText:
    """Write a cost as two columns of a row."""
    basis: dict[str, Any] = {
        "unit": cost.unit,
        "trust": cost.trust,
        "sampling": cost.sampling,
        "why_unsafe": cost.why_unsafe,
    }
    if cost.assumed:
        basis["assumed"] = cost.assumed
    return write_event(cost.event), json.dumps(basis, sort_keys=True)


@lru_cache(maxsize=1024)
def cost_from_text(event: str, basis: str) -> Cost:
    """Read a cost that `cost_as_text` wrote."""
    fields = json.loads(basis)
    fields["assumed"] = tuple(fields.get("assumed", ()))
    return Cost(event=read_event(event), **fields)


def plan_as_text(plan: Plan) -> str:
    """Write a plan as a column of a row."""
    return json.dumps([[*cost_as_text(cost), steps] for cost, steps in plan.releases])


def plan_from_text(text: str) -> Plan:
    """Read a plan that `plan_as_text` wrote."""
    return Plan([(cost_from_text(event, basis), steps) for event, basis, steps in json.loads(text)])


def utc(seconds: int) -> datetime:
    """Return a time that a ledger holds, in seconds since 1970."""
    return datetime.fromtimestamp(seconds, tz=UTC)
