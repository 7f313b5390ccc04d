"""Quantisers: from values to whole numbers and back."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int32, Int64, UInt16

from dpcomp.codec.allocate import Allocator, Equal
from dpcomp.update import Layout


@dataclass(frozen=True)
class Uniform:
    """Round to the nearest of 2^bits − 1 evenly spaced levels, symmetric about 0, in each layer.

    A layer's step is its largest magnitude ÷ (2^(bits−1) − 1), rounded up to the upper half of a float32:
    two bytes that mean the same number on every machine. `bits` is a whole number, the same for every
    layer, or an allocator. Biased: the rounding error of a value is fixed by the value.
    """

    bits: int | Allocator

    def __post_init__(self):
        if not isinstance(self.bits, Allocator):
            object.__setattr__(self, "bits", Equal(self.bits).bits)

    def widths(self, layout: Layout) -> tuple[int, ...]:
        """Bits a value, one number a layer: both ends compute them."""
        allocator = Equal(self.bits) if isinstance(self.bits, int) else self.bits
        return allocator.allocate(layout)

    def levels(
        self, values: Float32[np.ndarray, "k"], counts: Int64[np.ndarray, "layers"], layout: Layout
    ) -> tuple[Int32[np.ndarray, "k"], UInt16[np.ndarray, "layers"]]:
        """The whole numbers, and each layer's step; `counts` says how many of the values each layer holds."""
        tops = top_levels(self.widths(layout))
        starts = np.cumsum(counts) - counts
        largest = np.zeros(len(counts), dtype=np.float32)
        filled = counts > 0
        if filled.any():
            largest[filled] = np.maximum.reduceat(np.abs(values), starts[filled])
        steps = _coarsened(largest / tops.astype(np.float32), tops)
        scale = np.repeat(widened(steps), counts)
        top = np.repeat(tops, counts)
        ratio = np.divide(values, scale, out=np.zeros_like(values), where=scale > 0)
        return np.clip(np.rint(ratio), -top, top).astype(np.int32), steps

    def values(
        self,
        levels: Int32[np.ndarray, "k"],
        steps: UInt16[np.ndarray, "layers"],
        counts: Int64[np.ndarray, "layers"],
    ) -> Float32[np.ndarray, "k"]:
        """What the levels stand for."""
        return levels.astype(np.float32) * np.repeat(widened(steps), counts)


def top_levels(widths: tuple[int, ...]) -> Int32[np.ndarray, "layers"]:
    """The largest level that each width holds: 2^(bits−1) − 1."""
    return np.array([2 ** (bits - 1) - 1 for bits in widths], dtype=np.int32)


def _coarsened(steps: Float32[np.ndarray, "layers"], tops: Int32[np.ndarray, "layers"]) -> UInt16[np.ndarray, "layers"]:
    """The upper halves of the steps, rounded up, unless the largest level would then be infinite."""
    words = steps.view(np.uint32)
    upper = ((words >> 16) + ((words & 0xFFFF) > 0)).astype(np.uint16)
    overflows = widened(upper).astype(np.float64) * tops > np.finfo(np.float32).max
    return upper - overflows.astype(np.uint16)


def widened(halves: UInt16[np.ndarray, "layers"]) -> Float32[np.ndarray, "layers"]:
    """The float32s whose upper halves these are."""
    return (halves.astype(np.uint32) << 16).view(np.float32)
