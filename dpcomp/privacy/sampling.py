"""Sampling: which units take part in a release."""

from dataclasses import dataclass

import numpy as np
from dp_accounting import (  # pyright: ignore[reportMissingTypeStubs]  # the package ships no types
    DpEvent,
    PoissonSampledDpEvent,
)
from jaxtyping import Int64

from dpcomp.core.checks import real_number


@dataclass(frozen=True)
class Poisson:
    """Sample each unit independently with probability `rate`.

    Source: Mironov, Talwar & Zhang 2019, "Rényi Differential Privacy of the Sampled Gaussian Mechanism"; Zhu, Dong &
    Wang 2022.

    **Privacy:** sub-sampling amplifies as long as the draws stay secret. The rate is a public constant, never computed
    from the data's length (PRIVACY_RULES 19, hazards 10 and 14).

    Args:
        rate: The probability, in (0, 1].

    Raises:
        TypeError: `rate` is not a number.
        ValueError: `rate` lies outside (0, 1].

    Examples:
        >>> import dpcomp as dp
        >>> mechanism = (dp.Clip(1.0), dp.Gaussian(1.0))
        >>> sampled = dp.Pipeline(mechanism=mechanism, sampling=dp.Poisson(0.01))
        >>> full = dp.Pipeline(mechanism=mechanism)
        >>> sampled.guarantee(100, delta=1e-5).epsilon < 0.1 * full.guarantee(100, delta=1e-5).epsilon
        True
    """

    rate: float

    def __post_init__(self):
        rate = real_number(self.rate, "Poisson(rate)", "a probability above 0, up to 1")
        if not 0 < rate <= 1:
            raise ValueError(f"{self}: the sampling rate lies in (0, 1]")
        object.__setattr__(self, "rate", rate)

    def amplify(self, event: DpEvent) -> DpEvent:
        """Return the cost of the event on a Poisson sample: `PoissonSampledDpEvent`, or the event itself at rate 1."""
        return event if self.rate == 1 else PoissonSampledDpEvent(self.rate, event)

    def draw(self, n: int, stream: np.random.Generator) -> Int64[np.ndarray, "chosen"]:
        """Draw which of n units take part.

        Args:
            n: The number of units.
            stream: A secret stream, such as `SecretSeed().stream("sample", step)`.

        Returns:
            Their positions, ascending; about n·rate of them, sometimes none.
        """
        return np.flatnonzero(stream.random(n) < self.rate)
