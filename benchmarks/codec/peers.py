"""Peers of the codecs: what one writes with packages from the index, and FLSim's byte counts.

Each peer makes real bytes and reads them again, without the header, checksum and address that a payload of dpcomp has.
FLSim has no wire format: it simulates, and counts bytes by formula. Its rows are formulas, with the error of what it
would have sent.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
import zstandard
from jaxtyping import Float32

from dpcomp.core.layout import Layout

ZSTD_LEVEL = 3  # zstd's own default
FRACTIONS = (0.01, 0.1)

Vector = Float32[np.ndarray, "d"]


@dataclass(frozen=True, kw_only=True)
class Peer:
    """A pair of functions that make bytes of one vector, and read them again."""

    name: str
    family: str
    encode: Callable[[], bytes]
    decode: Callable[[bytes], Vector]


@dataclass(frozen=True, kw_only=True)
class Formula:
    """A computed count of bytes that were never made, and what their reader would have decoded."""

    name: str
    family: str
    payload_bytes: float
    decoded: Vector


def peers(vector: Vector, layout: Layout) -> Iterator[Peer]:
    """Give all peers that make bytes of a vector."""
    d = len(vector)
    yield _zstd(Peer(name="float32", family="dense", encode=vector.tobytes, decode=_floats))
    yield (int8 := _int8(vector, layout))
    yield _zstd(int8)
    for fraction in FRACTIONS:
        k, share = round(fraction * d), f"top {100 * fraction:g} %"
        yield (listed := _listed(vector, k, share))
        yield _zstd(listed)
        yield Peer(
            name=f"{share}: bitmap + float32",
            family="bitmap + float32",
            encode=lambda k=k: _bitmap(vector, k),
            decode=lambda payload: _decoded_bitmap(payload, d),
        )
        yield _zstd(
            Peer(
                name=f"{share}: float32, zeros kept",
                family="zeros kept",
                encode=lambda k=k: _zeros_kept(vector, k),
                decode=_floats,
            )
        )


def formulas(vector: Vector, layout: Layout) -> Iterator[Formula]:
    """Compute FLSim's message sizes (facebookresearch/FLSim at 085aa75, flsim/channels).

    `sparse_mask_channel.py` sends of every layer of n values the n − int((1 − fraction)·n) largest: 4 bytes each, and 8
    for each of its `ndim` indices (coo) or n/8 for all (bitmask). `scalar_quantization_channel.py` sends of every layer
    with more than one dimension bits/8 bytes a value and 12 for scale and zero point; of the others 4 a value.
    """
    layers = list(zip(pairwise(layout.edges), (shape for _, shape in layout.shapes), strict=True))
    for fraction in FRACTIONS:
        decoded, coo, bitmask = np.zeros_like(vector), 0.0, 0.0
        for (start, stop), shape in layers:
            n = int(stop - start)
            kept = n - int((1 - fraction) * n)
            largest = start + _largest(vector[start:stop], kept)
            decoded[largest] = vector[largest]
            coo += kept * (4 + 8 * len(shape))
            bitmask += kept * 4 + n / 8
        share = f"FLSim, top {100 * fraction:g} %"
        yield Formula(name=f"{share}: coo", family="FLSim's formula", payload_bytes=coo, decoded=decoded)
        yield Formula(name=f"{share}: bitmask", family="FLSim's formula", payload_bytes=bitmask, decoded=decoded)
    for bits in (8, 4):
        decoded, total = vector.copy(), 0.0
        for (start, stop), shape in layers:
            total += 12 + (stop - start) * bits / 8 if len(shape) > 1 else 4 * (stop - start)
            if len(shape) > 1:
                decoded[start:stop] = _affine(vector[start:stop], bits)
        yield Formula(name=f"FLSim, {bits} bits", family="FLSim's formula", payload_bytes=total, decoded=decoded)


def _zstd(peer: Peer) -> Peer:
    """Compress the bytes of a peer with zstd."""
    return Peer(
        name=f"{peer.name}, zstd",
        family=f"{peer.family}, zstd",
        encode=lambda: zstandard.compress(peer.encode(), ZSTD_LEVEL),
        decode=lambda payload: peer.decode(zstandard.decompress(payload)),
    )


def _largest(vector: Vector, k: int) -> np.ndarray:
    """Select the positions of the k largest magnitudes, ascending: in another order zstd saves nothing."""
    chosen = torch.topk(torch.from_numpy(vector).abs(), k, sorted=False).indices
    return torch.sort(chosen).values.numpy()


def _listed(vector: Vector, k: int, share: str) -> Peer:
    def encode() -> bytes:
        indices = _largest(vector, k)
        return indices.astype("<i4").tobytes() + vector[indices].tobytes()

    def decode(payload: bytes) -> Vector:
        decoded = np.zeros(len(vector), dtype=np.float32)
        decoded[np.frombuffer(payload, "<i4", count=k)] = np.frombuffer(payload, "<f4", offset=4 * k)
        return decoded

    return Peer(name=f"{share}: int32 + float32", family="int32 + float32", encode=encode, decode=decode)


def _bitmap(vector: Vector, k: int) -> bytes:
    kept = np.zeros(len(vector), dtype=bool)
    kept[_largest(vector, k)] = True
    return np.packbits(kept).tobytes() + vector[kept].tobytes()


def _decoded_bitmap(payload: bytes, d: int) -> Vector:
    kept = np.unpackbits(np.frombuffer(payload, np.uint8, count=(d + 7) // 8), count=d).astype(bool)
    decoded = np.zeros(d, dtype=np.float32)
    decoded[kept] = np.frombuffer(payload, "<f4", offset=(d + 7) // 8)
    return decoded


def _zeros_kept(vector: Vector, k: int) -> bytes:
    indices, sparse = _largest(vector, k), np.zeros_like(vector)
    sparse[indices] = vector[indices]
    return sparse.tobytes()


def _floats(payload: bytes) -> Vector:
    return np.frombuffer(payload, "<f4").copy()


def _int8(vector: Vector, layout: Layout) -> Peer:
    """Round to a byte a value, with one scale a layer."""
    layers = list(pairwise(layout.edges))

    def encode() -> bytes:
        steps = np.array([np.abs(vector[start:stop]).max() / 127 for start, stop in layers], dtype="<f4")
        levels = np.rint(vector / np.repeat(steps, layout.sizes)).astype(np.int8)
        return steps.tobytes() + levels.tobytes()

    def decode(payload: bytes) -> Vector:
        steps = np.frombuffer(payload, "<f4", count=len(layers))
        return np.frombuffer(payload, np.int8, offset=4 * len(layers)) * np.repeat(steps, layout.sizes)

    return Peer(name="int8 a layer", family="int8", encode=encode, decode=decode)


def _affine(layer: Vector, bits: int) -> Vector:
    """Round to 2^bits levels from the smallest value to the largest, with an integer zero point (as MinMaxObserver)."""
    low, high = min(float(layer.min()), 0.0), max(float(layer.max()), 0.0)
    step = max((high - low) / (2**bits - 1), float(np.finfo(np.float32).eps))
    zero = round(-low / step)
    levels = np.clip(np.rint(layer / np.float32(step)) + zero, 0, 2**bits - 1)
    return ((levels - zero) * step).astype(np.float32)
