"""Layouts: the named layers of a flat vector."""

import hashlib
import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Int64


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

    @cached_property
    def digest(self) -> bytes:
        """8 bytes that name the layout."""
        return hashlib.blake2b(repr(self.shapes).encode(), digest_size=8).digest()
