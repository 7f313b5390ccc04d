"""The top k of the noisy vector, in four bits."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64
from scipy.stats import norm

from dpcomp.codec.codec import Codec
from dpcomp.codec.quantize import Uniform
from dpcomp.core.support import Everywhere
from dpcomp.lab.mean_estimation.method import Plan, Round, gaussian_error, planned, released, values_of
from dpcomp.lab.mean_estimation.setting import Setting
from dpcomp.privacy.trust import Trust
from dpcomp.sparsify.top_k import TopK


@dataclass(frozen=True, kw_only=True)
class TopKBehindNoise:
    """Add Gaussian noise, and send the largest values with their positions.

    Where the noise is larger than the signal, the mean of what is sent is A times the vector, with A the share of a
    Gaussian's energy in its top k; the server divides by A, so that the estimate is unbiased to first order in signal ÷
    noise. Without that, a small error would be no more than a guess near zero.

    **Privacy:** post-processing of the Gaussian release (PRIVACY_RULES 1).

    Attributes:
        fraction: k/d.
    """

    fraction: float
    unbiased = False
    paired = True
    source = "Lin et al. 2018, DGC, section 3.1, behind the noise"

    @property
    def trust(self) -> Trust:
        """Who sees values before the noise."""
        return "nobody"

    @property
    def family(self) -> str:
        """The line of a figure."""
        return "top k of the noisy"

    @property
    def name(self) -> str:
        """The name in tables."""
        return f"top {100 * self.fraction:g} % of the noisy"

    @property
    def codec(self) -> Codec:
        """The codec behind the noise."""
        return Codec(sparsify=TopK(self.fraction), quantize=Uniform(4))

    @property
    def gain(self) -> float:
        """A: E[N²; |N| > t] of N(0, 1), with t its quantile; the factor by which a small signal is sent."""
        t = float(norm.ppf(1 - self.fraction / 2))
        return self.fraction + 2 * t * float(norm.pdf(t))

    def plan(self, setting: Setting) -> Plan:
        """Return the noise of the Gaussian mechanism."""
        return planned(setting, self.trust)

    def encode(self, vector: Float64[np.ndarray, "d"], client: int, round: Round) -> bytes:
        """Return the body of the codec."""
        noisy, context = released(vector, 1.0, round.client_noise(client), round.plan), round.context(client)
        support = self.codec.select(noisy, Everywhere(), context)
        return self.codec.encode(noisy[support.indices(len(noisy))], support, context)[0]

    def decode(self, bodies: Sequence[bytes], round: Round) -> Float64[np.ndarray, "d"]:
        """Return the mean of the decoded vectors ÷ A."""
        decoded = [values_of(self.codec, body, round.context(client)) for client, body in enumerate(bodies)]
        return np.mean(decoded, axis=0) / self.gain

    def expected_error(self, vectors: Float64[np.ndarray, "n d"], plan: Plan) -> float:
        """Return the noise's error ÷ A: what is kept of the noise, A, over A². It is first order in signal ÷ noise."""
        return gaussian_error(plan) / self.gain
