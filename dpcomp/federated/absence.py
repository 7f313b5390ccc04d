"""What becomes of a client's residual when it comes back after rounds that it missed.

An old residual is about an old model: what it would have changed then may by now be done, or undone.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32


@runtime_checkable
class AbsencePolicy(Protocol):
    """A policy."""

    def residual(self, residual: Float32[np.ndarray, "d"], missed: int) -> Float32[np.ndarray, "d"]:
        """What is left of a residual after `missed` rounds, 1 or more."""
        ...


@dataclass(frozen=True)
class Keep:
    """All of it."""

    def residual(self, residual: Float32[np.ndarray, "d"], missed: int) -> Float32[np.ndarray, "d"]:
        """The residual."""
        return residual


@dataclass(frozen=True)
class Decay:
    """Half of it after `half_life` missed rounds, a quarter after two of them."""

    half_life: float

    def __post_init__(self):
        if not self.half_life > 0:
            raise ValueError(f"{self}: a half-life is a number of rounds above 0; Drop() keeps nothing")

    def residual(self, residual: Float32[np.ndarray, "d"], missed: int) -> Float32[np.ndarray, "d"]:
        """residual · 2^(−missed / half_life)."""
        return residual * np.float32(0.5 ** (missed / self.half_life))


@dataclass(frozen=True)
class Drop:
    """Nothing."""

    def residual(self, residual: Float32[np.ndarray, "d"], missed: int) -> Float32[np.ndarray, "d"]:
        """Zeros."""
        return np.zeros_like(residual)
