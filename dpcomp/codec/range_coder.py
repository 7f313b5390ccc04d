"""Entropy coding with a range coder, under models that both ends build from the same integers.

Positions are coded as gaps under the geometric law of a random support of k in d; levels under their own
frequencies, which travel as one byte an occupied level. The coder is constriction's (Bamler 2022, 2201.01741).
"""

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from constriction import stream  # pyright: ignore[reportAttributeAccessIssue]  # a compiled module
from jaxtyping import Float64, Int, Int32, Int64, UInt8

from dpcomp.errors import CorruptPayload

FAR = 255  # the symbol of a gap's upper part that says: 255 more, and read on
TABLE_BITS = 10  # of a gap's middle part; the bits below it are as good as random
FINE_BITS = 8  # a level wider than this has its lower bits coded as equal chances

ESCAPES = struct.Struct("<I")
ALPHABET = struct.Struct("<hBB")  # the lowest coarse level, occupied levels spanned − 1, bits below


class RangeWriter:
    """Codes one body: the integers of all models first, then one range-coded stream."""

    def __init__(self):
        self._side, self._coder = bytearray(), stream.queue.RangeEncoder()

    def positions(self, positions: Int64[np.ndarray, "k"], d: int) -> None:
        """Ascending positions below d."""
        k = len(positions)
        gaps = np.diff(positions, prepend=-1) - 1
        low_bits, rest_bits, high, low = gap_models(k, d)
        upper = gaps >> (low_bits + rest_bits)
        lower = (gaps >> rest_bits) & ((1 << low_bits) - 1)
        escapes = upper // FAR
        self._side += ESCAPES.pack(int(escapes.sum()))
        symbols = np.full(k + int(escapes.sum()), FAR, dtype=np.int32)
        symbols[np.cumsum(escapes + 1) - 1] = upper % FAR
        self._encode(symbols, high)
        self._encode(lower.astype(np.int32), low)
        self._equal_chances(gaps, rest_bits)

    def levels(
        self, levels: Int32[np.ndarray, "m"], counts: Int64[np.ndarray, "layers"], widths: tuple[int, ...]
    ) -> None:
        """Levels of all layers, under one table of their frequencies."""
        if len(levels) == 0:
            return
        below = max(0, max(widths) - FINE_BITS)
        coarse = levels >> below
        lowest = int(coarse.min())
        table = frequency_bytes(np.bincount(coarse - lowest))
        self._side += ALPHABET.pack(lowest, len(table) - 1, below) + table.tobytes()
        self._encode(coarse - np.int32(lowest), frequencies(table))
        self._equal_chances(levels, below)

    def finish(self) -> bytes:
        """The length of the integers, the integers, and the coded words."""
        words = self._coder.get_compressed().astype("<u4").tobytes()
        return struct.pack("<H", len(self._side)) + bytes(self._side) + words

    def _equal_chances(self, numbers: Int[np.ndarray, "m"], bits: int) -> None:
        """The lowest bits of the numbers, as they are."""
        if bits and len(numbers):
            symbols = (numbers & ((1 << bits) - 1)).astype(np.int32)
            self._coder.encode(symbols, stream.model.Uniform(1 << bits))

    def _encode(self, symbols: Int32[np.ndarray, "m"], weights: Float64[np.ndarray, "alphabet"]) -> None:
        if len(weights) > 1 and len(symbols):
            self._coder.encode(symbols, stream.model.Categorical(weights, perfect=False))


