"""FactoredUnits: per-unit gradients that are known by their norms and weighted sums, without an array of rows."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64

from dpcomp.core.layout import Layout
from dpcomp.core.support import Everywhere, Support
from dpcomp.display.text import without_values
from dpcomp.privacy.units.unit_gradients import Units

# From the (k,) norms of some units to their (k,) factors, and whether each norm is finite.
Factors = Callable[[Float64[np.ndarray, "k"]], tuple[Float64[np.ndarray, "k"], Bool[np.ndarray, "k"]]]


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class FactoredUnits(ABC):
    """The gradients of n units, each a product of factors such as a layer's input and output gradient.

    **Privacy:** whoever implements it vouches that the norms are those of the rows that the sums are made of, and that
    a row depends on its unit alone. The sums are as exact as those of rows (dpcomp/privacy/units/clipped_sum.py).

    Args:
        layout: The layers of the whole vector.
        support: Which coordinates norms and sums are taken over.
    """

    layout: Layout
    support: Support = field(default_factory=Everywhere)

    def __repr__(self) -> str:
        return without_values(self, self.layout.size)

    @property
    @abstractmethod
    def count(self) -> int:
        """The number of units n."""

    @abstractmethod
    def restrict(self, support: Support) -> "FactoredUnits":
        """Return the units on a smaller support.

        Raises:
            ValueError: They were restricted before.
        """

    @abstractmethod
    def rows(self) -> Units:
        """Return the units as rows, which takes n·d floats."""

    @abstractmethod
    def weighted_sum(self, factors: Factors) -> tuple[tuple[Any, ...], int]:
        """Return ∑ᵢ fᵢxᵢ over the units whose norms are finite, and how many they are.

        Args:
            factors: Gives the factors of some units, from their norms; called once for each unit.

        Returns:
            An (m,) float64 array a layer, where m is the number of the layer's coordinates in the support; and the
            number of units whose norm is finite.
        """
