"""One bit a coordinate of the rotated, noisy vector: DRIVE behind Gaussian noise."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from dpcomp.codec.codec import Codec
from dpcomp.codec.entropy import FixedWidth
from dpcomp.codec.quantize import Rotated
from dpcomp.core.support import Everywhere
from dpcomp.lab.mean_estimation.method import (
    Plan,
    Round,
    body_of,
    gaussian_error,
    padded,
    planned,
    released,
    values_of,
)
from dpcomp.lab.mean_estimation.setting import Setting
from dpcomp.privacy.trust import Trust

CODEC = Codec(quantize=Rotated(), entropy=FixedWidth())


@dataclass(frozen=True, kw_only=True)
class RotatedBit:
    """Add Gaussian noise, rotate, and send the signs with a scale a block: `dp.Rotated` behind the noise.

    **Privacy:** post-processing of the Gaussian release (PRIVACY_RULES 1).
    """

    unbiased = True
    paired = True
    source = "Vargaftik et al. 2021, DRIVE, section 4"

    @property
    def trust(self) -> Trust:
        """Who sees values before the noise."""
        return "nobody"

    @property
    def family(self) -> str:
        """The line of a figure."""
        return "DRIVE"

    @property
    def name(self) -> str:
        """The name in tables."""
        return "DRIVE, 1 bit"

    def plan(self, setting: Setting) -> Plan:
        """Return the noise of the Gaussian mechanism."""
        return planned(setting, self.trust)

    def encode(self, vector: Float64[np.ndarray, "d"], client: int, round: Round) -> bytes:
        """Return the rotated bits of the noisy vector, which zeros fill up to whole blocks."""
        noisy = np.zeros(padded(len(vector)), np.float32)
        noisy[: len(vector)] = released(vector, 1.0, round.client_noise(client), round.plan)
        return body_of(CODEC, noisy, round.context(client, len(noisy)), Everywhere())

    def decode(self, bodies: Sequence[bytes], round: Round) -> Float64[np.ndarray, "d"]:
        """Return the mean of the decoded vectors, without the zeros."""
        d = round.plan.setting.dimensions
        decoded = [values_of(CODEC, body, round.context(client, padded(d))) for client, body in enumerate(bodies)]
        return np.mean(decoded, axis=0)[:d]

    def expected_error(self, vectors: Float64[np.ndarray, "n d"], plan: Plan) -> float:
        """Return the noise's error, and π/2 − 1 of the energy of the noisy vectors, of which d coordinates count."""
        energy = plan.setting.dimensions * plan.noise_multiplier**2 + np.square(vectors).sum(axis=1).mean()
        share = plan.setting.dimensions / padded(plan.setting.dimensions)
        return gaussian_error(plan) + (math.pi / 2 - 1) * energy * share / plan.setting.clients
