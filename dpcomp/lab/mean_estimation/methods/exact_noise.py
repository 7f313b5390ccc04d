"""The clients' quantisation errors as the noise on the sum: `dp.ExactGaussian`."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from dp_accounting import DpEvent
from jaxtyping import Float64

from dpcomp.codec.codec import Codec
from dpcomp.codec.quantize import ExactGaussian
from dpcomp.core.public_context import NoiseShare, PublicContext
from dpcomp.core.support import Everywhere
from dpcomp.lab.mean_estimation.method import Plan, Round, clipped, gaussian_error, gaussian_event, planned
from dpcomp.lab.mean_estimation.setting import Setting
from dpcomp.privacy.shared_noise import missing_variance
from dpcomp.privacy.trust import Trust


@dataclass(frozen=True, kw_only=True)
class ExactNoise:
    """Quantise so that a client's error is exactly N(0, z²/n) in each coordinate: the errors are the noise on the sum.

    All n clients come, so the server adds next to nothing. Layers and dither are drawn from a secret of client and
    server.

    **Privacy:** the sum of the clipped vectors has the noise N(0, z²), of which a client knows its own share. So it is
    accounted with z·√(1 − 1/n), against readers of the estimate, one client among them; the server sees the vectors
    with the noise of a share.
    """

    unbiased = True
    paired = False
    source = "Hegazy & Li 2022, section III; Hegazy et al. 2023, section 4 (2310.20682)"

    @property
    def trust(self) -> Trust:
        """Who sees values before the noise."""
        return "server"

    @property
    def family(self) -> str:
        """The line of a figure."""
        return "exact noise"

    @property
    def name(self) -> str:
        """The name in tables."""
        return "exact noise (layered quantiser)"

    def plan(self, setting: Setting) -> Plan:
        """Return the noise that has the setting's (ε, δ) without one client's share."""
        return planned(setting, self.trust, HiddenNoise(clients=setting.clients))

    def encode(self, vector: Float64[np.ndarray, "d"], client: int, round: Round) -> bytes:
        """Return the body of the clipped vector."""
        values = clipped(vector, 1.0).astype(np.float32)
        return self._codec(round).encode(values, Everywhere(), self._context(client, round))[0]

    def decode(self, bodies: Sequence[bytes], round: Round) -> Float64[np.ndarray, "d"]:
        """Return the sum of what was decoded ÷ n, with the little that is missing of the noise."""
        setting, stddev, codec = round.plan.setting, round.plan.noise_multiplier, self._codec(round)
        total = np.zeros(setting.dimensions)
        for client, body in enumerate(bodies):
            total += codec.decode(body, self._context(client, round))[0]
        share = self._share(0, round)
        missing = missing_variance(stddev, share.stddev, share.grid, setting.clients - len(bodies))
        return (total + math.sqrt(missing) * round.server_noise()) / len(bodies)

    def expected_error(self, vectors: Float64[np.ndarray, "n d"], plan: Plan) -> float:
        """Return d·z²/n²."""
        return gaussian_error(plan)

    def _codec(self, round: Round) -> Codec:
        return Codec(quantize=ExactGaussian(cohort=round.plan.setting.clients))

    def _share(self, client: int, round: Round) -> NoiseShare:
        stddev = round.plan.noise_multiplier / math.sqrt(round.plan.setting.clients)
        key = int.from_bytes(round.shared_stream(client).bytes(32), "little")
        return NoiseShare(clip_norm=1.0, stddev=stddev, dither_key=key)

    def _context(self, client: int, round: Round) -> PublicContext:
        return replace(round.context(client), noise_share=self._share(client, round))


@dataclass(frozen=True, kw_only=True)
class HiddenNoise:
    """The event of Gaussian noise of which one client knows its share."""

    clients: int

    def __call__(self, noise_multiplier: float) -> DpEvent:
        """Return the event of z·√(1 − 1/n)."""
        return gaussian_event(noise_multiplier * math.sqrt(1 - 1 / self.clients))
