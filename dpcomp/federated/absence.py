"""Absence policies: what a client keeps of its residual and momentum after rounds that it missed.

The residual is what the client's codec has dropped so far, and is added to its next update (error feedback). After an
absence it is old: it was computed for a model that the updates of other clients have moved since. `Keep` sends it
nevertheless, `Decay` a share that falls with the number of missed rounds, `Drop` nothing of it. A momentum at the
client (`MomentumCorrection`, `EF21`) is as old, and goes the same way.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32

from dpcomp.core.checks import real_number


@runtime_checkable
class AbsencePolicy(Protocol):
    """The protocol of an absence policy: it decides what a client keeps of its residual after rounds that it missed.

    The residual is what the client's codec has dropped so far; without feedback there is none, and no policy is asked.
    A momentum is given to it in the same way.
    Give an instance to `Participant(absence_policy=...)`.
    """

    def residual(self, residual: Float32[np.ndarray, "d"], missed: int) -> Float32[np.ndarray, "d"]:
        """Return what the client keeps of its residual.

        Args:
            residual: What its codec has dropped so far, as a (d,) vector.
            missed: The number of rounds that it missed, 1 or more.

        Returns:
            The (d,) residual that is added to the client's next update.
        """
        ...


@dataclass(frozen=True)
class Keep:
    """Keep the whole residual of a client, however many rounds it missed: no value is lost, but all of it is old."""

    def residual(self, residual: Float32[np.ndarray, "d"], missed: int) -> Float32[np.ndarray, "d"]:
        """Return the client's residual unchanged, however many rounds it missed."""
        return residual


@dataclass(frozen=True)
class Decay:
    """Halve the residual of a client for each `half_life` rounds that it missed in a row.

    Args:
        half_life: The number of missed rounds after which half is left, above 0; it need not be whole.

    Raises:
        TypeError: `half_life` is not a number.
        ValueError: `half_life` is not above 0.
    """

    half_life: float

    def __post_init__(self):
        half_life = real_number(self.half_life, "Decay(half_life)", "a number of rounds above 0")
        if not half_life > 0:
            raise ValueError(f"{self}: the half-life is a number of rounds above 0; to keep nothing, use Drop()")
        object.__setattr__(self, "half_life", half_life)

    def residual(self, residual: Float32[np.ndarray, "d"], missed: int) -> Float32[np.ndarray, "d"]:
        """Return residual · 2^(−missed / half_life)."""
        return residual * np.float32(0.5 ** (missed / self.half_life))


@dataclass(frozen=True)
class Drop:
    """Drop the whole residual of a client that missed a round or more: what its codec dropped before is lost."""

    def residual(self, residual: Float32[np.ndarray, "d"], missed: int) -> Float32[np.ndarray, "d"]:
        """Return zeros."""
        return np.zeros_like(residual)
