"""Journal: what a server has accepted and drawn since its last checkpoints, durable before it replies."""

import os
import sqlite3
from typing import Any

import numpy as np
from jaxtyping import Int64

from dpcomp.core.database.database import Database, create_database, look_at_database, open_database
from dpcomp.core.database.kind import DatabaseKind
from dpcomp.core.errors import DpcompError

FORMAT = 3  # of the file: SQLite's user_version

KIND = DatabaseKind(
    name="journal",
    application_id=int.from_bytes(b"dpcJ", "big"),
    format=FORMAT,
    schema=(
        # AUTOINCREMENT: a number is never given again, so that the count of all accepted payloads is known.
        "CREATE TABLE accepted "
        "(number INTEGER PRIMARY KEY AUTOINCREMENT, version INTEGER NOT NULL, payload BLOB NOT NULL)",
        "CREATE TABLE cohorts (version INTEGER PRIMARY KEY, clients BLOB NOT NULL)",
        "CREATE TABLE federation (run_id BLOB NOT NULL)",
        "CREATE TABLE withdrawn (client INTEGER PRIMARY KEY, round INTEGER NOT NULL, reason TEXT NOT NULL)",
    ),
    unmarked=b"CREATE TABLE accepted",
    how_to_create="A server makes a new journal in an empty folder",
)


def look_at_journal(path: str | os.PathLike[str]) -> tuple[bytes, dict[int, int], dict[int, str]]:
    """Read a journal that a server may hold; nothing changes.

    Args:
        path: The file.

    Returns:
        The run id; how many payloads it holds that were accepted at each version; and why each client that takes no
        further part does not, by its number.

    Raises:
        DpcompError: It cannot be read, or is not a journal.
    """
    with look_at_database(path, KIND) as connection:
        row = connection.execute("SELECT run_id FROM federation").fetchone()
        if row is None:
            raise DpcompError(f"the journal {path} names no federation: restore the newest whole copy of it")
        accepted = dict(connection.execute("SELECT version, COUNT(*) FROM accepted GROUP BY version").fetchall())
        withdrawn = connection.execute("SELECT client, reason FROM withdrawn ORDER BY client").fetchall()
    return row[0], accepted, dict(withdrawn)


