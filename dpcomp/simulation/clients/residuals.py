"""Residuals: what the codecs of simulated clients dropped so far, in memory up to a budget, else in a file."""

from pathlib import Path

import numpy as np
from jaxtyping import Float32

from dpcomp.core.layout import Layout


class Residuals:
    """Keeps the residuals of clients that are not taking part at present.

    Args:
        layout: The layers of the vectors.
        memory_budget: The most bytes in memory; what does not fit is written to a file.
        folder: Where the file is, with a row for each client that needs one.
    """

    def __init__(self, layout: Layout, memory_budget: int, folder: Path):
        self._size, self._most = layout.size, memory_budget // (4 * max(1, layout.size))
        self._in_memory: dict[int, np.ndarray] = {}
        self._file, self._rows = folder / "residuals", dict[int, int]()  # client → row of the file

    def keep(self, client: int, residual: Float32[np.ndarray, "d"]) -> None:
        """Keep the residual of a client, until `take` returns it."""
        if client not in self._rows and len(self._in_memory) < self._most:
            self._in_memory[client] = residual
            return
        if client not in self._rows:
            self._rows[client] = len(self._rows)
            self._file.touch()
            with self._file.open("r+b") as file:
                file.truncate(len(self._rows) * 4 * self._size)
        self._row(client)[:] = residual

    def take(self, client: int) -> Float32[np.ndarray, "d"] | None:
        """Return the residual of a client; None if none is kept."""
        if client in self._rows:
            return np.array(self._row(client))
        return self._in_memory.pop(client, None)

    def _row(self, client: int) -> "np.memmap[tuple[int], np.dtype[np.float32]]":
        # A map of this row alone, closed after use: a map of the whole file would count as memory of this process.
        offset = self._rows[client] * 4 * self._size
        return np.memmap(self._file, np.float32, "r+", offset, (self._size,))
