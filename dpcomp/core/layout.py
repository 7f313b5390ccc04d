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
from dpcomp.display.text import shortened

MOST_SHOWN = 400  # letters of a repr


@dataclass(frozen=True)
class Layout:
    """The layers of a flat vector, in order, each with a name and a shape.

    An update is one vector of d coordinates; the layout says which of them belong to which layer of the model. Parts
    that treat layers differently (steps, bit widths, top-k per layer) read the borders from it, and both ends must have
    the same: its digest stands in every payload. Make one with `Layout.of`. A layer may be empty or a scalar.

    Attributes:
        shapes: A pair (name, shape) for each layer.

    Raises:
        ValueError: The layers have no coordinate at all, or 2³² or more: positions take at most 32 bits on the wire.

    Examples:
        >>> import dpcomp as dp
        >>> layout = dp.Layout.of({"weight": (10, 3), "bias": (10,)})
        >>> layout.size, layout.sizes, layout.edges.tolist()
        (40, (30, 10), [0, 30, 40])
    """

    shapes: tuple[tuple[str, tuple[int, ...]], ...]

    @classmethod
    def of(cls, layers: "int | Mapping[str, tuple[int, ...]] | Layout") -> "Layout":
        """Make a layout from a mapping of names to shapes, or from a number of coordinates as one layer.

        A layout is returned unchanged, so that functions can take any of the three.

        Raises:
            TypeError: It is none of the three.
        """
        if isinstance(layers, Layout):
            return layers
        try:
            if isinstance(layers, Mapping):
                return cls(tuple((str(name), tuple(map(operator.index, shape))) for name, shape in layers.items()))
            return cls((("update", (operator.index(layers),)),))
        except TypeError as error:
            raise TypeError(
                f"a value of type {type(layers).__name__} is no layout: give the number of coordinates, or a mapping "
                "from the name of each layer to its shape, such as {name: tuple(p.shape) for name, p in "
                "module.named_parameters()}"
            ) from error

    def __post_init__(self):
        if self.size < 1 or any(side < 0 for _, shape in self.shapes for side in shape):
            raise ValueError(f"{self} has no coordinates: a layout needs at least one")
        if self.size >= 2**32:
            raise ValueError(f"{self} has {self.size} coordinates: the wire format holds fewer than 2**32")

    def __repr__(self) -> str:
        return shortened(f"Layout(shapes={self.shapes!r})", MOST_SHOWN)

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """The number of coordinates of each layer."""
        return tuple(math.prod(shape) for _, shape in self.shapes)

    @cached_property
    def size(self) -> int:
        """d, the number of coordinates of all layers."""
        return sum(self.sizes)

    @cached_property
    def edges(self) -> Int64[np.ndarray, "layers_plus_one"]:
        """The position in the flat vector where each layer begins, and d at the end."""
        return np.cumsum([0, *self.sizes], dtype=np.int64)

    def split(self, vector: Shaped[np.ndarray, "d"]) -> list[Shaped[np.ndarray, "_"]]:
        """Cut a (d,) vector into its layers; the parts are flat views of it."""
        return np.split(vector, self.edges[1:-1])

    def spread(self, values: Shaped[np.ndarray, "layers"]) -> Shaped[np.ndarray, "d"]:
        """Return a (d,) vector in which every coordinate has the value of its layer."""
        return np.repeat(values, self.sizes)

    def counts(self, support: Support) -> Int64[np.ndarray, "layers"]:
        """Count the coordinates of a support in each layer."""
        ends = self.edges if isinstance(support, Everywhere) else support.indices(self.size).searchsorted(self.edges)
        return ends[1:] - ends[:-1]

    @cached_property
    def digest(self) -> bytes:
        """8 bytes that identify the names and shapes of the layers; equal layouts have equal digests."""
        return hashlib.blake2b(repr(self.shapes).encode(), digest_size=8).digest()


def split_by_counts(
    values: Shaped[np.ndarray, "k"], counts: Int64[np.ndarray, "layers"]
) -> list[Shaped[np.ndarray, "_"]]:
    """Cut the (k,) values of a support into layers, `counts` values each; the parts are views."""
    ends = np.cumsum(counts).tolist()
    return [values[start:end] for start, end in zip([0, *ends], ends, strict=False)]
