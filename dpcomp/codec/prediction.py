"""The predict slot: what an update is expected to be, from what both ends know."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int8

from dpcomp.core.layout import Layout

GAIN_UNIT = 1 / 64  # of the gain's byte: powers of two, so that a gain is exact in float32
SIGNIFICANT = 4.0  # squared standard errors of a correlation that is none


@dataclass(frozen=True)
class LastBroadcast:
    """Code an update against gain × the last broadcast, with a gain for each layer, or 0: directly.

    The gain is the sender's least squares on what it sends, ⟨update, broadcast⟩ ÷ ‖broadcast‖², in steps of
    1/64; it travels as one byte a layer. With lag-one correlation ρ the innovation that is left to code has
    1 − ρ² of the variance (differential coding: Jayant & Noll 1984, §6.2).

    **Privacy:** the broadcast is public, and the gain is computed from what is sent (PRIVACY_RULES 12).
    """

    def gains(
        self, target: Float32[np.ndarray, "d"], reference: Float32[np.ndarray, "d"], layout: Layout
    ) -> Int8[np.ndarray, "layers"]:
        """Each layer's gain in units of 1/64; 0 where the correlation is no more than chance would give."""
        gains = np.zeros(len(layout.shapes), dtype=np.int8)
        for number, (start, stop) in enumerate(zip(layout.edges, layout.edges[1:], strict=False)):
            sent, known = target[start:stop].astype(np.float64), reference[start:stop].astype(np.float64)
            common, energy, power = float(sent @ known), float(sent @ sent), float(known @ known)
            if common**2 * (stop - start) > SIGNIFICANT * energy * power:
                gains[number] = np.clip(round(common / power / GAIN_UNIT), -127, 127)
        return gains

    def prediction(
        self, reference: Float32[np.ndarray, "d"], gains: Int8[np.ndarray, "layers"], layout: Layout
    ) -> Float32[np.ndarray, "d"]:
        """What both ends expect, within half of float32's range."""
        largest = np.finfo(np.float32).max / 2
        with np.errstate(over="ignore"):
            expected = layout.spread(gains.astype(np.float32) * np.float32(GAIN_UNIT)) * reference
        return np.clip(expected, -largest, largest, out=expected)
