"""NodeNumbers: which client of the federation a node of Flower is."""

import os
from pathlib import Path

from dpcomp.core.database.database import Database, create_database, open_database
from dpcomp.core.database.kind import DatabaseKind

KIND = DatabaseKind(
    name="list of nodes",
    application_id=int.from_bytes(b"dpcF", "big"),
    format=1,
    # A node id has 64 bits without a sign, which SQLite's integers don't hold.
    schema=("CREATE TABLE nodes (client INTEGER PRIMARY KEY, node BLOB NOT NULL UNIQUE)",),
    unmarked=b"",
    how_to_create="A server makes a new one in an empty folder",
)


class NodeNumbers:
    """The numbers of Flower's nodes, in a file: a node keeps its number, and no number is given twice.

    Args:
        path: The file; it is created if it does not exist.
        most: The most nodes; further ones get no number.

    Raises:
        DpcompError: The file is no list of nodes, or is open in another process.
    """

    def __init__(self, path: str | os.PathLike[str], most: int):
        exists = Path(path).exists() and Path(path).stat().st_size > 0
        self._database: Database = open_database(path, KIND) if exists else create_database(path, KIND, lambda _: None)
        self._most = most
        with self._database.reading() as connection:
            rows = connection.execute("SELECT client, node FROM nodes").fetchall()
        self._clients = {int.from_bytes(node, "big"): client for client, node in rows}

    def enrol(self, node: int) -> int | None:
        """Return the number of a node, and give it one if it has none yet; None if there are as many as may be.

        Args:
            node: Flower's node id.

        Raises:
            DpcompError: The file could not be written.
        """
        client = self._clients.get(node)
        if client is None and len(self._clients) < self._most:
            client = len(self._clients)
            with self._database.changing() as connection:
                row = (client, node.to_bytes(8, "big"))
                connection.execute("INSERT INTO nodes (client, node) VALUES (?, ?)", row)
            self._clients[node] = client
        return client if client is None or client < self._most else None

    def close(self) -> None:
        """Close the file, so that another process may open it."""
        self._database.close()
