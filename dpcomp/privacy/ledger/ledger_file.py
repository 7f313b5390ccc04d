"""The ledger's file: its tables, and the chain of digests that binds each entry to all entries before it."""

import json
import secrets
import sqlite3
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from time import time
from typing import Literal, NoReturn

import numpy as np

from dpcomp.core.address import Address
from dpcomp.core.database.kind import DatabaseKind
from dpcomp.core.errors import DpcompError
from dpcomp.privacy.accounting.events import MOST_STEPS
from dpcomp.privacy.ledger.budget import Budget
from dpcomp.privacy.ledger.cost_text import CostText, cost_from_text, plan_from_text
from dpcomp.privacy.ledger.ledger_entries import LedgerEntries
from dpcomp.privacy.plan import Plan

FORMAT = 4  # of the file: SQLite's user_version
BLOCK = 4096  # charges that are read at a time

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
_BLOCK = (
    "SELECT sum(run IS ? AND event IS ? AND basis IS ? AND typeof(time) = 'integer' AND typeof(client) = 'integer' "
    "AND typeof(round) = 'integer' AND typeof(steps) = 'integer'), group_concat(time), group_concat(client), "
    "group_concat(round), group_concat(steps), group_concat(digest) FROM charges WHERE number BETWEEN ? AND ?"
)
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

    There may be millions of charges, so they are read in blocks, of which SQLite joins each column into one text. Most
    blocks have one run and one cost; the rows of any other block, and of one whose digests differ, are looked at one by
    one. Entries of the other tables are few.
    """

    def __init__(self, connection: sqlite3.Connection, name: str, head: Head):
        self._connection, self._name, self._head, self._mark = connection, name, head, head.first_mark
        self._times, self._clients, self._rounds, self._steps = array("q"), array("q"), array("q"), array("q")
        self._run_places, self._cost_places = array("q"), array("q")
        self._runs: dict[str, tuple[int, str]] = {}  # its place, and its encoded form
        self._costs: dict[CostText, tuple[int, str]] = {}

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
        least, most = self._connection.execute(
            "SELECT (SELECT min(number) FROM charges), (SELECT max(number) FROM charges)"
        ).fetchone()
        if least is None:
            return
        if least < 1:
            self._refuse(1)
        for first in range(1, most + 1, BLOCK):
            last = min(first + BLOCK - 1, most)
            if (others and others[-1][0] <= last) or not self._is_whole_block(first, last):
                self._check_rows(first, last, others)

    def _is_whole_block(self, first: int, last: int) -> bool:
        """Check the charges of these numbers, and keep their columns, if all have one run and cost.

        Each digest is held to the one that is stored before it, which the same comparison holds to its own.

        Returns:
            Whether they have, and are as they were charged; else nothing is kept, and `_check_rows` tells why.
        """
        shared = self._connection.execute("SELECT run, event, basis FROM charges WHERE number = ?", (first,)).fetchone()
        if shared is None:
            return False
        alike, *texts, joined = self._connection.execute(_BLOCK, (*shared, first, last)).fetchone()
        size = last - first + 1
        if alike != size:
            return False
        digests, (times, clients, rounds, steps) = joined.split(","), (text.split(",") for text in texts)
        (run_place, run), (cost_place, cost) = self._encoded(*shared)
        made = [
            # What `_digest` encodes; this takes a tenth of the time.
            blake2b(
                f'["{before}", "charges", {number}, {when}, {run}, {client}, {round_}, {charged}, {cost}'.encode(),
                digest_size=16,
            ).hexdigest()
            for number, before, when, client, round_, charged in zip(
                range(first, last + 1), (self._mark.digest, *digests), times, clients, rounds, steps, strict=False
            )
        ]
        if made != digests or len(made) != size:
            return False
        self._mark = LedgerMark(count=last, digest=digests[-1])
        for kept, text in zip((self._times, self._clients, self._rounds, self._steps), texts, strict=True):
            kept.frombytes(np.fromstring(text, dtype=np.int64, sep=",").tobytes())  # a quarter of the time of int()
        self._run_places.extend([run_place] * size)
        self._cost_places.extend([cost_place] * size)
        return True

    def _check_rows(self, first: int, last: int, others: list[_Row]) -> None:
        """Check the charges of these numbers one by one, with the entries of other tables among them."""
        before, count, empty = self._mark.digest, self._mark.count, blake2b(digest_size=16)
        rows = self._connection.execute(
            "SELECT number, time, client, round, steps, digest, run, event, basis FROM charges "
            "WHERE number BETWEEN ? AND ? ORDER BY number",
            (first, last),
        )
        for number, when, client, round_, steps, digest, *shared in rows:
            if number != count + 1:
                self._mark = LedgerMark(count=count, digest=before)
                while others and others[-1][0] < number:
                    self._check(*others.pop())
                before, count = self._mark.digest, self._mark.count
            count += 1
            (run_place, run), (cost_place, cost) = self._encoded(*shared)
            made = empty.copy()
            made.update(f'["{before}", "charges", {count}, {when}, {run}, {client}, {round_}, {steps}, {cost}'.encode())
            if made.hexdigest() != digest or number != count:
                self._refuse(count)
            before = digest
            for column, value in (
                (self._times, when),
                (self._clients, client),
                (self._rounds, round_),
                (self._steps, steps),
                (self._run_places, run_place),
                (self._cost_places, cost_place),
            ):
                column.append(value)
        self._mark = LedgerMark(count=count, digest=before)
        while others and others[-1][0] <= last:
            self._check(*others.pop())
        if self._mark.count != last:
            self._refuse(self._mark.count + 1)

    def _encoded(self, run: str, event: str, basis: str) -> tuple[tuple[int, str], tuple[int, str]]:
        """Return the places of run and cost among those that occur, each with its encoded form."""
        cost = event, basis
        if run not in self._runs:
            self._runs[run] = len(self._runs), _ENCODE(run)
        if cost not in self._costs:
            self._costs[cost] = len(self._costs), _ENCODE(cost)[1:]
        return self._runs[run], self._costs[cost]

    def _entries(self) -> LedgerEntries:
        times, clients, rounds, steps, run_places, cost_places = (
            np.frombuffer(column, dtype=np.int64)
            for column in (
                *(self._times, self._clients, self._rounds, self._steps),
                *(self._run_places, self._cost_places),
            )
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
