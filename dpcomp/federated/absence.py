"""Absence policies: what a client does with its residual after rounds that it missed.

An old residual was computed for an old model, which other clients' updates have moved since.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32


@runtime_checkable
class AbsencePolicy(Protocol):
    """Decides what a client keeps of its residual after rounds that it missed."""

    def residual(self, residual: Float32[np.ndarray, "d"], missed: int) -> Float32[np.ndarray, "d"]:
        """Return what the client keeps of its residual.

        Args:
            residual: What its codec has dropped so far, as a (d,) vector.
            missed: The number of rounds that it missed, 1 or more.
        """
        ...


@dataclass(frozen=True)
class Keep:
    """Keep the whole residual, however many rounds the client missed."""

    def residual(self, residual: Float32[np.ndarray, "d"], missed: int) -> Float32[np.ndarray, "d"]:
        """Return the residual unchanged."""
        return residual


@dataclass(frozen=True)
class Decay:
    """Halve the residual for each `half_life` missed rounds.

    Args:
        half_life: The number of missed rounds after which half is left, above 0; it need not be whole.

    Raises:
        ValueError: `half_life` is not above 0.
    """

    half_life: float

    def __post_init__(self):
        if not self.half_life > 0:
            raise ValueError(f"{self}: the half-life is a number of rounds above 0; to keep nothing, use Drop()")

    def residual(self, residual: Float32[np.ndarray, "d"], missed: int) -> Float32[np.ndarray, "d"]:
        """Return residual · 2^(−missed / half_life)."""
        return residual * np.float32(0.5 ** (missed / self.half_life))


@dataclass(frozen=True)
class Drop:
    """Drop the whole residual after a missed round."""

    def residual(self, residual: Float32[np.ndarray, "d"], missed: int) -> Float32[np.ndarray, "d"]:
        """Return zeros."""
        return np.zeros_like(residual)
