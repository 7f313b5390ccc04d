"""Sign: one bit a value, with a scale for each layer."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Float32, Int32, Int64

from dpcomp.codec.quantize.bfloat16 import read_scales, round_to_bfloat16
from dpcomp.codec.quantize.quantizer import Bounds, scale_layers
from dpcomp.core.public_context import PublicContext


@dataclass(frozen=True)
class Sign:
    """Send the sign of each value, scaled by the layer's mean magnitude (Karimireddy et al. 2019, EF-signSGD).

    mean |x| is the scale with the least squared error, which is ‖x‖² − ‖x‖₁²/n of a layer: 36 % of the energy of a
    Gaussian, more of a heavy tail. A bit a value and two bytes a layer. Zero counts as positive. Biased: use it with
    feedback. After `TopK` it is sparse ternary compression (Sattler et al. 2019, Algorithm 1).

    **Privacy:** post-processing of a release (PRIVACY_RULES 14); the scale of a clean layer would be an
    observable of private data (PRIVACY_RULES, rule zero).
    """

    unbiased = False
    side_holds_values = False

    def side_bytes(self, counts: Int64[np.ndarray, "layers"], context: PublicContext) -> int:
        """Return two bytes a layer: its scale."""
        return 2 * len(counts)

    def bounds(self, side: bytes, context: PublicContext) -> Bounds:
        """Return the lowest and the highest level of every layer: 0 for negative values, 1 for the others."""
        zeros = np.zeros(len(context.layout.shapes), dtype=np.int32)
        return Bounds(zeros, zeros + 1)

    def levels(
        self, values: Float32[np.ndarray, "k"], counts: Int64[np.ndarray, "layers"], context: PublicContext
    ) -> tuple[Int32[np.ndarray, "k"], bytes]:
        """Return whether each value is positive, and each layer's mean magnitude."""
        layers = pairwise(np.cumsum([0, *counts]))
        means = [np.abs(values[start:stop]).mean(dtype=np.float64) if stop > start else 0.0 for start, stop in layers]
        return (values >= 0).astype(np.int32), round_to_bfloat16(np.array(means)).astype("<u2").tobytes()

    def values(
        self, levels: Int32[np.ndarray, "k"], side: bytes, counts: Int64[np.ndarray, "layers"], context: PublicContext
    ) -> Float32[np.ndarray, "k"]:
        """Return each layer's scale for level 1, and minus the scale for level 0."""
        values = levels.astype(np.float32)
        values *= 2
        values -= 1
        return scale_layers(values, counts, read_scales(side))
