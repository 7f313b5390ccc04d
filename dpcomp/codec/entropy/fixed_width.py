"""Bit packing: every number takes the bits that the largest allowed one needs."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int, Int32, Int64, UInt8

from dpcomp.codec.entropy.coder import PartBits
from dpcomp.codec.quantize.quantizer import Bounds, refuse_levels_outside
from dpcomp.core.errors import CorruptPayload
from dpcomp.core.layout import split_by_counts

PACK_CHUNK = 2**14  # numbers that are packed at once; a multiple of 8, so that each chunk ends on a whole byte


class FixedWidthWriter:
    """Packs one body, part after part; each layer's levels and each other part end on a whole byte."""

    def __init__(self):
        self._parts: list[bytes] = []

    def positions(
        self,
        positions: Int64[np.ndarray, "k"],
        edges: Int64[np.ndarray, "layers_plus_one"],
        previous: Int64[np.ndarray, "k_before"] | None,
    ) -> None:
        """Pack positions below the last edge d in ⌈log₂ d⌉ bits each; the previous ones are not used."""
        self._parts.append(_pack_numbers(positions, _position_bits(int(edges[-1]))))

    def raw(self, part: bytes) -> None:
        """Write bytes unchanged."""
        self._parts.append(part)

    def levels(self, levels: Int32[np.ndarray, "m"], counts: Int64[np.ndarray, "layers"], bounds: Bounds) -> None:
        """Pack levels, `counts` of them in each layer, in the bits that hold any level of the layer."""
        layers = split_by_counts(levels, counts)
        for layer, lowest, width in zip(layers, bounds.lowest, bounds.widths, strict=True):
            if width:
                self._parts.append(_pack_numbers(layer - lowest, int(width)))

    def finish(self) -> bytes:
        """Return the body."""
        return b"".join(self._parts)


class FixedWidthReader:
    """Unpacks a body, in the order in which it was packed."""

    def __init__(self, body: bytes | memoryview):
        self._body, self._at = body, 0

    def positions(
        self, k: int, edges: Int64[np.ndarray, "layers_plus_one"], previous: Int64[np.ndarray, "k_before"] | None
    ) -> Int64[np.ndarray, "k"]:
        """Unpack k ascending positions below the last edge."""
        positions = self._unpack(k, _position_bits(int(edges[-1])), np.int64)
        if k and (positions[-1] >= edges[-1] or (np.diff(positions) <= 0).any()):
            raise CorruptPayload(f"the positions are not ascending below {edges[-1]}")
        return positions

    def raw(self, length: int) -> bytes:
        """Return the next bytes unchanged."""
        return self._part(length)

    def levels(self, counts: Int64[np.ndarray, "layers"], bounds: Bounds) -> Int32[np.ndarray, "m"]:
        """Unpack levels, `counts` of them in each layer."""
        levels = np.repeat(bounds.lowest, counts)
        layers = split_by_counts(levels, counts)  # views
        for layer, width in zip(layers, bounds.widths, strict=True):
            if width:
                layer += self._unpack(len(layer), int(width), np.int32)
        refuse_levels_outside(levels, counts, bounds)
        return levels

    def finish(self) -> None:
        """Check that the body is read to its end."""
        if self._at != len(self._body):
            raise CorruptPayload(f"the body has {len(self._body) - self._at} bytes after its last value")

    def _unpack(self, count: int, bits: int, dtype: type[np.signedinteger]) -> Int[np.ndarray, "count"]:
        packed = self._part((count * bits + 7) // 8)
        return _unpack_numbers(np.frombuffer(packed, dtype=np.uint8), count, bits, dtype)

    def _part(self, length: int) -> bytes:
        part = self._body[self._at : self._at + length]
        if len(part) < length:
            raise CorruptPayload(f"the body ends {length - len(part)} bytes before its last value")
        self._at += length
        return bytes(part)


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

    def raw(self, length: int) -> bytes:
        """Return the next bytes unchanged, and count them as side information."""
        self._side += 8 * length
        return super().raw(length)

    def levels(self, counts: Int64[np.ndarray, "layers"], bounds: Bounds) -> Int32[np.ndarray, "m"]:
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

    def writer(self) -> FixedWidthWriter:
        """Return a new writer, for one body."""
        return FixedWidthWriter()

    def reader(self, body: bytes | memoryview) -> FixedWidthReader:
        """Return a reader of one body."""
        return FixedWidthReader(body)

    def meter(self, body: bytes | memoryview) -> FixedWidthMeter:
        """Return a meter of one body."""
        return FixedWidthMeter(body)


def _position_bits(d: int) -> int:
    return max(1, (d - 1).bit_length())


def _pack_numbers(numbers: Int[np.ndarray, "m"], bits: int) -> bytes:
    if bits in (8, 16, 32):
        return numbers.astype(f"<u{bits // 8}").tobytes()
    parts = []
    for start in range(0, len(numbers), PACK_CHUNK):
        words = numbers[start : start + PACK_CHUNK].astype("<u4").view(np.uint8).reshape(-1, 4)
        parts.append(
            np.packbits(np.unpackbits(words, axis=1, bitorder="little")[:, :bits].reshape(-1), bitorder="little")
        )
    return b"".join(part.tobytes() for part in parts)


def _unpack_numbers(
    packed: UInt8[np.ndarray, "bytes"], count: int, bits: int, dtype: type[np.signedinteger]
) -> Int[np.ndarray, "count"]:
    if bits in (8, 16, 32):
        return packed.view(f"<u{bits // 8}").astype(dtype)
    numbers, powers = np.empty(count, dtype=dtype), 1 << np.arange(bits, dtype=np.int64)
    for start in range(0, count, PACK_CHUNK):
        here = min(PACK_CHUNK, count - start)
        flat = np.unpackbits(packed[start * bits // 8 :], count=here * bits, bitorder="little")
        numbers[start : start + here] = flat.reshape(here, bits) @ powers
    return numbers
