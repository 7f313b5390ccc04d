"""Which coordinates stay: the exact top k, or k that a public key draws."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from array_api_compat import array_namespace
from jaxtyping import Float, Int64

from dpcomp.claim import Bounded, Claim, Released, Unbounded
from dpcomp.units import Total, Units
from dpcomp.update import Listed, Seeded, Support


def top_k_indices(x: np.ndarray, k: int) -> Int64[np.ndarray, "k"]:
    """The positions of the k largest magnitudes of a row (d,), ascending; of equal ones the lower position wins.

    Raises:
        ValueError: k is not in [0, d], or some value is not finite.
    """
    x = np.asarray(x)
    if x.ndim != 1 or not 0 <= k <= len(x):
        raise ValueError(f"top_k_indices: k = {k} of an array of shape {x.shape}; it wants a row and 0 ≤ k ≤ d")
    magnitude = np.abs(x)
    unranked = len(x) - int(np.count_nonzero(np.isfinite(magnitude)))
    if unranked:
        raise ValueError(f"top_k_indices: {unranked} of {len(x)} values are NaN or infinite: nothing ranks them")
    if k == 0:
        return np.empty(0, dtype=np.int64)
    threshold = np.partition(magnitude, len(x) - k)[len(x) - k]
    above = np.flatnonzero(magnitude > threshold)
    ties = np.flatnonzero(magnitude == threshold)[: k - len(above)]
    return np.sort(np.concatenate([above, ties]))


@dataclass(frozen=True)
class _Fraction:
    """A share of the coordinates."""

    fraction: float

    def __post_init__(self):
        if not 0 < self.fraction <= 1:
            raise ValueError(f"{self}: the share of coordinates to keep lies in (0, 1]")
        object.__setattr__(self, "fraction", float(self.fraction))

    def count(self, d: int) -> int:
        """k for a vector of d coordinates: the nearest whole number, and at least one."""
        return max(1, round(self.fraction * d))

    def _refuse_after_noise(self, before: Claim, where: str) -> None:
        if isinstance(before, Released):
            raise ValueError(f"{where} stands after the noise: make it the codec's, dp.Codec(sparsify={self})")


@dataclass(frozen=True)
class RandomK(_Fraction):
    """A support of round(fraction·d) coordinates drawn from (run seed, round): the same for all clients.

    **Privacy:** the support is public and independent of the data, so it reveals nothing. Before `Clip` it
    shrinks every unit to the support, and the clip norm is spent there alone; after `Clip` it is valid, for
    dropping coordinates cannot raise a norm, but wastes √(d/k) of the clip (PRIVACY_RULES 2 and 3).
    """

    def claim(self, before: Claim, where: str) -> Claim:
        """A public mask keeps what is known."""
        self._refuse_after_noise(before, where)
        return before

    def support(self, d: int, mask_key: int) -> Seeded:
        """The support of the round whose public key of 256 bits is `mask_key`."""
        return Seeded(seed=mask_key, k=self.count(d))

    def apply(self, value: "Units | Total", mask_key: int) -> "Units | Total":
        """The value on the round's support."""
        return value.restrict(self.support(value.layout.size, mask_key))

    def select(self, vector: Float[np.ndarray, "d"], candidates: Support, mask_key: int) -> Support:
        """The codec's choice: it looks at the key, never at the values."""
        return self.support(len(vector), mask_key)


@dataclass(frozen=True)
class TopK(_Fraction):
    """The round(fraction·d) coordinates of largest magnitude, exactly; of equal ones the lower position wins.

    In the codec it selects what is sent. In a mechanism, before `Clip`, it sets all but each unit's own
    largest coordinates to zero, and the update stays dense.

    **Privacy:** before `Clip` it maps each unit by itself, and the clip bounds the result (PRIVACY_RULES 5).
    After `Clip` the support would be a deterministic function of private data: no guarantee (rule 4).
    """

    def claim(self, before: Claim, where: str) -> Claim:
        """Before the clip a map of each unit; after it a leak."""
        self._refuse_after_noise(before, where)
        if isinstance(before, Bounded):
            return Unbounded(
                because=f"{where} chooses coordinates from private data",
                remedy="Move TopK to the codec, use RandomK, or put TopK before Clip, where it masks each unit",
                support_is_public=False,
            )
        return before

    def apply(self, value: "Units | Total", mask_key: int) -> "Units | Total":
        """Each unit masked; or, under `dp.unsafe` alone, a sum on the support that it chose itself."""
        if isinstance(value, Total):
            return value.restrict(Listed(top_k_indices(value.vector(), self.count(value.layout.size))))
        return value.masked(self._mask)

    def _mask(self, units: Float[Any, "n d"]) -> Float[Any, "n d"]:
        xp, d = array_namespace(units), units.shape[1]
        k, magnitude = min(self.count(d), d), xp.abs(units)
        threshold = xp.sort(magnitude, axis=1)[:, d - k][:, None]
        above, tied = magnitude > threshold, magnitude == threshold
        room = k - xp.sum(xp.astype(above, xp.int32), axis=1)[:, None]
        first = tied & (xp.cumulative_sum(xp.astype(tied, xp.int32), axis=1) <= room)
        return xp.where(above | first, units, xp.zeros_like(units))

    def select(self, vector: Float[np.ndarray, "d"], candidates: Support, mask_key: int) -> Support:
        """The codec's choice among the candidates: it looks at the values, never at the key."""
        k, positions = self.count(len(vector)), candidates.indices(len(vector))
        if k >= len(positions):
            return candidates
        return Listed(positions[top_k_indices(vector[positions], k)])
