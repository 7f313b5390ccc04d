"""The ledger's file: its tables, and the chain of digests that binds each entry to all entries before it."""

import json
import secrets
import sqlite3
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from time import time
from typing import Any, Literal, NoReturn

import numpy as np

from dpcomp.core.address import Address
from dpcomp.core.database import DatabaseKind
from dpcomp.core.errors import DpcompError
from dpcomp.privacy.accounting.events import MOST_STEPS
from dpcomp.privacy.budget import Budget
from dpcomp.privacy.ledger.cost_text import CostText, cost_from_text, plan_from_text
from dpcomp.privacy.ledger.ledger_entries import LedgerEntries
from dpcomp.privacy.plan import Plan

FORMAT = 4  # of the file: SQLite's user_version

_APPEND_ONLY = "SELECT RAISE(ABORT, 'a ledger is append-only')"
_TABLES = (
    """CREATE TABLE head (
    identity TEXT NOT NULL, created INTEGER NOT NULL, research INTEGER NOT NULL,
    count INTEGER NOT NULL, digest TEXT NOT NULL
)""",
    """CREATE TABLE charges (
    number INTEGER PRIMARY KEY, time INTEGER NOT NULL, run TEXT NOT NULL, client INTEGER NOT NULL,
    round INTEGER NOT NULL, steps INTEGER NOT NULL CHECK (steps > 0), event TEXT NOT NULL, basis TEXT NOT NULL,
    digest TEXT NOT NULL, UNIQUE (run, client, round)
)""",
    """CREATE TABLE budgets (
    number INTEGER PRIMARY KEY, time INTEGER NOT NULL, epsilon REAL NOT NULL, delta REAL NOT NULL, digest TEXT NOT NULL
)""",
    """CREATE TABLE seeded (
    number INTEGER PRIMARY KEY, time INTEGER NOT NULL, run TEXT NOT NULL, client INTEGER NOT NULL, digest TEXT NOT NULL
)""",
    """CREATE TABLE assumed (
    number INTEGER PRIMARY KEY, time INTEGER NOT NULL, clause TEXT NOT NULL, digest TEXT NOT NULL
)""",
    """CREATE TABLE plans (
    number INTEGER PRIMARY KEY, time INTEGER NOT NULL, releases TEXT NOT NULL, digest TEXT NOT NULL
)""",
)
# REPLACE deletes without a DELETE trigger, so an insert is checked too: by its number, and what must occur once. A plan
# comes before any charge.
_OCCURS = {
    "charges": "SELECT 1 FROM charges WHERE (run, client, round) = (NEW.run, NEW.client, NEW.round)",
    "budgets": "SELECT 1 FROM budgets",
    "seeded": "SELECT 1 FROM seeded WHERE (run, client) = (NEW.run, NEW.client)",
    "assumed": "SELECT 1 FROM assumed WHERE clause = NEW.clause",
    "plans": "SELECT 1 FROM plans UNION ALL SELECT 1 FROM charges",
}
_TRIGGERS = (
    *(
        f"CREATE TRIGGER {table}_{name} BEFORE {event} ON {table} BEGIN {_APPEND_ONLY}; END"
        for table in _OCCURS
        for name, event in (("stay", "DELETE"), ("hold", "UPDATE"))
    ),
    *(
        f"CREATE TRIGGER {table}_once BEFORE INSERT ON {table} WHEN NEW.number IS NOT (SELECT count + 1 FROM head) "
        f"OR EXISTS ({occurs}) BEGIN {_APPEND_ONLY}; END"
        for table, occurs in _OCCURS.items()
    ),
    f"CREATE TRIGGER head_stays BEFORE DELETE ON head BEGIN {_APPEND_ONLY}; END",
    f"CREATE TRIGGER head_once BEFORE INSERT ON head WHEN EXISTS (SELECT 1 FROM head) BEGIN {_APPEND_ONLY}; END",
    "CREATE TRIGGER head_grows BEFORE UPDATE ON head WHEN (NEW.identity, NEW.created, NEW.research, NEW.count) IS NOT "
    f"(OLD.identity, OLD.created, OLD.research, OLD.count + 1) BEGIN {_APPEND_ONLY}; END",
)

