"""What a sender tracks of the broadcasts: each layer's share of signal in what the server averages."""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float32, Float64

from dpcomp.core.layout import Layout

WINDOW = 8  # broadcasts after which an old one counts 1/e
LEAST_SHARE = 1 / 64  # of signal in the aggregate: below it a layer would vanish, and never be seen again


@dataclass(frozen=True, eq=False)
class Tracked:
    """The signal variance s² of each layer, an exponential mean over broadcasts, and how it was last coded.

    It is the sender's alone: it decides what is sent, and what was decided is on the wire.
    """

    total: Float64[np.ndarray, "layers"]
    weight: Float64[np.ndarray, "layers"]
    factors: Float64[np.ndarray, "layers"]  # the Wiener factors of the last send
    noise: float = 0.0  # the variance of the privacy noise in the aggregate, a value

    @classmethod
    def nothing(cls, layout: Layout) -> "Tracked":
        """Before any broadcast."""
        layers = len(layout.shapes)
        return cls(np.zeros(layers), np.zeros(layers), np.ones(layers))

    @property
    def signal(self) -> Float64[np.ndarray, "layers"]:
        """s² of each layer, corrected for the short window at the start; NaN where nothing was seen."""
        return np.divide(self.total, self.weight, out=np.full(len(self.total), np.nan), where=self.weight > 0)

    def sent(self, noise_stddev: float, clients: int) -> "Tracked":
        """With the Wiener factors s²/(s² + σ²) for values that carry noise of that standard deviation.

        A layer of which nothing was seen yet is sent as it is.
        """
        variance = noise_stddev**2
        signal = np.maximum(self.signal, LEAST_SHARE * variance / clients)
        factors = np.where(np.isnan(signal), 1.0, signal / (signal + variance)) if variance else np.ones(len(signal))
        return replace(self, factors=factors, noise=variance / clients)

    def followed(self, broadcast: Float32[np.ndarray, "d"], layout: Layout) -> "Tracked":
        """After a broadcast, the mean of updates that were sent with about these factors: s² = v/w² − σ²/n.

        A layer that comes as zeros was given no bits: it says nothing of s², which drifts up until it is sent.
        """
        powers = mean_squares(broadcast, layout)
        seen = powers > 0
        found = np.maximum(powers / np.maximum(self.factors, 1e-9) ** 2 - self.noise, 0.0)
        keep = 1 - 1 / WINDOW
        drifting = self.total * (1 + 1 / WINDOW)
        return replace(
            self,
            total=np.where(seen, keep * self.total + found / WINDOW, drifting),
            weight=np.where(seen, keep * self.weight + 1 / WINDOW, self.weight),
        )


def mean_squares(vector: Float32[np.ndarray, "d"], layout: Layout) -> Float64[np.ndarray, "layers"]:
    """The mean square of each layer; 0 of an empty one."""
    layers = layout.split(vector)
    return np.array([np.mean(np.square(layer, dtype=np.float64)) if len(layer) else 0.0 for layer in layers])
