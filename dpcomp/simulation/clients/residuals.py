"""Residuals: what simulated clients keep of what they have to send, in memory up to a budget, else in a file."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from dpcomp.wire.feedback import Kept


class Residuals:
    """Keeps residuals, and momenta where there are any, of clients that are not taking part at present.

    Args:
        first: What a client keeps before its first update.
        memory_budget: The most bytes in memory; what does not fit is written to a file.
        folder: Where the file is, with a row for each client that needs one.
    """

    def __init__(self, first: Kept, memory_budget: int, folder: Path):
        self._names = tuple(first.vectors)
        self._shape = len(self._names), max((vector.size for vector in first.vectors.values()), default=0)
        self._most = memory_budget // max(1, self._row_bytes)
        self._in_memory: dict[int, Kept] = {}
        self._file, self._rows = folder / "residuals", dict[int, int]()  # client → row of the file

    @property
    def _row_bytes(self) -> int:
        return 4 * self._shape[0] * self._shape[1]

    def keep(self, client: int, kept: Kept) -> None:
        """Keep what a client keeps, until `take` returns it."""
        if client not in self._rows and len(self._in_memory) < self._most:
            self._in_memory[client] = kept
            return
        if client not in self._rows:
            self._rows[client] = len(self._rows)
            self._file.touch()
            with self._file.open("r+b") as file:
                file.truncate(len(self._rows) * self._row_bytes)
        row = self._row(client)
        for place, name in enumerate(self._names):
            row[place] = kept.vectors[name]

    def take(self, client: int) -> Kept | None:
        """Return what is kept of a client; None if there is nothing."""
        if client in self._rows:
            return Kept(**dict(zip(self._names, np.array(self._row(client)), strict=True)))
        return self._in_memory.pop(client, None)

    @property
    def clients(self) -> list[int]:
        """The clients of whom something is kept, ascending."""
        return sorted({*self._in_memory, *self._rows})

    def write(self, path: Path) -> None:
        """Write what is kept of all clients to a file, a row a client in ascending order, and keep it."""
        with path.open("wb") as file:
            for client in self.clients:
                if client in self._rows:
                    file.write(np.ascontiguousarray(self._row(client)).data)
                    continue
                for name in self._names:
                    file.write(np.ascontiguousarray(self._in_memory[client].vectors[name]).data)

    def read(self, path: Path, clients: Sequence[int]) -> None:
        """Keep what `write` wrote.

        Args:
            path: The file.
            clients: What `clients` was then.
        """
        with path.open("rb") as file:
            for client in clients:
                row = np.frombuffer(file.read(self._row_bytes), np.float32).reshape(self._shape)
                self.keep(client, Kept(**dict(zip(self._names, row.copy(), strict=True))))

    def _row(self, client: int) -> Float32[np.ndarray, "vectors d"]:
        # A map of this row alone, closed after use: a map of the whole file would count as memory of this process.
        return np.memmap(self._file, np.float32, "r+", self._rows[client] * self._row_bytes, self._shape)
