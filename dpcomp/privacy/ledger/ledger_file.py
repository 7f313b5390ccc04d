"""The ledger's file: its tables, and the chain of digests that binds each entry to all entries before it."""

import json
import secrets
import sqlite3
from array import array
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from operator import itemgetter
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
CHUNK = 4096  # charges that are read and checked at a time

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
    head = read_head(connection, name)
    try:
        return _Reading(connection, name, head).content()
    except (TypeError, ValueError, OverflowError, KeyError, RecursionError) as error:
        # A value that no ledger writes: of another type, or beyond its range.
        raise DpcompError(
            f"{name} was changed: it holds a value that no charge has ({error}). Restore the newest whole copy of it"
        ) from error


class _Reading:
    """One reading of all entries; `content` does it.

    Charges are read and checked a chunk at a time in their encoded form, since there may be millions; of the other
    tables each entry is encoded by itself.
    """

    def __init__(self, connection: sqlite3.Connection, name: str, head: Head):
        self._connection, self._name, self._head, self._mark = connection, name, head, head.first_mark
        self._columns = tuple(array("q") for _ in range(6))
        self._runs: dict[str, int] = {}
        self._costs: dict[CostText, int] = {}
        self._encoded_runs: dict[str, str] = {}
        self._encoded_costs: dict[CostText, str] = {}

    def content(self) -> Content:
        """Return what the ledger holds."""
        others = sorted(row for table in _FIELDS if table != "charges" for row in self._rows(table))
        taken = 0
        charges = self._connection.execute(
            "SELECT number, time, run, client, round, steps, event, basis, digest FROM charges ORDER BY number"
        )
        chunk: Sequence[tuple[Any, ...]] = ()
        while chunk or (chunk := charges.fetchmany(CHUNK)) or taken < len(others):
            if taken < len(others) and (not chunk or others[taken][0] < chunk[0][0]):
                self._check(*others[taken])
                taken += 1
                continue
            end = len(chunk)
            if taken < len(others):
                end = bisect_left(chunk, others[taken][0], key=itemgetter(0))
            self._take_charges(chunk[:end] if end < len(chunk) else chunk)
            chunk = chunk[end:]
        if self._mark != self._head.mark:
            raise DpcompError(
                f"{self._name} is incomplete: it should have {self._head.mark} and has {self._mark}. It was changed, "
                "or copied while a charge was being written; restore the newest whole copy of it"
            )
        of = {table: [fields for _, at, _, fields, _ in others if at == table] for table in _FIELDS}
        return Content(
            head=self._head,
            entries=self._entries(),
            budgets=tuple((float(epsilon), float(delta)) for epsilon, delta in of["budgets"]),
            plans=tuple(str(text) for (text,) in of["plans"]),
            assumed=tuple(str(clause) for (clause,) in of["assumed"]),
            seeded=frozenset((str(run), int(client)) for run, client in of["seeded"]),
        )

    def _rows(self, table: Table) -> Iterator[tuple[int, Table, int, tuple[Value, ...], str]]:
        rows = self._connection.execute(f"SELECT number, time, digest, {_FIELDS[table]} FROM {table}")
        for number, when, digest, *fields in rows:
            yield number, table, when, tuple(fields), digest

    def _check(self, number: int, table: Table, when: int, fields: tuple[Value, ...], digest: str) -> None:
        expected = _digest(self._mark.digest, [table, self._mark.count + 1, when, *fields])
        if (number, digest) != (self._mark.count + 1, expected):
            self._refuse(self._mark.count + 1)
        self._mark = LedgerMark(count=number, digest=digest)

    def _take_charges(self, chunk: Sequence[tuple[Any, ...]]) -> None:
        numbers, times, runs, clients, rounds, steps, events, bases, digests = zip(*chunk, strict=True)
        for run in set(runs).difference(self._runs):
            self._runs[run], self._encoded_runs[run] = len(self._runs), _ENCODE(run)
        costs = list(zip(events, bases, strict=True))
        for cost in set(costs).difference(self._costs):
            self._costs[cost], self._encoded_costs[cost] = len(self._costs), _ENCODE(cost)[1:]
        found = [
            # What `_digest` encodes; this is ten times as fast.
            blake2b(
                f'["{before}", "charges", {number}, {when}, {run}, {client}, {round_}, {count}, {cost}'.encode(),
                digest_size=16,
            ).hexdigest()
            for before, number, when, run, client, round_, count, cost in zip(
                (self._mark.digest, *digests[:-1]),
                range(self._mark.count + 1, self._mark.count + 1 + len(chunk)),
                times,
                map(self._encoded_runs.__getitem__, runs),
                clients,
                rounds,
                steps,
                map(self._encoded_costs.__getitem__, costs),
                strict=True,
            )
        ]
        first = self._mark.count + 1
        if found != list(digests) or numbers != tuple(range(first, first + len(chunk))):
            pairs = zip(zip(numbers, digests, strict=True), enumerate(found, first), strict=True)
            self._refuse(next(number for number, (held, due) in enumerate(pairs, first) if held != due))
        self._mark = LedgerMark(count=numbers[-1], digest=digests[-1])
        places = map(self._runs.__getitem__, runs), map(self._costs.__getitem__, costs)
        for column, values in zip(self._columns, (times, clients, rounds, steps, *places), strict=True):
            column.extend(values)

    def _entries(self) -> LedgerEntries:
        times, clients, rounds, steps, run_places, cost_places = (
            np.frombuffer(column, dtype=np.int64) for column in self._columns
        )
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
