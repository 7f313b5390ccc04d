"""One bit a value: its sign."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Float32, Float64, Int32, Int64, UInt16

from dpcomp.codec.quantize.quantizer import Bounds, scale_layers
from dpcomp.codec.quantize.uniform import LARGEST_STEP, widened
from dpcomp.core.errors import CorruptPayload
from dpcomp.core.public_context import PublicContext


@dataclass(frozen=True)
class Sign:
    """The sign of each value, times the layer's mean magnitude (Karimireddy et al. 2019, EF-signSGD).

    mean |x| is the scale with the least squared error; two bytes a layer hold it, the upper half of a float32.
    Zero counts as positive. Biased: use it with feedback. Behind `TopK` it is sparse ternary compression
    (Sattler et al. 2019, Algorithm 1).

    **Privacy:** post-processing of a release (PRIVACY_RULES 14); the scale of a clean layer would be an
    observable of private data (rule zero).
    """

    unbiased = False
    side_holds_values = False

    def side_bytes(self, counts: Int64[np.ndarray, "layers"], context: PublicContext) -> int:
        """Two a layer: its scale."""
        return 2 * len(counts)

    def bounds(self, side: bytes, context: PublicContext) -> Bounds:
        """0 for minus, 1 for plus."""
        zeros = np.zeros(len(context.layout.shapes), dtype=np.int32)
        return Bounds(zeros, zeros + 1)

    def levels(
        self, values: Float32[np.ndarray, "k"], counts: Int64[np.ndarray, "layers"], context: PublicContext
    ) -> tuple[Int32[np.ndarray, "k"], bytes]:
        """Whether each value is positive, and each layer's mean magnitude."""
        layers = pairwise(np.cumsum([0, *counts]))
        means = [np.abs(values[start:stop]).mean(dtype=np.float64) if stop > start else 0.0 for start, stop in layers]
        return (values >= 0).astype(np.int32), nearest_halves(np.array(means)).astype("<u2").tobytes()

    def values(
        self, levels: Int32[np.ndarray, "k"], side: bytes, counts: Int64[np.ndarray, "layers"], context: PublicContext
    ) -> Float32[np.ndarray, "k"]:
        """± the layer's scale."""
        values = levels.astype(np.float32)
        values *= 2
        values -= 1
        return scale_layers(values, counts, scales_of(side))


def nearest_halves(scales: Float64[np.ndarray, "layers"]) -> UInt16[np.ndarray, "layers"]:
    """The upper halves of the float32s that are nearest to the scales, and finite: within 2^−8 of them."""
    words = scales.astype(np.float32).view(np.uint32)
    return np.minimum((words + 0x8000) >> 16, LARGEST_STEP).astype(np.uint16)


def scales_of(side: bytes) -> Float32[np.ndarray, "layers"]:
    """What the halves mean.

    Raises:
        CorruptPayload: one is negative or not finite.
    """
    halves = np.frombuffer(side, dtype="<u2").astype(np.uint16)
    if (halves > LARGEST_STEP).any():
        raise CorruptPayload("a layer's scale is negative or not finite")
    return widened(halves)
