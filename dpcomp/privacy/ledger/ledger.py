"""Ledger: records privacy charges durably before noise is drawn, and gives the permits to draw it."""

import os
import sqlite3
import threading
import weakref
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path

from dpcomp.core.address import Address, client_number
from dpcomp.core.checks import check_type, whole_number
from dpcomp.core.database.database import Database, create_database, look_at_database, memory_database, open_database
from dpcomp.core.errors import BudgetExhausted, DpcompError, NotPrivate
from dpcomp.core.randomness import SecretSeed
from dpcomp.privacy.accounting.events import MOST_STEPS
from dpcomp.privacy.cost import INCOMPLETE, Cost
from dpcomp.privacy.guarantee import Guarantee
from dpcomp.privacy.ledger.budget import Budget
from dpcomp.privacy.ledger.cost_text import cost_as_text, cost_from_text, plan_as_text
from dpcomp.privacy.ledger.display import as_html, delta_shown
from dpcomp.privacy.ledger.ledger_entries import History, utc
from dpcomp.privacy.ledger.ledger_file import KIND, LedgerMark, append, digest_at, read_content, read_head, write_head
from dpcomp.privacy.ledger.ledger_record import LedgerRecord, guarantee_of_histories, incomplete_in, within
from dpcomp.privacy.ledger.permit import Permit
from dpcomp.privacy.plan import Plan


