"""Top-k of the noisy update, with what was dropped carried over."""

from dataclasses import dataclass

from dpcomp.codec import Codec
from dpcomp.codec.quantize import Uniform
from dpcomp.federated import ServerOptimizer
from dpcomp.lab.federated_benchmark.method import FOUR_BITS, MEAN, mechanism, percent, sampling
from dpcomp.lab.federated_benchmark.setting import Setting
from dpcomp.pipeline import Pipeline
from dpcomp.sparsify import TopK
from dpcomp.wire.feedback import MomentumCorrection


@dataclass(frozen=True, kw_only=True)
class TopKFeedback:
    """Send the largest values of update and residual in four bits, and positions; all behind the noise.

    Broadcasts have four bits, and the server carries over what they drop.

    Attributes:
        share: Of the coordinates.
        momentum: At the client, in front of its residual, with factor masking; 0 for none.
    """

    share: float
    momentum: float = 0.0
    ours = False

    @property
    def source(self) -> str:
        """Paper and section."""
        if self.momentum:
            return "Lin et al. 2018, DGC, sections 3.1 and 3.2 (1712.01887), behind the noise"
        return "Stich et al. 2018, Algorithm 1 (1809.07599), behind the noise"

    @property
    def first_rate(self) -> float:
        """Where the tuning begins: momentum multiplies a step by up to 1/(1 − m), before it is masked."""
        return 3.5 * (1 - self.momentum) if self.momentum else 1.4

    @property
    def name(self) -> str:
        """The name in tables."""
        return f"top {percent(self.share)}, feedback" + (f", momentum {self.momentum:g}" if self.momentum else "")

    def pipeline(self, setting: Setting, noise_multiplier: float) -> Pipeline:
        """Return the pipeline with `TopK` behind the noise."""
        return Pipeline(
            sampling=sampling(setting),
            mechanism=mechanism(setting, noise_multiplier),
            codec=Codec(sparsify=TopK(self.share), quantize=Uniform(4)),
            downlink=FOUR_BITS,
            feedback=MomentumCorrection(momentum=self.momentum) if self.momentum else True,
        )

    def server(self, setting: Setting) -> ServerOptimizer:
        """Return the mean: the momentum is the clients'."""
        return MEAN
