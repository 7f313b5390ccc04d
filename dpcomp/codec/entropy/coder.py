"""What an entropy slot is: something that writes positions and levels, and reads them again."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int32, Int64

from dpcomp.codec.quantize.quantizer import Bounds


@runtime_checkable
class Writer(Protocol):
    """Writes one body, part after part."""

    def positions(
        self,
        positions: Int64[np.ndarray, "k"],
        edges: Int64[np.ndarray, "layers_plus_one"],
        previous: Int64[np.ndarray, "k_before"] | None,
    ) -> None:
        """Ascending positions in the layers between the edges; `previous` are the last ones, if both ends know them."""
        ...

    def raw(self, part: bytes) -> None:
        """Bytes as they are."""
        ...

    def levels(self, levels: Int32[np.ndarray, "m"], counts: Int64[np.ndarray, "layers"], bounds: Bounds) -> None:
        """Levels, `counts` of them a layer, within its bounds."""
        ...

    def finish(self) -> bytes:
        """All of it."""
        ...


@runtime_checkable
class Reader(Protocol):
    """Reads one body, in the order in which it was written; what cannot have been written is CorruptPayload."""

    def positions(
        self, k: int, edges: Int64[np.ndarray, "layers_plus_one"], previous: Int64[np.ndarray, "k_before"] | None
    ) -> Int64[np.ndarray, "k"]:
        """k ascending positions."""
        ...

    def raw(self, length: int) -> bytes:
        """Bytes as they are."""
        ...

    def levels(self, counts: Int64[np.ndarray, "layers"], bounds: Bounds) -> Int32[np.ndarray, "m"]:
        """Levels, `counts` of them a layer."""
        ...

    def finish(self) -> None:
        """Nothing may be left."""
        ...


@dataclass(frozen=True, kw_only=True)
class PartBits:
    """What each part of a message takes on the wire, in bits; the parts add up to all of it, exactly.

    `header` frames the rest; `index` says where values stand, `value` what they are, as floats or as coded
    levels; `side` is what levels need beside them: steps, scales, widths, gains, and tables of frequencies. Where
    parts share one coded stream each takes its information under the coder's model, in whole parts of 2^−10 of a
    bit; what filling up whole bytes and words adds stands under `rounding`.
    """

    header: float = 0.0
    index: float = 0.0
    side: float = 0.0
    value: float = 0.0
    rounding: float = 0.0

    @property
    def total(self) -> float:
        """All of it."""
        return self.header + self.index + self.side + self.value + self.rounding


@runtime_checkable
class Meter(Reader, Protocol):
    """A reader that can tell what each part of the body takes."""

    @property
    def bits(self) -> PartBits:
        """Of a body that was read to its end."""
        ...


@runtime_checkable
class Metered(Protocol):
    """An entropy coder whose bodies can be measured."""

    def meter(self, body: bytes | memoryview) -> Meter:
        """A meter of one body."""
        ...


@runtime_checkable
class EntropyCoder(Protocol):
    """The slot's configuration; `packed` says that levels take whole bits, whatever they are."""

    @property
    def packed(self) -> bool:
        """Whether a level costs its width."""
        ...

    def writer(self) -> Writer:
        """A fresh writer, for one body."""
        ...

    def reader(self, body: bytes | memoryview) -> Reader:
        """A reader of one body."""
        ...
