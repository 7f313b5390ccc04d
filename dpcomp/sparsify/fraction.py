"""A share of the coordinates: what the sparsifiers have in common."""

from dataclasses import dataclass

from dpcomp.privacy.claim import Claim, Released


@dataclass(frozen=True)
class Fraction:
    """A share of the coordinates."""

    fraction: float

    def __post_init__(self):
        if not 0 < self.fraction <= 1:
            raise ValueError(f"{self}: the share of coordinates to keep lies in (0, 1]")
        object.__setattr__(self, "fraction", float(self.fraction))

    def count(self, d: int) -> int:
        """k for d coordinates: the nearest whole number, and at least one if there are any."""
        return min(d, max(1, round(self.fraction * d)))

    def refuse_after_noise(self, before: Claim, where: str) -> None:
        """Refuse a place behind the noise: there the codec chooses.

        Raises:
            ValueError: the value is released already.
        """
        if isinstance(before, Released):
            raise ValueError(f"{where} stands after the noise: make it the codec's, dp.Codec(sparsify={self})")
