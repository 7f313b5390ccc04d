"""Plain bit packing: every number in as many bits as its largest possible neighbour needs."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int32, Int64

from dpcomp.codec.quantize import top_levels
from dpcomp.errors import CorruptPayload


class FixedWidthWriter:
    """Packs one body, part after part; every part ends on a whole byte."""

    def __init__(self):
        self._parts: list[bytes] = []

    def positions(self, positions: Int64[np.ndarray, "k"], d: int) -> None:
        """Positions below d, in ⌈log₂ d⌉ bits each."""
        self._parts.append(_pack(positions, _position_bits(d)))

    def levels(
        self, levels: Int32[np.ndarray, "m"], counts: Int64[np.ndarray, "layers"], widths: tuple[int, ...]
    ) -> None:
        """Levels, `counts` of them a layer, in the layer's bits each."""
        shifted = levels + np.repeat(top_levels(widths), counts)
        layers = np.split(shifted, np.cumsum(counts)[:-1])
        self._parts += [_pack(layer, bits) for layer, bits in zip(layers, widths, strict=True)]

    def finish(self) -> bytes:
        """All of it."""
        return b"".join(self._parts)


class FixedWidthReader:
    """Reads what a writer packed, in the same order."""

    def __init__(self, body: bytes):
        self._body, self._at = body, 0

    def positions(self, k: int, d: int) -> Int64[np.ndarray, "k"]:
        """k positions below d."""
        positions = self._unpack(k, _position_bits(d))
        if k and (positions[-1] >= d or (np.diff(positions) <= 0).any()):
            raise CorruptPayload(f"the positions are not ascending below {d}")
        return positions

    def levels(self, counts: Int64[np.ndarray, "layers"], widths: tuple[int, ...]) -> Int32[np.ndarray, "m"]:
        """Levels, `counts` of them a layer."""
        layers = [self._unpack(int(count), bits) for count, bits in zip(counts, widths, strict=True)]
        tops = np.repeat(top_levels(widths), counts)
        levels = np.concatenate(layers).astype(np.int32) - tops
        if (levels > tops).any():
            raise CorruptPayload("a level lies outside its layer's quantiser")
        return levels

    def finish(self) -> None:
        """Nothing may be left."""
        if self._at != len(self._body):
            raise CorruptPayload(f"the body has {len(self._body) - self._at} bytes behind its last value")

    def _unpack(self, count: int, bits: int) -> Int64[np.ndarray, "count"]:
        length = (count * bits + 7) // 8
        packed = self._body[self._at : self._at + length]
        if len(packed) < length:
            raise CorruptPayload(f"the body ends {length - len(packed)} bytes before its last value")
        self._at += length
        flat = np.unpackbits(np.frombuffer(packed, dtype=np.uint8), count=count * bits, bitorder="little")
        return flat.reshape(count, bits) @ (1 << np.arange(bits, dtype=np.int64))


@dataclass(frozen=True)
class FixedWidth:
    """Positions in ⌈log₂ d⌉ bits, levels in their layer's bits: INT8 is a byte a value."""

    def writer(self) -> FixedWidthWriter:
        """A fresh writer, for one body."""
        return FixedWidthWriter()

    def reader(self, body: bytes) -> FixedWidthReader:
        """A reader of one body."""
        return FixedWidthReader(body)


def _position_bits(d: int) -> int:
    return max(1, (d - 1).bit_length())


def _pack(numbers: np.ndarray, bits: int) -> bytes:
    words = numbers.astype("<u4").view(np.uint8).reshape(len(numbers), 4)
    flat = np.unpackbits(words, axis=1, bitorder="little")[:, :bits]
    return np.packbits(flat.reshape(-1), bitorder="little").tobytes()
