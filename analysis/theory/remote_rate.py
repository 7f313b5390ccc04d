"""The least error at a given rate when only noisy values may be coded: a bound for any codec after the noise."""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64


@dataclass(frozen=True, kw_only=True)
class RemoteSource:
    """Layers of independent Gaussian coordinates X ~ N(0, s²), of which only Y = X + N, N ~ N(0, σ²), may be coded.

    Under squared error it is optimal to estimate first and to code the estimate E[X|Y], of variance v = s⁴/(s² + σ²):
    the error of the estimate, s²σ²/(s² + σ²), adds to that of the code, and no rate removes it. The estimates are
    coded by reverse water-filling over the layers: error min(θ, v), rate ½ log₂(v/θ) where v > θ, else 0. Without
    noise it is the rate-distortion function of independent Gaussian layers.

    Source: Dobrushin & Tsybakov (1962), Information transmission with additional noise, IRE Trans. Inf. Theory 8; Wolf
    & Ziv (1970), Transmission of noisy information to a noisy receiver with minimum distortion, IEEE Trans. Inf.
    Theory 16; Cover & Thomas (2006), theorem 10.3.3, for the layers.

    Attributes:
        variances: s² of each layer, positive.
        noise_variances: σ² of each layer, at least 0.
        sizes: Number of coordinates of each layer, at least 1.

    Raises:
        ValueError: There is no layer, the three differ in length, or a value is outside of its range.

    Examples:
        >>> source = RemoteSource(variances=(4.0, 1.0), noise_variances=(1.0, 1.0), sizes=(100, 900))
        >>> round(source.noise_floor, 3), round(source.distortion(1.0), 3)
        (0.53, 0.68)
    """

    variances: tuple[float, ...]
    noise_variances: tuple[float, ...]
    sizes: tuple[int, ...]

    def __post_init__(self):
        lengths = {len(self.variances), len(self.noise_variances), len(self.sizes)}
        if lengths == {0} or len(lengths) > 1:
            raise ValueError(f"{self}: give a variance, a noise variance and a size for each of one or more layers")
        wrong = not np.isfinite([*self.variances, *self.noise_variances]).all()
        if wrong or min(self.variances) <= 0 or min(self.noise_variances) < 0 or min(self.sizes) < 1:
            raise ValueError(
                f"{self}: variances must be finite and positive, those of the noise may be 0, sizes are at least 1"
            )

    @property
    def noise_floor(self) -> float:
        """The mean squared error a coordinate that no rate removes: that of the best estimate of X from Y."""
        return float(self._shares @ (np.array(self.variances) - self._estimates))

    def distortion(self, rate: float) -> float:
        """Compute D(R), the least squared error a coordinate at a rate of R bits a coordinate.

        Raises:
            ValueError: The rate is negative or not finite.
        """
        return self.noise_floor + float(self._shares @ np.minimum(self._level_of_rate(rate), self._estimates))

    def layer_rates(self, rate: float) -> Float64[np.ndarray, "layers"]:
        """Compute the bits a coordinate of each layer, when R bits a coordinate of all are divided best.

        Raises:
            ValueError: The rate is negative or not finite.
        """
        return np.log2(np.maximum(self._estimates / self._level_of_rate(rate), 1)) / 2

    def rate(self, distortion: float) -> float:
        """Compute R(D), the least bits a coordinate for a squared error of D a coordinate.

        It is infinite at the noise floor, and 0 from the variance of the coordinates on.

        Raises:
            ValueError: D is below the noise floor, which no rate reaches.
        """
        room = distortion - self.noise_floor
        if room < 0:
            raise ValueError(
                f"rate: distortion = {distortion} is below {self.noise_floor}, the error that the noise alone causes; "
                "allow at least that"
            )
        if room == 0:
            return math.inf if self._estimates.any() else 0.0
        if room >= self._shares @ self._estimates:
            return 0.0
        levels, shares = self._descending()
        untouched = np.append(np.cumsum((shares * levels)[:0:-1])[::-1], 0.0)
        level = np.max((room - untouched) / np.cumsum(shares))
        return float(self._shares @ np.log2(np.maximum(self._estimates / level, 1))) / 2

    @property
    def _estimates(self) -> Float64[np.ndarray, "layers"]:
        variances = np.array(self.variances, dtype=np.float64)
        return variances**2 / (variances + np.array(self.noise_variances))

    @property
    def _shares(self) -> Float64[np.ndarray, "layers"]:
        return np.array(self.sizes) / sum(self.sizes)

    def _descending(self) -> tuple[Float64[np.ndarray, "layers"], Float64[np.ndarray, "layers"]]:
        order = np.argsort(-self._estimates)
        return self._estimates[order], self._shares[order]

    def _level_of_rate(self, rate: float) -> float:
        """Compute the water level θ of a rate: the largest of those that the first 1, 2, … layers would need alone.

        Layers are taken by falling variance v. The rate of a level is the largest sum of ½ log₂(v/θ) over the first
        layers, for a layer adds to it as long as v > θ.
        """
        if not 0 <= rate < math.inf:
            raise ValueError(f"rate = {rate}; bits a coordinate are finite and at least 0; the limit is .noise_floor")
        levels, shares = self._descending()
        return float(2 ** np.max((np.cumsum(shares * np.log2(levels)) - 2 * rate) / np.cumsum(shares)))
