"""Sign: one bit a value, with a scale for each layer."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int, Int8, Int64

from dpcomp.codec.quantize.bfloat16 import read_scales, round_to_bfloat16
from dpcomp.codec.quantize.quantizer import BLOCK, Bounds, equal_bounds, layer_blocks
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
    narrow_levels = True

    def side_bytes(self, counts: Int64[np.ndarray, "layers"], context: PublicContext) -> int:
        """Return two bytes a layer: its scale."""
        return 2 * len(counts)

    def bounds(self, side: bytes, context: PublicContext) -> Bounds:
        """Return the lowest and the highest level of every layer: 0 for negative values, 1 for the others."""
        return equal_bounds(len(context.layout.shapes), 0, 1)

    def levels(
        self, values: Float32[np.ndarray, "k"], counts: Int64[np.ndarray, "layers"], context: PublicContext
    ) -> tuple[Int8[np.ndarray, "k"], bytes]:
        """Return whether each value is positive, and each layer's mean magnitude."""
        sums, positive = np.zeros(len(counts)), np.empty(len(values), dtype=bool)
        room = np.empty(min(BLOCK, len(values)), dtype=np.float32)
        for block, layers, starts in layer_blocks(counts):
            here = values[block]
            np.greater_equal(here, 0, out=positive[block])
            magnitudes = np.abs(here, out=room[: len(here)])
            if isinstance(layers, int):
                sums[layers] += magnitudes.sum(dtype=np.float64)
            else:
                sums[layers[starts]] = np.add.reduceat(magnitudes, starts, dtype=np.float64)
        halves = round_to_bfloat16(sums / np.maximum(counts, 1))
        return positive.view(np.int8), halves.astype("<u2").tobytes()

    def values(
        self, levels: Int[np.ndarray, "k"], side: bytes, counts: Int64[np.ndarray, "layers"], context: PublicContext
    ) -> Float32[np.ndarray, "k"]:
        """Return each layer's scale for level 1, and minus the scale for level 0."""
        scales, values = read_scales(side), np.empty(len(levels), dtype=np.float32)
        for block, layers, _ in layer_blocks(counts):
            signs = levels[block] + levels[block]
            signs -= 1
            np.multiply(signs, scales[layers], out=values[block])
        return values
