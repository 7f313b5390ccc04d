"""How units are sampled."""

from dataclasses import dataclass

import numpy as np
from dp_accounting import DpEvent, PoissonSampledDpEvent
from jaxtyping import Int64


@dataclass(frozen=True)
class Poisson:
    """Each unit takes part with probability `rate`, by a secret coin of its own.

    **Privacy:** amplifies by sub-sampling (Mironov et al. 2019; Zhu et al. 2022) as long as the draws stay
    secret. The rate is a public constant, never computed from the data's length.
    """

    rate: float

    def __post_init__(self):
        if not 0 < self.rate <= 1:
            raise ValueError(f"{self}: the sampling rate lies in (0, 1]")
        object.__setattr__(self, "rate", float(self.rate))

    def amplify(self, event: DpEvent) -> DpEvent:
        """The event on a sample."""
        return event if self.rate == 1 else PoissonSampledDpEvent(self.rate, event)

    def draw(self, n: int, stream: np.random.Generator) -> Int64[np.ndarray, "chosen"]:
        """The positions, of n, that take part; often about n·rate, and sometimes none."""
        return np.flatnonzero(stream.random(n) < self.rate)
