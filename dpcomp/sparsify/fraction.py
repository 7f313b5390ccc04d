"""The base class of the sparsifiers that keep a fixed share of the coordinates."""

from dataclasses import dataclass

from dpcomp.core.checks import real_number
from dpcomp.privacy.claim import Claim, Released


@dataclass(frozen=True)
class Fraction:
    """Base class of the sparsifiers that keep a fixed share of the coordinates: the density k/d.

    Attributes:
        fraction: The density, in (0, 1].

    Raises:
        TypeError: The fraction is not a number.
        ValueError: The fraction lies outside (0, 1].
    """

    fraction: float

    def __post_init__(self):
        fraction = real_number(self.fraction, f"{type(self).__name__}(fraction)", "a share above 0, up to 1")
        if not 0 < fraction <= 1:
            raise ValueError(f"{self}: the fraction of coordinates to keep lies in (0, 1]")
        object.__setattr__(self, "fraction", fraction)

    def count(self, d: int) -> int:
        """Return k = round(fraction·d) for d coordinates, at least one unless d is 0."""
        return min(d, max(1, round(self.fraction * d)))

    def refuse_after_noise(self, before: Claim, where: str) -> None:
        """Check that the stage stands before the noise; after it, choosing coordinates is the codec's task.

        Args:
            before: The claim about the stage's input.
            where: The name and place of the stage, for the error.

        Raises:
            ValueError: The input is already released.
        """
        if isinstance(before, Released):
            raise ValueError(f"{where} stands after the noise: make it the codec's, dp.Codec(sparsify={self})")
