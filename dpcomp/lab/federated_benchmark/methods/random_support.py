"""A public random support before the noise: of each client's own, or common to all."""

from dataclasses import dataclass

from dpcomp.federated import ServerOptimizer
from dpcomp.lab.federated_benchmark.method import MEAN, in_bits, on_support, percent
from dpcomp.lab.federated_benchmark.setting import Setting
from dpcomp.pipeline import Pipeline
from dpcomp.sparsify import RandomK


@dataclass(frozen=True, kw_only=True)
class OwnSupport:
    """Give each client of a round a public support of its own, before the clip, and send its values in rotated bits.

    Broadcasts stand on the union of the supports, in four bits.

    Attributes:
        share: Of the coordinates, about: their number is a multiple of 64.
        bits: A value, from 1 to 4.
    """

    share: float
    bits: int
    ours = True
    source = (
        "dpcomp: masks of each client's own (Konečný et al. 2016, section 2, 1610.05492), dealt over clients (PermK, "
        "Szlendak et al. 2022, 2110.03300) and rounds, before the clip and the noise"
    )

    @property
    def name(self) -> str:
        """The name in tables."""
        return f"own supports, {percent(self.share)}, {in_bits(self.bits)}"

    @property
    def first_rate(self) -> float:
        """Where the tuning begins: a coordinate is heard of in a share of the clients, and steps may grow."""
        return 5.7 if self.share < 0.03 else 4.0

    def pipeline(self, setting: Setting, noise_multiplier: float) -> Pipeline:
        """Return the pipeline with `RandomK(per="client")` in the mechanism."""
        support = RandomK(setting.fraction(self.share), per="client")
        return on_support(setting, noise_multiplier, support, self.bits)

    def server(self, setting: Setting) -> ServerOptimizer:
        """Return the mean."""
        return MEAN


@dataclass(frozen=True, kw_only=True)
class CommonSupport:
    """Draw one public support a round, the same for all clients, before the clip; the rest is as in `OwnSupport`.

    Attributes:
        share: Of the coordinates, about: their number is a multiple of 64.
        bits: A value, from 1 to 4.
    """

    share: float
    bits: int
    ours = False
    source = "as own supports, with one mask for all; Rotated of EDEN behind it"

    @property
    def name(self) -> str:
        """The name in tables."""
        return f"common support, {percent(self.share)}, {in_bits(self.bits)}"

    @property
    def first_rate(self) -> float:
        """Where the tuning begins: the fewer coordinates a round has, the larger a step may be."""
        return 8.0 if self.share < 0.03 else 2.8

    def pipeline(self, setting: Setting, noise_multiplier: float) -> Pipeline:
        """Return the pipeline with `RandomK` in the mechanism."""
        support = RandomK(setting.fraction(self.share))
        return on_support(setting, noise_multiplier, support, self.bits)

    def server(self, setting: Setting) -> ServerOptimizer:
        """Return the mean."""
        return MEAN
