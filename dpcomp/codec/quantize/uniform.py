"""Evenly spaced levels."""

from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from jaxtyping import Float32, Float64, Int32, Int64, UInt16

from dpcomp.codec.allocation import WIDEST, Allocator, Equal
from dpcomp.codec.quantize.quantizer import Bounds, scale_layers
from dpcomp.codec.quantize.rounding import Nearest, Rounding
from dpcomp.core.errors import CorruptPayload
from dpcomp.core.public_context import PublicContext

LARGEST_STEP = 0x7F7F  # the upper half of the largest float32


@dataclass(frozen=True)
class Uniform:
    """Round to evenly spaced levels, symmetric about 0, with a step for each layer.

    `bits` is a whole number b, and then the levels are the 2^b − 1 that span the layer's largest magnitude; or an
    allocator, which gives each layer its own width where levels are packed, and its own step where they are
    entropy-coded. `rounding` is to the nearest (biased), stochastic or dithered (unbiased). A step is rounded up
    to the upper half of a float32: two bytes that mean the same number on every machine.
    """

    bits: int | Allocator
    rounding: Rounding = field(default_factory=Nearest)

    def __post_init__(self):
        if not isinstance(self.bits, Allocator):
            object.__setattr__(self, "bits", Equal(self.bits).bits)
        if not isinstance(self.rounding, Rounding) or isinstance(self.rounding, type):
            raise TypeError(f"Uniform(rounding={self.rounding!r}): dp.Nearest(), dp.Stochastic() or dp.Dithered()")

    side_holds_values = False

    @property
    def allocates(self) -> bool:
        """Whether layers get bits of their own."""
        return not isinstance(self.bits, int)

    @property
    def averaged_clients(self) -> int | None:
        """Of how many updates the server wants the mean, where the allocator sees the privacy noise."""
        return getattr(self.bits, "averaged_clients", None)

    @property
    def unbiased(self) -> bool:
        """As the rounding is; but what an allocator gives no bits at all is decoded as zero."""
        return self.rounding.unbiased

    def side_bytes(self, counts: Int64[np.ndarray, "layers"], context: PublicContext) -> int:
        """Two a layer for its step; half a byte for its width, where an allocator chose it."""
        return 2 * len(counts) + (len(counts) + 1) // 2 * self._says_widths(context)

    def bounds(self, side: bytes, context: PublicContext) -> Bounds:
        """±(2^(width−1) − 1)."""
        widths = self._widths_said(side, context)
        tops = np.where(widths > 0, (1 << np.maximum(widths - 1, 0)) - 1, 0).astype(np.int32)
        return Bounds(-tops, tops)

    def levels(
        self, values: Float32[np.ndarray, "k"], counts: Int64[np.ndarray, "layers"], context: PublicContext
    ) -> tuple[Int32[np.ndarray, "k"], bytes]:
        """The whole numbers, and each layer's step."""
        edges = np.cumsum([0, *counts])
        layers = list(pairwise(edges))
        said = b""
        if isinstance(self.bits, int):
            largest = np.array([_largest(values[start:stop]) for start, stop in layers])
            spacing = largest / (2 ** (self.bits - 1) - 1)
        elif context.packed:
            widths, spacing = self.bits.packed(values, counts)
            said = _nibbles(widths)
        else:
            largest = np.array([_largest(values[start:stop]) for start, stop in layers])
            spacing = np.maximum(self.bits.coded(values, counts), largest / (2 ** (WIDEST - 1) - 1))
        steps = _rounded_up(np.asarray(spacing, dtype=np.float64))
        tops = self.bounds(bytes(2 * len(counts)) + said, context).highest
        ratio = np.zeros_like(values)
        for step, (start, stop) in zip(widened(steps), layers, strict=True):
            if step > 0:
                np.divide(values[start:stop], step, out=ratio[start:stop])
        ratio += self.rounding.shift(len(values), context.dither_key)
        np.rint(ratio, out=ratio)
        for top, (start, stop) in zip(tops, layers, strict=True):
            np.clip(ratio[start:stop], -top, top, out=ratio[start:stop])
        return ratio.astype(np.int32), steps.astype("<u2").tobytes() + said

    def values(
        self, levels: Int32[np.ndarray, "k"], side: bytes, counts: Int64[np.ndarray, "layers"], context: PublicContext
    ) -> Float32[np.ndarray, "k"]:
        """(level − dither) × the layer's step."""
        steps = np.frombuffer(side[: 2 * len(counts)], dtype="<u2").astype(np.uint16)
        if (steps > LARGEST_STEP).any():
            raise CorruptPayload("a quantiser's step is negative or not finite")
        ratio = levels.astype(np.float32)
        ratio -= self.rounding.taken_off(len(levels), context.dither_key)
        scale, largest = widened(steps), np.finfo(np.float32).max
        with np.errstate(over="ignore"):
            scale_layers(ratio, counts, scale)
        if scale.max(initial=0) > largest / 2**WIDEST:  # half a step more than the largest float is that float
            np.clip(ratio, -largest, largest, out=ratio)
        return ratio

    def _says_widths(self, context: PublicContext) -> bool:
        return context.packed and not isinstance(self.bits, int)

    def _widths_said(self, side: bytes, context: PublicContext) -> Int64[np.ndarray, "layers"]:
        layers = len(context.layout.shapes)
        if self._says_widths(context):
            packed = np.frombuffer(side[2 * layers :], dtype=np.uint8)
            codes = np.stack([packed & 15, packed >> 4], axis=1).reshape(-1)[:layers].astype(np.int64)
            return codes + (codes > 0)
        return np.full(layers, self.bits if isinstance(self.bits, int) else WIDEST)


def _nibbles(widths: tuple[int, ...]) -> bytes:
    """Half a byte a layer: 0 for none, else the width less one."""
    codes = np.zeros(len(widths) + len(widths) % 2, dtype=np.uint8)
    codes[: len(widths)] = [max(width - 1, 0) for width in widths]
    return (codes[::2] | codes[1::2] << 4).tobytes()


def _largest(values: Float32[np.ndarray, "n"]) -> float:
    return abs(max(float(values.max()), -float(values.min()))) if len(values) else 0.0


def _rounded_up(steps: Float64[np.ndarray, "layers"]) -> UInt16[np.ndarray, "layers"]:
    """The upper halves of the float32s that are no smaller, as far as they are finite."""
    capped = np.minimum(steps, np.finfo(np.float32).max)
    words = capped.astype(np.float32).view(np.uint32)
    words += words.view(np.float32) < capped  # the next float32 up
    return np.minimum((words >> 16) + ((words & 0xFFFF) > 0), LARGEST_STEP).astype(np.uint16)


def widened(halves: UInt16[np.ndarray, "layers"]) -> Float32[np.ndarray, "layers"]:
    """The float32s whose upper halves these are."""
    return (halves.astype(np.uint32) << 16).view(np.float32)
