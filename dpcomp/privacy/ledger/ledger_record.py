"""What a ledger holds, as a value that charges nothing."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache

from dp_accounting import (  # pyright: ignore[reportMissingTypeStubs]  # the package ships no types
    DpEvent,
    NonPrivateDpEvent,
)

from dpcomp.core.address import Address
from dpcomp.privacy.budget import Budget
from dpcomp.privacy.cost import Cost, guarantee_of
from dpcomp.privacy.events import read_event, write_event
from dpcomp.privacy.guarantee import Guarantee
from dpcomp.privacy.ledger.ledger_file import LedgerMark

CostText = tuple[str, str]  # a cost as two columns of a row: its event; and its basis, which is all else
Spent = Mapping[int, Mapping[CostText, int]]  # client → cost → steps


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
        research: Whether noise from numbered seeds may be charged.
        seeded: Whether noise from a numbered seed was charged.
        assumed: What those who released assumed, in clauses.
        entries: The charges, in the order in which they were made.
        mark: How far the ledger had come.
    """

    name: str
    budget: Budget | None
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
        spent: dict[int, Counter[CostText]] = {}
        for entry in self.entries:
            spent.setdefault(entry.address.client, Counter())[cost_as_text(entry.cost)] += entry.steps
        return guarantee_of_spent(spent, delta, population=population, seeded=self.seeded, assumed=self.assumed)

    def __repr__(self) -> str:
        return f"LedgerRecord({self.name!r}, {len(self.entries)} charges)"


def guarantee_of_spent(
    spent: Spent, delta: float, *, population: int | None, seeded: bool, assumed: tuple[str, ...]
) -> Guarantee:
    """Return the guarantee of what each client has spent: the largest over clients, whose data are disjoint.

    Args:
        spent: The steps at each cost, for each client.
        delta: δ, in (0, 1).
        population: The public number of units N; the guarantee then says whether δ is below 1/N.
        seeded: Whether noise was drawn from a number, which somebody may know.
        assumed: What those who released assumed, in clauses.

    Raises:
        TypeError: `delta` is not a number.
        ValueError: `delta` or `population` lies outside its range.
    """
    if not spent:
        # Zero steps of any event cost nothing, but a guarantee has to name a unit and a trust.
        nothing = Cost(event=NonPrivateDpEvent(), unit="example", trust="nobody", sampling="none")
        return nothing.guarantee(0, delta, population=population)
    histories = dict.fromkeys(tuple(steps_of.items()) for steps_of in spent.values())  # of equal ε, always the first
    guarantees = [
        guarantee_of(
            [(cost_from_text(*text), steps) for text, steps in history],
            delta,
            population=population,
            seeded=seeded,
            assumed=assumed,
        )
        for history in histories
    ]
    return max(guarantees, key=lambda guarantee: guarantee.epsilon)


def steps_of_events(spent: Mapping[CostText, int]) -> dict[DpEvent, int]:
    """Sum the steps of each event that a client has spent, over the bases on which they were charged."""
    steps_of: dict[DpEvent, int] = {}
    for (event, _), steps in spent.items():
        steps_of[read_event(event)] = steps_of.get(read_event(event), 0) + steps
    return steps_of


def cost_as_text(cost: Cost) -> CostText:
    """Write a cost as two columns of a row."""
    basis = {"unit": cost.unit, "trust": cost.trust, "sampling": cost.sampling, "why_unsafe": cost.why_unsafe}
    return write_event(cost.event), json.dumps(basis, sort_keys=True)


@lru_cache(maxsize=1024)
def cost_from_text(event: str, basis: str) -> Cost:
    """Read a cost that `cost_as_text` wrote."""
    return Cost(event=read_event(event), **json.loads(basis))


def utc(seconds: int) -> datetime:
    """Return a time that a ledger holds, in seconds since 1970."""
    return datetime.fromtimestamp(seconds, tz=UTC)