class RangeReader:
    """Decodes what a writer coded, in the same order."""

    def __init__(self, body: bytes):
        length = struct.unpack("<H", _exactly(body, 0, 2))[0]
        self._side, self._at = _exactly(body, 2, length), 0
        words = body[2 + length :]
        if len(words) % 4:
            raise CorruptPayload(f"the coded stream has {len(words)} bytes; it is made of 4-byte words")
        self._coder = stream.queue.RangeDecoder(np.frombuffer(words, dtype="<u4").astype(np.uint32))

    def positions(self, k: int, d: int) -> Int64[np.ndarray, "k"]:
        """k ascending positions below d."""
        low_bits, rest_bits, high, low = gap_models(k, d)
        escapes = ESCAPES.unpack(self._take(ESCAPES.size))[0]
        if escapes > (d >> (low_bits + rest_bits)) // FAR:
            raise CorruptPayload(f"the support says {escapes} long gaps; a vector of {d} has no room for them")
        symbols = self._decode(k + escapes, high)
        ends = np.flatnonzero(symbols != FAR)
        if len(ends) != k or (k and ends[-1] != len(symbols) - 1):
            raise CorruptPayload(f"the support holds {len(ends)} positions where {k} are announced")
        upper = symbols[ends] + FAR * (np.diff(ends, prepend=-1) - 1)
        lower = (self._decode(k, low) << rest_bits) + self._equal_chances(rest_bits, k)
        positions = np.cumsum((upper << (low_bits + rest_bits)) + lower + 1) - 1
        if k and positions[-1] >= d:
            raise CorruptPayload(f"the support names position {positions[-1]} of a vector of {d}")
        return positions

    def levels(self, counts: Int64[np.ndarray, "layers"], widths: tuple[int, ...]) -> Int32[np.ndarray, "m"]:
        """Levels, `counts` of them a layer."""
        m = int(counts.sum())
        if m == 0:
            return np.empty(0, dtype=np.int32)
        lowest, last, below = ALPHABET.unpack(self._take(ALPHABET.size))
        if below != max(0, max(widths) - FINE_BITS):
            raise CorruptPayload(f"the levels say {below} lower bits; widths of {widths} have others")
        table = np.frombuffer(self._take(last + 1), dtype=np.uint8)
        if not table.any():
            raise CorruptPayload("the table of level frequencies is empty")
        coarse = self._decode(m, frequencies(table)) + lowest
        fine = self._equal_chances(below, m)
        levels = (coarse << below) + fine
        if (np.abs(levels) > np.repeat([2 ** (bits - 1) - 1 for bits in widths], counts)).any():
            raise CorruptPayload("a level lies outside its layer's quantiser")
        return levels.astype(np.int32)

    def finish(self) -> None:
        """Nothing may be left."""
        if self._at != len(self._side) or not self._coder.maybe_exhausted():
            raise CorruptPayload("the body goes on behind its last value")

    def _take(self, length: int) -> bytes:
        taken = _exactly(self._side, self._at, length)
        self._at += length
        return taken

    def _decode(self, count: int, weights: Float64[np.ndarray, "alphabet"]) -> Int64[np.ndarray, "count"]:
        if len(weights) == 1 or count == 0:
            return np.zeros(count, dtype=np.int64)
        return self._decoded(stream.model.Categorical(weights, perfect=False), count)

    def _equal_chances(self, bits: int, count: int) -> Int64[np.ndarray, "count"]:
        if bits == 0 or count == 0:
            return np.zeros(count, dtype=np.int64)
        return self._decoded(stream.model.Uniform(1 << bits), count)

    def _decoded(self, model: Any, count: int) -> Int64[np.ndarray, "count"]:
        try:
            return self._coder.decode(model, count).astype(np.int64)
        except (AssertionError, ValueError) as error:
            raise CorruptPayload(f"the coded stream is none: {error}") from error


@dataclass(frozen=True)
class RangeCoder:
    """Gaps and levels, each at the entropy of its model, to within a few bytes."""

    def writer(self) -> RangeWriter:
        """A fresh writer, for one body."""
        return RangeWriter()

    def reader(self, body: bytes) -> RangeReader:
        """A reader of one body."""
        return RangeReader(body)


def gap_models(k: int, d: int) -> tuple[int, int, Float64[np.ndarray, "high"], Float64[np.ndarray, "low"]]:
    """The geometric law of gaps with success k/d, in three parts: bits of the middle and of the lowest, and the
    chances of the upper and the middle part; the lowest bits have equal chances.

    For a geometric gap the parts are independent, so nothing is lost by the split, and the tables stay short.
    Powers are running products: IEEE multiplication is the same everywhere, `pow` is not.
    """
    if k == 0:
        return 0, 0, np.ones(1), np.ones(1)
    bits = max(0, (d // k).bit_length() - 5)
    low_bits, rest_bits = min(bits, TABLE_BITS), max(0, bits - TABLE_BITS)
    miss = (d - k) / d
    for _ in range(rest_bits):
        miss *= miss
    low = np.multiply.accumulate(np.concatenate([[1.0], np.full((1 << low_bits) - 1, miss)]))
    high = np.multiply.accumulate(np.concatenate([[1.0], np.full(FAR, low[-1] * miss)]))
    high[:FAR] -= high[1:]
    return low_bits, rest_bits, high, low


def frequency_bytes(occurrences: Int64[np.ndarray, "alphabet"]) -> UInt8[np.ndarray, "alphabet"]:
    """One byte a level: 0 where it never occurs, else its frequency with four bits after the leading one."""
    scaled = occurrences * (31 * 2.0**14 / max(1, int(occurrences.max())))
    mantissa, exponent = np.frexp(np.maximum(scaled, 16.0))
    steps = np.rint(mantissa * 32).astype(np.int64) - 16 + 16 * (exponent.astype(np.int64) - 5)
    return np.where(occurrences > 0, 1 + np.minimum(steps, 254), 0).astype(np.uint8)


def frequencies(table: UInt8[np.ndarray, "alphabet"]) -> Float64[np.ndarray, "alphabet"]:
    """The whole numbers that the bytes mean: (16 + mantissa)·2^exponent, or none."""
    steps = table.astype(np.int64) - 1
    numbers = (16 + steps % 16) << np.maximum(steps // 16, 0)
    return np.where(table > 0, numbers, 0).astype(np.float64)


def _exactly(body: bytes, start: int, length: int) -> bytes:
    part = body[start : start + length]
    if len(part) < length:
        raise CorruptPayload(f"the body ends {length - len(part)} bytes early")
    return part
