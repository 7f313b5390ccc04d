"""Kinds of databases: what a file holds, and how it is known by its first bytes."""

from dataclasses import dataclass
from pathlib import Path

from dpcomp.core.errors import DpcompError

# SQLite's format: the header of a file, and what a file and a journal begin with (https://sqlite.org/fileformat2.html).
HEADER_BYTES, MAGIC, JOURNAL_MAGIC = 100, b"SQLite format 3\0", bytes.fromhex("d9d505f920a163d7")


@dataclass(frozen=True, kw_only=True)
class DatabaseKind:
    """What the databases of one kind hold, and how a file of that kind is known.

    Args:
        name: What errors call it, such as "ledger".
        application_id: SQLite's application id, a positive 31-bit number.
        format: The number of the format: SQLite's user version.
        schema: The statements that make its tables.
        unmarked: A statement of the schema of earlier formats, which had no application id; empty if there are none.
        how_to_create: What a caller does to make a new one.
    """

    name: str
    application_id: int
    format: int
    schema: tuple[str, ...]
    unmarked: bytes
    how_to_create: str


class DatabaseExists(DpcompError):
    """A database cannot be created, since a file is there already."""


def journal_of(file: Path) -> Path:
    """Return the path of the rollback journal of a database's file."""
    return file.with_name(f"{file.name}-journal")
