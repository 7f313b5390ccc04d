"""Layouts: the named layers of a flat vector."""

import hashlib
import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Int64, Shaped

from dpcomp.core.support import Everywhere, Support


@dataclass(frozen=True)
class Layout:
    """The layers of a flat vector, in order: their names and shapes.

    Raises:
        ValueError: it has no coordinates, or 2³² and more.
    """

    shapes: tuple[tuple[str, tuple[int, ...]], ...]

    @classmethod
    def of(cls, layers: "int | Mapping[str, tuple[int, ...]] | Layout") -> "Layout":
        """A layout from the number of coordinates, or from a mapping name → shape."""
        if isinstance(layers, Layout):
            return layers
        if isinstance(layers, Mapping):
            return cls(tuple((str(name), tuple(map(operator.index, shape))) for name, shape in layers.items()))
        return cls((("update", (operator.index(layers),)),))

    def __post_init__(self):
        if self.size < 1 or any(side < 0 for _, shape in self.shapes for side in shape):
            raise ValueError(f"{self} has no coordinates: a layout needs at least one")
        if self.size >= 2**32:
            raise ValueError(f"{self} has {self.size} coordinates: the wire format holds fewer than 2**32")

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """The number of coordinates of each layer."""
        return tuple(math.prod(shape) for _, shape in self.shapes)

    @cached_property
    def size(self) -> int:
        """d, the number of coordinates."""
        return sum(self.sizes)

    @cached_property
    def edges(self) -> Int64[np.ndarray, "layers_plus_one"]:
        """Where each layer begins in the flat vector, and at the end d."""
        return np.cumsum([0, *self.sizes], dtype=np.int64)

    def split(self, vector: Shaped[np.ndarray, "d"]) -> list[Shaped[np.ndarray, "_"]]:
        """Cut a (d,) vector into its layers, as views."""
        return np.split(vector, self.edges[1:-1])

    def spread(self, values: Shaped[np.ndarray, "layers"]) -> Shaped[np.ndarray, "d"]:
        """Give every coordinate the value of its layer."""
        return np.repeat(values, self.sizes)

    def counts(self, support: Support) -> Int64[np.ndarray, "layers"]:
        """Count the coordinates of a support in each layer."""
        if isinstance(support, Everywhere):
            return np.diff(self.edges)
        return np.diff(np.searchsorted(support.indices(self.size), self.edges))

    @cached_property
    def digest(self) -> bytes:
        """8 bytes that name the layout."""
        return hashlib.blake2b(repr(self.shapes).encode(), digest_size=8).digest()


def split_by_counts(
    values: Shaped[np.ndarray, "k"], counts: Int64[np.ndarray, "layers"]
) -> list[Shaped[np.ndarray, "_"]]:
    """Cut values on a support into layers, as views; `counts` says how many of them each layer holds."""
    return np.split(values, np.cumsum(counts)[:-1])
