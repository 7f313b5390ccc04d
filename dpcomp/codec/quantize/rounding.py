"""Rounding of scaled values to whole numbers: to the nearest, stochastic, or with subtractive dither."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32
from randomgen import ChaCha

DRAW_BLOCK = 2**16  # numbers that are drawn at once; even, for a word of the cipher makes two


@runtime_checkable
class Rounding(Protocol):
    """The protocol of a rounding rule, given to `Uniform(rounding=...)`.

    A value x in a layer with step Δ has the level n = rint(x/Δ + sender_offset), and is decoded as
    (n − receiver_offset)·Δ. Both offsets must be the same bits on every machine, and lie in [−½, ½]: then no
    level beyond the largest ratio is needed.

    Attributes:
        unbiased: Whether the expected decoded value is the value, over the key.
    """

    unbiased: bool

    def sender_offset(self, count: int, dither_key: int) -> Float32[np.ndarray, "count"] | float:
        """Return what the sender adds to the ratios x/Δ before rounding to the nearest, for `count` values."""
        ...

    def receiver_offset(self, count: int, dither_key: int) -> Float32[np.ndarray, "count"] | float:
        """Return what the receiver subtracts from the levels before scaling, for `count` values."""
        ...


@dataclass(frozen=True)
class Nearest:
    """Round each value, in units of the quantiser's step Δ, to the nearest whole number.

    It has the smallest error of each value, at most Δ/2, but is biased: the error is a function of the value, and does
    not average out over clients or rounds. Use it with error feedback.
    """

    unbiased = False

    def sender_offset(self, count: int, dither_key: int) -> float:
        """Return 0."""
        return 0.0

    def receiver_offset(self, count: int, dither_key: int) -> float:
        """Return 0."""
        return 0.0


@dataclass(frozen=True)
class Stochastic:
    """Round up or down at random, with probabilities that make the mean right (Alistarh et al. 2017, QSGD, §3.1).

    Unbiased; the variance is Δ²·f(1 − f) for a value a fraction f between two levels, Δ²/6 on average, twice that of
    `Nearest`.

    **Privacy:** post-processing of a release. The random numbers come from a public key, so that a payload can be made
    again; they hide nothing (PRIVACY_RULES 16).
    """

    unbiased = True

    def sender_offset(self, count: int, dither_key: int) -> Float32[np.ndarray, "count"]:
        """Return uniform numbers on (−½, ½)."""
        return centred_uniform(count, dither_key)

    def receiver_offset(self, count: int, dither_key: int) -> float:
        """Return 0: the receiver needs no randomness."""
        return 0.0


@dataclass(frozen=True)
class Dithered:
    """Round to the nearest with subtractive dither, noise that both ends draw (Roberts 1962; Gray & Stockham 1993).

    Unbiased, and the error is uniform on (−Δ/2, Δ/2) whatever the value is: variance Δ²/12, half that of `Stochastic`
    at the same step. Zeros are decoded as the dither, so sparse values lose their zeros.

    **Privacy:** post-processing of a release. The dither is public, so it hides nothing (PRIVACY_RULES 16).
    """

    unbiased = True

    def sender_offset(self, count: int, dither_key: int) -> Float32[np.ndarray, "count"]:
        """Return uniform numbers on (−½, ½)."""
        return centred_uniform(count, dither_key)

    def receiver_offset(self, count: int, dither_key: int) -> Float32[np.ndarray, "count"]:
        """Return the same numbers as the sender's."""
        return centred_uniform(count, dither_key)


def centred_uniform(count: int, key: int) -> Float32[np.ndarray, "count"]:
    """Draw numbers on (−½, ½) in steps of 2⁻²³, from raw words of the cipher: the same on every machine."""
    stream, numbers = ChaCha(key=key, rounds=20), np.empty(count, dtype=np.float32)
    for start in range(0, count, DRAW_BLOCK):
        here = numbers[start : start + DRAW_BLOCK]
        words = np.asarray(stream.random_raw((len(here) + 1) // 2)).astype("<u8").view("<u4")[: len(here)]
        here[:] = words >> 9
    numbers -= np.float32(2**22 - 0.5)
    numbers *= np.float32(2.0**-23)
    return numbers
