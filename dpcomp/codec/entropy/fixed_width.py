"""Plain bit packing: every number in as many bits as its largest possible neighbour needs."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int, Int32, Int64, UInt8

from dpcomp.codec.entropy.coder import PartBits
from dpcomp.codec.quantize.quantizer import Bounds, refuse_outside
from dpcomp.core.errors import CorruptPayload
from dpcomp.core.layout import split_by_counts

CHUNK = 2**14  # numbers that are packed at once; a multiple of 8, so that each chunk ends on a whole byte


class FixedWidthWriter:
    """Packs one body, part after part; every part ends on a whole byte."""

    def __init__(self):
        self._parts: list[bytes] = []

    def positions(
        self,
        positions: Int64[np.ndarray, "k"],
        edges: Int64[np.ndarray, "layers_plus_one"],
        previous: Int64[np.ndarray, "k_before"] | None,
    ) -> None:
        """Positions below the last edge d, in ⌈log₂ d⌉ bits each; nothing is gained from the previous ones."""
        self._parts.append(_pack(positions, _position_bits(int(edges[-1]))))

    def raw(self, part: bytes) -> None:
        """Bytes as they are."""
        self._parts.append(part)

    def levels(self, levels: Int32[np.ndarray, "m"], counts: Int64[np.ndarray, "layers"], bounds: Bounds) -> None:
        """Levels, `counts` of them a layer, in the bits that hold any level of the layer."""
        layers = split_by_counts(levels, counts)
        for layer, lowest, width in zip(layers, bounds.lowest, bounds.widths, strict=True):
            if width:
                self._parts.append(_pack(layer - lowest, int(width)))

    def finish(self) -> bytes:
        """All of it."""
        return b"".join(self._parts)


class FixedWidthReader:
    """Reads what a writer packed, in the same order."""

    def __init__(self, body: bytes | memoryview):
        self._body, self._at = body, 0

    def positions(
        self, k: int, edges: Int64[np.ndarray, "layers_plus_one"], previous: Int64[np.ndarray, "k_before"] | None
    ) -> Int64[np.ndarray, "k"]:
        """k positions below the last edge."""
        positions = self._unpack(k, _position_bits(int(edges[-1])), np.int64)
        if k and (positions[-1] >= edges[-1] or (np.diff(positions) <= 0).any()):
            raise CorruptPayload(f"the positions are not ascending below {edges[-1]}")
        return positions

    def raw(self, length: int) -> bytes:
        """Bytes as they are."""
        return self._part(length)

    def levels(self, counts: Int64[np.ndarray, "layers"], bounds: Bounds) -> Int32[np.ndarray, "m"]:
        """Levels, `counts` of them a layer."""
        levels = np.repeat(bounds.lowest, counts)
        layers = split_by_counts(levels, counts)  # views
        for layer, width in zip(layers, bounds.widths, strict=True):
            if width:
                layer += self._unpack(len(layer), int(width), np.int32)
        refuse_outside(levels, counts, bounds)
        return levels

    def finish(self) -> None:
        """Nothing may be left."""
        if self._at != len(self._body):
            raise CorruptPayload(f"the body has {len(self._body) - self._at} bytes behind its last value")

    def _unpack(self, count: int, bits: int, dtype: type[np.signedinteger]) -> Int[np.ndarray, "count"]:
        packed = self._part((count * bits + 7) // 8)
        return _unpacked(np.frombuffer(packed, dtype=np.uint8), count, bits, dtype)

    def _part(self, length: int) -> bytes:
        part = self._body[self._at : self._at + length]
        if len(part) < length:
            raise CorruptPayload(f"the body ends {length - len(part)} bytes before its last value")
        self._at += length
        return bytes(part)


class FixedWidthMeter(FixedWidthReader):
    """Reads a body, and counts the bits of its numbers."""

    def __init__(self, body: bytes | memoryview):
        super().__init__(body)
        self._index = self._side = self._value = 0

    def positions(
        self, k: int, edges: Int64[np.ndarray, "layers_plus_one"], previous: Int64[np.ndarray, "k_before"] | None
    ) -> Int64[np.ndarray, "k"]:
        """k positions below the last edge."""
        self._index += k * _position_bits(int(edges[-1]))
        return super().positions(k, edges, previous)

    def raw(self, length: int) -> bytes:
        """Bytes as they are."""
        self._side += 8 * length
        return super().raw(length)

    def levels(self, counts: Int64[np.ndarray, "layers"], bounds: Bounds) -> Int32[np.ndarray, "m"]:
        """Levels, `counts` of them a layer."""
        self._value += int(counts @ bounds.widths)
        return super().levels(counts, bounds)

    @property
    def bits(self) -> PartBits:
        """The numbers' own bits; rounding fills up the last byte of each part."""
        parts = (self._index, self._side, self._value)
        index, side, value = map(float, parts)
        return PartBits(index=index, side=side, value=value, rounding=float(8 * len(self._body) - sum(parts)))


@dataclass(frozen=True)
class FixedWidth:
    """Positions in ⌈log₂ d⌉ bits, levels in their layer's bits: INT8 is a byte a value."""

    packed = True

    def writer(self) -> FixedWidthWriter:
        """A fresh writer, for one body."""
        return FixedWidthWriter()

    def reader(self, body: bytes | memoryview) -> FixedWidthReader:
        """A reader of one body."""
        return FixedWidthReader(body)

    def meter(self, body: bytes | memoryview) -> FixedWidthMeter:
        """A meter of one body."""
        return FixedWidthMeter(body)


def _position_bits(d: int) -> int:
    return max(1, (d - 1).bit_length())


def _pack(numbers: Int[np.ndarray, "m"], bits: int) -> bytes:
    if bits in (8, 16, 32):
        return numbers.astype(f"<u{bits // 8}").tobytes()
    parts = []
    for start in range(0, len(numbers), CHUNK):
        words = numbers[start : start + CHUNK].astype("<u4").view(np.uint8).reshape(-1, 4)
        parts.append(
            np.packbits(np.unpackbits(words, axis=1, bitorder="little")[:, :bits].reshape(-1), bitorder="little")
        )
    return b"".join(part.tobytes() for part in parts)


def _unpacked(
    packed: UInt8[np.ndarray, "bytes"], count: int, bits: int, dtype: type[np.signedinteger]
) -> Int[np.ndarray, "count"]:
    if bits in (8, 16, 32):
        return packed.view(f"<u{bits // 8}").astype(dtype)
    numbers, powers = np.empty(count, dtype=dtype), 1 << np.arange(bits, dtype=np.int64)
    for start in range(0, count, CHUNK):
        here = min(CHUNK, count - start)
        flat = np.unpackbits(packed[start * bits // 8 :], count=here * bits, bitorder="little")
        numbers[start : start + here] = flat.reshape(here, bits) @ powers
    return numbers
