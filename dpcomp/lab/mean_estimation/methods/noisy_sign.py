"""The sign of the noisy vector, of all coordinates or of some that each client has for its own."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64
from scipy.special import erf

from dpcomp.core.support import Dealt, Everywhere
from dpcomp.lab.mean_estimation.method import Plan, Round, dealt_error, planned, released
from dpcomp.lab.mean_estimation.setting import Setting
from dpcomp.privacy.trust import Trust


@dataclass(frozen=True, kw_only=True)
class NoisySign:
    """Add Gaussian noise, and send the signs: the noise is the dither, and its public size the scale.

    With noise of standard deviation s, the sign of x + noise has the mean erf(x/(s√2)) ≈ √(2/π)·x/s, so the server
    multiplies by s·√(π/2); what it is off by is x³/(6 s²). There is no scale to send and no rotation. With `kept`, each
    client sends only so many coordinates, which a public permutation deals to it, clipped to norm √(kept/d) before the
    noise: `OwnMask` says why the error stays the same. It needs magnitudes of at most 1/√d.

    **Privacy:** post-processing of the Gaussian release (PRIVACY_RULES 1, and 2 for the public support).

    Attributes:
        kept: How many coordinates a client sends; None for all.
    """

    kept: int | None = None
    unbiased = False
    source = "Tang, Wang & Chang 2023, z-SignFedAvg (2302.02589)"

    @property
    def trust(self) -> Trust:
        """Who sees values before the noise."""
        return "nobody"

    @property
    def paired(self) -> bool:
        """Whether all coordinates have their noise."""
        return self.kept is None

    @property
    def family(self) -> str:
        """The line of a figure."""
        return "noisy sign" if self.kept is None else "own mask, noisy sign"

    @property
    def name(self) -> str:
        """The name in tables."""
        return self.family if self.kept is None else f"{self.family}, k = {self.kept}"

    def plan(self, setting: Setting) -> Plan:
        """Return the noise of the Gaussian mechanism."""
        return planned(setting, self.trust)

    def encode(self, vector: Float64[np.ndarray, "d"], client: int, round: Round) -> bytes:
        """Return a bit for each coordinate that is sent."""
        kept = self._support(client, round).indices(len(vector))
        noisy = released(vector[kept], self._norm(len(vector)), round.client_noise(client)[kept], round.plan)
        return np.packbits(noisy >= 0).tobytes()

    def decode(self, bodies: Sequence[bytes], round: Round) -> Float64[np.ndarray, "d"]:
        """Return the mean of the signs, scaled by s·√(π/2)·d/k."""
        d = round.plan.setting.dimensions
        k, total = self.kept or d, np.zeros(d)
        for client, body in enumerate(bodies):
            signs = 2.0 * np.unpackbits(np.frombuffer(body, np.uint8), count=k) - 1
            total[self._support(client, round).indices(d)] += signs
        stddev = round.plan.noise_multiplier * self._norm(d)
        return total * (stddev * math.sqrt(math.pi / 2) * d / k / len(bodies))

    def expected_error(self, vectors: Float64[np.ndarray, "n d"], plan: Plan) -> float:
        """Return the variance of the signs, that of the choice of coordinates, and the squared bias."""
        n, d = vectors.shape
        k = self.kept or d
        stddev = plan.noise_multiplier * self._norm(d)
        scale = stddev * math.sqrt(math.pi / 2)
        means = scale * erf(vectors / (stddev * math.sqrt(2)))
        of_signs = (scale**2 - np.square(means)).sum() * d / k / n**2
        bias = np.square((means - vectors).mean(axis=0)).sum()
        return float(of_signs + (0 if self.kept is None else dealt_error(means, self.kept)) + bias)

    def _support(self, client: int, round: Round) -> Everywhere | Dealt:
        if self.kept is None:
            return Everywhere()
        return Dealt(seed=round.context(client).mask_key, k=self.kept, places=(client,))

    def _norm(self, d: int) -> float:
        return math.sqrt((self.kept or d) / d)
