"""Supports: which coordinates of a vector an update holds."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Int64
from randomgen import ChaCha

from dpcomp.core.checks import whole_number


@dataclass(frozen=True)
class Everywhere:
    """The support of a dense update: all coordinates. It costs no byte of positions."""

    def count(self, d: int) -> int:
        """Return the number of coordinates held, all d."""
        return d

    def indices(self, d: int) -> Int64[np.ndarray, "d"]:
        """Return the positions 0 to d − 1; where d is large, test for the class instead."""
        return np.arange(d, dtype=np.int64)


@dataclass(frozen=True)
class Seeded:
    """A support of k coordinates drawn at random, without replacement, under a public key.

    Whoever has the key computes the positions, so none is sent. They are drawn from raw words of ChaCha20, the same on
    every machine and with every version of NumPy.

    Attributes:
        seed: A public key of 256 bits, such as `PublicContext.mask_key`; not a `PublicSeed`.
        k: The number of coordinates.

    Raises:
        TypeError: One of the two is not a whole number.
        ValueError: One of the two is negative, or the key has more than 256 bits.
    """

    seed: int
    k: int

    def __post_init__(self):
        whole_number(self.seed, "Seeded(seed), a key such as context.mask_key,", least=0, most=2**256 - 1)
        whole_number(self.k, "Seeded(k)", least=0)

    def count(self, d: int) -> int:
        """Return k, the number of coordinates held of d.

        Raises:
            ValueError: k is not in [0, d].
        """
        if not 0 <= self.k <= d:
            raise ValueError(f"Seeded: cannot choose {self.k} of {d} coordinates")
        return self.k

    def indices(self, d: int) -> Int64[np.ndarray, "k"]:
        """Return the k positions below d, ascending; the array is read-only and cached."""
        return _seeded_indices(self.seed, self.count(d), d)


@dataclass(frozen=True, eq=False)
class Listed:
    """A support given by its positions, which are sent with the values.

    This is what `TopK` chooses. Under `RangeCoder`, k of d random positions take about log₂ C(d, k) bits, and less
    where they resemble the last support of the same link; under `FixedWidth` they take k·⌈log₂ d⌉ bits. A support from
    released history may be `Listed` too; as a public support it costs nothing.

    Attributes:
        positions: (k,) whole numbers from 0, distinct and ascending; kept as a read-only int64 copy.

    Raises:
        TypeError: The positions are not whole numbers.
        ValueError: They are not one row of distinct, ascending numbers from 0.

    Examples:
        >>> import dpcomp as dp
        >>> support = dp.Listed(np.array([2, 5, 7]))
        >>> support.count(10), support.indices(10).tolist()
        (3, [2, 5, 7])
    """

    positions: Int64[np.ndarray, "k"]

    def __post_init__(self):
        given = np.asarray(self.positions)
        if given.dtype.kind not in "iu" and given.size:
            raise TypeError(f"Listed(positions): positions are whole numbers, not {given.dtype}")
        positions = np.array(given, dtype=np.int64)
        first = positions.item(0) if positions.ndim == 1 and positions.size else 0
        if positions.ndim != 1 or first < 0 or np.logical_or.reduce(positions[1:] <= positions[:-1]):
            raise ValueError("Listed(positions): they must be one row of distinct, ascending numbers from 0")
        positions.flags.writeable = False
        object.__setattr__(self, "positions", positions)

    def count(self, d: int) -> int:
        """Return k, the number of coordinates held of d.

        Raises:
            ValueError: A position is d or above.
        """
        if len(self.positions) and self.positions[-1] >= d:
            raise ValueError(f"Listed: position {self.positions[-1]} lies outside a vector of {d}")
        return len(self.positions)

    def indices(self, d: int) -> Int64[np.ndarray, "k"]:
        """Return the k positions below d, ascending.

        Raises:
            ValueError: A position is d or above.
        """
        self.count(d)
        return self.positions

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Listed) and np.array_equal(self.positions, other.positions)

    def __hash__(self) -> int:
        return hash(self.positions.tobytes())


Support = Everywhere | Seeded | Listed


def listed_ascending(positions: Int64[np.ndarray, "k"]) -> Listed:
    """Return the support of positions that dpcomp has just computed, without a copy and without looking at them.

    Args:
        positions: A new (k,) array, distinct and ascending from 0, which the caller gives up.
    """
    positions.flags.writeable = False
    support = object.__new__(Listed)
    object.__setattr__(support, "positions", positions)
    return support


def checked_support(made: object, where: str) -> Support:
    """Return what a part made if it is a support; refuse anything else.

    Args:
        made: What a method of a part returned.
        where: What the error begins with, such as `"OwnMask(): select returned"`.

    Raises:
        TypeError: It is no support, such as an array of positions.
    """
    if isinstance(made, (Everywhere, Seeded, Listed)):
        return made
    raise TypeError(f"{where} a {type(made).__name__}: give a support, such as dp.Listed(positions)")


def same_positions(one: Support, other: Support, d: int) -> bool:
    """Return whether two supports of a vector of d hold the same coordinates, however each of them says so."""
    if one == other:
        return True
    return one.count(d) == other.count(d) and bool(np.array_equal(one.indices(d), other.indices(d)))


@lru_cache(maxsize=8)
def _seeded_indices(key: int, k: int, d: int) -> Int64[np.ndarray, "k"]:
    """Return the first k distinct numbers below d in the stream, sorted; if k > d/2, all but the first d − k.

    Only raw words of the cipher are used: NumPy may change its own sampling between versions, and
    then two ends would disagree.
    """
    stream, wanted = ChaCha(key=key, rounds=20), min(k, d - k)
    drawn = np.empty(0, dtype=np.int64)
    while len(drawn) < wanted:
        words = np.asarray(stream.random_raw(2 * (wanted - len(drawn)) + 16)) % np.uint64(d)
        drawn = np.concatenate([drawn, words.astype(np.int64)])
        _, first_draws = np.unique(drawn, return_index=True)
        drawn = drawn[np.sort(first_draws)]
    indices = np.sort(drawn[:wanted])
    if wanted < k:
        rest = np.ones(d, dtype=bool)
        rest[indices] = False
        indices = np.flatnonzero(rest)
    indices.flags.writeable = False
    return indices
