"""Batches: which clipped micro-batches are in a sum, so that each is counted once and released once."""

import threading
from itertools import islice
from typing import Any, NoReturn

from dpcomp.core.errors import NotPrivate

_lock = threading.Lock()  # one for all batches: sums share them, and it is held for microseconds


class Batch:
    """A clipped micro-batch; what counts is which object it is."""

    __slots__ = ("released",)

    def __init__(self) -> None:
        self.released = False


class Batches:
    """The micro-batches in a sum, and what clipped them.

    A sum that grows by one batch at a time shares its table with the sums before it, of which each knows how much of
    the table is its own: adding a batch takes constant time.

    Args:
        clipped_by: What identifies the pipeline's mechanism; sums of different mechanisms are not joined.
    """

    def __init__(self, clipped_by: Any):
        self.clipped_by = clipped_by
        self._table: dict[Batch, int] = {Batch(): 0}
        self._count = 1

    def joined(self, other: "Batches") -> "Batches":
        """Return the batches of the sum of two sums.

        Raises:
            NotPrivate: A batch is in both.
        """
        longer, shorter = (self, other) if self._count >= other._count else (other, self)
        with _lock:
            new = shorter._members()
            if any(longer._table.get(batch, longer._count) < longer._count for batch in new):
                raise NotPrivate(
                    "the two totals share a micro-batch, so its units would count twice: add each total to a sum once"
                )
            table = longer._table
            if len(table) > longer._count:  # another sum has grown out of this one
                table = dict(islice(table.items(), longer._count))
            for batch in new:
                table[batch] = len(table)
            result = object.__new__(Batches)
            result.clipped_by, result._table, result._count = self.clipped_by, table, len(table)
        return result

    def take(self) -> None:
        """Use up all batches for a release.

        Raises:
            NotPrivate: One of them was released before.
        """
        with _lock:
            members = self._members()
            if any(batch.released for batch in members):
                raise NotPrivate(
                    "this total, or a part of it, was released before, and a second release of the same units costs "
                    "more than is charged: clip a new batch; to send a release again, send the same bytes"
                )
            for batch in members:
                batch.released = True

    def give_back(self) -> None:
        """Undo `take`, for a release that was refused before any noise was drawn."""
        with _lock:
            for batch in self._members():
                batch.released = False

    def _members(self) -> list[Batch]:
        return list(islice(self._table, self._count))

    def __reduce__(self) -> NoReturn:
        raise NotPrivate(
            "a clipped total stays in its process, where it is released once: send what pipeline.noise returns"
        )
