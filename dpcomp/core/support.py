"""Supports: which coordinates of a vector an update holds."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Int64
from randomgen import ChaCha


@dataclass(frozen=True)
class Everywhere:
    """All coordinates."""

    def count(self, d: int) -> int:
        """How many of d coordinates it holds."""
        return d

    def indices(self, d: int) -> Int64[np.ndarray, "d"]:
        """Their positions, ascending."""
        return np.arange(d, dtype=np.int64)


@dataclass(frozen=True)
class Seeded:
    """k coordinates that `seed`, a public key of 256 bits, draws: whoever knows the key knows them."""

    seed: int
    k: int

    def count(self, d: int) -> int:
        """How many of d coordinates it holds.

        Raises:
            ValueError: k is not in [0, d].
        """
        if not 0 <= self.k <= d:
            raise ValueError(f"Seeded: cannot choose {self.k} of {d} coordinates")
        return self.k

    def indices(self, d: int) -> Int64[np.ndarray, "k"]:
        """Their positions, ascending."""
        return _seeded_indices(self.seed, self.count(d), d)


@dataclass(frozen=True, eq=False)
class Listed:
    """The coordinates named one by one, ascending.

    Raises:
        TypeError, ValueError: the positions are not whole, distinct, ascending numbers from 0.
    """

    positions: Int64[np.ndarray, "k"]

    def __post_init__(self):
        positions = np.asarray(self.positions)
        if positions.size and positions.dtype.kind not in "iu":
            raise TypeError(f"Listed(positions): positions are whole numbers, not {positions.dtype}")
        positions = np.array(positions, dtype=np.int64)
        if positions.ndim != 1 or (positions[1:] <= positions[:-1]).any() or (positions[:1] < 0).any():
            raise ValueError("Listed(positions): they must be one row of distinct, ascending numbers from 0")
        positions.flags.writeable = False
        object.__setattr__(self, "positions", positions)

    def count(self, d: int) -> int:
        """How many of d coordinates it holds.

        Raises:
            ValueError: a position is d or above.
        """
        if len(self.positions) and self.positions[-1] >= d:
            raise ValueError(f"Listed: position {self.positions[-1]} lies outside a vector of {d}")
        return len(self.positions)

    def indices(self, d: int) -> Int64[np.ndarray, "k"]:
        """Their positions, ascending."""
        self.count(d)
        return self.positions

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Listed) and np.array_equal(self.positions, other.positions)

    def __hash__(self) -> int:
        return hash(self.positions.tobytes())


Support = Everywhere | Seeded | Listed


@lru_cache(maxsize=8)
def _seeded_indices(key: int, k: int, d: int) -> Int64[np.ndarray, "k"]:
    """The first k distinct numbers below d that the stream says, sorted; of more than half, all but the first d − k.

    Only raw words of the cipher are used: NumPy may change its own sampling between versions, and
    then two ends would disagree.
    """
    stream, wanted = ChaCha(key=key, rounds=20), min(k, d - k)
    said = np.empty(0, dtype=np.int64)
    while len(said) < wanted:
        words = np.asarray(stream.random_raw(2 * (wanted - len(said)) + 16)) % np.uint64(d)
        said = np.concatenate([said, words.astype(np.int64)])
        _, first = np.unique(said, return_index=True)
        said = said[np.sort(first)]
    indices = np.sort(said[:wanted])
    if wanted < k:
        rest = np.ones(d, dtype=bool)
        rest[indices] = False
        indices = np.flatnonzero(rest)
    indices.flags.writeable = False
    return indices
