"""Ledger: records privacy charges durably before noise is drawn, and gives the permits to draw it."""

import json
import os
import sqlite3
import threading
import weakref
from collections import Counter
from pathlib import Path

from dp_accounting import (  # pyright: ignore[reportMissingTypeStubs]  # the package ships no types
    DpEvent,
    NonPrivateDpEvent,
)

from dpcomp.core.address import Address
from dpcomp.core.checks import check_type, whole_number
from dpcomp.core.errors import BudgetExhausted, DpcompError
from dpcomp.core.storage import open_database
from dpcomp.privacy.budget import Budget
from dpcomp.privacy.cost import Cost, guarantee_of
from dpcomp.privacy.events import MOST_STEPS, read_event, write_event
from dpcomp.privacy.guarantee import Guarantee

FORMAT = 2  # of the file: SQLite's user_version

SCHEMA = """
CREATE TABLE charges (
    run TEXT NOT NULL, client INTEGER NOT NULL, round INTEGER NOT NULL,
    steps INTEGER NOT NULL CHECK (steps > 0), event TEXT NOT NULL, basis TEXT NOT NULL,
    PRIMARY KEY (run, client, round)
) WITHOUT ROWID;
CREATE TABLE budgets (epsilon REAL NOT NULL, delta REAL NOT NULL);
CREATE TRIGGER budgets_once BEFORE INSERT ON budgets WHEN EXISTS (SELECT 1 FROM budgets)
    BEGIN SELECT RAISE(ABORT, 'a ledger is append-only'); END;
CREATE TRIGGER budgets_stay BEFORE DELETE ON budgets
    BEGIN SELECT RAISE(ABORT, 'a ledger is append-only'); END;
CREATE TRIGGER budgets_hold BEFORE UPDATE ON budgets
    BEGIN SELECT RAISE(ABORT, 'a ledger is append-only'); END;
CREATE TABLE seeded (run TEXT NOT NULL, client INTEGER NOT NULL, PRIMARY KEY (run, client));
CREATE TRIGGER charges_once BEFORE INSERT ON charges
    WHEN EXISTS (SELECT 1 FROM charges WHERE (run, client, round) = (NEW.run, NEW.client, NEW.round))
    BEGIN SELECT RAISE(ABORT, 'a ledger is append-only'); END;
CREATE TRIGGER seeded_stay BEFORE DELETE ON seeded
    BEGIN SELECT RAISE(ABORT, 'a ledger is append-only'); END;
CREATE TRIGGER charges_stay BEFORE DELETE ON charges
    BEGIN SELECT RAISE(ABORT, 'a ledger is append-only'); END;
CREATE TRIGGER charges_hold BEFORE UPDATE ON charges
    BEGIN SELECT RAISE(ABORT, 'a ledger is append-only'); END;
"""

TOTALS = "SELECT client, event, basis, SUM(steps) FROM charges GROUP BY client, event, basis ORDER BY client, basis"


class Permit:
    """The right to draw noise at an address, for a number of steps at a cost; `Ledger.charge` gives it.

    A permit is used up step by step, is valid in the process that charged alone, and cannot be copied or pickled.

    Attributes:
        address: Where the noise may be drawn.
        steps: The number of releases that were charged.
        used: The number of releases that were made.
    """

    def __init__(self, ledger: "Ledger", address: Address, cost: Cost, steps: int):
        self._ledger, self._process, self._lock = ledger, os.getpid(), threading.Lock()
        self._cost = cost
        self.address, self.steps, self.used = address, steps, 0

    def spend(self, cost: Cost, *, seeded: bool) -> int:
        """Use a step of the permit for a release.

        Args:
            cost: The cost of the release; it must be the cost that was charged.
            seeded: Whether the noise comes from a number, which somebody may know; the ledger records it.

        Returns:
            The number of the step, from 0.

        Raises:
            BudgetExhausted: No step is left, another cost was charged, or another process charged.
        """
        if os.getpid() != self._process:
            raise BudgetExhausted(f"{self} was given to another process: charge the ledger in the process that draws")
        if cost != self._cost:
            raise BudgetExhausted(f"{self} was charged for {self._cost}, not for {cost}: charge for this pipeline")
        if seeded:
            self._ledger.note_seeded(self.address)
        with self._lock:
            if self.used >= self.steps:
                raise BudgetExhausted(f"{self} is used up: charge more steps at the next address")
            self.used += 1
            return self.used - 1

    def __repr__(self) -> str:
        return f"Permit({self.address}, {self.used} of {self.steps} steps used)"

    def __reduce__(self):
        raise TypeError("a permit stays in the process that was charged: charge where the noise is drawn")


