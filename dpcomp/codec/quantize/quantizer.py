"""What a quantiser is."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float32, Int32, Int64

from dpcomp.core.errors import CorruptPayload
from dpcomp.core.public_context import PublicContext


@dataclass(frozen=True, eq=False)
class Bounds:
    """The lowest and the highest level of each layer; a layer where they are the same is not coded."""

    lowest: Int32[np.ndarray, "layers"]
    highest: Int32[np.ndarray, "layers"]

    @property
    def coded(self) -> Bool[np.ndarray, "layers"]:
        """Which layers have levels on the wire."""
        return self.highest > self.lowest

    @property
    def widths(self) -> Int64[np.ndarray, "layers"]:
        """Bits that hold any level of a layer."""
        return np.frexp(self.highest - self.lowest)[1].astype(np.int64)


@runtime_checkable
class Quantizer(Protocol):
    """Makes levels of values, and values of levels; `counts` says how many of them each layer holds.

    What both ends compute of a body must be the same to the last bit: whole numbers, and products of float32s.

    Three attributes are optional. `side_holds_values`: whether the bytes before the levels are the values themselves,
    as in a float format, so that their bits are counted as values; left out, they are where a body has no levels.
    `allocates`: whether layers get bits of their own. `averaged_clients`: of how many updates the server wants the
    mean, where the quantiser needs to know.
    """

    @property
    def unbiased(self) -> bool:
        """Whether the expected decoded value is the value, over the public randomness of `dither_key`."""
        ...

    def bounds(self, side: bytes, context: PublicContext) -> Bounds:
        """The levels that each layer can have, when `side` stands before them."""
        ...

    def levels(
        self, values: Float32[np.ndarray, "k"], counts: Int64[np.ndarray, "layers"], context: PublicContext
    ) -> tuple[Int32[np.ndarray, "m"], bytes]:
        """A level a value (of no use where no layer is coded), and what stands before them on the wire."""
        ...

    def side_bytes(self, counts: Int64[np.ndarray, "layers"], context: PublicContext) -> int:
        """How many bytes stand before the levels."""
        ...

    def values(
        self, levels: Int32[np.ndarray, "m"], side: bytes, counts: Int64[np.ndarray, "layers"], context: PublicContext
    ) -> Float32[np.ndarray, "k"]:
        """What the levels stand for.

        Raises:
            CorruptPayload: the side bytes cannot come from this quantiser.
        """
        ...


def refuse_outside(levels: Int32[np.ndarray, "m"], counts: Int64[np.ndarray, "layers"], bounds: Bounds) -> None:
    """Refuse levels that their layer's quantiser does not have.

    Raises:
        CorruptPayload: there is one.
    """
    layers = pairwise(np.cumsum([0, *counts]))
    for (start, stop), lowest, highest in zip(layers, bounds.lowest, bounds.highest, strict=True):
        if stop > start and not (lowest <= levels[start:stop].min() and levels[start:stop].max() <= highest):
            raise CorruptPayload("a level lies outside its layer's quantiser")


def scale_layers(
    values: Float32[np.ndarray, "k"], counts: Int64[np.ndarray, "layers"], scales: Float32[np.ndarray, "layers"]
) -> Float32[np.ndarray, "k"]:
    """The values, each times its layer's scale, in their own place."""
    for (start, stop), scale in zip(pairwise(np.cumsum([0, *counts])), scales, strict=True):
        values[start:stop] *= scale
    return values
