"""Forms: how a script casts and reshapes a part of each batch on its way to the model."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Form:
    """A cast and a reshape, as one batch shows them, to which those of all others are held.

    **Privacy:** a type or a shape that is chosen by a look at a batch moves the rows of all its examples, though each
    of them has its own values.

    Args:
        delivered: The type that the loader gave.
        given: The type that the model got.
        before: The lengths of the axes behind that of the examples, as the loader gave them.
        after: The same as the model got them.
    """

    delivered: torch.dtype
    given: torch.dtype
    before: Shape
    after: Shape

    @classmethod
    def of(cls, value: Tensor, part: Tensor) -> "Form":
        """Return how a part of a batch was changed into what the model got."""
        return cls(part.dtype, value.dtype, tuple(part.shape[1:]), tuple(value.shape[1:]))

    def differs(self, now: "Form") -> str:
        """Return in which way another batch was changed otherwise; an empty text if it was not.

        Lengths may differ from batch to batch, as those of sequences do. Axes that are kept are kept then too, axes
        that are joined are joined, and where one is split, one of its parts alone has another length.
        """
        if now == self:
            return ""
        if now.given != (now.delivered if self.given == self.delivered else self.given):
            return f"is {now.given} of {now.delivered}, and was {self.given} of {self.delivered}"
        if now.before == self.before and now.after == self.after:
            return ""
        if len(now.before) == len(self.before) and len(now.after) == len(self.after):
            groups = _groups(self.before, self.after)
            if all(self._same(now, *group) for group in groups):
                return ""
        return f"has shape {_shown(now.after)} of {_shown(now.before)}, and had {_shown(self.after)} of " + _shown(
            self.before
        )

    def _same(self, now: "Form", of_before: slice, of_after: slice) -> bool:
        before, after = now.before[of_before], now.after[of_after]
        others = sum(length != was for length, was in zip(after, self.after[of_after], strict=True))
        most = 0 if before == self.before[of_before] else 1
        return math.prod(before) == math.prod(after) and others <= most


def _groups(before: Shape, after: Shape) -> list[tuple[slice, slice]]:
    """Return the shortest runs of axes of two shapes, in order, that have as many values."""
    found: list[tuple[slice, slice]] = []
    i = j = 0
    while i < len(before) and j < len(after):
        first, second = i, j
        i, j = i + 1, j + 1
        while (mine := math.prod(before[first:i])) != (theirs := math.prod(after[second:j])):
            if mine < theirs and i < len(before):
                i += 1
            elif j < len(after):
                j += 1
            else:
                i, j = len(before), len(after)
                break
        found.append((slice(first, i), slice(second, j)))
    if i < len(before) or j < len(after):  # axes of length 1
        last = found.pop() if found else (slice(0, 0), slice(0, 0))
        found.append((slice(last[0].start, len(before)), slice(last[1].start, len(after))))
    return found


def _shown(shape: Shape) -> str:
    return f"({', '.join(('n', *map(str, shape)))})"