KIND = DatabaseKind(
    name="ledger",
    application_id=int.from_bytes(b"dpcL", "big"),
    format=FORMAT,
    schema=(*_TABLES, *_TRIGGERS),
    unmarked=b"CREATE TABLE charges",
    how_to_create="`dp.Ledger.create(path)` makes a new ledger",
)

_ENCODE = json.JSONEncoder(default=repr).encode  # one for all: json.dumps would make an encoder for each entry
Table = Literal["charges", "budgets", "seeded", "assumed", "plans"]
Value = str | int | float
_Row = tuple[int, Table, int, tuple[Value, ...], str]  # number, table, time, other columns, digest
_FIELDS: dict[Table, str] = {
    "charges": "run, client, round, steps, event, basis",
    "budgets": "epsilon, delta",
    "seeded": "run, client",
    "assumed": "clause",
    "plans": "releases",
}


@dataclass(frozen=True, kw_only=True)
class LedgerMark:
    """How far a ledger had come: the number of its entries, and the digest of their chain.

    The two ends keep a mark in each checkpoint, so that a ledger which is older than the checkpoint is refused.

    Args:
        count: The number of entries: charges, the budget, the plan, notes of seeded noise and of assumptions.
        digest: 32 hexadecimal digits, which depend on the ledger's random identity and on all these entries.
    """

    count: int
    digest: str


@dataclass(frozen=True, kw_only=True)
class Head:
    """The row of a ledger's file that says which ledger it is, and how far it has come.

    Args:
        identity: 32 random hexadecimal digits.
        created: When it was created, in seconds since 1970 (UTC).
        research: Whether seeded noise may be charged to it.
        mark: The mark after the last entry.
    """

    identity: str
    created: int
    research: bool
    mark: LedgerMark

    @property
    def first_mark(self) -> LedgerMark:
        """The mark of this ledger before any entry."""
        words = ["dpcomp ledger", FORMAT, self.identity, self.created, int(self.research)]
        return LedgerMark(count=0, digest=_digest("", words))


@dataclass(frozen=True, kw_only=True, eq=False)
class Content:
    """All that a ledger's file holds, held to its chain.

    Attributes:
        head: Which ledger it is, and how far it has come.
        entries: The charges.
        budgets: (ε, δ), once at most.
        plans: The plan as text, once at most.
        assumed: What those who released assumed, in clauses.
        seeded: (run, client) whose noise was drawn from a number.
    """

    head: Head
    entries: LedgerEntries
    budgets: tuple[tuple[float, float], ...]
    plans: tuple[str, ...]
    assumed: tuple[str, ...]
    seeded: frozenset[tuple[str, int]]

    @property
    def budget(self) -> Budget | None:
        """The largest (ε, δ) of each client; None for no limit."""
        return Budget(*self.budgets[-1]) if self.budgets else None

    @property
    def plan(self) -> Plan | None:
        """What each client was to release; None for no plan."""
        return plan_from_text(self.plans[-1]) if self.plans else None


def write_head(connection: sqlite3.Connection, research: bool) -> None:
    """Write the head of a new ledger.

    Args:
        connection: A connection to the new tables.
        research: Whether seeded noise may be charged to it.
    """
    blank = LedgerMark(count=0, digest="")
    head = Head(identity=secrets.token_hex(16), created=int(time()), research=research, mark=blank)
    row = (head.identity, head.created, int(research), 0, head.first_mark.digest)
    connection.execute("INSERT INTO head VALUES (?, ?, ?, ?, ?)", row)


def read_head(connection: sqlite3.Connection, name: str) -> Head:
    """Read the head.

    Args:
        connection: A connection to a ledger.
        name: What an error calls the ledger.

    Raises:
        DpcompError: There is not exactly one row.
    """
    rows = connection.execute("SELECT identity, created, research, count, digest FROM head").fetchall()
    if len(rows) != 1:
        raise DpcompError(f"{name} was changed: it has {len(rows)} heads instead of one. Restore the newest copy of it")
    identity, created, research, count, digest = rows[0]
    mark = LedgerMark(count=count, digest=digest)
    return Head(identity=identity, created=created, research=bool(research), mark=mark)


