"""Journal: the payloads that a server has accepted since its last checkpoints, durable before it replies."""

import os
import sqlite3
from pathlib import Path

from dpcomp.core.errors import DpcompError
from dpcomp.core.storage import open_database


class Journal:
    """A durable list of accepted payloads, in the order in which they were accepted (SQLite, synced at each payload).

    Args:
        path: The file; it is created if it does not exist.

    Raises:
        DpcompError: The file cannot be opened, is open in another process, or is not a journal.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self._name = str(Path(path))
        try:
            self._database = open_database(self._name)
            self._database.execute("PRAGMA secure_delete = ON")
            self._database.execute(
                "CREATE TABLE IF NOT EXISTS accepted (number INTEGER PRIMARY KEY, version INTEGER, payload BLOB)"
            )
        except sqlite3.DatabaseError as error:
            raise DpcompError(
                f"the journal {self._name} cannot be opened ({error}): does its folder exist, and is it open in "
                "another process? A single server at a time may hold it"
            ) from error

    def append(self, version: int, payload: bytes) -> None:
        """Write a payload durably: once this returns, it survives a crash of the machine.

        Args:
            version: The server's version when it accepted the payload.
            payload: The payload's bytes.

        Raises:
            DpcompError: The payload could not be written, so the server must not call it accepted.
        """
        try:
            self._database.execute("INSERT INTO accepted (version, payload) VALUES (?, ?)", (version, payload))
        except sqlite3.Error as error:
            raise DpcompError(f"the journal {self._name} cannot be written ({error}): is the disk full?") from error

    def payloads(self) -> list[tuple[int, bytes]]:
        """Return all payloads in their order, each after the version of the server that accepted it."""
        return self._database.execute("SELECT version, payload FROM accepted ORDER BY number").fetchall()

    def forget_before(self, version: int) -> None:
        """Delete the payloads that were accepted before a version; no checkpoint that is kept needs them."""
        self._database.execute("DELETE FROM accepted WHERE version < ?", (version,))

    def close(self) -> None:
        """Close the file, so that another process may open it."""
        self._database.close()
