"""SoteriaFL: clients send what differs from a shift, which both ends move towards the updates."""

from dataclasses import dataclass

import numpy as np

from dpcomp.codec import Codec
from dpcomp.codec.entropy import FixedWidth
from dpcomp.codec.quantize import Rotated
from dpcomp.federated import ServerOptimizer
from dpcomp.federated.server.optimizers import Moments
from dpcomp.lab.federated_benchmark.method import FOUR_BITS, in_bits, mechanism, percent, sampling
from dpcomp.lab.federated_benchmark.setting import Setting
from dpcomp.pipeline import Pipeline
from dpcomp.sparsify import RandomK
from dpcomp.wire.feedback import EF21
from dpcomp.wire.update import Update


@dataclass(frozen=True, kw_only=True)
class ShiftedStep(ServerOptimizer):
    """Step by the old mean shift and the scaled mean of what clients sent: s + scale·(s' − s).

    With `EF21` of the clients the server gets the mean shift after a round, s'; it has moved by the mean of what they
    sent. The velocity of the base class, which checkpoints hold, is the mean shift before the round.

    Attributes:
        scale: d/k: it makes what a random k of d coordinates carry unbiased.
    """

    scale: float

    def step(self, mean: Update, moments: Moments) -> tuple[Update, Moments]:
        """Compute the step to broadcast, and the mean shift.

        **Privacy:** both are made of released means alone.

        Args:
            mean: The mean shift after the round.
            moments: The mean shift before it, as the velocity; empty before the first.
        """
        after = mean.dense()
        before = moments.get("velocity", np.zeros_like(after))
        return mean.derive(before + np.float32(self.scale) * (after - before)), {"velocity": after}


@dataclass(frozen=True, kw_only=True)
class SoteriaFL:
    """Send a random k of the noisy update minus the client's shift, in rotated bits; broadcasts have four bits.

    The source has C(x) = (d/k)·mask·x with the variance ω = d/k − 1, the step s + mean C(gᵢ − sᵢ), and shifts that
    move by γ·C(gᵢ − sᵢ), all behind the noise. Its γ, the root of (1 + 2ω)/(2(1 + ω)³), is (k/d)·√(1 − k/2d). With
    γ = k/d, which is 1.5 % more at a density of 6 %, a shift moves by mask·(gᵢ − sᵢ): that is `dp.EF21(weight=1)` of
    the client, and `ShiftedStep` of the server. The gradients are those of SGD (SoteriaFL-SGD).

    Attributes:
        share: k/d, about: k is a multiple of 64.
        bits: A value, from 1 to 4.
    """

    share: float
    bits: int
    ours = False
    source = "Li, Zhao, Li & Chi 2022, Algorithm 1 (2206.09888)"

    @property
    def first_rate(self) -> float:
        """Where the tuning begins."""
        return 0.25

    @property
    def name(self) -> str:
        """The name in tables."""
        return f"SoteriaFL, {percent(self.share)}, {in_bits(self.bits)}"

    def pipeline(self, setting: Setting, noise_multiplier: float) -> Pipeline:
        """Return the pipeline with random supports behind the noise."""
        return Pipeline(
            sampling=sampling(setting),
            mechanism=mechanism(setting, noise_multiplier),
            codec=Codec(
                sparsify=RandomK(setting.fraction(self.share), per="client"),
                quantize=Rotated(self.bits),
                entropy=FixedWidth(),
            ),
            downlink=FOUR_BITS,
            feedback=EF21(weight=1.0),
        )

    def server(self, setting: Setting) -> ServerOptimizer:
        """Return the shifted step."""
        return ShiftedStep(scale=1 / setting.fraction(self.share))
