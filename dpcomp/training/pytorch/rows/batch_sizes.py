"""Batch sizes: the largest batches of which something was found, beside which another one is looked at anew."""

from typing import Any

from dpcomp.training.pytorch.rows.structures import count, tensors

_MOST = 4096  # forms that are kept; one of those that are dropped is looked at again

_Form = tuple[tuple[int, ...], tuple[int, ...]]  # the number of axes of each tensor, and the lengths behind the first


class BatchSizes:
    """The sizes of batches, and which other batches are no larger than one of them.

    A batch is no larger than another of the same form if it has no more examples: one with shorter sequences is of
    another form, since a capacity could fall with the length. Few of many batches are new, such as some ten of ten
    thousand that differ in the number of examples alone, and with texts a few for each length.
    """

    def __init__(self):
        self._most: dict[_Form, int] = {}  # examples of the largest batch of each form

    def add(self, batch: Any, n: int | None = None) -> None:
        """Note the size of a batch, in place of a smaller one.

        Args:
            batch: Tensors whose first axis runs over the examples, nested in tuples, lists and mappings.
            n: The number of examples, in place of the batch's own.
        """
        form = _form(batch)
        most = max(self._most.pop(form, 0), count(batch) if n is None else n)
        if len(self._most) == _MOST:
            del self._most[next(iter(self._most))]
        self._most[form] = most

    def cover(self, batch: Any) -> bool:
        """Return whether a batch is no larger than one that was noted, and of the same form."""
        return count(batch) <= self._most.get(_form(batch), -1)

    def reach(self, batch: Any) -> bool:
        """Return whether one that was noted has no more examples than a batch, and no longer axes."""
        n, (axes, lengths) = count(batch), _form(batch)
        return any(
            most <= n and axes == of and all(a <= b for a, b in zip(others, lengths, strict=True))
            for (of, others), most in self._most.items()
        )


def _form(batch: Any) -> _Form:
    parts = tensors(batch)
    return tuple(part.ndim for part in parts), tuple(length for part in parts for length in part.shape[1:])
