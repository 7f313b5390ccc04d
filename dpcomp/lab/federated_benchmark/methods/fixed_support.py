"""One support for the whole run: drawn at random before it, or learned in its first rounds (TP-TopK)."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32

from dpcomp.core.layout import Layout
from dpcomp.core.public_context import PublicContext
from dpcomp.core.support import Everywhere, Listed, Seeded, Support
from dpcomp.federated import ServerOptimizer
from dpcomp.lab.federated_benchmark.method import MEAN, in_bits, on_support, percent
from dpcomp.lab.federated_benchmark.setting import Setting
from dpcomp.pipeline import Pipeline
from dpcomp.privacy.claim import Claim
from dpcomp.privacy.units.unit_gradients import Total, Units
from dpcomp.sparsify.fraction import Fraction
from dpcomp.sparsify.top_k_indices import top_k_indices

WARM_UP = 0.1  # of the rounds


@dataclass(frozen=True)
class FixedSupport(Fraction):
    """Restrict all units of a run to one public support, drawn at random.

    **Privacy:** the support is public and independent of the data (PRIVACY_RULES 2).
    """

    def claim(self, before: Claim, where: str) -> Claim:
        """Return the claim about the input: a public mask keeps a bound, and makes none."""
        self.refuse_after_noise(before, where)
        return before

    def public_support(self, context: PublicContext) -> Seeded:
        """Return the support, the same for all messages of the run."""
        return Seeded(seed=context.run_key, k=self.count(context.layout.size))

    def apply(self, value: "Units | Total", context: PublicContext) -> "Units | Total":
        """Restrict units, or their sum, to the support."""
        return value.restrict(self.public_support(context))


@dataclass(frozen=True)
class TwoPhaseSupport(Fraction):
    """Train all coordinates for some rounds, and from then on only those whose steps had the largest mean square.

    The source takes the noise's variance off the mean square. All coordinates have the same noise here, so that
    does not change their order. Later squares are added too: they fall on the chosen coordinates alone, which stay the
    largest.

    **Privacy:** the support is a function of broadcasts, which were released (PRIVACY_RULES 7).

    Attributes:
        fraction: The density k/d in the second phase, in (0, 1].
        warm_up: The rounds of the first phase.

    Source: Zhang & Xie 2026, TP-TopK (2606.04375).
    """

    warm_up: int

    def claim(self, before: Claim, where: str) -> Claim:
        """Return the claim about the input: a public mask keeps a bound, and makes none."""
        self.refuse_after_noise(before, where)
        return before

    def initial_history(self, layout: Layout) -> Float32[np.ndarray, "d"]:
        """Return the sum of no squares."""
        return np.zeros(layout.size, np.float32)

    def update_history(
        self, history: Float32[np.ndarray, "d"], broadcast: Float32[np.ndarray, "d"], layout: Layout
    ) -> Float32[np.ndarray, "d"]:
        """Return the sum with one more broadcast's squares."""
        return history + broadcast * broadcast

    def public_support(self, context: PublicContext) -> Support:
        """Return all coordinates, then those with the largest sums of squares."""
        if context.version < self.warm_up:
            return Everywhere()
        assert context.history is not None
        return Listed(top_k_indices(context.history, self.count(context.layout.size)))

    def apply(self, value: "Units | Total", context: PublicContext) -> "Units | Total":
        """Restrict units, or their sum, to the support."""
        support = self.public_support(context)
        return value if isinstance(support, Everywhere) else value.restrict(support)


@dataclass(frozen=True, kw_only=True)
class FixedRandom:
    """Train the same random coordinates in all rounds, before the clip, in rotated bits.

    Attributes:
        share: Of the coordinates, about: their number is a multiple of 64.
        bits: A value, from 1 to 4.
    """

    share: float
    bits: int
    ours = False
    source = "Zhang & Xie 2026 (2606.04375): the random support that TP-TopK is compared with"
    first_rate = 2.0

    @property
    def name(self) -> str:
        """The name in tables."""
        return f"fixed support, {percent(self.share)}, {in_bits(self.bits)}"

    def pipeline(self, setting: Setting, noise_multiplier: float) -> Pipeline:
        """Return the pipeline with `FixedSupport` in the mechanism."""
        support = FixedSupport(setting.fraction(self.share))
        return on_support(setting, noise_multiplier, support, self.bits)

    def server(self, setting: Setting) -> ServerOptimizer:
        """Return the mean."""
        return MEAN


@dataclass(frozen=True, kw_only=True)
class TwoPhase:
    """Train all coordinates in the first tenth of the rounds, then the k with the largest mean square of their steps.

    The source trains on one machine, and sends nothing; here all is sent in rotated bits. Both phases have one noise
    multiplier, one clip norm and one learning rate.

    Attributes:
        share: Of the coordinates, about: their number is a multiple of 64.
        bits: A value, from 1 to 4.
    """

    share: float
    bits: int
    ours = False
    source = "Zhang & Xie 2026, TP-TopK (2606.04375)"
    first_rate = 2.0

    @property
    def name(self) -> str:
        """The name in tables."""
        return f"TP-TopK, {percent(self.share)}, {in_bits(self.bits)}"

    def pipeline(self, setting: Setting, noise_multiplier: float) -> Pipeline:
        """Return the pipeline with `TwoPhaseSupport` in the mechanism."""
        support = TwoPhaseSupport(setting.fraction(self.share), warm_up=max(1, round(WARM_UP * setting.rounds)))
        return on_support(setting, noise_multiplier, support, self.bits)

    def server(self, setting: Setting) -> ServerOptimizer:
        """Return the mean."""
        return MEAN
