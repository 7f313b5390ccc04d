"""The ledger: what was spent, durable before any noise exists; and the permit to draw that noise."""

import json
import os
import sqlite3
import threading
import weakref
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from dp_accounting import DpEvent, GaussianDpEvent, NonPrivateDpEvent, PoissonSampledDpEvent

from dpcomp.core.address import Address
from dpcomp.core.errors import BudgetExhausted, DpcompError
from dpcomp.privacy.budget import MOST_STEPS, Budget
from dpcomp.privacy.cost import Terms
from dpcomp.privacy.guarantee import Guarantee

if TYPE_CHECKING:
    from dpcomp.pipeline import Pipeline

SCHEMA = """
CREATE TABLE IF NOT EXISTS charges (
    run TEXT NOT NULL, client INTEGER NOT NULL, round INTEGER NOT NULL,
    steps INTEGER NOT NULL CHECK (steps > 0), event TEXT NOT NULL, terms TEXT NOT NULL,
    PRIMARY KEY (run, client, round)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS budgets (epsilon REAL NOT NULL, delta REAL NOT NULL);
CREATE TRIGGER IF NOT EXISTS budgets_once BEFORE INSERT ON budgets WHEN EXISTS (SELECT 1 FROM budgets)
    BEGIN SELECT RAISE(ABORT, 'a ledger is append-only'); END;
CREATE TRIGGER IF NOT EXISTS budgets_stay BEFORE DELETE ON budgets
    BEGIN SELECT RAISE(ABORT, 'a ledger is append-only'); END;
CREATE TRIGGER IF NOT EXISTS budgets_hold BEFORE UPDATE ON budgets
    BEGIN SELECT RAISE(ABORT, 'a ledger is append-only'); END;
CREATE TABLE IF NOT EXISTS seeded (run TEXT NOT NULL, client INTEGER NOT NULL, PRIMARY KEY (run, client));
CREATE TRIGGER IF NOT EXISTS charges_once BEFORE INSERT ON charges
    WHEN EXISTS (SELECT 1 FROM charges WHERE (run, client, round) = (NEW.run, NEW.client, NEW.round))
    BEGIN SELECT RAISE(ABORT, 'a ledger is append-only'); END;
CREATE TRIGGER IF NOT EXISTS seeded_stay BEFORE DELETE ON seeded
    BEGIN SELECT RAISE(ABORT, 'a ledger is append-only'); END;
CREATE TRIGGER IF NOT EXISTS charges_stay BEFORE DELETE ON charges
    BEGIN SELECT RAISE(ABORT, 'a ledger is append-only'); END;
CREATE TRIGGER IF NOT EXISTS charges_hold BEFORE UPDATE ON charges
    BEGIN SELECT RAISE(ABORT, 'a ledger is append-only'); END;
"""


TOTALS = "SELECT client, event, terms, SUM(steps) FROM charges GROUP BY client, event, terms ORDER BY client, terms"