class Ledger:
    """An append-only record of privacy charges, in memory or durable on disk (SQLite, synced at each charge).

    `Ledger()` keeps it in memory, `Ledger.create(path)` makes a durable one, `Ledger(path)` opens it again, and
    `Ledger.read(path)` looks at one that may be in use. A path where no ledger is, is refused: a mistyped path would be
    an empty ledger.

    A durable ledger can be open in a single process at a time. No checkpoint holds it, so restoring a checkpoint takes
    no charge back; and a checkpoint holds the ledger's `mark`, so that a restored ledger is refused. A budget is stored
    with the charges and cannot be changed; a charge that would exceed it for a client is refused. A plan is stored
    before the first charge: charges for different events compose as a fixed schedule as long as they follow it.

    Args:
        path: The file of an existing ledger; None keeps a new ledger in memory.
        budget: The largest (ε, δ) of each client; None for no limit, or for the budget that the file holds.
        plan: What each client will release; None for no plan, or for the plan that the file holds.

    Raises:
        DpcompError: No file is there, it cannot be opened, is open in another process, is not a ledger, has another
            format number, budget or plan, or an entry of it was changed or deleted.
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

    def __init__(
        self, path: str | os.PathLike[str] | None = None, budget: Budget | None = None, *, plan: Plan | None = None
    ):
        _check(budget, plan)
        if path is None:
            self._start(memory_database(KIND, lambda connection: _fill(connection, True, plan, ":memory:")), budget)
        else:
            self._start(open_database(path, KIND), budget)
            if plan not in (None, self.plan):
                self.close()
                raise DpcompError(
                    f"{self} has {self.plan or 'no plan'}, not {plan}: a plan is recorded when a ledger is created, "
                    "dp.Ledger.create(path, plan=plan), and never changed"
                )

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        budget: Budget | None = None,
        *,
        plan: Plan | None = None,
        research: bool = False,
    ) -> "Ledger":
        """Create a durable ledger, which this process alone may read and write.

        Args:
            path: The file, in a folder that exists.
            budget: The largest (ε, δ) of each client; None for no limit.
            plan: What each client will release, fixed now; None for no plan.
            research: Whether noise from a numbered `SecretSeed`, which can be repeated, may be charged to it.

        Returns:
            The ledger, without any charge.

        Raises:
            DpcompError: A file is there already, or it cannot be written.

        Examples:
            >>> import dpcomp as dp
            >>> from tempfile import TemporaryDirectory
            >>> pipeline = dp.Pipeline(mechanism=(dp.Clip(1.0), dp.Gaussian(2.0)))
            >>> with TemporaryDirectory() as folder:
            ...     with dp.Ledger.create(f"{folder}/client-7.db") as ledger:
            ...         permit = ledger.charge(pipeline.cost, dp.Address(run=0, client=7, round=0))
            ...     with dp.Ledger(f"{folder}/client-7.db") as ledger:
            ...         ledger.guarantee(delta=1e-5).steps
            1
        """
        _check(budget, plan)

        def fill(connection: sqlite3.Connection) -> None:
            _fill(connection, research, plan, str(path))
            if budget is not None:
                mark = read_head(connection, str(path)).mark
                append(connection, str(path), mark, "budgets", budget.epsilon, budget.delta)

        ledger = cls.__new__(cls)
        ledger._start(create_database(path, KIND, fill), budget)
        return ledger

    @staticmethod
    def read(path: str | os.PathLike[str]) -> LedgerRecord:
        """Read what a durable ledger holds, while any process may hold it; nothing is changed.

        Args:
            path: The file.

        Returns:
            The charges, the budget and the mark, as they were between two charges.

        Raises:
            DpcompError: No file is there, it is not a ledger or has another format number, or an entry of it was
                changed or deleted.

        Examples:
            >>> import dpcomp as dp
            >>> from tempfile import TemporaryDirectory
            >>> pipeline = dp.Pipeline(mechanism=(dp.Clip(1.0), dp.Gaussian(2.0)))
            >>> with TemporaryDirectory() as folder, dp.Ledger.create(f"{folder}/client-7.db") as ledger:
            ...     permit = ledger.charge(pipeline.cost, dp.Address(run=0, client=7, round=0))
            ...     record = dp.Ledger.read(f"{folder}/client-7.db")
            >>> record.mark == ledger.mark, record.entries[0].address
            (True, Address(run=0, client=7, round=0))
        """
        name = str(Path(path))
        with look_at_database(path, KIND) as connection:
            content = read_content(connection, name)
        return LedgerRecord(
            name=name,
            created=utc(content.head.created),
            budget=content.budget,
            plan=content.plan,
            research=content.head.research,
            seeded=bool(content.seeded),
            assumed=content.assumed,
            entries=content.entries,
            mark=content.head.mark,
        )

    def _start(self, database: Database, budget: Budget | None) -> None:
        self._database, self._lock, self._token = database, threading.RLock(), object()
        self._permits: weakref.WeakSet[Permit] = weakref.WeakSet()
        try:
            with database.reading() as connection:
                content = read_content(connection, database.name)
            self._head, self._mark = content.head, content.head.mark
            self.budget, self.plan = content.budget, content.plan
            self._seeded, self._assumed = set(content.seeded), list(content.assumed)
            self._histories = content.entries.histories(self.plan, len(content.entries))
            self._keep_budget(budget)
        except BaseException:
            self.close()
            raise

    @property
    def mark(self) -> LedgerMark:
        """How far the ledger has come; each charge changes it. A checkpoint keeps it for `refuse_older_than`."""
        return self._mark

    @property
    def research(self) -> bool:
        """Whether noise from a numbered `SecretSeed` may be charged; a ledger in memory is for research."""
        return self._head.research

    def refuse_older_than(self, mark: LedgerMark) -> None:
        """Refuse to go on if this ledger lacks an entry that it, or the ledger before it, once had.

        Args:
            mark: A mark that was kept elsewhere, such as in a checkpoint.

        Raises:
            DpcompError: The ledger has fewer entries than the mark, or other ones: it was restored from a copy, was
                created anew, or is another client's.
        """
        check_type(mark, LedgerMark, f"refuse_older_than({mark!r}): give a LedgerMark, such as ledger.mark")
        with self._database.reading() as connection:
            here = digest_at(connection, self._head, mark.count)
        if here != mark.digest:
            why = "is older than that" if self._mark.count < mark.count else "has other entries than that"
            raise DpcompError(
                f"{self} has {self._mark}, and was {mark} before: it {why}, since it was restored, created anew or is "
                "another's. Restore the newest ledger; what is spent cannot be taken back"
            )

    @contextmanager
    def alone(self) -> Generator[None]:
        """Let no other thread charge during a block, which asks what the ledger holds before it charges.

        Raises:
            DpcompError: Another process opened the ledger.
        """
        self._database.refuse_other_process()  # before the lock, which another thread may have held at a fork
        with self._lock:
            yield

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
            DpcompError: The ledger is marked as incomplete.
            TypeError: `cost` is not a `Cost`, `address` no `Address`, or `steps` not a whole number.
            ValueError: `steps` is below 1, or the ledger holds charges for another unit or trust.
            DpcompError: Another process opened the ledger, its file cannot be written, was replaced, or was changed by
                another program. Nothing was charged.

        Examples:
            >>> import dpcomp as dp
            >>> pipeline = dp.Pipeline(mechanism=(dp.Clip(1.0), dp.Gaussian(1.0)))
            >>> memory = pipeline.init_client(10, dp.PublicSeed(0), client=7)
            >>> dp.Ledger().charge(pipeline.cost, memory.address, steps=3)
            Permit(Address(run=0, client=7, round=0), 0 of 3 steps used)
        """
        check_type(cost, Cost, f"charge(cost={cost!r}): a Cost is charged, such as pipeline.cost")
        check_type(address, Address, f"charge(address={address!r}): give an Address, such as memory.address")
        steps = whole_number(steps, "charge(steps)", least=1, most=MOST_STEPS)
        charged = cost_as_text(cost)
        self._database.refuse_other_process()  # before the lock, which another thread may have held at a fork
        with self._lock:
            if self.incomplete:
                raise DpcompError(
                    f"{self} is incomplete ({self.incomplete}), so it would report too small an ε: nothing was "
                    "charged. Find the ledgers of all releases of these data, and count them together; until then, "
                    "release nothing of them"
                )
            self._refuse_other_unit_or_trust(cost)
            if self.charged(address):
                raise BudgetExhausted(
                    f"{address} was charged before, and its noise may have been drawn: re-send the stored bytes or "
                    "forfeit the round. A new release needs a new address: follow a broadcast, which begins the next "
                    "round, or, for the data of another client, use that client's number. To compare pipelines on the "
                    "same data, give each a fresh dp.Ledger()"
                )
            history = self._history(address.client).charged(charged, steps, self.plan)
            self._refuse_beyond_budget(address, history)
            row = (str(address.run), address.client, address.round, steps, *charged)
            with self._database.changing() as connection:
                mark = append(connection, self._database.name, self._mark, "charges", *row)
            self._histories[address.client], self._mark = history, mark
            permit = Permit(self, address, cost, steps, self._token)
            self._permits.add(permit)
        return permit

    def charged(self, address: Address) -> bool:
        """Return whether an address was charged; its noise may have been drawn, and no more may be released there."""
        check_type(address, Address, f"charged(address={address!r}): give an Address, such as memory.address")
        with self._database.reading() as connection:
            key = (str(address.run), address.client, address.round)
            row = connection.execute("SELECT 1 FROM charges WHERE (run, client, round) = (?, ?, ?)", key)
            return row.fetchone() is not None

    def charge_at(self, address: Address) -> tuple[Cost, int] | None:
        """Return the cost of a release and the number of releases that an address was charged for; None if it was not.

        Raises:
            TypeError: `address` is no `Address`.
        """
        check_type(address, Address, f"charge_at(address={address!r}): give an Address, such as memory.address")
        with self._database.reading() as connection:
            key = (str(address.run), address.client, address.round)
            row = connection.execute(
                "SELECT event, basis, steps FROM charges WHERE (run, client, round) = (?, ?, ?)", key
            ).fetchone()
        return None if row is None else (cost_from_text(row[0], row[1]), row[2])

    @property
    def incomplete(self) -> str:
        """Why this ledger lacks charges of releases that were made; empty if nothing says so."""
        return incomplete_in(self._assumed)

    def mark_incomplete(self, why: str) -> None:
        """Note durably that releases were made that this ledger was not charged for; this is never taken back.

        From then on the ledger guarantees nothing, ε = ∞, and refuses every charge, since what it says is too small.

        Args:
            why: What shows it, in a clause that the guarantee prints.

        Raises:
            DpcompError: Another process opened the ledger, or its file cannot be written.
        """
        self.assume((INCOMPLETE + why,))

    @property
    def clients(self) -> tuple[int, ...]:
        """The numbers of the clients that were charged."""
        with self._lock:
            return tuple(self._histories)

    def within(self, budget: Budget, cost: Cost, client: int, steps: int, *, charges: int = 1) -> bool:
        """Return whether a client would stay within a budget after further charges; nothing is charged.

        A ledger that is marked as incomplete is within no budget.

        Args:
            budget: The largest (ε, δ) of the client, beside the ledger's own.
            cost: The cost of a single release.
            client: The client's number.
            steps: The number of releases of a charge, 1 or more.
            charges: The number of charges, 0 or more.

        Raises:
            TypeError: `budget` is not a `Budget`, `cost` not a `Cost`, or a number not a whole one.
            ValueError: A number lies outside its range, or the ledger holds charges for another unit or trust.
        """
        check_type(budget, Budget, f"within(budget={budget!r}): give a dp.Budget(epsilon, delta)")
        check_type(cost, Cost, f"within(cost={cost!r}): give a Cost, such as pipeline.cost")
        client = client_number(client, "within(client)")
        steps = whole_number(steps, "within(steps)", least=1, most=MOST_STEPS)
        charges = whole_number(charges, "within(charges)", least=0, most=MOST_STEPS // steps)
        with self._lock:
            self._refuse_other_unit_or_trust(cost)
            after = self._history(client)
        if self.incomplete:
            return False
        charge = cost_as_text(cost)
        if self.plan is not None and after.followed is not None:
            # Many at once, since terms of others may say any number: those that fit into the plan's next release are
            # one charge of all their steps. None after them is the plan's, as the release after it has another cost.
            planned = min(charges, self.plan.left(after.followed, cost) // steps)
            if planned:
                after, charges = after.charged(charge, steps * planned, self.plan), charges - planned
        if charges:
            after = after.charged(charge, steps * charges, self.plan)
        return all(within(each, self.plan, after) for each in (budget, self.budget) if each is not None)

    def charged_rounds(self, run: int, client: int) -> frozenset[int]:
        """Return the rounds of a run that a client was charged for.

        Args:
            run: The number of the run: that of its public seed.
            client: The client's number.

        Raises:
            TypeError: One of the two is not a whole number.
            ValueError: One of the two lies outside the range of an `Address`.
        """
        place = Address(run, client, 0)  # whose numbers are Python's: SQLite would take NumPy's for bytes
        with self._database.reading() as connection:
            key = (str(place.run), place.client)
            rows = connection.execute("SELECT round FROM charges WHERE (run, client) = (?, ?)", key)
            return frozenset(number for (number,) in rows)

    def guarantee(self, delta: float, population: int | None = None) -> Guarantee:
        """Return the guarantee of all charges so far: the largest over clients, whose data are disjoint.

        Args:
            delta: δ, in (0, 1).
            population: The public number of units N; the guarantee then says whether δ is below 1/N.

        Raises:
            TypeError: `delta` is not a number.
            ValueError: `delta` or `population` lies outside its range.
            DpcompError: Another process opened the ledger.
        """
        self._database.refuse_other_process()
        with self._lock:
            histories, seeded, assumed = list(self._histories.values()), bool(self._seeded), tuple(self._assumed)
        return guarantee_of_histories(
            histories, delta, self.plan, population=population, seeded=seeded, assumed=assumed
        )

    @property
    def most_steps(self) -> int:
        """The most steps that were charged at one address; 0 where nothing was."""
        with self._database.reading() as connection:
            return connection.execute("SELECT MAX(steps) FROM charges").fetchone()[0] or 0

    def refuse_seed(self, secret: SecretSeed) -> None:
        """Refuse a seed with a number, unless this ledger is for research.

        A release refuses it too, but only after the charge; who holds both a ledger and a seed asks before.

        Args:
            secret: The source of noise.

        Raises:
            NotPrivate: The seed has a number, which somebody may know, and the ledger is durable and not for research.
        """
        if secret.seeded:
            self._refuse_seeded()

    def close(self) -> None:
        """Close the file, so that another process may open it."""
        self._database.close()

    def __enter__(self) -> "Ledger":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        place = "" if self._database.name == ":memory:" else f"{self._database.name!r}, "
        budget = "" if self.budget is None else f", {self.budget}"
        clients = len(self._histories)
        return f"Ledger({place}{self._mark.count:,} entries, {clients:,} client{'s' * (clients != 1)}{budget})"

    def __str__(self) -> str:
        return "Ledger()" if self._database.name == ":memory:" else f"Ledger({self._database.name!r})"

    def _repr_html_(self) -> str:
        name = "in memory" if self._database.name == ":memory:" else self._database.name
        histories, assumed = dict(self._histories), tuple(self._assumed)
        delta = delta_shown(self.budget)
        guarantee = guarantee_of_histories(
            histories.values(), delta, self.plan, population=None, seeded=bool(self._seeded), assumed=assumed
        )
        mark = self._mark
        return as_html(f"Ledger, {name}", mark, histories, self.budget, self.plan, guarantee, research=self.research)

    def _confirm(self, permit: Permit, seeded: bool) -> None:
        """Refuse a permit that this ledger did not give, and noise from a number where it is not allowed; note it."""
        if permit not in self._permits:
            raise TypeError(f"{self} did not give {permit}: charge the ledger, and use the permit that it returns")
        if not seeded:
            return
        self._refuse_seeded()
        who = (str(permit.address.run), permit.address.client)
        with self._lock:
            if who not in self._seeded:
                with self._database.changing() as connection:
                    mark = append(connection, self._database.name, self._mark, "seeded", *who)
                self._mark = mark
                self._seeded.add(who)

    def assume(self, clauses: Iterable[str]) -> None:
        """Record what the releases assume besides, as `Permit.assume` does; all later guarantees name it.

        Args:
            clauses: What is assumed, such as "the divisor 64 is public"; those that are recorded already are left out.

        Raises:
            TypeError: `clauses` is a string, or holds something else than strings; nothing is recorded.
            DpcompError: Another process opened the ledger, or its file cannot be written.
        """
        given = list(clauses)
        message = f'assume({clauses!r}): give a list of clauses, such as ["the divisor 64 is public"]'
        if isinstance(clauses, str):
            raise TypeError(message)
        for clause in given:
            check_type(clause, str, message)
        self._database.refuse_other_process()
        with self._lock:
            for clause in given:
                if clause not in self._assumed:
                    with self._database.changing() as connection:
                        mark = append(connection, self._database.name, self._mark, "assumed", clause)
                    self._mark = mark
                    self._assumed.append(clause)

    def _refuse_seeded(self) -> None:
        if not self.research:
            raise NotPrivate(
                f"{self} is durable, and the noise comes from a SecretSeed with a number: whoever knows the number can "
                "take the noise away. Use dp.SecretSeed() without a number, or for repeatable research a ledger of "
                "dp.Ledger.create(path, research=True)"
            )

    def _keep_budget(self, budget: Budget | None) -> None:
        """Hold the file's budget to the given one; if it has none, store the given one."""
        if budget is None or budget == self.budget:
            return
        if self.budget is not None:
            raise DpcompError(
                f"{self} has {self.budget}, not {budget}: a budget is never changed; create another ledger"
            )
        for client, history in self._histories.items():
            if not within(budget, self.plan, history):
                raise BudgetExhausted(f"{self}: client {client} has spent more than {budget} already")
        with self._database.changing() as connection:
            mark = append(connection, self._database.name, self._mark, "budgets", budget.epsilon, budget.delta)
        self.budget, self._mark = budget, mark

    def _history(self, client: int) -> History:
        return self._histories.get(client) or History.begin(self.plan)

    def _refuse_beyond_budget(self, address: Address, history: History) -> None:
        if self.budget is not None and not within(self.budget, self.plan, history):
            steps = sum(history.spent.values())
            raise BudgetExhausted(
                f"charging {address} would take client {address.client} to {steps} steps, beyond "
                f"{self.budget}: nothing was charged. Stop here, charge fewer steps, or add more noise"
            )

    def _refuse_other_unit_or_trust(self, cost: Cost) -> None:
        if not self._histories:
            return
        held = cost_from_text(*next(iter(next(iter(self._histories.values())).spent)))
        if held.trust_model != cost.trust_model:
            raise ValueError(
                f"{self} holds charges for unit={held.unit!r} with trust={held.trust!r}; this charge is for "
                f"unit={cost.unit!r} with trust={cost.trust!r}. They do not compose: keep a ledger for each"
            )


def _check(budget: object, plan: object) -> None:
    check_type(budget, (Budget, type(None)), f"budget={budget!r}: give a dp.Budget(epsilon, delta), or None")
    check_type(plan, (Plan, type(None)), f"plan={plan!r}: give a dp.Plan([(cost, steps), ...]), or None")


def _fill(connection: sqlite3.Connection, research: bool, plan: Plan | None, name: str) -> None:
    """Write the head of a new ledger, and the plan."""
    write_head(connection, research)
    if plan is not None:
        append(connection, name, read_head(connection, name).mark, "plans", plan_as_text(plan))
