"""Supports: which coordinates of a vector an update holds."""

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
from jaxtyping import Int64, UInt64
from randomgen import ChaCha

from dpcomp.core.checks import whole_number
from dpcomp.display.text import outline

MOST_PLACES = 2**40  # that `Dealt` deals to: more than clients and rounds together
FEISTEL_ROUNDS = 8
SHOWN = 16  # positions that a repr lists
GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2⁶⁴ ÷ the golden ratio, which spreads the numbers of permutations


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
        seed = whole_number(self.seed, "Seeded(seed), a key such as context.mask_key,", least=0, most=2**256 - 1)
        object.__setattr__(self, "seed", seed)
        object.__setattr__(self, "k", whole_number(self.k, "Seeded(k)", least=0))

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


@dataclass(frozen=True)
class Dealt:
    """A support that a public permutation deals to places, k coordinates each, such as a place for each client.

    The first d // k places share no coordinate; so do the next ones, under another permutation, and so on. Whoever has
    the key computes the positions of a place in time O(k), so none is sent. Of several places it is the union.

    Attributes:
        seed: A public key of 256 bits, such as `PublicContext.mask_key`; not a `PublicSeed`.
        k: The number of coordinates of a place.
        places: The places, whole numbers from 0, distinct and ascending.

    Raises:
        TypeError: One of the numbers is not a whole number.
        ValueError: A number is negative, the key has more than 256 bits, or the places are not distinct and ascending.

    Examples:
        >>> import dpcomp as dp
        >>> one, other = (dp.Dealt(seed=7, k=100, places=(place,)).indices(1000) for place in (3, 8))
        >>> len(one), len(np.intersect1d(one, other))
        (100, 0)
        >>> dp.Dealt(seed=7, k=100, places=(3, 8)).count(1000)
        200
    """

    seed: int
    k: int
    places: tuple[int, ...]

    def __post_init__(self):
        seed = whole_number(self.seed, "Dealt(seed), a key such as context.mask_key,", least=0, most=2**256 - 1)
        object.__setattr__(self, "seed", seed)
        object.__setattr__(self, "k", whole_number(self.k, "Dealt(k)", least=1))
        places = [whole_number(each, "Dealt(places): a place", least=0, most=MOST_PLACES - 1) for each in self.places]
        object.__setattr__(self, "places", tuple(places))
        if any(one >= other for one, other in pairwise(places)):
            raise ValueError(f"Dealt(places={self.places}): give distinct places in ascending order")

    def count(self, d: int) -> int:
        """Return the number of coordinates held of d.

        Raises:
            ValueError: k is above d.
        """
        if self.k > d:
            raise ValueError(f"Dealt: cannot deal {self.k} of {d} coordinates to a place")
        return self.k * len(self.places) if len(self.places) < 2 else len(self.indices(d))

    def indices(self, d: int) -> Int64[np.ndarray, "k"]:
        """Return the positions below d, ascending; the array is read-only and cached.

        Raises:
            ValueError: k is above d.
        """
        if self.k > d:
            self.count(d)
        return _dealt_indices(self.seed, self.k, self.places, d)

    def alike(self, other: object) -> bool:
        """Return whether another support was dealt by the same permutations, to whatever places."""
        return isinstance(other, Dealt) and (other.seed, other.k) == (self.seed, self.k)

    def union(self, other: "Dealt") -> "Dealt":
        """Return the support of the places of both, which one key dealt.

        Raises:
            ValueError: The other was dealt by another key, or in other numbers.
        """
        if not self.alike(other):
            raise ValueError(f"{self} and {other} were dealt by different permutations: they have no common union")
        return Dealt(seed=self.seed, k=self.k, places=tuple(sorted({*self.places, *other.places})))


@dataclass(frozen=True, eq=False, repr=False)
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

    def __repr__(self) -> str:
        return outline(self) if len(self.positions) > SHOWN else f"Listed(positions={self.positions!r})"

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


Support = Everywhere | Seeded | Dealt | Listed


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
    if isinstance(made, (Everywhere, Seeded, Dealt, Listed)):
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


@lru_cache(maxsize=64)
def _dealt_indices(key: int, k: int, places: tuple[int, ...], d: int) -> Int64[np.ndarray, "k"]:
    """Return the positions of places, sorted and distinct."""
    together = d // k  # places that one permutation has coordinates for
    dealt = np.array(places, dtype=np.int64)
    slots = (dealt % together * k)[:, None] + np.arange(k, dtype=np.int64)
    indices = np.unique(_permuted(slots, key, dealt // together, d))
    indices.flags.writeable = False
    return indices


def _permuted(
    slots: Int64[np.ndarray, "p k"], key: int, numbers: Int64[np.ndarray, "p"], d: int
) -> Int64[np.ndarray, "pk"]:
    """Return where permutations of the numbers below d take some of them, each row by the permutation of its number.

    All rows are computed together, since the places of a large cohort may have a permutation each.

    A Feistel network permutes the 4ᵇ numbers of 2b bits; what leaves the numbers below d goes through it again, until
    it is back (Black & Rogaway 2002, "Ciphers with Arbitrary Finite Domains", methods 2 and 3). Its round functions
    mix bits and keep no secret: the key is public. All of it is arithmetic of 64-bit words, the same on any machine.
    """
    half = max(1, ((d - 1).bit_length() + 1) // 2)
    words = np.asarray(ChaCha(key=key, rounds=20).random_raw(FEISTEL_ROUNDS)).astype(np.uint64)
    keys = _mixed(words[:, None] + GOLDEN * numbers.astype(np.uint64))
    shift, low = np.uint64(half), np.uint64(2**half - 1)
    moved = slots.ravel().astype(np.uint64)
    outside = np.arange(len(moved))
    while len(outside):
        left, right = moved[outside] >> shift, moved[outside] & low
        own = outside // slots.shape[1]
        for each in keys:
            left, right = right, left ^ (_mixed(right + each[own]) & low)
        moved[outside] = left << shift | right
        outside = outside[moved[outside] >= np.uint64(d)]
    return moved.astype(np.int64)


def _mixed(words: UInt64[np.ndarray, "..."]) -> UInt64[np.ndarray, "..."]:
    """Mix the bits of words (the finaliser of SplitMix64: Steele, Lea & Flood 2014, Figure 13)."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
