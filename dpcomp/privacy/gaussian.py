"""Gaussian noise on a bounded sum."""

from dataclasses import dataclass
from typing import Any

from dp_accounting import GaussianDpEvent  # pyright: ignore[reportMissingTypeStubs]  # the package ships no types
from jaxtyping import Float

from dpcomp.core.checks import real_number
from dpcomp.core.errors import NotPrivate
from dpcomp.privacy.claim import Bounded, Claim, Released, Unbounded

SMALLEST_MULTIPLIER, LARGEST_MULTIPLIER = 1e-9, 1e9  # beyond, no accountant's arithmetic is sound


@dataclass(frozen=True)
class Gaussian:
    """Add N(0, (z·C)²) to each coordinate of the sum, where z is `noise_multiplier` and C the sum's L2 sensitivity.

    It is the last stage of a mechanism. The pipeline draws the noise, so that each release has a permit of the ledger.

    Source: Dwork & Roth 2014, "The Algorithmic Foundations of Differential Privacy", Appendix A; Balle & Wang 2018.

    **Privacy:** adding or removing one unit moves the sum by at most C, so this is the Gaussian mechanism with noise
    multiplier z; its event is `GaussianDpEvent(z)`. On a support that was chosen from private data it has no guarantee
    (PRIVACY_RULES 1, 2 and 4).

    Args:
        noise_multiplier: z, the noise's standard deviation ÷ C, from 10⁻⁹ to 10⁹; 0 inside `dp.unsafe` alone.

    Raises:
        TypeError: `noise_multiplier` is not a number.
        ValueError: `noise_multiplier` lies outside its range.

    Examples:
        >>> import dpcomp as dp
        >>> pipeline = dp.Pipeline(mechanism=(dp.Clip(0.5), dp.Gaussian(2.0)))
        >>> pipeline.cost.event
        GaussianDpEvent(noise_multiplier=2.0)
    """

    noise_multiplier: float

    def __post_init__(self):
        allowed = f"0, or a number from {SMALLEST_MULTIPLIER:g} to {LARGEST_MULTIPLIER:g}"
        multiplier = real_number(self.noise_multiplier, "Gaussian(noise_multiplier)", allowed)
        if not (multiplier == 0 or SMALLEST_MULTIPLIER <= multiplier <= LARGEST_MULTIPLIER):
            raise ValueError(
                f"{self}: the noise multiplier is 0, or lies between {SMALLEST_MULTIPLIER:g} and {LARGEST_MULTIPLIER:g}"
            )
        object.__setattr__(self, "noise_multiplier", multiplier)

    def claim(self, before: Claim, where: str) -> Claim:
        """Return `Released(event=GaussianDpEvent(noise_multiplier))` for a bounded sum.

        Raises:
            NotPrivate: The sum is unbounded, its support private, or the noise multiplier 0.
            ValueError: The value is released already.
        """
        if isinstance(before, Unbounded):
            raise NotPrivate(f"{before.because}, so {where} gives no guarantee. {before.remedy}")
        if not isinstance(before, Bounded):
            raise ValueError(f"{where} meets a value that is released already: noise is added once")
        if not before.support_is_public:
            raise NotPrivate(
                f"the support before {where} was chosen from private data, and noise on the values does not hide it. "
                "Choose it from public or released values, or mask each unit before Clip"
            )
        if self.noise_multiplier == 0:
            raise NotPrivate(
                f"{where} has noise multiplier 0 and adds no noise: ε = ∞. Give it one above 0, or study the "
                "mechanism as dp.unsafe(why, *stages)"
            )
        return Released(event=GaussianDpEvent(self.noise_multiplier))

    def add(self, total: Float[Any, "k"], standard_normal: Float[Any, "k"], l2: float) -> Float[Any, "k"]:
        """Return total + z·l2·noise. The noise is an argument, so that a traced function draws it anew each time.

        Args:
            total: The (k,) sum.
            standard_normal: (k,) independent draws of N(0, 1).
            l2: The sum's L2 sensitivity.
        """
        return total + (self.noise_multiplier * l2) * standard_normal
