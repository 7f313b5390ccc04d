"""Standard normal numbers from the key stream of a cipher, for the noise of a release."""

import math

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from jaxtyping import Float64, Int64

LAYERS = 1024  # under the density, of equal area; the low ten bits of a word choose one
TAIL = 4.038849846109504  # where the tail begins, which belongs to the lowest layer
BLOCK = 2**13  # numbers that are drawn at a time: their temporary arrays stay in the processor's cache
LARGEST_COUNT = 2**34  # the cipher counts blocks of eight words with 32 bits

_ZEROS = bytes(8 * BLOCK)


def _edges() -> Float64[np.ndarray, "edges"]:
    """Return the half widths of the layers, from the lowest to an empty one above the top."""
    height = math.exp(-0.5 * TAIL**2)
    area = TAIL * height + math.sqrt(math.pi / 2) * math.erfc(TAIL / math.sqrt(2))
    edges, below_top = [area / height, TAIL], 1 - height  # near the top, 1 − density has digits that the density lacks
    while len(edges) < LAYERS:
        below_top -= area / edges[-1]
        edges.append(math.sqrt(-2 * math.log1p(-below_top)))
    return np.array([*edges, 0.0])


_EDGES = _edges()
_WIDTHS = _EDGES[:-1] * 2.0**-63  # of a layer, for a signed word of 64 bits
_INNER = _EDGES[1:].copy()  # half the width of the layer above: up to it, a layer lies under the density
_HEIGHTS = np.exp(-0.5 * _EDGES**2)


def standard_normal(key: int, count: int) -> Float64[np.ndarray, "count"]:
    """Draw independent numbers of N(0, 1) from the key stream of ChaCha20 (RFC 8439), by a ziggurat.

    A word of 64 bits chooses one of 1024 layers by its low ten bits, and a place in it as a signed number. Of the
    places, 99.6 % lie under the density whatever their height, and are results. The others are decided after all words
    were read, with further words: the lowest layer's by the exact tail (Marsaglia 1964), those of other layers by the
    density at a uniform height, and what lies above it is drawn again.

    **What is exact.** The tail is not cut. Its numbers are made of logarithms of uniform numbers of 128 bits, which
    reach beyond 26, and have their 53 bits but with probability below 2⁻⁸⁶. So a result is a number of the exact law
    but for rounding, by at most 2⁻⁵⁰·max(1, |number|), and for areas of layers that differ by less than 10⁻¹² of them.
    The step of the grid that releases are rounded to is 2⁻²¹ or more: an exact number would have ended in another cell
    with probability below 2⁻²⁷, whatever the sum that it is added to.

    The words are the same on every machine. The last bits of a number may differ between machines whose logarithms and
    exponentials differ: noise is drawn at one end alone, so no two ends have to agree on them. The time of a draw
    depends on the words.

    Source: Marsaglia & Tsang 2000, "The Ziggurat Method for Generating Random Variables". Layer and place share no bits
    above 2⁻⁵³ of the width (Doornik 2005, "An Improved Ziggurat Method to Generate Normal Random Samples").

    Args:
        key: 256 bits, which serve these draws alone.
        count: The number of draws, from 0 to 2³⁴.

    Returns:
        The (count,) numbers.

    Raises:
        ValueError: `count` is larger, and the key stream ends before.
    """
    if count > LARGEST_COUNT:
        raise ValueError(f"{count} normal numbers under one key, which gives {LARGEST_COUNT}: draw them in parts")
    words, numbers = _Words(key), np.empty(count)
    places, layers = _fill(numbers, words)
    while len(places):
        first, second = words.uniform(2 * len(places)).reshape(2, -1)
        at, in_tail = numbers[places], layers == 0
        excess = -np.log(first) / TAIL
        bottom, top = _HEIGHTS.take(layers), _HEIGHTS.take(layers + 1)
        under = bottom + (top - bottom) * first < np.exp(-0.5 * at**2)
        accepted = np.where(in_tail, -2 * np.log(second) > excess**2, under)
        numbers[places] = np.where(in_tail, np.copysign(TAIL + excess, at), at)
        # The tail is tried again where it was not accepted; a place in another layer, from the choice of a layer on.
        tail, others = places[in_tail & ~accepted], places[~in_tail & ~accepted]
        again = np.empty(len(others))
        undecided, layers = _fill(again, words)
        numbers[others] = again
        places = np.concatenate([tail, others[undecided]])
        layers = np.concatenate([np.zeros(len(tail), np.int64), layers])
    return numbers


def _fill(
    numbers: Float64[np.ndarray, "n"], words: "_Words"
) -> tuple[Int64[np.ndarray, "open"], Int64[np.ndarray, "open"]]:
    """Write a place in a layer into each number; return which are not decided yet, and their layers."""
    size = min(len(numbers), BLOCK)
    layer, width, place, beyond = np.empty(size, np.int64), np.empty(size), np.empty(size), np.empty(size, np.bool_)
    undecided, layers = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for start in range(0, len(numbers), BLOCK):
        part = numbers[start : start + BLOCK]
        layer, width, place, beyond = layer[: len(part)], width[: len(part)], place[: len(part)], beyond[: len(part)]
        word = words.read_into(part)
        np.bitwise_and(word, LAYERS - 1, out=layer)
        np.copyto(place, word)
        _WIDTHS.take(layer, out=width, mode="clip")  # nothing is clipped: this mode is the fastest
        np.multiply(place, width, out=part)
        _INNER.take(layer, out=width, mode="clip")
        np.greater_equal(np.abs(part, out=place), width, out=beyond)
        here = beyond.nonzero()[0]
        layers.append(layer.take(here))
        undecided.append(here + start)
    return np.concatenate(undecided), np.concatenate(layers)


class _Words:
    """Read a key stream of ChaCha20 as words of 64 bits, little-endian on every machine.

    Args:
        key: 256 bits.
    """

    def __init__(self, key: int):
        self._stream = Cipher(ChaCha20(key.to_bytes(32, "little"), bytes(16)), mode=None).encryptor()

    def read_into(self, memory: Float64[np.ndarray, "n"]) -> Int64[np.ndarray, "n"]:
        """Write the next words, `BLOCK` at most, over the memory of some numbers; return them as signed integers."""
        self._stream.update_into(_ZEROS[: memory.nbytes], memory.data.cast("B"))
        return memory.view("<i8")

    def uniform(self, count: int) -> Float64[np.ndarray, "count"]:
        """Return uniform numbers in (0, 1], of two words each: 53 bits are right down to 2⁻⁷⁵."""
        memory = np.empty(2 * count)
        for start in range(0, len(memory), BLOCK):
            self.read_into(memory[start : start + BLOCK])
        low, high = memory.view("<u8").astype(np.float64).reshape(2, count)
        return (high + (low + 0.5) * 2.0**-64) * 2.0**-64
