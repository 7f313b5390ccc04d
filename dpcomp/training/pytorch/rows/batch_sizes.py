"""Batch sizes: the largest batches of which something was found, beside which a larger one is looked at anew."""

from typing import Any

from dpcomp.training.pytorch.rows.structures import count, tensors


class BatchSizes:
    """The sizes of batches, and which other batches are no larger than one of them.

    A batch is no larger than another if it has no more examples, and as many tensors and axes, none of which is longer.
    Few of many batches are larger than all before them, such as some ten of ten thousand that differ in the number of
    examples alone.
    """

    def __init__(self):
        self._sizes: dict[tuple[int, ...], list[tuple[int, ...]]] = {}  # by the number of axes of each tensor

    def add(self, batch: Any, n: int | None = None) -> None:
        """Note the size of a batch, in place of those that are no larger.

        Args:
            batch: Tensors whose first axis runs over the examples, nested in tuples, lists and mappings.
            n: The number of examples, in place of the batch's own.
        """
        form, size = _size(batch, n)
        held = self._sizes.get(form, [])
        self._sizes[form] = [*(each for each in held if not _within(each, size)), size]

    def cover(self, batch: Any) -> bool:
        """Return whether a batch is no larger than one that was noted."""
        form, size = _size(batch)
        return any(_within(size, each) for each in self._sizes.get(form, ()))

    def reach(self, batch: Any) -> bool:
        """Return whether one that was noted is no larger than a batch."""
        form, size = _size(batch)
        return any(_within(each, size) for each in self._sizes.get(form, ()))


def _size(batch: Any, n: int | None = None) -> tuple[tuple[int, ...], tuple[int, ...]]:
    parts = tensors(batch)
    lengths = [length for part in parts for length in part.shape[1:]]
    return tuple(part.ndim for part in parts), (count(parts) if n is None else n, *lengths)


def _within(size: tuple[int, ...], other: tuple[int, ...]) -> bool:
    return all(a <= b for a, b in zip(size, other, strict=True))
