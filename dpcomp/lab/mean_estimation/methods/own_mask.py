"""Coordinates that each client has for its own, chosen in public before the noise."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float64

from dpcomp.codec.codec import Codec
from dpcomp.codec.quantize import Rotated
from dpcomp.core.support import Dealt
from dpcomp.lab.mean_estimation.method import (
    Plan,
    Round,
    body_of,
    dealt_error,
    gaussian_error,
    planned,
    released,
    values_of,
)
from dpcomp.lab.mean_estimation.setting import Setting
from dpcomp.privacy.trust import Trust


@dataclass(frozen=True, kw_only=True)
class OwnMask:
    """Send some coordinates, which a public permutation deals to each client, with noise on these alone.

    `dp.RandomK(per="client")` before `dp.Clip` and the noise. Of a vector with magnitudes of at most 1/√d, k
    coordinates have norm √(k/d) at most, so that is the clip norm; the server multiplies by d/k. The noise's share of
    the error stays what it is for all d coordinates, d·z²/n, and the choice adds the variance between clients,
    (d/k − 1)/n of it. Vectors that are not flat have to be made so first, as `Csgm` says; else they lose what is
    clipped.

    **Privacy:** the support is public and depends on no data (PRIVACY_RULES 2); the k values are clipped after the
    choice and before the noise (PRIVACY_RULES 3), so the release is the Gaussian mechanism with multiplier z. The codec
    is post-processing.

    Attributes:
        kept: k, how many coordinates a client sends.
        codec: Of the k values; of lossy ones, `Rotated` alone has a closed form here, with k a power of two from 64.
    """

    kept: int
    codec: Codec = field(default_factory=Codec)
    unbiased = True
    paired = False
    source = "Konečný et al. 2016, section 2, before the noise"

    @property
    def trust(self) -> Trust:
        """Who sees values before the noise."""
        return "nobody"

    @property
    def family(self) -> str:
        """The line of a figure."""
        return "own mask, DRIVE" if isinstance(self.codec.quantize, Rotated) else "own mask, float32"

    @property
    def name(self) -> str:
        """The name in tables."""
        return f"{self.family}, k = {self.kept}"

    def plan(self, setting: Setting) -> Plan:
        """Return the noise of the Gaussian mechanism."""
        return planned(setting, self.trust)

    def encode(self, vector: Float64[np.ndarray, "d"], client: int, round: Round) -> bytes:
        """Return the codec's body of the noisy values on the client's support."""
        context, d = round.context(client), len(vector)
        support = self._support(client, round)
        kept = support.indices(d)
        noisy = released(vector[kept], math.sqrt(self.kept / d), round.client_noise(client)[kept], round.plan)
        return body_of(self.codec, noisy, context, support)

    def decode(self, bodies: Sequence[bytes], round: Round) -> Float64[np.ndarray, "d"]:
        """Return the mean of the decoded vectors · d/k."""
        d = round.plan.setting.dimensions
        total = np.zeros(d)
        for client, body in enumerate(bodies):
            total += values_of(self.codec, body, round.context(client), self._support(client, round))
        return total * (d / self.kept / len(bodies))

    def expected_error(self, vectors: Float64[np.ndarray, "n d"], plan: Plan) -> float:
        """Return the noise's error, that of the choice of coordinates, and of one bit π/2 − 1 of the energy sent."""
        n, d = vectors.shape
        lost = math.pi / 2 - 1 if isinstance(self.codec.quantize, Rotated) else 0.0
        of_bits = lost * (gaussian_error(plan) + np.square(vectors).sum() * d / self.kept / n**2)
        return float(gaussian_error(plan) + dealt_error(vectors, self.kept) + of_bits)

    def _support(self, client: int, round: Round) -> Dealt:
        return Dealt(seed=round.context(client).mask_key, k=self.kept, places=(client,))
