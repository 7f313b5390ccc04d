"""What an entropy slot is: something that writes positions and levels, and reads them again."""

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
