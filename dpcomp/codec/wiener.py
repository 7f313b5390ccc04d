"""The signal variance of each layer, which a sender tracks from the broadcasts, and the Wiener factors it gives."""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float32, Float64

from dpcomp.core.layout import Layout
from dpcomp.display.text import outline

WINDOW = 8  # broadcasts after which an old one counts 1/e
LEAST_SHARE = 1 / 64  # of signal in the aggregate: below it a layer would vanish, and never be seen again


@dataclass(frozen=True, eq=False, repr=False)
class TrackedSignal:
    """The signal variance s² of each layer as a sender estimates it: an exponential mean over the broadcasts.

    A sender with `Waterfill(bits, clients=n)` keeps it to scale its updates by the Wiener factors s²/(s² + σ²). Only
    the sender has it: the receiver needs no factor, since what is decoded is the estimate itself.

    Attributes:
        total: The weighted sum of the variances seen so far.
        weight: The sum of their weights, towards 1; 0 where nothing was seen.
        factors: The Wiener factors of the last update that was sent.
        noise: The variance of the privacy noise in the average of the updates, a value.
    """

    total: Float64[np.ndarray, "layers"]
    weight: Float64[np.ndarray, "layers"]
    factors: Float64[np.ndarray, "layers"]
    noise: float = 0.0

    def __repr__(self) -> str:
        return outline(self)

    @classmethod
    def initial(cls, layout: Layout) -> "TrackedSignal":
        """Return the state before any broadcast, with factors of 1."""
        layers = len(layout.shapes)
        return cls(np.zeros(layers), np.zeros(layers), np.ones(layers))

    @property
    def variance(self) -> Float64[np.ndarray, "layers"]:
        """s² of each layer, corrected for the short window at the start; NaN where nothing was seen."""
        return np.divide(self.total, self.weight, out=np.full(len(self.total), np.nan), where=self.weight > 0)

    def with_factors(self, noise_stddev: float, clients: int) -> "TrackedSignal":
        """Return the state with the Wiener factors s²/(s² + σ²) for an update about to be sent.

        A layer of which nothing was seen yet has the factor 1.

        Args:
            noise_stddev: σ, the standard deviation of the privacy noise on each value of the update.
            clients: The number of updates that the server averages.

        Returns:
            The state with `factors` and `noise` set.
        """
        variance = noise_stddev**2
        signal = np.maximum(self.variance, LEAST_SHARE * variance / clients)
        factors = np.where(np.isnan(signal), 1.0, signal / (signal + variance)) if variance else np.ones(len(signal))
        return replace(self, factors=factors, noise=variance / clients)

    def after_broadcast(self, broadcast: Float32[np.ndarray, "d"], layout: Layout) -> "TrackedSignal":
        """Return the state after a broadcast, taken as the mean of updates scaled by about these factors.

        From the mean square v of a layer, its factor w and the noise of the mean, s² = v/w² − σ²/n. A layer of zeros
        was given no bits and holds no information on s²; its s² is raised until the layer is sent again.

        Args:
            broadcast: The (d,) decoded broadcast.
            layout: Its layers.

        Returns:
            The state with `total` and `weight` updated.
        """
        powers = mean_squares(broadcast, layout)
        seen = powers > 0
        measured_variance = np.maximum(powers / np.maximum(self.factors, 1e-9) ** 2 - self.noise, 0.0)
        keep = 1 - 1 / WINDOW
        drifting = self.total * (1 + 1 / WINDOW)
        return replace(
            self,
            total=np.where(seen, keep * self.total + measured_variance / WINDOW, drifting),
            weight=np.where(seen, keep * self.weight + 1 / WINDOW, self.weight),
        )


def mean_squares(vector: Float32[np.ndarray, "d"], layout: Layout) -> Float64[np.ndarray, "layers"]:
    """Return the mean square of each layer of a (d,) vector; 0 for an empty layer."""
    layers = layout.split(vector)
    return np.array([np.mean(np.square(layer, dtype=np.float64)) if len(layer) else 0.0 for layer in layers])
