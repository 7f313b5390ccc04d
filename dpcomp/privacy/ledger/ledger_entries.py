"""LedgerEntries: the charges of a ledger, in columns, and what each client has spent."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, cast, overload

import numpy as np
from jaxtyping import Int64

from dpcomp.core.address import Address
from dpcomp.privacy.cost import Cost
from dpcomp.privacy.ledger.cost_text import CostText, cost_from_text
from dpcomp.privacy.plan import Plan

LARGEST_SUM = 2**62  # of an int64 column; sums that may be larger are made of Python's numbers


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


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class LedgerEntries(Sequence[LedgerEntry]):
    """The charges of a ledger in their order; an entry is made when it is looked at.

    Attributes:
        times: When each was charged, in seconds since 1970 (UTC).
        clients: The client of each.
        rounds: The round of each.
        steps: The number of releases of each.
        run_places: For each the place of its run in `runs`.
        cost_places: For each the place of its cost in `costs`.
        runs: The runs that occur, as text.
        costs: The costs that occur, as text.
    """

    times: Int64[np.ndarray, "charges"]
    clients: Int64[np.ndarray, "charges"]
    rounds: Int64[np.ndarray, "charges"]
    steps: Int64[np.ndarray, "charges"]
    run_places: Int64[np.ndarray, "charges"]
    cost_places: Int64[np.ndarray, "charges"]
    runs: tuple[str, ...]
    costs: tuple[CostText, ...]

    def __len__(self) -> int:
        return len(self.times)

    @overload
    def __getitem__(self, index: int) -> LedgerEntry: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[LedgerEntry]: ...
    def __getitem__(self, index: int | slice) -> LedgerEntry | Sequence[LedgerEntry]:
        if isinstance(index, slice):
            return tuple(self[place] for place in range(*index.indices(len(self))))
        columns: Any = (self.times, self.run_places, self.clients, self.rounds, self.steps, self.cost_places)
        when, run, client, number, steps, cost = (int(column[index]) for column in columns)
        return LedgerEntry(
            time=utc(when),
            address=Address(int(self.runs[run]), client, number),
            steps=steps,
            cost=cost_from_text(*self.costs[cost]),
        )

    def __iter__(self) -> Iterator[LedgerEntry]:
        return (self[place] for place in range(len(self)))

    def __repr__(self) -> str:
        return f"LedgerEntries({len(self)} charges)"

    def histories(self, plan: Plan | None, count: int) -> dict[int, History]:
        """Return what each client has spent in the first charges.

        Args:
            plan: The ledger's plan, if it has one.
            count: How many charges, from 0 to all.

        Returns:
            The history of each client that was charged, in the order of their numbers.
        """
        clients, steps, costs = self.clients[:count], self.steps[:count], self.cost_places[:count]
        if count == 0:
            return {}
        wide = int(steps.max()) * count > LARGEST_SUM
        counted: Any = steps.astype(object) if wide else steps
        keys, place = cast("tuple[Any, Any]", np.unique(clients * len(self.costs) + costs, return_inverse=True))
        sums: Any = np.zeros(len(keys), dtype=object if wide else np.int64)
        np.add.at(sums, place, counted)
        spent: dict[int, Counter[CostText]] = {}
        for key, total in zip(keys.tolist(), sums.tolist(), strict=True):
            client, cost = divmod(key, len(self.costs))
            spent.setdefault(client, Counter())[self.costs[cost]] = total
        followed = {} if plan is None else self._followed(plan, count, counted)
        return {client: History(spent=each, followed=followed.get(client)) for client, each in spent.items()}

    def _followed(self, plan: Plan, count: int, steps: Any) -> dict[int, int]:
        """Return how many steps of the plan each client has done that never departed from it.

        A client that follows the plan has done as many of its steps as it was charged. So a charge follows it if all
        its steps stand in the one release of the plan that comes at that number.
        """
        order = cast("Any", np.argsort(self.clients[:count], kind="stable"))
        clients, charged, costs = self.clients[:count][order], steps[order], self.cost_places[:count][order]
        begins = np.flatnonzero(np.diff(clients, prepend=clients[0] - 1))
        ends = np.append(begins[1:], count)
        after = cast("Any", np.cumsum(charged))
        before = after - charged
        base = np.repeat(before[begins], ends - begins)
        before, after = before - base, after - base
        planned_steps = np.array([planned for _, planned in plan.releases], dtype=steps.dtype)
        planned_ends = cast("Any", np.cumsum(planned_steps))
        place = cast("Any", np.searchsorted(planned_ends, before, side="right"))
        within = place < len(planned_ends)
        place = np.minimum(place, len(planned_ends) - 1)
        known = {cost_from_text(*text): number for number, text in enumerate(self.costs)}
        of_release = np.array([known.get(cost, -1) for cost, _ in plan.releases])
        in_one = (after <= planned_ends[place]).astype(bool)
        follows = within & (of_release[place] == costs) & in_one
        all_follow = np.logical_and.reduceat(follows, begins)
        return {
            int(clients[begin]): int(after[end - 1])
            for begin, end, follow in zip(begins.tolist(), ends.tolist(), all_follow.tolist(), strict=True)
            if follow
        }


def utc(seconds: int) -> datetime:
    """Return a time that a ledger holds, in seconds since 1970."""
    return datetime.fromtimestamp(seconds, tz=UTC)
