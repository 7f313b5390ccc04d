"""All coordinates as float32, or in EDEN's bits."""

from dataclasses import dataclass

from dpcomp.federated import ServerOptimizer
from dpcomp.lab.federated_benchmark.method import FOUR_BITS, MEAN, in_bits, mechanism, rotated, sampling
from dpcomp.lab.federated_benchmark.setting import Setting
from dpcomp.pipeline import Pipeline


@dataclass(frozen=True, kw_only=True)
class DenseFloat32:
    """Send the noisy update as it is, both ways: DP-SGD with the noise at each client.

    Attributes:
        momentum: At the server; 0 for none.
    """

    momentum: float = 0.0
    ours = False
    source = "Abadi et al. 2016, Algorithm 1 (1607.00133)"

    @property
    def name(self) -> str:
        """The name in tables."""
        return "dense, float32" + (f", momentum {self.momentum:g}" if self.momentum else "")

    @property
    def first_rate(self) -> float:
        """Where the tuning begins: momentum multiplies a step by 1/(1 − m)."""
        return 1 - self.momentum

    def pipeline(self, setting: Setting, noise_multiplier: float) -> Pipeline:
        """Return the pipeline without any codec."""
        return Pipeline(sampling=sampling(setting), mechanism=mechanism(setting, noise_multiplier), feedback=False)

    def server(self, setting: Setting) -> ServerOptimizer:
        """Return federated averaging, with the momentum."""
        return ServerOptimizer(momentum=self.momentum)


@dataclass(frozen=True, kw_only=True)
class EdenDense:
    """Send all coordinates of the noisy update in a few rotated bits each; broadcasts have four bits.

    The source compresses the uplink alone. With one bit it is DRIVE.

    Attributes:
        bits: A coordinate, from 1 to 4.
    """

    bits: int
    ours = False
    source = "Vargaftik et al. 2021, DRIVE (2105.08339); 2022, EDEN (2108.08842)"
    first_rate = 1.0

    @property
    def name(self) -> str:
        """The name in tables."""
        return f"EDEN, dense, {in_bits(self.bits)}"

    def pipeline(self, setting: Setting, noise_multiplier: float) -> Pipeline:
        """Return the pipeline with `dp.Rotated` behind the noise."""
        return Pipeline(
            sampling=sampling(setting),
            mechanism=mechanism(setting, noise_multiplier),
            codec=rotated(self.bits),
            downlink=FOUR_BITS,
            feedback=False,
        )

    def server(self, setting: Setting) -> ServerOptimizer:
        """Return the mean."""
        return MEAN
