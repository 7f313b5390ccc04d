"""SQKR: randomised response on a few bits a client, which needs no Gaussian noise."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from dpcomp.core.support import Seeded
from dpcomp.lab.mean_estimation.method import Plan, Round
from dpcomp.lab.mean_estimation.setting import Setting
from dpcomp.privacy.guarantee import Guarantee
from dpcomp.privacy.trust import Trust


@dataclass(frozen=True, kw_only=True)
class Sqkr:
    """Round ⌈ε⌉ public coordinates at random to ±1/√d, and send these bits by randomised response.

    Subsampling, quantisation (Kashin) and randomised response. It needs magnitudes of at most 1/√d; larger
    ones count as that. The source makes any vector of the unit ball so by Kashin's representation.

    **Privacy:** of the 2ᵏ strings of k bits a client sends the true one with probability e^ε/(e^ε + 2ᵏ − 1), and each
    other one with e^ε times less. So whatever the vectors are, the likelihoods of a body differ by e^ε at most: pure
    ε-DP for *replacing* a vector, which is more than (ε, δ)-DP for adding or removing one. The Gaussians here have the
    latter alone; for the former they would need twice the noise. The law is finite, and ε its exact maximum, so no
    accountant is called. What it gains over a Gaussian, which needs a δ, is gained in one round: where many rounds have
    small ε₀ each, a random bit costs α·ε₀²/2 in Rényi divergence and estimates it with the variance 4/ε₀², as a
    Gaussian does for replacing that bit.
    """

    unbiased = True
    paired = False
    source = "Chen, Kairouz & Özgür 2020, SQKR, with shared randomness (2007.11707)"

    @property
    def trust(self) -> Trust:
        """Who sees values before the noise."""
        return "nobody"

    @property
    def family(self) -> str:
        """The line of a figure."""
        return "SQKR"

    @property
    def name(self) -> str:
        """The name in tables."""
        return "SQKR, pure ε"

    def plan(self, setting: Setting) -> Plan:
        """Return ε itself; there is no Gaussian noise."""
        guarantee = Guarantee(
            epsilon=setting.epsilon,
            delta=setting.delta,
            unit="client",
            adjacency="replace one",
            sampling="none",
            steps=1,
            accountant="exact",
            trust=self.trust,
            assumptions=("holds at δ = 0",),
        )
        return Plan(setting=setting, noise_multiplier=0.0, guarantee=guarantee)

    def encode(self, vector: Float64[np.ndarray, "d"], client: int, round: Round) -> bytes:
        """Return the k bits that randomised response gives."""
        support, d, stream = self._support(client, round), len(vector), round.client_stream(client)
        shares = (1 + vector[support.indices(d)] * math.sqrt(d)) / 2  # beyond 0 and 1 as there: a bit is no larger
        bits = stream.random(support.k) < shares
        if stream.random() < self._uniform(round.plan.setting):
            bits = stream.random(support.k) < 0.5
        return np.packbits(bits).tobytes()

    def decode(self, bodies: Sequence[bytes], round: Round) -> Float64[np.ndarray, "d"]:
        """Return the mean of the bits' signs, scaled by d/k and by what randomised response takes."""
        setting, d = round.plan.setting, round.plan.setting.dimensions
        total = np.zeros(d)
        for client, body in enumerate(bodies):
            support = self._support(client, round)
            total[support.indices(d)] += 2.0 * np.unpackbits(np.frombuffer(body, np.uint8), count=support.k) - 1
        return total * (math.sqrt(d) / support_size(setting) / (1 - self._uniform(setting)) / len(bodies))

    def expected_error(self, vectors: Float64[np.ndarray, "n d"], plan: Plan) -> float:
        """Return (d/k ÷ (1 − u)² − ‖x‖²)/n, with u the probability of a uniform string."""
        n, d = vectors.shape
        kept = 1 - self._uniform(plan.setting)
        return float((d / support_size(plan.setting) / kept**2 - np.square(vectors).sum() / n) / n)

    def _uniform(self, setting: Setting) -> float:
        """Return with which probability a uniform string is sent: 2ᵏ/(e^ε + 2ᵏ − 1)."""
        strings = 2.0 ** support_size(setting)
        return strings / (math.exp(setting.epsilon) + strings - 1)

    def _support(self, client: int, round: Round) -> Seeded:
        return Seeded(seed=round.seed.key("own", round.number, client), k=support_size(round.plan.setting))


def support_size(setting: Setting) -> int:
    """Return k = ⌈ε⌉, the bits that a budget of ε can carry; at most d."""
    return min(math.ceil(setting.epsilon), setting.dimensions)
