"""Sampling: which units take part in a release."""

import math
from dataclasses import dataclass

import numpy as np
from dp_accounting import (  # pyright: ignore[reportMissingTypeStubs]  # the package ships no types
    DpEvent,
    PoissonSampledDpEvent,
)
from jaxtyping import Int64

from dpcomp.core.checks import real_number

DRAW = 2.0**-53  # the step of the uniform numbers that a draw compares with the rate
LEAST_RATE = 2.0**-40


@dataclass(frozen=True)
class Poisson:
    """Sample each unit independently with probability `rate`.

    Source: Mironov, Talwar & Zhang 2019, "Rényi Differential Privacy of the Sampled Gaussian Mechanism"; Zhu, Dong &
    Wang 2022.

    **Privacy:** sub-sampling amplifies as long as the draws stay secret. The rate is a public constant, never computed
    from the data's length (PRIVACY_RULES 19, hazards 10 and 14). No unit is drawn more often than at the rate: draws
    have 53 bits, to which the rate is rounded down, by less than 2⁻¹² of itself.

    Args:
        rate: The probability, from 2⁻⁴⁰ (about 10⁻¹²) to 1.

    Raises:
        TypeError: `rate` is not a number.
        ValueError: `rate` lies outside [2⁻⁴⁰, 1].

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
        if rate < LEAST_RATE:
            raise ValueError(
                f"Poisson(rate={rate!r}): draws have 53 bits, so a rate below {LEAST_RATE:.2g} is not drawn as it is "
                "charged, and at such a rate nothing is drawn: give the share of the units that a step shall take"
            )
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
        return np.flatnonzero(stream.random(n) < math.floor(self.rate / DRAW) * DRAW)
