"""Three levels, fitted to each layer."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Float32, Int32, Int64

from dpcomp.codec.quantize.quantizer import Bounds, scale_layers
from dpcomp.codec.quantize.sign import nearest_halves, scales_of
from dpcomp.codec.quantize.uniform import widened
from dpcomp.core.public_context import PublicContext


@dataclass(frozen=True)
class Ternary:
    """Round to −s, 0 or s, with the s of each layer that makes the squared error least (Li & Liu 2016, §2).

    With m values beyond the threshold, s is their mean magnitude, and the error ‖x‖² − (Σ|x|)²/m; the best m is
    taken, where the source has the threshold 0.7 mean |x|. Two bytes a layer hold s. Biased: use it with feedback.
    The zeros are as many as the layer's tails are heavy, and cost little where levels are entropy-coded: 1.5 bits a
    value, and 19 % of its energy lost, of a Gaussian.

    TernGrad (Wen et al. 2017), whose s is the largest magnitude, is `Uniform(2, rounding=Stochastic())`.

    **Privacy:** post-processing of a release; the scale of a clean layer would be an observable of private data
    (PRIVACY_RULES, rule zero).
    """

    unbiased = False
    side_holds_values = False

    def side_bytes(self, counts: Int64[np.ndarray, "layers"], context: PublicContext) -> int:
        """Two a layer: its scale."""
        return 2 * len(counts)

    def bounds(self, side: bytes, context: PublicContext) -> Bounds:
        """−1, 0, 1."""
        ones = np.ones(len(context.layout.shapes), dtype=np.int32)
        return Bounds(-ones, ones)

    def levels(
        self, values: Float32[np.ndarray, "k"], counts: Int64[np.ndarray, "layers"], context: PublicContext
    ) -> tuple[Int32[np.ndarray, "k"], bytes]:
        """The nearest of the three, and each layer's scale."""
        layers = pairwise(np.cumsum([0, *counts]))
        halves = nearest_halves(np.array([best_scale(np.abs(values[start:stop])) for start, stop in layers]))
        thresholds = np.repeat(widened(halves) / 2, counts)
        levels = (values > thresholds).astype(np.int32) - (values < -thresholds)
        return levels, halves.astype("<u2").tobytes()

    def values(
        self, levels: Int32[np.ndarray, "k"], side: bytes, counts: Int64[np.ndarray, "layers"], context: PublicContext
    ) -> Float32[np.ndarray, "k"]:
        """Level × the layer's scale."""
        return scale_layers(levels.astype(np.float32), counts, scales_of(side))


def best_scale(magnitudes: Float32[np.ndarray, "n"]) -> float:
    """The mean of the m largest, with the m that makes (their sum)²/m greatest.

    Magnitudes that agree in the upper halves of their float32s go together: a histogram takes a seventh of the time
    of a sort, and the error is flat around its least.
    """
    halves = magnitudes.view(np.uint32) >> 16
    sums = np.cumsum(np.bincount(halves, weights=magnitudes)[::-1])
    m = np.maximum(np.cumsum(np.bincount(halves)[::-1]), 1)
    best = int(np.argmax(sums**2 / m)) if len(m) else 0
    return float(sums[best] / m[best]) if len(m) else 0.0
