"""Four dithered bits a coordinate of the noisy vector, range coded."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64
from scipy.stats import norm

from dpcomp.codec.codec import Codec
from dpcomp.codec.quantize import Dithered, Uniform
from dpcomp.core.support import Everywhere
from dpcomp.lab.mean_estimation.method import Plan, Round, body_of, gaussian_error, planned, released, values_of
from dpcomp.lab.mean_estimation.setting import Setting
from dpcomp.privacy.trust import Trust


@dataclass(frozen=True, kw_only=True)
class DitheredUniform:
    """Add Gaussian noise, and round to an even grid with subtractive dither, `dp.Uniform` behind the noise.

    **Privacy:** post-processing of the Gaussian release (PRIVACY_RULES 1); the dither is public (PRIVACY_RULES 16).

    Attributes:
        bits: b; the grid has 2ᵇ − 1 levels up to the largest magnitude, of which the range coder makes fewer bits.
    """

    bits: int
    unbiased = True
    paired = True
    source = "Roberts 1962; Gray & Stockham 1993"

    @property
    def trust(self) -> Trust:
        """Who sees values before the noise."""
        return "nobody"

    @property
    def family(self) -> str:
        """The line of a figure."""
        return "dithered grid"

    @property
    def name(self) -> str:
        """The name in tables."""
        return f"dithered grid, {2**self.bits - 1} levels"

    @property
    def codec(self) -> Codec:
        """The codec behind the noise."""
        return Codec(quantize=Uniform(self.bits, Dithered()))

    def plan(self, setting: Setting) -> Plan:
        """Return the noise of the Gaussian mechanism."""
        return planned(setting, self.trust)

    def encode(self, vector: Float64[np.ndarray, "d"], client: int, round: Round) -> bytes:
        """Return the body of the codec."""
        noisy = released(vector, 1.0, round.client_noise(client), round.plan)
        return body_of(self.codec, noisy, round.context(client), Everywhere())

    def decode(self, bodies: Sequence[bytes], round: Round) -> Float64[np.ndarray, "d"]:
        """Return the mean of the decoded vectors."""
        return np.mean([values_of(self.codec, body, round.context(i)) for i, body in enumerate(bodies)], axis=0)

    def expected_error(self, vectors: Float64[np.ndarray, "n d"], plan: Plan) -> float:
        """Return the noise's error, and d·E[Δ²]/12 a client, with the step Δ of the largest of d normals."""
        d = plan.setting.dimensions
        variance = plan.noise_multiplier**2 + np.square(vectors).mean()
        largest = np.linspace(0, 12, 4000)
        beyond = 1 - (2 * norm.cdf(largest) - 1) ** d
        square = float(np.trapezoid(2 * largest * beyond, largest)) * variance
        return gaussian_error(plan) + d * square / (2 ** (self.bits - 1) - 1) ** 2 / 12 / plan.setting.clients