def append(connection: sqlite3.Connection, name: str, after: LedgerMark, table: Table, *fields: Value) -> LedgerMark:
    """Append an entry, inside a transaction.

    Args:
        connection: A connection to a ledger.
        name: What an error calls the ledger.
        after: The mark that the ledger must have.
        table: Where the entry belongs.
        fields: Its columns after number and time, without the digest.

    Returns:
        The ledger's mark with the entry.

    Raises:
        DpcompError: The ledger has another mark: another program changed the file.
    """
    found = read_head(connection, name).mark
    if found != after:
        raise DpcompError(
            f"{name} was changed by another program while it was in use: it has {found}, not {after}. Nothing was "
            "charged. If a charge was interrupted here, open the ledger again; else restore the newest copy of it"
        )
    number, now = after.count + 1, int(time())
    digest = _digest(after.digest, [table, number, now, *fields])
    row = (number, now, *fields, digest)
    connection.execute(f"INSERT INTO {table} VALUES ({', '.join('?' * len(row))})", row)
    connection.execute("UPDATE head SET count = ?, digest = ?", (number, digest))
    return LedgerMark(count=number, digest=digest)


def digest_at(connection: sqlite3.Connection, head: Head, count: int) -> str | None:
    """Return the digest that the chain had after so many entries; None if there are not as many.

    Args:
        connection: A connection to a ledger.
        head: Its head.
        count: The number of entries, 0 or more.
    """
    if count == 0:
        return head.first_mark.digest
    for table in _FIELDS:
        row = connection.execute(f"SELECT digest FROM {table} WHERE number = ?", (count,)).fetchone()
        if row is not None:
            return row[0]
    return None


def read_content(connection: sqlite3.Connection, name: str) -> Content:
    """Read all entries in their order, and hold each to the chain of digests.

    Args:
        connection: A connection to a ledger.
        name: What an error calls the ledger.

    Raises:
        DpcompError: An entry was changed or deleted, or the file is incomplete.
    """
    try:
        return _Reading(connection, name, read_head(connection, name)).content()
    except (TypeError, ValueError, OverflowError, KeyError, RecursionError) as error:
        # A value that no ledger writes: of another type, or beyond its range.
        raise DpcompError(
            f"{name} was changed: it holds a value that no charge has ({error}). Restore the newest whole copy of it"
        ) from error


