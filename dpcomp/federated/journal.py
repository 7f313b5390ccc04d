"""The journal: payloads that a server has accepted since its last checkpoint, durable before it says so."""

import os
import sqlite3
from pathlib import Path

from dpcomp.errors import DpcompError


class Journal:
    """Payloads in the order in which they were accepted (SQLite, fsynced).

    Raises:
        DpcompError: the file cannot be opened, is open in another process, or is no journal.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self._name = str(Path(path))
        try:
            self._database = sqlite3.connect(self._name, timeout=0.0, isolation_level=None)
            self._database.executescript("PRAGMA locking_mode = EXCLUSIVE; PRAGMA journal_mode = WAL;")
            self._database.execute("PRAGMA synchronous = FULL")
            self._database.execute("CREATE TABLE IF NOT EXISTS accepted (number INTEGER PRIMARY KEY, payload BLOB)")
        except sqlite3.DatabaseError as error:
            raise DpcompError(
                f"the journal {self._name} cannot be opened ({error}): is its folder there, and is it open in another "
                "process? One server at a time holds it"
            ) from error

    def append(self, payload: bytes) -> None:
        """Keep a payload; once this returns it outlives the machine's next crash."""
        self._database.execute("INSERT INTO accepted (payload) VALUES (?)", (payload,))

    def payloads(self) -> list[bytes]:
        """All of them, in their order."""
        return [payload for (payload,) in self._database.execute("SELECT payload FROM accepted ORDER BY number")]

    def clear(self) -> None:
        """Forget them: a checkpoint holds what they made."""
        self._database.execute("DELETE FROM accepted")

    def close(self) -> None:
        """Let another process open it."""
        self._database.close()
