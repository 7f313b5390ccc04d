"""Bit packing: every number takes the bits that the largest allowed one needs."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int, Int64, UInt8

from dpcomp.codec.entropy.bit_packing import pack, packed_bytes, unpack
from dpcomp.codec.entropy.coder import PartBits
from dpcomp.codec.quantize.quantizer import Bounds, refuse_levels_outside
from dpcomp.core.errors import CorruptPayload


class FixedWidthWriter:
    """Packs one body, part after part, each of which ends on a whole byte.

    The levels of adjacent layers of the same width and lowest level are one part.
    """

    def __init__(self):
        self._parts: list[bytes | bytearray | memoryview] = []

    def positions(
        self,
        positions: Int64[np.ndarray, "k"],
        edges: Int64[np.ndarray, "layers_plus_one"],
        previous: Int64[np.ndarray, "k_before"] | None,
    ) -> None:
        """Pack positions below the last edge d in ⌈log₂ d⌉ bits each; the previous ones are not used."""
        self._parts.append(pack(positions, 0, _position_bits(int(edges[-1]))).data)

    def raw(self, part: bytes | memoryview) -> None:
        """Write bytes unchanged."""
        self._parts.append(part)

    def levels(self, levels: Int[np.ndarray, "m"], counts: Int64[np.ndarray, "layers"], bounds: Bounds) -> None:
        """Pack levels, `counts` of them in each layer, in the bits that hold any level of the layer."""
        start = 0
        for count, lowest, width in _runs(counts, bounds):
            if width:
                self._parts.append(pack(levels[start : start + count], lowest, width).data)
            start += count

    def finish(self) -> Sequence[bytes | bytearray | memoryview]:
        """Return the body in parts."""
        return self._parts


class FixedWidthReader:
    """Unpacks a body, in the order in which it was packed."""

    def __init__(self, body: bytes | memoryview):
        self._body, self._at = memoryview(body), 0

    def positions(
        self, k: int, edges: Int64[np.ndarray, "layers_plus_one"], previous: Int64[np.ndarray, "k_before"] | None
    ) -> Int64[np.ndarray, "k"]:
        """Unpack k ascending positions below the last edge."""
        bits = _position_bits(int(edges[-1]))
        packed = self._part(packed_bytes(k, bits))
        positions = np.empty(k, dtype=np.int64)
        unpack(packed, 0, bits, out=positions)
        if k and (positions[-1] >= edges[-1] or (np.diff(positions) <= 0).any()):
            raise CorruptPayload(f"the positions are not ascending below {edges[-1]}")
        return positions

    def raw(self, length: int) -> memoryview:
        """Return the next bytes unchanged, as a view of the body."""
        return self._part(length).data

    def levels(self, counts: Int64[np.ndarray, "layers"], bounds: Bounds) -> Int[np.ndarray, "m"]:
        """Unpack levels, `counts` of them in each layer."""
        runs = _runs(counts, bounds)
        packed = [self._part(packed_bytes(count, width)) for count, _, width in runs]  # before memory is taken
        levels, start = np.empty(int(counts.sum()), dtype=bounds.level_type), 0
        for part, (count, lowest, width) in zip(packed, runs, strict=True):
            run = levels[start : start + count]
            if width:
                unpack(part, lowest, width, out=run)
            else:
                run[:] = lowest
            start += count
        refuse_levels_outside(levels, counts, bounds)
        return levels

    def finish(self) -> None:
        """Check that the body is read to its end."""
        if self._at != len(self._body):
            raise CorruptPayload(f"the body has {len(self._body) - self._at} bytes after its last value")

    def _part(self, length: int) -> UInt8[np.ndarray, "length"]:
        part = self._body[self._at : self._at + length]
        if len(part) < length:
            raise CorruptPayload(f"the body ends {length - len(part)} bytes before its last value")
        self._at += length
        return np.ndarray(length, dtype=np.uint8, buffer=part)


class FixedWidthMeter(FixedWidthReader):
    """Unpacks a body, and counts the bits of its numbers."""

    def __init__(self, body: bytes | memoryview):
        super().__init__(body)
        self._index = self._side = self._value = 0

    def positions(
        self, k: int, edges: Int64[np.ndarray, "layers_plus_one"], previous: Int64[np.ndarray, "k_before"] | None
    ) -> Int64[np.ndarray, "k"]:
        """Unpack k ascending positions, and count their bits."""
        self._index += k * _position_bits(int(edges[-1]))
        return super().positions(k, edges, previous)

    def raw(self, length: int) -> memoryview:
        """Return the next bytes unchanged, and count them as side information."""
        self._side += 8 * length
        return super().raw(length)

    def levels(self, counts: Int64[np.ndarray, "layers"], bounds: Bounds) -> Int[np.ndarray, "m"]:
        """Unpack levels, and count their bits."""
        self._value += int(counts @ bounds.widths)
        return super().levels(counts, bounds)

    @property
    def bits(self) -> PartBits:
        """The bits of each part; rounding is what fills up the last byte of each."""
        parts = (self._index, self._side, self._value)
        index, side, value = map(float, parts)
        return PartBits(index=index, side=side, value=value, rounding=float(8 * len(self._body) - sum(parts)))


@dataclass(frozen=True)
class FixedWidth:
    """Pack positions in ⌈log₂ d⌉ bits each, and levels in their layer's width: `Uniform(8)` takes a byte a value.

    The length of a message depends on the support's size and the widths alone, not on the values. It is faster than
    `RangeCoder`, and longer wherever levels have less entropy than bits or positions resemble the last ones. Allocators
    choose whole bits for it.
    """

    packed = True
    needs_last_support = False
    narrow_levels = True

    def writer(self) -> FixedWidthWriter:
        """Return a new writer, for one body."""
        return FixedWidthWriter()

    def reader(self, body: bytes | memoryview) -> FixedWidthReader:
        """Return a reader of one body."""
        return FixedWidthReader(body)

    def meter(self, body: bytes | memoryview) -> FixedWidthMeter:
        """Return a meter of one body."""
        return FixedWidthMeter(body)


def _runs(counts: Int64[np.ndarray, "layers"], bounds: Bounds) -> list[tuple[int, int, int]]:
    """Return how many levels follow each other with the same lowest level and width, and these."""
    runs: list[tuple[int, int, int]] = []
    for count, lowest, width in zip(counts.tolist(), bounds.lowest.tolist(), bounds.widths.tolist(), strict=True):
        if runs and runs[-1][1:] == (lowest, width):
            runs[-1] = (runs[-1][0] + count, lowest, width)
        else:
            runs.append((count, lowest, width))
    return runs


def _position_bits(d: int) -> int:
    return max(1, (d - 1).bit_length())
