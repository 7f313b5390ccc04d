"""BookedUnits: the per-example gradients of a pass, as layer inputs and output gradients."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from array_api_compat import array_namespace
from jaxtyping import Int64
from torch import Tensor, nn

from dpcomp.core.checks import check_type
from dpcomp.core.support import Everywhere, Support, checked_support
from dpcomp.privacy.clipped_sum import UNITS_PER_SUM, added
from dpcomp.privacy.factored_units import FactoredUnits, Factors
from dpcomp.privacy.unit_gradients import Units
from dpcomp.training.pytorch.rows.book_keeping.formulas import terms
from dpcomp.training.pytorch.rows.book_keeping.layer_terms import LayerTerms

BYTES_OF_ROWS = 2**28  # of the examples whose rows are held at a time


@dataclass(frozen=True, eq=False)
class Booked:
    """What one layer got and what reached its output in a pass.

    Args:
        layer: The layer.
        places: The positions of its trained parameters among those of the model.
        inputs: Its inputs, the examples on the first axis in equal blocks.
        gradients: The gradients of its outputs, alike.
    """

    layer: nn.Module
    places: tuple[int, ...]
    inputs: Tensor
    gradients: Tensor

    def terms(self, n: int, start: int, stop: int) -> LayerTerms:
        """Return the terms of some of n examples."""
        a, g = len(self.inputs) // n, len(self.gradients) // n
        whole = (start, stop) == (0, n)
        inputs = self.inputs if whole else self.inputs[a * start : a * stop]
        return terms(self.layer, inputs, self.gradients if whole else self.gradients[g * start : g * stop], stop - start)


@dataclass(frozen=True, kw_only=True, eq=False)
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
        found = [self.like.new_zeros((stop - start, *shape)) for shape in self.shapes]
        for one in self.booked:
            for place, part in zip(one.places, one.terms(self.n, start, stop).rows(), strict=True):
                found[place] = part.reshape(stop - start, *self.shapes[place]) * self.scale
        return tuple(found)

    def rows(self) -> Units:
        """Return all rows."""
        units = Units.of(self.rows_of(0, self.n), self.layout)
        return units if self.support == Everywhere() else units.restrict(self.support)

    def weighted_sum(self, factors: Factors) -> tuple[tuple[Any, ...], int]:
        """Return the weighted sum, as `FactoredUnits.weighted_sum` says."""
        kept = self._kept()
        sizes = [shape.numel() for shape in self.shapes] if kept is None else [len(part) for part in kept]
        high: list[Any] = [self._zeros(size) for size in sizes]
        low: list[Any] = [0.0] * len(high)
        finite_count, group = 0, 0
        for start, stop in self._chunks():
            chunk = [(one, one.terms(self.n, start, stop)) for one in self.booked]
            parts = [(one, each, None if kept is None else [kept[place] for place in one.places]) for one, each in chunk]
            squares = sum((each.squares(own) for _, each, own in parts), start=self._zeros(stop - start))
            xp = array_namespace(squares)
            with np.errstate(all="ignore"):
                weights, finite = factors(xp.sqrt(squares) * self.scale)
            weights = weights * self.scale
            finite_count += int(xp.count_nonzero(finite))
            compensated = start - group + (stop - start) > UNITS_PER_SUM
            for one, each, own in parts:
                for place, more in zip(one.places, each.sums(weights, finite, own), strict=True):
                    if start == 0:
                        high[place] = more
                    elif compensated or self.n > UNITS_PER_SUM:
                        high[place], low[place] = added(high[place], low[place], more)
                    else:
                        high[place] += more
        return tuple(a + b for a, b in zip(high, low, strict=True)), finite_count

    def _chunks(self) -> Iterator[tuple[int, int]]:
        size = sum(shape.numel() for shape in self.shapes) * self.like.element_size()
        step = max(1, min(UNITS_PER_SUM, BYTES_OF_ROWS // max(1, size)))
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
