"""CSGM: one bit of each of some coordinates, chosen in secret, with the noise on the sum."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from dp_accounting import DpEvent, SelfComposedDpEvent
from jaxtyping import Float64

from dpcomp.lab.mean_estimation.method import Plan, Round, gaussian_event, planned
from dpcomp.lab.mean_estimation.setting import Setting
from dpcomp.privacy.gaussian import Gaussian
from dpcomp.privacy.sampling import Poisson
from dpcomp.privacy.trust import Trust


@dataclass(frozen=True, kw_only=True)
class Csgm:
    """Send each coordinate with probability γ, rounded at random to ±1/√d; the server adds noise to the sums.

    It needs magnitudes of at most 1/√d; larger ones count as that. The source makes any vector of the unit ball so by
    Kashin's representation, at the price of a constant factor. Which coordinates are sent, client and server compute
    from a seed that only they know, so no position is sent.

    **Privacy:** to the sum of a coordinate a client adds ±1/√d, with probability γ and independently of all else. So
    each coordinate is a Gaussian on a Poisson sample, whose noise has the multiplier z for the sensitivity 1/√d, and a
    client takes part in d of them: the event is the d-fold composition. The server sees what is sent, and readers of
    the estimate must not know who sent what.

    Attributes:
        rate: γ.
    """

    rate: float
    unbiased = True
    paired = True
    source = "Chen, Song, Özgür & Kairouz 2023, Algorithm 1 and Theorem 4.1 (2304.01541)"

    @property
    def trust(self) -> Trust:
        """Who sees values before the noise."""
        return "server"

    @property
    def family(self) -> str:
        """The line of a figure."""
        return "CSGM"

    @property
    def name(self) -> str:
        """The name in tables."""
        return f"CSGM, γ = {self.rate:g}"

    def plan(self, setting: Setting) -> Plan:
        """Return the noise whose d-fold composition on samples has the setting's (ε, δ)."""
        return planned(setting, self.trust, SampledCoordinates(rate=self.rate, dimensions=setting.dimensions))

    def encode(self, vector: Float64[np.ndarray, "d"], client: int, round: Round) -> bytes:
        """Return a bit for each chosen coordinate."""
        chosen = round.shared_stream(client).random(len(vector)) < self.rate
        shares = (1 + vector * math.sqrt(len(vector))) / 2  # beyond 0 and 1 as there: a bit is no larger
        positive = round.client_stream(client).random(len(vector)) < shares
        return np.packbits(positive[chosen]).tobytes()

    def decode(self, bodies: Sequence[bytes], round: Round) -> Float64[np.ndarray, "d"]:
        """Return the noisy sums ÷ nγ."""
        d, n = round.plan.setting.dimensions, len(bodies)
        total, size = np.zeros(d), 1 / math.sqrt(d)
        for client, body in enumerate(bodies):
            chosen = np.flatnonzero(round.shared_stream(client).random(d) < self.rate)
            bits = np.unpackbits(np.frombuffer(body, np.uint8), count=len(chosen))
            total[chosen] += size * (2.0 * bits - 1)
        noisy = Gaussian(round.plan.noise_multiplier).release(total, round.server_noise(), size)
        return noisy.astype(np.float64) / (n * self.rate)

    def expected_error(self, vectors: Float64[np.ndarray, "n d"], plan: Plan) -> float:
        """Return the variance of choice and rounding, and of the noise.

        A client's part of a coordinate, before ÷ nγ, has the second moment γ/d and the mean γx.
        """
        n = len(vectors)
        of_choice = 1 / (n * self.rate) - np.square(vectors).sum() / n**2
        return float(of_choice + plan.noise_multiplier**2 / (n * self.rate) ** 2)


@dataclass(frozen=True, kw_only=True)
class SampledCoordinates:
    """The event of noise on every coordinate, of each of which a client is in the sum with a probability."""

    rate: float
    dimensions: int

    def __call__(self, noise_multiplier: float) -> DpEvent:
        """Return the d-fold composition of a Gaussian on a Poisson sample."""
        return SelfComposedDpEvent(Poisson(self.rate).amplify(gaussian_event(noise_multiplier)), self.dimensions)
