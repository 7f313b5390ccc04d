"""The protocols of an entropy coder: a writer, a reader and, for measurements, a meter of one body."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int, Int64

from dpcomp.codec.quantize.quantizer import Bounds


@runtime_checkable
class Writer(Protocol):
    """Encodes one body, part after part: positions (if listed), side information, levels (if any), finish."""

    def positions(
        self,
        positions: Int64[np.ndarray, "k"],
        edges: Int64[np.ndarray, "layers_plus_one"],
        previous: Int64[np.ndarray, "k_before"] | None,
    ) -> None:
        """Encode the positions of a listed support.

        Args:
            positions: The (k,) positions, ascending, below the last edge.
            edges: The position where each layer begins, and d at the end.
            previous: The positions listed last on the same link, which the reader has too; None if there are none.
        """
        ...

    def raw(self, part: bytes | memoryview) -> None:
        """Write bytes unchanged, such as side information."""
        ...

    def levels(self, levels: Int[np.ndarray, "m"], counts: Int64[np.ndarray, "layers"], bounds: Bounds) -> None:
        """Encode the levels of a quantiser.

        Args:
            levels: The (m,) levels, layer after layer; int8 or int16 if the coder and the quantiser take them.
            counts: How many of them each layer has.
            bounds: The lowest and highest level of each layer; a layer where they are equal is not encoded.
        """
        ...

    def finish(self) -> Sequence[bytes | bytearray | memoryview]:
        """Return the body in parts, in order. They are joined once, in the message: a part may be as long as that."""
        ...


@runtime_checkable
class Reader(Protocol):
    """Decodes one body, in the order in which it was written.

    Every method raises CorruptPayload where the body cannot come from the writer, and allocates no more memory than an
    update takes: the bytes may come from anybody.
    """

    def positions(
        self, k: int, edges: Int64[np.ndarray, "layers_plus_one"], previous: Int64[np.ndarray, "k_before"] | None
    ) -> Int64[np.ndarray, "k"]:
        """Decode the k ascending positions of a listed support.

        Args:
            k: How many there are.
            edges: As for the writer.
            previous: As for the writer.

        Returns:
            The (k,) positions.
        """
        ...

    def raw(self, length: int) -> bytes | memoryview:
        """Return the next `length` bytes that were written unchanged; they may be a view of the body."""
        ...

    def levels(self, counts: Int64[np.ndarray, "layers"], bounds: Bounds) -> Int[np.ndarray, "m"]:
        """Decode the levels, `counts` of them in each layer; layers that are not coded get their lowest level."""
        ...

    def finish(self) -> None:
        """Check that the body ends here."""
        ...


@dataclass(frozen=True, kw_only=True)
class PartBits:
    """The bits that each part of a message takes on the wire; they add up to all of it, exactly.

    Parts that share one coded stream each have their information under the coder's model, in whole parts of 2⁻¹⁰ of a
    bit; what filling up whole bytes and words adds is `rounding`.

    Attributes:
        header: The frame of the message, and the support header of the body.
        index: The positions of the values.
        side: What the levels need beside them: steps, scales, widths, gains, and frequency tables.
        value: The values, as floats or as coded levels.
        rounding: What is left to whole bytes and words.
    """

    header: float = 0.0
    index: float = 0.0
    side: float = 0.0
    value: float = 0.0
    rounding: float = 0.0

    @property
    def total(self) -> float:
        """The bits of the whole message."""
        return self.header + self.index + self.side + self.value + self.rounding


@runtime_checkable
class Meter(Reader, Protocol):
    """A reader that also counts the bits of each part of the body."""

    @property
    def bits(self) -> PartBits:
        """The bits of each part, once the body was read to its end."""
        ...


@runtime_checkable
class Metered(Protocol):
    """An entropy coder whose bodies can be measured, by `Codec.measure`. Optional for a coder of your own."""

    def meter(self, body: bytes | memoryview) -> Meter:
        """Return a meter of one body."""
        ...


@runtime_checkable
class EntropyCoder(Protocol):
    """The protocol of an entropy coder, the last slot of a codec. Write it as a frozen dataclass.

    Writer and reader must compute their models from the same integers: a float that differs in its last bit between two
    machines destroys the stream.

    An attribute is optional: `narrow_levels` (bool), whether the writer takes levels of int8 and int16 too. Absent is
    False: it is given int32.
    """

    @property
    def packed(self) -> bool:
        """Whether a level takes the whole bits of its layer's width; allocators then choose widths, else steps."""
        ...

    def writer(self) -> Writer:
        """Return a new writer, for one body."""
        ...

    def reader(self, body: bytes | memoryview) -> Reader:
        """Return a reader of one body."""
        ...
