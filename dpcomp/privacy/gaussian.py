"""Gaussian noise on a bounded sum."""

from dataclasses import dataclass
from typing import Any

from dp_accounting import GaussianDpEvent
from jaxtyping import Float

from dpcomp.core.errors import NotPrivate
from dpcomp.privacy.claim import Bounded, Claim, Released, Unbounded

LEAST, MOST = 1e-9, 1e9  # beyond, no accountant's arithmetic is sound


@dataclass(frozen=True)
class Gaussian:
    """Add N(0, (z·C)²) to every coordinate of the sum, z = `noise_multiplier`, C the claim's l2.

    **Privacy:** for adjacency that moves the sum by at most C this is the Gaussian mechanism with noise
    multiplier z (Dwork & Roth 2014, App. A; Balle & Wang 2018); its event is `GaussianDpEvent(z)`. z = 0 is for
    `dp.unsafe` alone.
    """

    noise_multiplier: float

    def __post_init__(self):
        if not (self.noise_multiplier == 0 or LEAST <= self.noise_multiplier <= MOST):
            raise ValueError(f"{self}: the noise multiplier is 0, or lies between {LEAST:g} and {MOST:g}")
        object.__setattr__(self, "noise_multiplier", float(self.noise_multiplier))

    def claim(self, before: Claim, where: str) -> Claim:
        """What was bounded is released.

        Raises:
            NotPrivate: the sum is unbounded, its support private, or z = 0.
            ValueError: the value is released already.
        """
        if isinstance(before, Unbounded):
            raise NotPrivate(f"{before.because}, so {where} has nothing bounded to hide. {before.remedy}")
        if not isinstance(before, Bounded):
            raise ValueError(f"{where} meets a value that is released already: noise is added once")
        if not before.support_is_public:
            raise NotPrivate(
                f"the support before {where} was chosen from private data, and noise on the values does not hide it. "
                "Choose it from public or released values, or mask each unit before Clip"
            )
        if self.noise_multiplier == 0:
            raise NotPrivate(
                f"{where} has noise multiplier 0 and hides nothing: ε = ∞. Give it noise, or study the "
                "mechanism as dp.unsafe(why, *stages)"
            )
        return Released(event=GaussianDpEvent(self.noise_multiplier))

    def add(self, total: Float[Any, "k"], standard_normal: Float[Any, "k"], l2: float) -> Float[Any, "k"]:
        """total + z·l2·n; the noise n is an argument, so that no trace can freeze it."""
        return total + (self.noise_multiplier * l2) * standard_normal
