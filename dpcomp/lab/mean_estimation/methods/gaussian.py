"""The Gaussian mechanism, float32: what the other methods are compared with."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from dpcomp.lab.mean_estimation.method import Plan, Round, clipped, gaussian_error, planned, released
from dpcomp.lab.mean_estimation.setting import Setting
from dpcomp.privacy.gaussian import Gaussian
from dpcomp.privacy.trust import Trust


@dataclass(frozen=True, kw_only=True)
class GaussianFloat32:
    """Send float32, with Gaussian noise at each client (`trust="nobody"`) or on the sum (`trust="server"`).

    Under `trust="server"` the server needs no more than the sum, so secure aggregation can stand in for the trust.

    **Privacy:** every vector is clipped to norm 1, so it moves a client's release, or the sum, by at most 1: the
    Gaussian mechanism with multiplier z.
    """

    trust: Trust
    unbiased = True
    paired = True
    source = "Dwork & Roth 2014, Appendix A; Balle & Wang 2018"

    @property
    def family(self) -> str:
        """The line of a figure."""
        return "Gaussian, float32"

    @property
    def name(self) -> str:
        """The name in tables."""
        return "Gaussian, float32"

    def plan(self, setting: Setting) -> Plan:
        """Return the noise of the Gaussian mechanism."""
        return planned(setting, self.trust)

    def encode(self, vector: Float64[np.ndarray, "d"], client: int, round: Round) -> bytes:
        """Return the clipped vector, under local noise with it, as float32."""
        if self.trust == "server":
            return clipped(vector, 1.0).astype("<f4").tobytes()
        return released(vector, 1.0, round.client_noise(client), round.plan).astype("<f4").tobytes()

    def decode(self, bodies: Sequence[bytes], round: Round) -> Float64[np.ndarray, "d"]:
        """Return the mean of what was sent, under central noise with it."""
        total = np.zeros(round.plan.setting.dimensions)
        for body in bodies:
            total += np.frombuffer(body, "<f4")
        if self.trust == "server":
            total = Gaussian(round.plan.noise_multiplier).release(total, round.server_noise(), 1.0).astype(np.float64)
        return total / len(bodies)

    def expected_error(self, vectors: Float64[np.ndarray, "n d"], plan: Plan) -> float:
        """Return d·z²/n, or d·z²/n² with noise on the sum."""
        return gaussian_error(plan)
