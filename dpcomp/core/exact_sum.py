"""ExactSum: adds vectors without rounding, so that the sum does not depend on the order in which they came."""

import math

import numpy as np
from jaxtyping import Float, Float64, Int64

DIGIT_BITS = 32
LOWEST_DIGIT = -5  # digits below 2⁻¹⁶⁰ are dropped; a float32 has none
MOST_TERMS = 2**30  # digits of so many terms fit into 63 bits
BLOCK = 2**15  # coordinates that are added at a time: their temporary arrays stay in the processor's cache


class ExactSum:
    """The exact sum of vectors of floats, coordinate by coordinate.

    A coordinate is a whole number in base 2³², whose digits are kept as 64-bit integers and carried at the end alone.
    Only digits that occur take memory: three (24 bytes a coordinate) for values from 2⁻⁴⁰ to 2³¹, and never more than
    those from 2⁻¹⁶⁰ to the largest value.

    Source: Kulisch & Miranker 1986, "The Arithmetic of the Digital Computer: A New Approach", section 3.

    Args:
        size: The number of coordinates, d.

    Examples:
        >>> total = ExactSum(1)
        >>> for value in (1e17, 1.0, -1e17):
        ...     total.add(np.array([value]))
        >>> total.rounded().tolist(), 1e17 + 1.0 - 1e17
        ([1.0], 0.0)
    """

    def __init__(self, size: int):
        self._size, self._terms = size, 0
        self._digits: dict[int, np.ndarray] = {}  # place → digits, of weight 2^(32 · place)

    def add(self, values: Float[np.ndarray, "k"], positions: Int64[np.ndarray, "k"] | None = None) -> None:
        """Add a vector.

        Bits of a value below 2⁻¹⁶⁰ are dropped; a float32 has none.

        Args:
            values: (k,) finite numbers, float32 or float64.
            positions: Their (k,) distinct positions; None if there is a value for each of the d coordinates.

        Raises:
            OverflowError: 2³⁰ vectors were added before.
        """
        if self._terms >= MOST_TERMS:
            raise OverflowError(f"{MOST_TERMS} vectors were added, and digits of more do not fit into 64 bits")
        self._terms += 1
        for start in range(0, len(values), BLOCK):
            rest = values[start : start + BLOCK].astype(np.float64)
            where = slice(start, start + len(rest)) if positions is None else positions[start : start + BLOCK]
            place = _highest_place(rest)
            while place >= LOWEST_DIGIT and rest.any():
                digits = np.trunc(rest * 2.0 ** (-DIGIT_BITS * place))
                if digits.any():
                    self._at(place)[where] += digits.astype(np.int64)
                    rest -= digits * 2.0 ** (DIGIT_BITS * place)
                place -= 1

    def rounded(self) -> Float64[np.ndarray, "d"]:
        """Return the (d,) sum, exact where a float64 can hold it, else within a unit in the last place."""
        total = np.zeros(self._size)
        for start in range(0, self._size if self._digits else 0, BLOCK):
            total[start : start + BLOCK] = _rounded(
                {place: digits[start : start + BLOCK] for place, digits in self._digits.items()}
            )
        return total

    def _at(self, place: int) -> Int64[np.ndarray, "d"]:
        if place not in self._digits:
            self._digits[place] = np.zeros(self._size, np.int64)
        return self._digits[place]


def _highest_place(values: Float64[np.ndarray, "k"]) -> int:
    """Return the place of the highest digit that a value has."""
    _, exponent = math.frexp(float(np.abs(values).max(initial=0.0)))
    return (exponent - 1) // DIGIT_BITS


def _rounded(digits: dict[int, Int64[np.ndarray, "k"]]) -> Float64[np.ndarray, "k"]:
    """Return the numbers that have these digits, by place."""
    places = range(min(digits), max(digits) + 1)
    signs = np.where(_carried(digits, places, np.int64(1))[-1] < 0, np.int64(-1), np.int64(1))
    *carried, carry = _carried(digits, places, signs)
    total = np.zeros(len(carry))
    for place, digit in zip(places, carried, strict=True):  # from the lowest: each partial sum is a prefix of bits
        total += digit * 2.0 ** (DIGIT_BITS * place)
    return signs * (total + carry * 2.0 ** (DIGIT_BITS * places.stop))


def _carried(
    digits: dict[int, Int64[np.ndarray, "k"]], places: range, signs: Int64[np.ndarray, "..."] | np.int64
) -> list[Int64[np.ndarray, "k"]]:
    """Return the digits of signs · number, each from 0 to 2³² − 1, and after them the carry, which has the sign."""
    carried: list[np.ndarray] = []
    carry = np.zeros(len(digits[places.start]), np.int64)
    for place in places:
        value = carry if place not in digits else signs * digits[place] + carry
        carried.append(value & (2**DIGIT_BITS - 1))
        carry = value >> DIGIT_BITS
    return [*carried, carry]
