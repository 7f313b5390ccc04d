"""Compressors of a lone vector that are not dpcomp's, each a pair of functions: a few lines with packages of the index.

Payloads have neither a header nor a checksum nor layers, unlike those of `codec.compress`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import zstandard
from jaxtyping import Float32
from numcodecs import Blosc, Quantize

from dpcomp.core.layout import Layout

ZSTD_LEVEL = 3  # zstd's own default
Vector = Float32[np.ndarray, "d"]


@dataclass(frozen=True, kw_only=True)
class Compressor:
    """A pair of functions that make bytes of a vector, and read them again."""

    name: str
    compress: Callable[[Vector], bytes]
    decompress: Callable[[bytes], Vector]


def sparse_peers(layout: Layout, fraction: float) -> Iterator[Compressor]:
    """Give the peers of top-k: GRACE's (Xu et al. 2021, table 1), the same in zstd, and PowerSGD."""
    share = f"top {100 * fraction:g} %"
    top = Compressor(
        name=f"GRACE's {share}",
        compress=lambda vector: _top_k(vector, round(fraction * len(vector))),
        decompress=lambda payload: _scattered(payload, layout.size),
    )
    yield top
    yield Compressor(
        name=f"GRACE's {share}, zstd",
        compress=lambda vector: zstandard.compress(top.compress(vector), ZSTD_LEVEL),
        decompress=lambda payload: top.decompress(zstandard.decompress(payload)),
    )
    power = PowerSgd(layout, rank=1)
    yield Compressor(name="PowerSGD, rank 1", compress=power.compress, decompress=power.decompress)


def dense_peers() -> Iterator[Compressor]:
    """Give the peers of a dense codec: two that lose nothing, and numcodecs' rounding to two decimal digits."""
    yield Compressor(
        name="zstd, lossless",
        compress=lambda vector: zstandard.compress(vector.tobytes(), ZSTD_LEVEL),
        decompress=lambda payload: np.frombuffer(zstandard.decompress(payload), np.float32),
    )
    blosc = Blosc(cname="zstd", clevel=ZSTD_LEVEL, shuffle=Blosc.BITSHUFFLE)
    yield Compressor(
        name="numcodecs: Blosc, lossless",
        compress=lambda vector: bytes(blosc.encode(vector)),
        decompress=lambda payload: np.frombuffer(blosc.decode(payload), np.float32),
    )
    # Quantize rounds to decimal digits after the point, so values are scaled to a largest one of 1 before.
    rounded = Quantize(digits=2, dtype="<f4")

    def compress(vector: Vector) -> bytes:
        scale = np.float32(np.abs(vector).max())
        return scale.tobytes() + bytes(blosc.encode(rounded.encode(vector / scale)))

    yield Compressor(
        name="numcodecs: Quantize, Blosc",
        compress=compress,
        decompress=lambda payload: (
            np.frombuffer(blosc.decode(payload[4:]), np.float32) * np.frombuffer(payload, np.float32, 1)
        ),
    )


def _top_k(vector: Vector, k: int) -> bytes:
    """Send values and 32-bit positions of the k largest magnitudes, ascending: else zstd would save nothing."""
    tensor = torch.from_numpy(vector)
    indices = torch.sort(torch.topk(tensor.abs(), k, sorted=False).indices).values
    return indices.int().numpy().tobytes() + tensor[indices].numpy().tobytes()


def _scattered(payload: bytes, d: int) -> Vector:
    k = len(payload) // 8
    decoded = np.zeros(d, dtype=np.float32)
    decoded[np.frombuffer(payload, np.int32, k)] = np.frombuffer(payload, np.float32, k, offset=4 * k)
    return decoded


class PowerSgd:
    """PowerSGD (Vogels et al. 2019, algorithm 1): each matrix is sent as the product of two of a small rank.

    PyTorch has it as a hook, which needs processes; this is what one of them sends, and what comes of it. A vector and
    a scalar are sent as they are, and the second factor begins the next step.
    """

    def __init__(self, layout: Layout, *, rank: int):
        draw = torch.Generator().manual_seed(0)
        self._layers = [
            (start, stop, (shape[0], (stop - start) // shape[0]) if len(shape) > 1 else None)
            for start, stop, (_, shape) in zip(
                layout.edges[:-1].tolist(), layout.edges[1:].tolist(), layout.shapes, strict=True
            )
        ]
        self._second = [
            None if matrix is None else torch.randn(matrix[1], rank, generator=draw) for _, _, matrix in self._layers
        ]
        self._rank = rank

    def compress(self, vector: Vector) -> bytes:
        """Make the factors of each matrix."""
        parts: list[bytes] = []
        for number, (start, stop, matrix) in enumerate(self._layers):
            second = self._second[number]
            layer = torch.from_numpy(vector[start:stop])
            if matrix is None or second is None:
                parts.append(layer.numpy().tobytes())
                continue
            first, _ = torch.linalg.qr(layer.view(matrix) @ second)
            self._second[number] = second = layer.view(matrix).T @ first
            parts += [first.numpy().tobytes(), second.numpy().tobytes()]
        return b"".join(parts)

    def decompress(self, payload: bytes) -> Vector:
        """Multiply the factors."""
        values, at = torch.frombuffer(bytearray(payload), dtype=torch.float32), 0
        decoded = np.empty(self._layers[-1][1], dtype=np.float32)
        for start, stop, matrix in self._layers:
            if matrix is None:
                decoded[start:stop] = values[at : at + stop - start]
                at += stop - start
                continue
            rows, columns = (size * self._rank for size in matrix)
            first = values[at : at + rows].view(-1, self._rank)
            second = values[at + rows : at + rows + columns].view(-1, self._rank)
            decoded[start:stop] = (first @ second.T).reshape(-1)
            at += rows + columns
        return decoded
