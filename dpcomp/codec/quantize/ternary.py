"""Ternary: three levels, fitted to each layer."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Float32, Int, Int8, Int64

from dpcomp.codec.quantize.bfloat16 import read_scales, round_to_bfloat16, widen_bfloat16
from dpcomp.codec.quantize.quantizer import Bounds, equal_bounds, layer_blocks, scale_layers
from dpcomp.core.public_context import PublicContext


@dataclass(frozen=True)
class Ternary:
    """Round each value to −s, 0 or s, with the s of its layer that minimises the squared error (Li & Liu 2016, §2).

    If m values lie beyond the threshold, the best s is their mean magnitude, and the error ‖x‖² − (Σ|x|)²/m; the best m
    is taken, where the source has the threshold 0.7 mean |x|. Two bytes a layer hold s. Biased: use it with feedback.
    The heavier the tails of a layer, the more zeros, which cost little under an entropy coder: 1.5 bits a value of a
    Gaussian, whose energy it loses 19 % of. With `FixedWidth` a value takes two bits.

    TernGrad (Wen et al. 2017), whose s is the largest magnitude, is `Uniform(2, rounding=Stochastic())`.

    **Privacy:** post-processing of a release; the scale of a clean layer would be an observable of private data
    (PRIVACY_RULES, rule zero).
    """

    unbiased = False
    side_holds_values = False
    narrow_levels = True

    def side_bytes(self, counts: Int64[np.ndarray, "layers"], context: PublicContext) -> int:
        """Return two bytes a layer: its scale."""
        return 2 * len(counts)

    def bounds(self, side: bytes, context: PublicContext) -> Bounds:
        """Return −1 and 1."""
        return equal_bounds(len(context.layout.shapes), -1, 1)

    def levels(
        self, values: Float32[np.ndarray, "k"], counts: Int64[np.ndarray, "layers"], context: PublicContext
    ) -> tuple[Int8[np.ndarray, "k"], bytes]:
        """Return the nearest of the three for each value, and each layer's scale."""
        layers = pairwise(np.cumsum([0, *counts]))
        halves = round_to_bfloat16(np.array([ternary_scale(np.abs(values[start:stop])) for start, stop in layers]))
        thresholds, levels = widen_bfloat16(halves) / 2, np.empty(len(values), dtype=np.int8)
        for block, layers, _ in layer_blocks(counts):
            here, threshold = values[block], thresholds[layers]
            np.subtract((here > threshold).view(np.int8), (here < -threshold).view(np.int8), out=levels[block])
        return levels, halves.astype("<u2").tobytes()

    def values(
        self, levels: Int[np.ndarray, "k"], side: bytes, counts: Int64[np.ndarray, "layers"], context: PublicContext
    ) -> Float32[np.ndarray, "k"]:
        """Return level × the layer's scale."""
        return scale_layers(levels.astype(np.float32), counts, read_scales(side))


def ternary_scale(magnitudes: Float32[np.ndarray, "n"]) -> float:
    """Return the mean of the m largest magnitudes, with the m for which (their sum)²/m is greatest.

    Magnitudes with the same upper half of their float32 are taken together: a histogram takes a seventh of the time
    of a sort, and the error is flat around its minimum.
    """
    halves = magnitudes.view(np.uint32) >> 16
    sums = np.cumsum(np.bincount(halves, weights=magnitudes)[::-1])
    m = np.maximum(np.cumsum(np.bincount(halves)[::-1]), 1)
    best = int(np.argmax(sums**2 / m)) if len(m) else 0
    return float(sums[best] / m[best]) if len(m) else 0.0
