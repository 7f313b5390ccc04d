"""The secret numbers of a layered quantiser, from the words of a cipher: the same bits on every machine."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64
from randomgen import ChaCha

BLOCK = 2**12  # logarithms at a time: their temporary arrays stay in the processor's cache
SPARE = 16  # points drawn beyond those that are expected to be needed
INSIDE = 0.78  # of points in a square, fewer than lie inside its circle

# The logarithm of FreeBSD's msun (e_log.c, Sun Microsystems 1993): log(1 + f) is a polynomial in (f / (2 + f))².
_LN2_HIGH, _LN2_LOW = 6.93147180369123816490e-01, 1.90821492927058770002e-10
_EVEN = (3.999999999940941908e-01, 2.222219843214978396e-01, 1.531383769920937332e-01)
_ODD = (6.666666666666735130e-01, 2.857142874366239149e-01, 1.818357216161805012e-01, 1.479819860511658591e-01)


class Layers(NamedTuple):
    """The layer and the dither of each value.

    Attributes:
        dither: (n,) numbers u, uniform on (−½, ½), in odd multiples of 2⁻⁵³.
        half: (n,) half the width of the layer that was drawn, in standard deviations of the error.
    """

    dither: Float64[np.ndarray, "n"]
    half: Float64[np.ndarray, "n"]


class LayerStream:
    """Draws layers and dither from the key stream of ChaCha20.

    A Gaussian density is a mixture of uniform ones: with a height drawn under it at random, the layer at that height
    reaches from −h to h, and a number that is uniform on it is Gaussian (Hegazy & Li 2022, §III). h² is the sum of the
    squares of a normal number and of −2·ln(v) for a uniform v, which has the law of χ² with three degrees of freedom.

    **The same everywhere.** Both ends have to draw the same bits, so what is computed of the words uses the operations
    that IEEE 754 rounds alike on every machine: + − × ÷ and the square root, one after the other, and no function of
    the system's library, whose last bits differ.

    Args:
        key: 256 bits, which serve one message.
    """

    def __init__(self, key: int):
        self._stream = ChaCha(key=key, rounds=20)

    def draw(self, count: int) -> Layers:
        """Draw the layers and the dither of the next values.

        Args:
            count: The number n of values.
        """
        dither = (self._words(count) >> np.uint64(12)).astype(np.float64)
        dither += 0.5
        dither *= 2.0**-52
        dither -= 0.5
        high, low = self._words(2 * count).astype(np.float64).reshape(2, count)
        square = natural_logarithm((high + (low + 0.5) * 2.0**-64) * 2.0**-64)
        square += self._half_normal_squares(count)
        square *= -2.0
        return Layers(dither, np.sqrt(square))

    def _half_normal_squares(self, count: int) -> Float64[np.ndarray, "n"]:
        """Return −½ times the squares of normal numbers, by the polar method (Marsaglia & Bray 1964)."""
        squares = np.empty(count)
        filled = 0
        while filled < count:
            missing = count - filled
            words = self._words(int(missing / INSIDE) + SPARE)
            first, second = ((words.view("<i4").reshape(-1, 2) + 0.5) * 2.0**-31).T
            first, radius = first * first, first * first + second * second
            inside = np.flatnonzero(radius < 1.0)[:missing]
            first, radius = first[inside], radius[inside]
            squares[filled : filled + len(inside)] = natural_logarithm(radius) * (first / radius)
            filled += len(inside)
        return squares

    def _words(self, count: int) -> Any:
        return np.asarray(self._stream.random_raw(count), dtype=np.uint64).astype("<u8")


def natural_logarithm(numbers: Float64[np.ndarray, "n"]) -> Float64[np.ndarray, "n"]:
    """Return the logarithms of positive normal numbers, within a unit in the last place and the same everywhere.

    Args:
        numbers: (n,) numbers.
    """
    logarithms = np.empty(len(numbers))
    for start in range(0, len(numbers), BLOCK):
        logarithms[start : start + BLOCK] = _block_of_logarithms(numbers[start : start + BLOCK])
    return logarithms


def _block_of_logarithms(numbers: Float64[np.ndarray, "n"]) -> Float64[np.ndarray, "n"]:
    fraction, exponent = np.frexp(numbers)
    small = fraction < 0.7071067811865476
    fraction, exponent = np.where(small, 2 * fraction, fraction), (exponent - small).astype(np.float64)
    f = fraction - 1.0
    s = f / (2.0 + f)
    z = s * s
    w = z * z
    even = w * (_EVEN[0] + w * (_EVEN[1] + w * _EVEN[2]))
    odd = z * (_ODD[0] + w * (_ODD[1] + w * (_ODD[2] + w * _ODD[3])))
    half_square = 0.5 * f * f
    correction = s * (half_square + (even + odd)) + exponent * _LN2_LOW
    return exponent * _LN2_HIGH - ((half_square - correction) - f)
