"""The model of a group of levels: a table of symbol frequencies, as bytes that both ends read the same way.

Small levels have a symbol each. Large ones share symbols, since the tables of wide quantisers would cost more than they
save: a level's leading bits are its symbol, and the bits below have equal probabilities (as in Moffat &
Anh 2006, and in the exponents of floating point).
"""

import re
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float64, Int, Int64, UInt8

from dpcomp.codec.entropy.integers import IntegerReader, IntegerWriter
from dpcomp.codec.rate import MAX_LEVEL_BITS
from dpcomp.core.errors import CorruptPayload

ALL_BITS = MAX_LEVEL_BITS  # leading bits that are all bits: every level is a symbol of its own
LEADING_BITS_TRIED = (5, 3)  # by the writer beside all bits, of which it takes the cheapest
FREQUENCIES = np.array([0, *(float(8 + step % 8 << step // 8) for step in range(255))])  # of a table's bytes
ZEROS = re.compile(b"\0+")


@dataclass(frozen=True, eq=False)
class Alphabet:
    """The symbols of a group of levels, and their frequencies.

    Attributes:
        leading: How many leading bits of a level make its symbol; ALL_BITS makes every level a symbol.
        lowest: The lowest symbol.
        table: (symbols,) a byte for each symbol from `lowest` on, see `frequency_bytes`; 0 if it does not occur.
    """

    leading: int
    lowest: int
    table: UInt8[np.ndarray, "symbols"]

    @classmethod
    def fit(cls, present: Int64[np.ndarray, "m"], occurrences: Int64[np.ndarray, "m"]) -> "Alphabet":
        """Return the model with which the levels and the table together take the fewest bits.

        Args:
            present: The distinct levels, ascending.
            occurrences: How often each occurs, above 0.

        Returns:
            The best of the models with the numbers of leading bits that are tried.
        """
        largest = max(-int(present[0]), int(present[-1]))
        shorter = [leading for leading in LEADING_BITS_TRIED if largest >= 1 << leading]  # others leave no bit open
        if not shorter:
            lowest = int(present[0])
            counts = np.zeros(int(present[-1]) - lowest + 1, dtype=np.int64)
            counts[present - lowest] = occurrences
            return cls(ALL_BITS, lowest, frequency_bytes(counts))
        fits = (cls._fit_leading(present, occurrences, leading) for leading in (ALL_BITS, *shorter))
        return min(fits, key=lambda fit: fit[1])[0]

    @classmethod
    def _fit_leading(
        cls, present: Int64[np.ndarray, "m"], occurrences: Int64[np.ndarray, "m"], leading: int
    ) -> tuple["Alphabet", float]:
        """Return the model with so many leading bits, and the bits that levels and table take under it."""
        symbols, below = levels_to_symbols(present, leading)
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
        """Append the model to the integers before the stream."""
        writer.number(self.leading)
        writer.signed(self.lowest)
        writer.number(len(self.table))
        table, at = self.table.tobytes(), 0
        for zeros in ZEROS.finditer(table):
            writer.raw(table[at : zeros.start() + 1])
            writer.number(zeros.end() - zeros.start())
            at = zeros.end()
        writer.raw(table[at:])

    @classmethod
    def read(cls, reader: IntegerReader, largest: int) -> "Alphabet":
        """Read a model of levels of magnitude up to `largest`.

        Raises:
            CorruptPayload: The table is empty, longer than its length field, or has symbols beyond the largest level.
        """
        leading, lowest, length = reader.number(), reader.signed(), reader.number()
        limit = largest if leading == ALL_BITS else -1
        if 1 <= leading < ALL_BITS:
            limit = int(levels_to_symbols(np.array([largest]), leading)[0][0])
        if not -limit <= lowest <= lowest + length - 1 <= limit:
            raise CorruptPayload(
                f"a frequency table has {length} symbols from {lowest} on, but levels end at {largest}"
            )
        table = bytearray(length)
        at = 0
        while at < length:
            byte = reader.byte()
            table[at] = byte
            at += 1 if byte else reader.number()
        if at != length or not any(table):
            raise CorruptPayload(
                "a frequency table of levels is empty, or longer than its length field, which no sender writes"
            )
        return cls(leading, lowest, np.frombuffer(table, dtype=np.uint8))

    @cached_property
    def weights(self) -> Float64[np.ndarray, "symbols"]:
        """The frequencies that the bytes encode, whole numbers: (8 + mantissa)·2^exponent; 0 for a byte of 0."""
        return FREQUENCIES.take(self.table)


def levels_to_symbols(
    levels: Int[np.ndarray, "m"], leading: int
) -> tuple[Int64[np.ndarray, "m"], Int64[np.ndarray, "m"]]:
    """Return each level's symbol, which has the level's sign, and how many low bits it leaves open.

    Args:
        levels: The (m,) levels.
        leading: How many leading bits make a symbol.

    Returns:
        The (m,) symbols, ordered as the levels are; and the (m,) numbers of open bits.
    """
    if leading == ALL_BITS:
        return levels.astype(np.int64), np.zeros(len(levels), dtype=np.int64)
    magnitude = np.abs(levels).astype(np.int64)
    below = np.maximum(np.frexp(magnitude)[1] - leading, 0).astype(np.int64)
    symbol = (below << (leading - 1)) + (magnitude >> below)
    return np.where(levels < 0, -symbol, symbol), below


def symbols_to_levels(
    symbols: Int[np.ndarray, "m"], leading: int
) -> tuple[Int64[np.ndarray, "m"], Int64[np.ndarray, "m"]]:
    """Return the level of smallest magnitude with each symbol, and how many low bits are open in it.

    Args:
        symbols: The (m,) symbols.
        leading: How many leading bits make a symbol.

    Returns:
        The (m,) levels with the open bits 0; and the (m,) numbers of open bits.
    """
    if leading == ALL_BITS:
        return symbols.astype(np.int64), np.zeros(len(symbols), dtype=np.int64)
    magnitude = np.abs(symbols).astype(np.int64)
    below = np.maximum((magnitude >> (leading - 1)) - 1, 0)
    smallest = (magnitude - (below << (leading - 1))) << below
    return np.where(symbols < 0, -smallest, smallest), below


def frequency_bytes(occurrences: Int64[np.ndarray, "symbols"]) -> UInt8[np.ndarray, "symbols"]:
    """Return one byte a symbol: 0 where it never occurs, else its frequency with three bits after the leading one.

    Frequencies are off by a sixteenth at most, which costs less than 0.001 bits a symbol, and span 31 octaves, so
    that a level that occurs once in a million is given no larger a probability than that.
    """
    scaled = occurrences * (15 * 2.0**30 / max(1, int(np.maximum.reduce(occurrences))))
    sixteenths, exponent = np.frexp(np.maximum(scaled, 8.0, out=scaled))
    sixteenths *= 16
    np.rint(sixteenths, out=sixteenths)
    sixteenths += 8 * exponent
    sixteenths -= 39  # so that the least frequency, 8 of the largest one's 15·2³⁰, has the byte 1
    sixteenths *= occurrences > 0
    return np.minimum(sixteenths, 255, out=sixteenths).astype(np.uint8)
