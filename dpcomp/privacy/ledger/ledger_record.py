"""What a ledger holds, as a value that charges nothing."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property

from dp_accounting import (  # pyright: ignore[reportMissingTypeStubs]  # the package ships no types
    DpEvent,
    NonPrivateDpEvent,
)

from dpcomp.core.address import Address, client_number
from dpcomp.core.checks import whole_number
from dpcomp.privacy.accounting.events import read_event
from dpcomp.privacy.cost import INCOMPLETE, Cost, guarantee_of
from dpcomp.privacy.guarantee import Guarantee
from dpcomp.privacy.ledger.budget import Budget
from dpcomp.privacy.ledger.cost_text import CostText, cost_from_text
from dpcomp.privacy.ledger.display import as_html, delta_shown
from dpcomp.privacy.ledger.ledger_entries import History, LedgerEntries
from dpcomp.privacy.ledger.ledger_file import LedgerMark
from dpcomp.privacy.plan import Plan


@dataclass(frozen=True, kw_only=True, repr=False)
class LedgerRecord:
    """What a ledger held at a moment; `Ledger.read` returns it. It charges nothing, and does not change.

    Attributes:
        name: The ledger's path.
        created: When it was created, in UTC.
        budget: The largest (ε, δ) of each client; None for no limit.
        plan: What each client was to release, as it was recorded before the first charge; None if nothing was.
        research: Whether noise from numbered seeds may be charged.
        seeded: Whether noise from a numbered seed was charged.
        assumed: What those who released assumed, in clauses.
        entries: The charges, in the order in which they were made.
        mark: How far the ledger had come.
    """

    name: str
    created: datetime
    budget: Budget | None
    plan: Plan | None
    research: bool
    seeded: bool
    assumed: tuple[str, ...]
    entries: LedgerEntries
    mark: LedgerMark

    @property
    def incomplete(self) -> str:
        """Why the ledger lacks charges of releases that were made; empty if nothing says so."""
        return incomplete_in(self.assumed)

    def guarantee(self, delta: float, population: int | None = None) -> Guarantee:
        """Return the guarantee of these charges: the largest over clients, whose data are disjoint.

        Args:
            delta: δ, in (0, 1).
            population: The public number of units N; the guarantee then says whether δ is below 1/N.

        Raises:
            TypeError: `delta` is not a number.
            ValueError: `delta` or `population` lies outside its range.
        """
        return guarantee_of_histories(
            self.histories.values(), delta, self.plan, population=population, seeded=self.seeded, assumed=self.assumed
        )

    @cached_property
    def histories(self) -> Mapping[int, History]:
        """What each client has spent, by its number."""
        return self.entries.histories(self.plan, len(self.entries))

    def charged_rounds(self, run: int, client: int) -> frozenset[int]:
        """Return the rounds of a run that a client was charged for, as `Ledger.charged_rounds` does.

        Args:
            run: The number of the run: that of its public seed.
            client: The client's number.

        Raises:
            TypeError, ValueError: As `Ledger.charged_rounds` does.
        """
        entries, place = self.entries, Address(run, client, 0)
        if str(place.run) not in entries.runs:
            return frozenset()
        charged = (entries.run_places == entries.runs.index(str(place.run))) & (entries.clients == place.client)
        return frozenset(entries.rounds[charged].tolist())

    def guarantee_of(self, client: int, delta: float, population: int | None = None) -> Guarantee:
        """Return the guarantee of one client's charges; of a client without any, ε is 0.

        Args:
            client: The client's number.
            delta: δ, in (0, 1).
            population: The public number of units N; the guarantee then says whether δ is below 1/N.

        Raises:
            TypeError: `delta` is not a number, or `client` not a whole one.
            ValueError: `client`, `delta` or `population` lies outside its range.
        """
        history = self.histories.get(client_number(client, "guarantee_of(client)"))
        return guarantee_of_histories(
            [] if history is None else [history],
            delta,
            self.plan,
            population=population,
            seeded=self.seeded,
            assumed=self.assumed,
        )

    def guarantee_after(self, count: int, delta: float) -> Guarantee:
        """Return the guarantee that the first charges had.

        Args:
            count: The number of charges, from 0 to all.
            delta: δ, in (0, 1).

        Raises:
            TypeError: `delta` is not a number, or `count` not a whole one.
            ValueError: `count` or `delta` lies outside its range.
        """
        count = whole_number(count, "guarantee_after(count)", least=0, most=len(self.entries))
        histories = self.entries.histories(self.plan, count).values()
        return guarantee_of_histories(
            histories, delta, self.plan, population=None, seeded=self.seeded, assumed=self.assumed
        )

    def __repr__(self) -> str:
        return f"LedgerRecord({self.name!r}, {len(self.entries)} charges)"

    def _repr_html_(self) -> str:
        return as_html(
            f"Ledger, {self.name}",
            self.mark,
            self.histories,
            self.budget,
            self.plan,
            self.guarantee(delta_shown(self.budget)),
            research=self.research,
        )


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
    incomplete = tuple(clause for clause in assumed if clause.startswith(INCOMPLETE))
    guarantees = [
        guarantee_of(charges, delta, population=population, planned=is_planned, seeded=seeded, assumed=assumed)
        for charges, is_planned in (*planned, *others)
    ]
    if guarantees:
        largest = max(guarantees, key=lambda guarantee: guarantee.epsilon)
    else:
        # Zero steps of any event cost nothing, but a guarantee has to name a unit and a trust.
        nothing = Cost(event=NonPrivateDpEvent(), unit="example", trust="nobody", sampling="none")
        largest = nothing.guarantee(0, delta, population=population)
    if not incomplete:
        return largest
    # Nobody knows what was released beside these charges.
    clauses = tuple(dict.fromkeys((*incomplete, *largest.assumptions)))
    return replace(largest, epsilon=math.inf, accountant="none", assumptions=clauses)


def incomplete_in(assumed: Iterable[str]) -> str:
    """Return what the clauses of a ledger say of releases that it was not charged for; empty if they say nothing."""
    return "; ".join(clause.removeprefix(INCOMPLETE) for clause in assumed if clause.startswith(INCOMPLETE))


def _largest(spent: Iterable[Mapping[CostText, int]]) -> list[Mapping[CostText, int]]:
    """Return those of which no other one has as many steps at each cost."""
    largest: list[Mapping[CostText, int]] = []
    for here in sorted(spent, key=lambda each: sum(each.values()), reverse=True):
        if not any(all(other.get(cost, 0) >= steps for cost, steps in here.items()) for other in largest):
            largest.append(here)
    return largest


def within(budget: Budget, plan: Plan | None, history: History) -> bool:
    """Return whether a client's history is within a budget.

    Args:
        budget: The largest (ε, δ) of a client.
        plan: The ledger's plan, if it has one.
        history: What the client has spent.
    """
    if plan is not None and history.followed is not None:
        return budget.allows_planned(plan, history.followed)
    return budget.allows(steps_of_events(history.spent), departed=plan is not None)


def steps_of_events(spent: Mapping[CostText, int]) -> dict[DpEvent, int]:
    """Sum the steps of each event that a client has spent, over the bases on which they were charged."""
    steps_of: dict[DpEvent, int] = {}
    for (event, _), steps in spent.items():
        steps_of[read_event(event)] = steps_of.get(read_event(event), 0) + steps
    return steps_of
