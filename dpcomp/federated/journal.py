"""Journal: the payloads that a server has accepted since its last checkpoints, durable before it replies."""

import os

from dpcomp.core.database import DatabaseExists, DatabaseKind, create_database, open_database

FORMAT = 2  # of the file: SQLite's user_version

KIND = DatabaseKind(
    name="journal",
    application_id=int.from_bytes(b"dpcJ", "big"),
    format=FORMAT,
    schema=("CREATE TABLE accepted (number INTEGER PRIMARY KEY, version INTEGER NOT NULL, payload BLOB NOT NULL)",),
    unmarked=b"CREATE TABLE accepted",
    how_to_create="A server makes a new journal in an empty folder",
)


class Journal:
    """A durable list of accepted payloads, in the order in which they were accepted (SQLite, synced at each payload).

    Args:
        path: The file; it is created if it does not exist.

    Raises:
        DpcompError: The file cannot be opened, is open in another process, or is not a journal.
    """

    def __init__(self, path: str | os.PathLike[str]):
        try:
            self._database = create_database(path, KIND, lambda _: None)
        except DatabaseExists:
            self._database = open_database(path, KIND)

    def append(self, version: int, payload: bytes) -> None:
        """Write a payload durably: once this returns, it survives a crash of the machine.

        Args:
            version: The server's version when it accepted the payload.
            payload: The payload's bytes.

        Raises:
            DpcompError: The payload could not be written, so the server must not call it accepted.
        """
        with self._database.changing() as connection:
            connection.execute("INSERT INTO accepted (version, payload) VALUES (?, ?)", (version, payload))

    def payloads(self) -> list[tuple[int, bytes]]:
        """Return all payloads in their order, each after the version of the server that accepted it."""
        with self._database.reading() as connection:
            return connection.execute("SELECT version, payload FROM accepted ORDER BY number").fetchall()

    def forget_before(self, version: int) -> None:
        """Delete the payloads that were accepted before a version; their bytes are overwritten.

        Args:
            version: The first version whose payloads a checkpoint that is kept still needs.

        Raises:
            DpcompError: The file could not be written.
        """
        with self._database.changing() as connection:
            connection.execute("DELETE FROM accepted WHERE version < ?", (version,))

    def close(self) -> None:
        """Close the file, so that another process may open it."""
        self._database.close()
