"""BookedUnits: the per-example gradients of a pass, as layer inputs and output gradients."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from array_api_compat import array_namespace
from jaxtyping import Int64
from torch import Tensor, nn

from dpcomp.core.support import Everywhere, Support, checked_support
from dpcomp.privacy.units.clipped_sum import UNITS_PER_SUM, added
from dpcomp.privacy.units.factored_units import FactoredUnits, Factors
from dpcomp.privacy.units.unit_gradients import Units
from dpcomp.training.pytorch.rows.book_keeping.formulas import terms
from dpcomp.training.pytorch.rows.book_keeping.layer_terms import LayerTerms

BYTES_OF_ROWS = 2**26  # of the examples whose rows are held at a time, if they are more than `FEWEST`
FEWEST = 8  # examples at a time: sums over fewer would be bound by memory


@dataclass(frozen=True, eq=False)
class Booked:
    """What one layer got and what reached its output in a pass.

    Args:
        layer: The layer.
        places: The positions of its trained parameters among those of the model.
        inputs: Its inputs, the examples on the first axis in equal blocks.
        gradients: The gradients of its outputs, alike.
        made: The terms of all examples, if they were made for a row and are kept for the sum.
    """

    layer: nn.Module
    places: tuple[int, ...]
    inputs: Tensor
    gradients: Tensor
    made: list[LayerTerms]

    def terms(self, n: int, start: int, stop: int) -> LayerTerms:
        """Return the terms of some of n examples; those of all that were kept are used up."""
        if (start, stop) != (0, n):
            a, g = self.inputs.shape[0] // n, self.gradients.shape[0] // n
            inputs, gradients = self.inputs[a * start : a * stop], self.gradients[g * start : g * stop]
            return terms(self.layer, inputs, gradients, stop - start)
        return self.made.pop() if self.made else terms(self.layer, self.inputs, self.gradients, n)

    def rows(self, n: int, some: slice) -> list[Tensor]:
        """Return the rows of some of n examples, of the terms of all, which are kept for the sum."""
        if not self.made:
            self.made.append(terms(self.layer, self.inputs, self.gradients, n))
        return self.made[0].rows(some)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class BookedUnits(FactoredUnits):
    """The gradients of n examples, of which norms and sums are taken layer by layer.

    **Privacy:** a row is a product of its example's own layer inputs and output gradients. Rows that are held are
    rounded alone; products over examples or over positions are in float64.

    Args:
        booked: What each layer got and gave.
        shapes: The shape of each trainable parameter, in the order of the layout.
        n: The number of examples.
        scale: What rows are multiplied by: n, where the loss is a mean.
        like: A tensor of the device.
    """

    booked: Sequence[Booked]
    shapes: Sequence[torch.Size]
    n: int
    scale: float
    like: Tensor

    @property
    def count(self) -> int:
        """The number of examples."""
        return self.n

    def restrict(self, support: Support) -> "BookedUnits":
        """Return the examples on a smaller support.

        Raises:
            ValueError: They were restricted before.
        """
        if self.support != Everywhere():
            raise ValueError(
                f"the coordinates are already restricted to {type(self.support).__name__}: restrict them once"
            )
        return replace(self, support=checked_support(support, "restrict was given"))

    def rows_of(self, start: int, stop: int) -> tuple[Tensor, ...]:
        """Return the rows of some examples on all coordinates, a (k, *shape) tensor a parameter."""
        found: dict[int, Tensor] = {}
        at_once = self._chunk_size >= self.n
        for one in self.booked:
            rows = one.rows(self.n, slice(start, stop)) if at_once else one.terms(self.n, start, stop).rows()
            for place, part in zip(one.places, rows, strict=True):
                found[place] = part.reshape(stop - start, *self.shapes[place]) * self.scale
        return tuple(
            found[place] if place in found else self.like.new_zeros((stop - start, *shape))
            for place, shape in enumerate(self.shapes)
        )

    def rows(self) -> Units:
        """Return all rows."""
        units = Units.of(self.rows_of(0, self.n), self.layout)
        return units if self.support == Everywhere() else units.restrict(self.support)

    def weighted_sum(self, factors: Factors) -> tuple[tuple[Any, ...], int]:
        """Return the weighted sum, as `FactoredUnits.weighted_sum` says."""
        with np.errstate(all="ignore"):  # a norm that overflows is infinite: meant
            return self._weighted_sum(factors)

    def _weighted_sum(self, factors: Factors) -> tuple[tuple[Any, ...], int]:
        kept = self._kept()
        sizes = [shape.numel() for shape in self.shapes] if kept is None else [len(part) for part in kept]
        sums: list[_Sum] = [_Sum() for _ in sizes]
        finite_count = 0
        for start, stop in self._chunks():
            parts = [
                (one, one.terms(self.n, start, stop), None if kept is None else [kept[place] for place in one.places])
                for one in self.booked
            ]
            squares = self._zeros(stop - start)
            for _, each, own in parts:
                squares = squares + each.squares(own)
            xp = array_namespace(squares)
            weights, finite = factors(xp.sqrt(squares) * self.scale)
            weights = weights * self.scale
            finite_count += int(xp.count_nonzero(finite))
            for one, each, own in parts:
                for place, more in zip(one.places, each.sums(weights, finite, own), strict=True):
                    sums[place].add(more, stop - start)
        return tuple(one.total(self._zeros, size) for one, size in zip(sums, sizes, strict=True)), finite_count

    @property
    def _chunk_size(self) -> int:
        """The number of examples whose rows are held at a time."""
        size = self.layout.size * self.like.element_size()
        return max(FEWEST, min(UNITS_PER_SUM, BYTES_OF_ROWS // max(1, size)))

    def _chunks(self) -> Iterator[tuple[int, int]]:
        step = self._chunk_size
        for start in range(0, self.n, step):
            yield start, min(self.n, start + step)

    def _kept(self) -> list[Int64[Any, "_"]] | None:
        """Return the positions of each parameter that are in the support; None for all."""
        if self.support == Everywhere():
            return None
        edges = np.cumsum([0, *(shape.numel() for shape in self.shapes)])
        indices = self.support.indices(self.layout.size)
        cuts = np.searchsorted(indices, edges)
        return [indices[cuts[i] : cuts[i + 1]] - edges[i] for i in range(len(self.shapes))]

    def _zeros(self, size: int) -> Any:
        if self.like.device.type == "cpu":
            return np.zeros(size)
        return self.like.new_zeros(size, dtype=torch.float64)


class _Sum:
    """A sum of arrays, in groups of `UNITS_PER_SUM` examples that are added with compensation."""

    def __init__(self):
        self._high = self._low = self._group = None
        self._units = 0

    def add(self, more: Any, units: int) -> None:
        if self._group is not None and self._units + units > UNITS_PER_SUM:
            self._close()
        if self._group is None:
            self._group, self._units = more, units
        else:
            self._group += more
            self._units += units

    def _close(self) -> None:
        self._high, self._low = (self._group, 0.0) if self._high is None else added(self._high, self._low, self._group)
        self._group = None

    def total(self, zeros: Callable[[int], Any], size: int) -> Any:
        if self._high is None:
            return zeros(size) if self._group is None else self._group
        self._close()
        return self._high + self._low