class Ledger:
    """An append-only record of privacy charges, in memory or durable on disk (SQLite, synced at each charge).

    A ledger on disk can be open in a single process at a time. No checkpoint holds it, so restoring a checkpoint takes
    no charge back. A budget is stored with the charges and cannot be changed; a charge that would exceed it for a
    client is refused.

    Args:
        path: The file; None keeps the ledger in memory.
        budget: The largest (ε, δ) of each client; None for no limit, or for the budget that the file holds.

    Raises:
        DpcompError: The file cannot be opened, is open in another process, is not a ledger, has another format number,
            or has another budget.
        BudgetExhausted: A client has spent more than the budget already.

    Examples:
        >>> import dpcomp as dp
        >>> pipeline = dp.Pipeline(mechanism=(dp.Clip(1.0), dp.Gaussian(2.0)), sampling=dp.Poisson(0.1))
        >>> with dp.Ledger() as ledger:
        ...     for round_number in range(100):
        ...         permit = ledger.charge(pipeline.cost, dp.Address(run=0, client=7, round=round_number))
        ...     print(ledger.guarantee(delta=1e-5))  # doctest: +ELLIPSIS
        ε ≤ 2.34 at δ = 1e-05 · one example, add/remove · Poisson 0.1 × 100 · ...
    """

    def __init__(self, path: str | os.PathLike[str] | None = None, budget: Budget | None = None):
        self._name = ":memory:" if path is None else str(Path(path))
        self._process = os.getpid()
        self._seeded: set[tuple[str, int]] = set()
        self._spent: dict[int, Counter[tuple[str, str]]] = {}  # client → (event, basis), as text → steps
        try:
            self._database = open_database(self._name)
            self._refuse_other_format()
            for client, event, basis, steps in self._database.execute(TOTALS):
                self._spent.setdefault(client, Counter())[event, basis] = steps
        except sqlite3.OperationalError as error:
            raise DpcompError(
                f"the ledger {self._name} cannot be opened ({error}): does its folder exist, and is it open in "
                "another process? A single process at a time may hold a ledger"
            ) from error
        except sqlite3.DatabaseError as error:
            raise DpcompError(f"{self._name} is no ledger ({error}): give another path, or restore the file") from error
        self._finalizer = weakref.finalize(self, _close, self._database, self._process)
        self._lock = threading.Lock()
        self.budget = self._kept_budget(budget)

    def charge(self, cost: Cost, address: Address, steps: int = 1) -> Permit:
        """Record the cost of releases at an address durably, and return the permit to make them.

        An address is charged once. Its noise may exist already, and a second draw would be a second release: re-send
        the stored bytes, or forfeit the round.

        Args:
            cost: The cost of a single release: `pipeline.cost`.
            address: Where the releases are made: `memory.address`.
            steps: The number of releases, 1 or more.

        Returns:
            A permit for that number of releases, in this process alone.

        Raises:
            BudgetExhausted: The charge would exceed the budget, or the address was charged before.
            TypeError: `cost` is not a `Cost`, or `steps` not a whole number.
            ValueError: `steps` is below 1, or the ledger holds charges for another unit or trust.
            DpcompError: Another process opened the ledger.

        Examples:
            >>> import dpcomp as dp
            >>> pipeline = dp.Pipeline(mechanism=(dp.Clip(1.0), dp.Gaussian(1.0)))
            >>> memory = pipeline.init_client(10, dp.PublicSeed(0), client=7)
            >>> dp.Ledger().charge(pipeline.cost, memory.address, steps=3)
            Permit(Address(run=0, client=7, round=0), 0 of 3 steps used)
        """
        check_type(cost, Cost, f"charge(cost={cost!r}): a Cost is charged, such as pipeline.cost")
        steps = whole_number(steps, "charge(steps)", least=1, most=MOST_STEPS)
        if os.getpid() != self._process:
            raise DpcompError(
                f"the ledger {self._name} was opened by another process: open it in the process that charges"
            )
        self._refuse_other_unit_or_trust(cost)
        charged = _as_text(cost)
        with self._lock:
            spent = self._spent.get(address.client, Counter()) + Counter({charged: steps})
            self._refuse_beyond_budget(address, spent)
            try:
                row = (str(address.run), address.client, address.round, steps, *charged)
                self._database.execute("INSERT INTO charges VALUES (?, ?, ?, ?, ?, ?)", row)
            except sqlite3.IntegrityError as error:
                raise BudgetExhausted(
                    f"{address} was charged before, and its noise may have been drawn: re-send the stored bytes or "
                    "forfeit the round. A new release needs a new address: follow a broadcast, which begins the next "
                    "round, or, for the data of another client, use that client's number. To compare pipelines on the "
                    "same data, give each a fresh dp.Ledger()"
                ) from error
            self._spent[address.client] = spent
        return Permit(self, address, cost, steps)

    def charged(self, address: Address) -> bool:
        """Return whether an address was charged; its noise may have been drawn, and no more may be released there."""
        key = (str(address.run), address.client, address.round)
        row = self._database.execute("SELECT 1 FROM charges WHERE (run, client, round) = (?, ?, ?)", key)
        return row.fetchone() is not None

    def guarantee(self, delta: float, population: int | None = None) -> Guarantee:
        """Return the guarantee of all charges so far: the largest over clients, whose data are disjoint.

        Args:
            delta: δ, in (0, 1).
            population: The public number of units N; the guarantee then says whether δ is below 1/N.

        Raises:
            TypeError: `delta` is not a number.
            ValueError: `delta` or `population` lies outside its range.
        """
        if not self._spent:
            # Zero steps of any event cost nothing, but a guarantee has to name a unit and a trust.
            nothing = Cost(event=NonPrivateDpEvent(), unit="example", trust="nobody", sampling="none")
            return nothing.guarantee(0, delta, population=population)
        seeded = self._database.execute("SELECT COUNT(*) FROM seeded").fetchone()[0] > 0
        histories = {tuple(spent.items()) for spent in self._spent.values()}
        guarantees = [
            guarantee_of(
                [(_from_text(*text), steps) for text, steps in spent], delta, population=population, seeded=seeded
            )
            for spent in histories
        ]
        return max(guarantees, key=lambda guarantee: guarantee.epsilon)

    def note_seeded(self, address: Address) -> None:
        """Record that noise was drawn from a seed, so that the guarantee says so."""
        who = (str(address.run), address.client)
        if who not in self._seeded:
            self._database.execute("INSERT OR IGNORE INTO seeded VALUES (?, ?)", who)
            self._seeded.add(who)

    def close(self) -> None:
        """Close the file, so that another process may open it."""
        self._finalizer()

    def __enter__(self) -> "Ledger":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Ledger({self._name!r})"

    def _kept_budget(self, budget: Budget | None) -> Budget | None:
        """Return the budget that the file holds; if it holds none, store the given budget."""
        row = self._database.execute("SELECT epsilon, delta FROM budgets").fetchone()
        kept = None if row is None else Budget(*row)
        if kept is None and budget is not None:
            for client, spent in self._spent.items():
                if not budget.allows(_by_event(spent)):
                    self.close()
                    raise BudgetExhausted(f"{self}: client {client} has spent more than {budget} already")
            self._database.execute("INSERT INTO budgets VALUES (?, ?)", (budget.epsilon, budget.delta))
            return budget
        if budget is not None and budget != kept:
            self.close()
            raise DpcompError(f"{self} has {kept}, not {budget}: a budget is never changed; start another ledger")
        return kept

    def _refuse_beyond_budget(self, address: Address, spent: Counter[tuple[str, str]]) -> None:
        if self.budget is not None and not self.budget.allows(_by_event(spent)):
            raise BudgetExhausted(
                f"charging {address} would take client {address.client} to {sum(spent.values())} steps, beyond "
                f"{self.budget}: nothing was charged. Stop here, charge fewer steps, or add more noise"
            )

    def _refuse_other_unit_or_trust(self, cost: Cost) -> None:
        if not self._spent:
            return
        held = _from_text(*next(iter(next(iter(self._spent.values())))))
        if held.trust_model != cost.trust_model:
            raise ValueError(
                f"{self} holds charges for unit={held.unit!r} with trust={held.trust!r}; this charge is for "
                f"unit={cost.unit!r} with trust={cost.trust!r}. They do not compose: keep a ledger for each"
            )

    def _refuse_other_format(self) -> None:
        """Refuse a file with another format number; a new file gets the present number."""
        number = self._database.execute("PRAGMA user_version").fetchone()[0]
        empty = self._database.execute("SELECT NOT EXISTS (SELECT 1 FROM sqlite_master)").fetchone()[0]
        if empty:
            self._database.executescript(f"BEGIN IMMEDIATE; {SCHEMA} PRAGMA user_version = {FORMAT}; COMMIT;")
        elif number != FORMAT:
            self._database.close()
            raise DpcompError(
                f"{self._name} has ledger format {number}, not {FORMAT}: use the version of dpcomp that wrote it"
            )


def _close(database: sqlite3.Connection, process: int) -> None:
    # A forked child that closed its copy would checkpoint and remove the log that its parent still writes.
    if os.getpid() == process:
        database.close()


def _by_event(spent: Counter[tuple[str, str]]) -> dict[DpEvent, int]:
    """Sum the steps of each event, over the bases on which they were charged."""
    steps_of: dict[DpEvent, int] = {}
    for (event, _), steps in spent.items():
        steps_of[read_event(event)] = steps_of.get(read_event(event), 0) + steps
    return steps_of


def _as_text(cost: Cost) -> tuple[str, str]:
    """Write a cost as two columns of a row: its event; and its basis, which is all else."""
    basis = {"unit": cost.unit, "trust": cost.trust, "sampling": cost.sampling, "why_unsafe": cost.why_unsafe}
    return write_event(cost.event), json.dumps(basis, sort_keys=True)


def _from_text(event: str, basis: str) -> Cost:
    """Read a cost that `_as_text` wrote."""
    return Cost(event=read_event(event), **json.loads(basis))
