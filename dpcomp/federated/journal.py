"""The journal: payloads that a server has accepted since its checkpoints, durable before it says so."""

import os
import sqlite3
from pathlib import Path

from dpcomp.core.errors import DpcompError
from dpcomp.core.storage import open_database


class Journal:
    """Payloads in the order in which they were accepted (SQLite, fsynced).

    Raises:
        DpcompError: the file cannot be opened, is open in another process, or is no journal.
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
                f"the journal {self._name} cannot be opened ({error}): is its folder there, and is it open in another "
                "process? One server at a time holds it"
            ) from error

    def append(self, version: int, payload: bytes) -> None:
        """Keep a payload that a server at a version accepted; once this returns it outlives the machine's next crash.

        Raises:
            DpcompError: it could not be kept, and so may not be called accepted.
        """
        try:
            self._database.execute("INSERT INTO accepted (version, payload) VALUES (?, ?)", (version, payload))
        except sqlite3.Error as error:
            raise DpcompError(f"the journal {self._name} takes nothing ({error}): is the disk full?") from error

    def payloads(self) -> list[tuple[int, bytes]]:
        """All of them, in their order, with the version of the server that accepted each."""
        return self._database.execute("SELECT version, payload FROM accepted ORDER BY number").fetchall()

    def forget_before(self, version: int) -> None:
        """Forget what was accepted before a version: no checkpoint needs it any more."""
        self._database.execute("DELETE FROM accepted WHERE version < ?", (version,))

    def close(self) -> None:
        """Let another process open it."""
        self._database.close()