class _Reading:
    """One reading of all entries; `content` does it.

    There may be millions of charges, so SQLite compares run, event and basis with those of the first charge, and they
    become Python's strings where they differ alone. Entries of the other tables are few.
    """

    def __init__(self, connection: sqlite3.Connection, name: str, head: Head):
        self._connection, self._name, self._head, self._mark = connection, name, head, head.first_mark
        self._times, self._clients, self._rounds, self._steps = array("q"), array("q"), array("q"), array("q")
        self._runs: dict[str, str] = {}  # and their encoded form
        self._costs: dict[CostText, str] = {}
        self._place_of_run: dict[str, int] = {}
        self._place_of_cost: dict[str, int] = {}
        self._places: list[tuple[int, int, int]] = []  # of charges with another run or cost than the first

    def content(self) -> Content:
        """Return what the ledger holds."""
        others = sorted((row for table in _FIELDS if table != "charges" for row in self._rows(table)), reverse=True)
        of = {table: [fields for _, at, _, fields, _ in reversed(others) if at == table] for table in _FIELDS}
        self._check_charges(others)
        while others:
            self._check(*others.pop())
        if self._mark != self._head.mark:
            raise DpcompError(
                f"{self._name} is incomplete: it should have {self._head.mark} and has {self._mark}. It was changed, "
                "or copied while a charge was being written; restore the newest whole copy of it"
            )
        return Content(
            head=self._head,
            entries=self._entries(),
            budgets=tuple((float(epsilon), float(delta)) for epsilon, delta in of["budgets"]),
            plans=tuple(str(text) for (text,) in of["plans"]),
            assumed=tuple(str(clause) for (clause,) in of["assumed"]),
            seeded=frozenset((str(run), int(client)) for run, client in of["seeded"]),
        )

    def _rows(self, table: Table) -> Iterator[_Row]:
        rows = self._connection.execute(f"SELECT number, time, digest, {_FIELDS[table]} FROM {table}")
        for number, when, digest, *fields in rows:
            yield number, table, when, tuple(fields), digest

    def _check(self, number: int, table: Table, when: int, fields: tuple[Value, ...], digest: str) -> None:
        expected = _digest(self._mark.digest, [table, self._mark.count + 1, when, *fields])
        if (number, digest) != (self._mark.count + 1, expected):
            self._refuse(self._mark.count + 1)
        self._mark = LedgerMark(count=number, digest=digest)

    def _check_charges(self, others: list[_Row]) -> None:
        """Check all charges and keep their columns; `others`, the last one first, loses those that come before one."""
        first: tuple[Any, ...] | None = self._connection.execute(
            "SELECT run, event, basis FROM charges ORDER BY number LIMIT 1"
        ).fetchone()
        if first is None:
            return
        usual = self._encoded(*first)
        before, count, empty = self._mark.digest, self._mark.count, blake2b(digest_size=16)
        add_time, add_client, add_round, add_steps = (
            *(self._times.append, self._clients.append),
            *(self._rounds.append, self._steps.append),
        )
        rows = self._connection.execute(
            "SELECT number, time, client, round, steps, digest, NULLIF(run, ?), NULLIF(event, ?), NULLIF(basis, ?) "
            "FROM charges ORDER BY number",
            first,
        )
        for number, when, client, round_, steps, digest, run, event, basis in rows:
            if number != count + 1:
                self._mark = LedgerMark(count=count, digest=before)
                while others and others[-1][0] < number:
                    self._check(*others.pop())
                before, count = self._mark.digest, self._mark.count
            count += 1
            if run is None and event is None and basis is None:
                encoded_run, encoded_cost = usual
            else:
                given = (first[0] if run is None else run, first[1] if event is None else event)
                encoded_run, encoded_cost = self._encoded(*given, first[2] if basis is None else basis)
            made = empty.copy()
            # What `_digest` encodes; this takes a tenth of the time.
            made.update(
                f'["{before}", "charges", {count}, {when}, {encoded_run}, {client}, {round_}, {steps}, '
                f"{encoded_cost}".encode()
            )
            if made.hexdigest() != digest or number != count:
                self._refuse(count)
            before = digest
            if encoded_run is not usual[0] or encoded_cost is not usual[1]:
                self._places.append(
                    (len(self._times), self._place_of_run[encoded_run], self._place_of_cost[encoded_cost])
                )
            add_time(when)
            add_client(client)
            add_round(round_)
            add_steps(steps)
        self._mark = LedgerMark(count=count, digest=before)

    def _encoded(self, run: str, event: str, basis: str) -> tuple[str, str]:
        """Return run and cost in their encoded form, the same objects each time."""
        cost = event, basis
        if run not in self._runs:
            self._runs[run] = encoded = _ENCODE(run)
            self._place_of_run[encoded] = len(self._place_of_run)
        if cost not in self._costs:
            self._costs[cost] = encoded = _ENCODE(cost)[1:]
            self._place_of_cost[encoded] = len(self._place_of_cost)
        return self._runs[run], self._costs[cost]

    def _entries(self) -> LedgerEntries:
        times, clients, rounds, steps = (
            np.frombuffer(column, dtype=np.int64) for column in (self._times, self._clients, self._rounds, self._steps)
        )
        run_places, cost_places = np.zeros((2, len(times)), dtype=np.int64)
        if self._places:
            at, of_run, of_cost = np.array(self._places, dtype=np.int64).T
            run_places[at], cost_places[at] = of_run, of_cost
        for values, least, limit in (
            *((times, 0, 2**37), (clients, 0, 2**32), (rounds, 0, 2**32), (steps, 1, MOST_STEPS + 1)),
        ):
            if len(values) and not (least <= int(values.min()) and int(values.max()) < limit):
                raise ValueError(f"outside {least} to {limit - 1}")
        for run in self._runs:
            Address(int(run), 0, 0)  # refuses a run that none has
        for cost in self._costs:
            cost_from_text(*cost)
        return LedgerEntries(
            times=times,
            clients=clients,
            rounds=rounds,
            steps=steps,
            run_places=run_places,
            cost_places=cost_places,
            runs=tuple(self._runs),
            costs=tuple(self._costs),
        )

    def _refuse(self, number: int) -> NoReturn:
        raise DpcompError(
            f"{self._name} was changed: its entry {number} is not what was charged, or is missing. A charge is "
            "never taken back; restore the newest whole copy of it"
        )


def _digest(before: str, entry: Sequence[Value]) -> str:
    return blake2b(_ENCODE([before, *entry]).encode(), digest_size=16).hexdigest()