class Permit:
    """The right to draw noise at an address, so many steps of it, for one event; given by a ledger alone."""

    def __init__(self, ledger: "Ledger", address: Address, pipeline: "Pipeline", steps: int):
        self._ledger, self._process, self._lock = ledger, os.getpid(), threading.Lock()
        self._charged = (pipeline.event, pipeline.terms)
        self.address, self.steps, self.used = address, steps, 0

    def spend(self, pipeline: "Pipeline", *, seeded: bool) -> int:
        """Use one step for a release of the pipeline; the number of the step, from 0.

        Raises:
            BudgetExhausted: no step is left, the charge was for another event, or this is another
                process than the one that was charged.
        """
        if os.getpid() != self._process:
            raise BudgetExhausted(f"{self} was given to another process: charge the ledger in the one that draws")
        wanted = (pipeline.event, pipeline.terms)
        if wanted != self._charged:
            raise BudgetExhausted(f"{self} was charged for {self._charged}, not for {wanted}: charge for this pipeline")
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
    """An append-only record of charges: in memory, or, given a path, durable on disk (SQLite, fsynced).

    A ledger on disk is open in one process at a time. It stands apart from every checkpoint: nothing takes
    a charge back. With a budget, which is kept with the charges, it refuses what would exceed it for a client.

    Raises:
        DpcompError: the file cannot be opened, is open in another process, is no ledger, or has another budget.
        BudgetExhausted: what was charged before exceeds the budget that it now gets.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None, budget: Budget | None = None):
        self._name = ":memory:" if path is None else str(Path(path))
        self._process = os.getpid()
        self._seeded: set[tuple[str, int]] = set()
        self._spent: dict[int, Counter[tuple[str, str]]] = {}  # client → (event, terms) → steps
        try:
            self._database = sqlite3.connect(self._name, timeout=0.0, isolation_level=None, check_same_thread=False)
            self._database.executescript("PRAGMA locking_mode = EXCLUSIVE; PRAGMA journal_mode = WAL;")
            self._database.executescript("PRAGMA synchronous = FULL; BEGIN IMMEDIATE;" + SCHEMA + "COMMIT;")
            for client, event, terms, steps in self._database.execute(TOTALS):
                self._spent.setdefault(client, Counter())[event, terms] = steps
        except sqlite3.OperationalError as error:
            raise DpcompError(
                f"the ledger {self._name} cannot be opened ({error}): is its folder there, and is it open in "
                "another process? One process at a time holds a ledger"
            ) from error
        except sqlite3.DatabaseError as error:
            raise DpcompError(f"{self._name} is no ledger ({error}): name another file, or restore this one") from error
        self._finalizer = weakref.finalize(self, _close, self._database, self._process)
        self._lock = threading.Lock()
        self.budget = self._kept_budget(budget)

    def charge(self, pipeline: "Pipeline", address: Address, steps: int = 1) -> Permit:
        """Record `steps` releases at an address, durably, and give the right to make them.

        Raises:
            BudgetExhausted: the charge would exceed the budget; or the address was charged before. Its noise may exist
                already, and a second draw would be a second release: re-send the stored bytes, or forfeit the round.
            ValueError: steps is not a whole number above 0, or the ledger is about another unit or trust.
            DpcompError: another process opened the ledger.
        """
        whole = isinstance(steps, (int, np.integer)) and not isinstance(steps, bool)
        if not whole or not 1 <= steps <= MOST_STEPS:
            raise ValueError(f"charge(steps={steps!r}): a charge is a whole number of steps, at least 1")
        if os.getpid() != self._process:
            raise DpcompError(f"the ledger {self._name} was opened by another process: open it in the one that charges")
        self._refuse_other_kind(pipeline.terms)
        terms = json.dumps(vars(pipeline.terms), sort_keys=True)
        kind = (_written(pipeline.event), terms)
        with self._lock:
            spent = self._spent.get(address.client, Counter()) + Counter({kind: int(steps)})
            self._refuse_beyond_budget(address, spent)
            try:
                row = (str(address.run), address.client, address.round, int(steps), *kind)
                self._database.execute("INSERT INTO charges VALUES (?, ?, ?, ?, ?, ?)", row)
            except sqlite3.IntegrityError as error:
                raise BudgetExhausted(
                    f"{address} was charged before, and its noise may have been drawn: re-send the stored bytes or "
                    "forfeit the round; a new release needs a new address"
                ) from error
            self._spent[address.client] = spent
        return Permit(self, address, pipeline, int(steps))

    def charged(self, address: Address) -> bool:
        """Whether an address was charged: its noise may have been drawn, and nothing more may be released there."""
        key = (str(address.run), address.client, address.round)
        found = self._database.execute("SELECT 1 FROM charges WHERE (run, client, round) = (?, ?, ?)", key)
        return found.fetchone() is not None

    def guarantee(self, delta: float, population: int | None = None) -> Guarantee:
        """The guarantee of everything charged so far: the largest over clients, each composed with itself.

        `population` is the public number of units, if there is one, to hold δ against.
        """
        if not self._spent:
            # No steps of any event cost nothing; a guarantee has to name some terms.
            nothing = Terms(unit="example", trust="nobody", sampling="none")
            return nothing.guarantee(((NonPrivateDpEvent(), 0),), delta, population=population)
        seeded = self._database.execute("SELECT COUNT(*) FROM seeded").fetchone()[0] > 0
        guarantees = [
            Terms.joined([Terms(**json.loads(terms)) for _, terms in kinds]).guarantee(
                parts, delta, population=population, seeded=seeded
            )
            for kinds, parts in {(tuple(spent), _by_event(spent)) for spent in self._spent.values()}
        ]
        return max(guarantees, key=lambda guarantee: guarantee.epsilon)

    def note_seeded(self, address: Address) -> None:
        """Record that noise was drawn from a seed, so that the guarantee says so."""
        who = (str(address.run), address.client)
        if who not in self._seeded:
            self._database.execute("INSERT OR IGNORE INTO seeded VALUES (?, ?)", who)
            self._seeded.add(who)

    def close(self) -> None:
        """Let another process open it."""
        self._finalizer()

    def __enter__(self) -> "Ledger":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Ledger({self._name!r})"

    def _kept_budget(self, budget: Budget | None) -> Budget | None:
        """The budget that stands in the ledger, or that from now on stands there."""
        row = self._database.execute("SELECT epsilon, delta FROM budgets").fetchone()
        kept = None if row is None else Budget(*row)
        if kept is None and budget is not None:
            for client, spent in self._spent.items():
                if not budget.allows(dict(_by_event(spent))):
                    self.close()
                    raise BudgetExhausted(f"{self}: client {client} has spent more than {budget} already")
            self._database.execute("INSERT INTO budgets VALUES (?, ?)", (budget.epsilon, budget.delta))
            return budget
        if budget is not None and budget != kept:
            self.close()
            raise DpcompError(f"{self} has {kept}, not {budget}: a budget is never changed; start another ledger")
        return kept

    def _refuse_beyond_budget(self, address: Address, spent: Counter[tuple[str, str]]) -> None:
        if self.budget is not None and not self.budget.allows(dict(_by_event(spent))):
            raise BudgetExhausted(
                f"charging {address} would take client {address.client} to {sum(spent.values())} steps, beyond "
                f"{self.budget}: nothing was charged. Stop here, charge fewer steps, or add more noise"
            )

    def _refuse_other_kind(self, terms: Terms) -> None:
        if not self._spent:
            return
        _, text = next(iter(next(iter(self._spent.values()))))
        held = Terms(**json.loads(text))
        if (held.unit, held.trust) != (terms.unit, terms.trust):
            raise ValueError(
                f"{self} is about one {held.unit} and trusts {held.trust}; this charge is about one {terms.unit} "
                f"and trusts {terms.trust}. They do not compose: keep a ledger for each"
            )


def _close(database: sqlite3.Connection, process: int) -> None:
    # A forked child that closed its copy would check-point and remove the log that its parent still writes.
    if os.getpid() == process:
        database.close()


def _by_event(spent: Counter[tuple[str, str]]) -> tuple[tuple[DpEvent, int], ...]:
    """(event, steps), whatever terms the steps were charged on."""
    counted: Counter[str] = Counter()
    for (event, _), steps in spent.items():
        counted[event] += steps
    return tuple((_read(event), steps) for event, steps in counted.items())


def _written(event: DpEvent) -> str:
    """An event as text; floats by repr, which reads back the same."""
    match event:
        case GaussianDpEvent():
            return json.dumps({"gaussian": event.noise_multiplier})
        case PoissonSampledDpEvent(event=GaussianDpEvent() as inner):
            return json.dumps({"gaussian": inner.noise_multiplier, "poisson": event.sampling_probability})
        case NonPrivateDpEvent():
            return json.dumps({"non_private": True})
    raise ValueError(f"the ledger cannot record {event}: it knows Gaussian, Poisson-sampled and non-private events")


@lru_cache(maxsize=1024)
def _read(text: str) -> DpEvent:
    facts = json.loads(text)
    if "non_private" in facts:
        return NonPrivateDpEvent()
    inner = GaussianDpEvent(facts["gaussian"])
    return PoissonSampledDpEvent(facts["poisson"], inner) if "poisson" in facts else inner