class Journal:
    """A durable list of accepted payloads in their order, and the cohort of each round (SQLite, synced at each change).

    `Journal.create` makes one, and `Journal(path)` opens it again.

    Args:
        path: The file.

    Raises:
        DpcompError: No file is there, it cannot be opened, is open in another process, or is not a journal.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self._database: Database = open_database(path, KIND)

    @classmethod
    def create(cls, path: str | os.PathLike[str], run_id: bytes) -> "Journal":
        """Create a journal.

        Args:
            path: The file, in a folder that exists.
            run_id: The run id of the federation.

        Raises:
            DpcompError: A file is there already, or it cannot be written.
        """

        def fill(connection: sqlite3.Connection) -> None:
            connection.execute("INSERT INTO federation (run_id) VALUES (?)", (run_id,))

        journal = cls.__new__(cls)
        journal._database = create_database(path, KIND, fill)
        return journal

    @property
    def run_id(self) -> bytes:
        """The run id of the federation."""
        with self._database.reading() as connection:
            return connection.execute("SELECT run_id FROM federation").fetchone()[0]

    @property
    def count(self) -> int:
        """The number of payloads that were ever appended, those that were forgotten included."""
        with self._database.reading() as connection:
            row = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'accepted'").fetchone()
        return 0 if row is None else row[0]

    def append(self, version: int, payload: bytes, client: int, number: int) -> None:
        """Write a payload durably, and that its client takes part: once this returns, it survives a machine's crash.

        Args:
            version: The server's version when it accepted the payload.
            payload: The payload's bytes.
            client: The number of the client that sent it, which has come back if it withdrew from this round or before.
            number: The round of the payload.

        Raises:
            DpcompError: The payload could not be written, so the server must not call it accepted.
        """
        with self._database.changing() as connection:
            connection.execute("INSERT INTO accepted (version, payload) VALUES (?, ?)", (version, payload))
            connection.execute("DELETE FROM withdrawn WHERE client = ? AND round <= ?", (client, number))

    def payloads(self, after: int = 0) -> list[tuple[int, bytes]]:
        """Return the payloads in their order, each after the version of the server that accepted it.

        Args:
            after: How many payloads were appended before those that are returned.
        """
        with self._database.reading() as connection:
            statement = "SELECT version, payload FROM accepted WHERE number > ? ORDER BY number"
            return connection.execute(statement, (after,)).fetchall()

    def keep_cohort(self, version: int, clients: Int64[np.ndarray, "chosen"]) -> None:
        """Write the cohort of a round durably, before anybody is told of it.

        Args:
            version: The server's version in that round.
            clients: The clients' numbers, ascending.

        Raises:
            DpcompError: The cohort could not be written, or that round has one already.
        """
        with self._database.changing() as connection:
            content = clients.astype("<u4").tobytes()
            connection.execute("INSERT INTO cohorts (version, clients) VALUES (?, ?)", (version, content))

    def cohorts(self) -> dict[int, Int64[np.ndarray, "chosen"]]:
        """Return all cohorts, by the server's version in their round."""
        with self._database.reading() as connection:
            rows = connection.execute("SELECT version, clients FROM cohorts").fetchall()
        return {version: np.frombuffer(clients, dtype="<u4").astype(np.int64) for version, clients in rows}

    def forget_before(self, version: int) -> None:
        """Delete the payloads that were accepted before a version, and overwrite them in the file.

        The blocks of the disk that SQLite's rollback journal had meanwhile hold them too. They are given back to the
        file system, and nobody overwrites them: keep the folder of a trusted server on an encrypted volume.

        Args:
            version: The first version whose payloads a checkpoint that is kept still needs.

        Raises:
            DpcompError: The file could not be written.
        """
        with self._database.changing() as connection:
            connection.execute("DELETE FROM accepted WHERE version < ?", (version,))

    def forget_cohorts_before(self, version: int) -> None:
        """Delete the cohorts of the rounds before a version. Raises DpcompError if the file could not be written."""
        with self._database.changing() as connection:
            connection.execute("DELETE FROM cohorts WHERE version < ?", (version,))

    def keep_withdrawal(self, client: int, number: int, reason: str) -> None:
        """Write durably that a client takes no further part.

        Args:
            client: The client's number.
            number: The first round of which it sends no update.
            reason: Why.

        Raises:
            DpcompError: It could not be written.
        """
        with self._database.changing() as connection:
            row = (client, number, reason)
            connection.execute("INSERT OR REPLACE INTO withdrawn (client, round, reason) VALUES (?, ?, ?)", row)

    def withdrawals(self) -> dict[int, tuple[int, Any]]:
        """Return of each client that takes no further part the first round of which it sends no update, and why."""
        with self._database.reading() as connection:
            rows = connection.execute("SELECT client, round, reason FROM withdrawn ORDER BY client").fetchall()
        return {client: (number, reason) for client, number, reason in rows}

    def refuse_other(self, folder: object, run_id: bytes, count: int) -> None:
        """Refuse to go on from a checkpoint that this journal does not belong to.

        Args:
            folder: Where both are, for the error.
            run_id: The run id in the checkpoint.
            count: The number of payloads that were accepted before the checkpoint was saved.

        Raises:
            DpcompError: The journal is of another federation, or older than the checkpoint.
        """
        if self.run_id != run_id:
            raise DpcompError(
                f"{folder} holds a checkpoint of run id {run_id.hex()} and a journal of {self.run_id.hex()}: restore "
                "both from one copy"
            )
        if self.count < count:
            raise DpcompError(
                f"the journal in {folder} holds {self.count} payloads, and the checkpoint was saved after {count}: it "
                "is older, and payloads that were called accepted are missing. Restore both from one copy"
            )

    def close(self) -> None:
        """Close the file, so that another process may open it."""
        self._database.close()
