"""How a scaled value becomes a whole number, and what is taken off again."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32
from randomgen import ChaCha

BLOCK = 2**16  # numbers that are drawn at once; even, for a word of the cipher makes two


@runtime_checkable
class Rounding(Protocol):
    """Whole numbers are rint(ratio + shift); `taken_off` of them, before they are scaled back.

    A shift lies within half a step, so no level is needed beyond the largest ratio.
    """

    unbiased: bool

    def shift(self, count: int, dither_key: int) -> Float32[np.ndarray, "count"] | float:
        """What is added before rounding to the nearest."""
        ...

    def taken_off(self, count: int, dither_key: int) -> Float32[np.ndarray, "count"] | float:
        """What is subtracted after."""
        ...


@dataclass(frozen=True)
class Nearest:
    """To the nearest whole number. Biased: the error of a value is fixed by the value."""

    unbiased = False

    def shift(self, count: int, dither_key: int) -> float:
        """Nothing."""
        return 0.0

    def taken_off(self, count: int, dither_key: int) -> float:
        """Nothing."""
        return 0.0


@dataclass(frozen=True)
class Stochastic:
    """Up or down, with chances that make the mean right (Alistarh et al. 2017, QSGD, §3.1)."""

    unbiased = True

    def shift(self, count: int, dither_key: int) -> Float32[np.ndarray, "count"]:
        """Uniform on (−½, ½): the sender's alone to know, yet public, so that a payload can be made again."""
        return centred_uniform(count, dither_key)

    def taken_off(self, count: int, dither_key: int) -> float:
        """Nothing: the receiver needs no randomness."""
        return 0.0


@dataclass(frozen=True)
class Dithered:
    """To the nearest, with a public dither that the receiver takes off again (Roberts 1962; Gray & Stockham 1993).

    Unbiased, and the error is uniform on half a step either way whatever the value is.

    **Privacy:** post-processing of a release. The dither is public, so it hides nothing (PRIVACY_RULES 16).
    """

    unbiased = True

    def shift(self, count: int, dither_key: int) -> Float32[np.ndarray, "count"]:
        """Uniform on (−½, ½)."""
        return centred_uniform(count, dither_key)

    def taken_off(self, count: int, dither_key: int) -> Float32[np.ndarray, "count"]:
        """The same."""
        return centred_uniform(count, dither_key)


def centred_uniform(count: int, key: int) -> Float32[np.ndarray, "count"]:
    """Numbers on (−½, ½) in steps of 2^−23, from raw words of the cipher: the same on every machine."""
    stream, numbers = ChaCha(key=key, rounds=20), np.empty(count, dtype=np.float32)
    for start in range(0, count, BLOCK):
        here = numbers[start : start + BLOCK]
        words = np.asarray(stream.random_raw((len(here) + 1) // 2)).astype("<u8").view("<u4")[: len(here)]
        here[:] = words >> 9
    numbers -= np.float32(2**22 - 0.5)
    numbers *= np.float32(2.0**-23)
    return numbers
