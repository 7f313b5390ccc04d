"""The model of a group of levels, as bytes that both ends read alike: a table of frequencies.

Small levels have a symbol each. Large ones, where the tables of wide quantisers would cost more than they
save, share one: a level's leading bits are its symbol, the bits below have equal chances (as in Moffat &
Anh 2006, and in the exponents of floating point).
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int32, Int64, UInt8

from dpcomp.codec.entropy.integers import IntegerReader, IntegerWriter
from dpcomp.core.errors import CorruptPayload

WIDEST = 16  # bits of a level
EXACT = WIDEST  # leading bits that are all bits: every level is a symbol of its own
LEADING_BITS = (EXACT, 5, 3)  # what a writer tries


@dataclass(frozen=True, eq=False)
class Alphabet:
    """Symbols from `lowest` on, with a frequency each (none: it does not occur), of levels' `leading` bits."""

    leading: int
    lowest: int
    table: UInt8[np.ndarray, "symbols"]

    @classmethod
    def of(cls, present: Int64[np.ndarray, "m"], occurrences: Int64[np.ndarray, "m"]) -> "Alphabet":
        """The cheapest model of levels that occur so often."""
        return min((cls._with(present, occurrences, leading) for leading in LEADING_BITS), key=lambda pair: pair[1])[0]

    @classmethod
    def _with(
        cls, present: Int64[np.ndarray, "m"], occurrences: Int64[np.ndarray, "m"], leading: int
    ) -> tuple["Alphabet", float]:
        symbols, below = leading_bits(present, leading)
        lowest = int(symbols.min())
        counts = np.bincount(symbols - lowest, weights=occurrences).astype(np.int64)
        alphabet = cls(leading, lowest, frequency_bytes(counts))
        writer = IntegerWriter()
        alphabet.write(writer)
        chances = alphabet.weights / alphabet.weights.sum()
        occurring = counts > 0
        bits = below @ occurrences - counts[occurring] @ np.log2(chances[occurring])
        return alphabet, float(bits) + 8 * len(writer.finish())

    def write(self, writer: IntegerWriter) -> None:
        """Its integers."""
        writer.number(self.leading)
        writer.signed(self.lowest)
        writer.number(len(self.table))
        at = 0
        for start, stop in _runs_of_zeros(self.table):
            writer.raw(self.table[at:start].tobytes() + b"\0")
            writer.number(stop - start)
            at = stop
        writer.raw(self.table[at:].tobytes())

    @classmethod
    def read(cls, reader: IntegerReader, largest: int) -> "Alphabet":
        """What was written, of levels of magnitude up to `largest`."""
        leading, lowest, length = reader.number(), reader.signed(), reader.number()
        limit = int(leading_bits(np.array([largest]), leading)[0][0]) if 1 <= leading <= WIDEST else -1
        if not -limit <= lowest <= lowest + length - 1 <= limit:
            raise CorruptPayload(f"a table of {length} symbols from {lowest} on, where levels end at {largest}")
        table = np.zeros(length, dtype=np.uint8)
        at = 0
        while at < length:
            byte = reader.raw(1)[0]
            table[at] = byte
            at += 1 if byte else reader.number()
        if at != length or not table.any():
            raise CorruptPayload("a table of level frequencies is empty, or longer than it says")
        return cls(leading, lowest, table)

    @property
    def weights(self) -> Float64[np.ndarray, "symbols"]:
        """The whole numbers that the bytes mean: (8 + mantissa)·2^exponent, or none."""
        steps = self.table.astype(np.int64) - 1
        numbers = (8 + steps % 8) << np.maximum(steps // 8, 0)
        return np.where(self.table > 0, numbers, 0).astype(np.float64)


def leading_bits(
    levels: Int32[np.ndarray, "m"] | Int64[np.ndarray, "m"], leading: int
) -> tuple[Int64[np.ndarray, "m"], Int64[np.ndarray, "m"]]:
    """Each level's symbol, with the level's sign, and how many bits below the symbol leaves open."""
    if leading == EXACT:
        return levels.astype(np.int64), np.zeros(len(levels), dtype=np.int64)
    magnitude = np.abs(levels).astype(np.int64)
    below = np.maximum(np.frexp(magnitude)[1] - leading, 0).astype(np.int64)
    symbol = (below << (leading - 1)) + (magnitude >> below)
    return np.where(levels < 0, -symbol, symbol), below


def without_low_bits(
    symbols: Int32[np.ndarray, "m"] | Int64[np.ndarray, "m"], leading: int
) -> tuple[Int64[np.ndarray, "m"], Int64[np.ndarray, "m"]]:
    """The smallest magnitude of each symbol, with its sign, and how many bits below are open."""
    if leading == EXACT:
        return symbols.astype(np.int64), np.zeros(len(symbols), dtype=np.int64)
    magnitude = np.abs(symbols).astype(np.int64)
    below = np.maximum((magnitude >> (leading - 1)) - 1, 0)
    smallest = (magnitude - (below << (leading - 1))) << below
    return np.where(symbols < 0, -smallest, smallest), below


def frequency_bytes(occurrences: Int64[np.ndarray, "symbols"]) -> UInt8[np.ndarray, "symbols"]:
    """One byte a symbol: 0 where it never occurs, else its frequency with three bits after the leading one.

    Frequencies are off by a sixteenth at most, which costs below 0.001 bits a symbol, and span 31 octaves, so
    that a level that occurs once in a million takes no more of the model than that.
    """
    scaled = occurrences * (15 * 2.0**30 / max(1, int(occurrences.max())))
    mantissa, exponent = np.frexp(np.maximum(scaled, 8.0))
    steps = np.rint(mantissa * 16).astype(np.int64) - 8 + 8 * (exponent.astype(np.int64) - 4)
    return np.where(occurrences > 0, 1 + np.minimum(steps, 254), 0).astype(np.uint8)


def _runs_of_zeros(table: UInt8[np.ndarray, "symbols"]) -> list[tuple[int, int]]:
    edges = np.flatnonzero(np.diff(np.concatenate([[False], table == 0, [False]]).astype(np.int8)))
    return [(int(start), int(stop)) for start, stop in edges.reshape(-1, 2)]
