"""The ledger's file: its tables, and the chain of digests that binds each entry to all entries before it."""

import heapq
import json
import secrets
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from time import time
from typing import Literal

from dpcomp.core.database import DatabaseKind
from dpcomp.core.errors import DpcompError

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


def read_entries(connection: sqlite3.Connection, name: str) -> Iterator[tuple[Table, int, tuple[Value, ...]]]:
    """Read all entries in their order, and hold each to the chain of digests.

    Args:
        connection: A connection to a ledger.
        name: What an error calls the ledger.

    Yields:
        For each entry its table, its time in seconds since 1970 (UTC), and its columns after number and time, without
        the digest.

    Raises:
        DpcompError: An entry was changed or deleted, or the file is incomplete.
    """
    head = read_head(connection, name)
    mark = head.first_mark
    for number, table, when, fields, digest in heapq.merge(*(_rows(connection, table) for table in _FIELDS)):
        expected = _digest(mark.digest, [table, mark.count + 1, when, *fields])
        if (number, digest) != (mark.count + 1, expected):
            raise DpcompError(
                f"{name} was changed: its entry {mark.count + 1} is not what was charged, or is missing. A charge is "
                "never taken back; restore the newest whole copy of it"
            )
        mark = LedgerMark(count=number, digest=digest)
        yield table, when, fields
    if mark != head.mark:
        raise DpcompError(
            f"{name} is incomplete: it should have {head.mark} and has {mark}. It was changed, or copied while a "
            "charge was being written; restore the newest whole copy of it"
        )


def _rows(connection: sqlite3.Connection, table: Table) -> Iterator[tuple[int, Table, int, tuple[Value, ...], str]]:
    rows = connection.execute(f"SELECT number, time, digest, {_FIELDS[table]} FROM {table} ORDER BY number")
    for number, when, digest, *fields in rows:
        yield number, table, when, tuple(fields), digest


def _digest(before: str, entry: Sequence[Value]) -> str:
    return blake2b(_ENCODE([before, *entry]).encode(), digest_size=16).hexdigest()
