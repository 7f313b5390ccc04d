"""The meter of the range coder: how much of its one stream each part takes."""

from typing import Any

import numpy as np
from jaxtyping import Float64, Int, Int32, Int64

from dpcomp.codec.entropy.bit_packing import packed_bytes
from dpcomp.codec.entropy.coder import PartBits
from dpcomp.codec.entropy.integers import IntegerReader
from dpcomp.codec.entropy.range_reader import RangeReader
from dpcomp.codec.quantize.quantizer import Bounds

PROBABILITY_BITS = 24  # in which the coder holds a probability
PARTS_OF_A_BIT = 2**10  # to which information is rounded: sums of such are exact


class RangeMeter(RangeReader):
    """Decodes a body, and adds up the information of every symbol and the integers that its model takes."""

    def __init__(self, body: bytes | memoryview):
        super().__init__(body)
        whole = IntegerReader(body)
        whole.number()
        self._body_bits, self._header = 8 * len(body), 8 * (len(body) - whole.left)
        self._information = 0.0  # of the symbols so far
        self._packed_bits = 0  # of the integers so far, filled up to whole bytes: they are levels
        self._index = self._side_bits = self._value = 0.0

    def positions(
        self, k: int, edges: Int64[np.ndarray, "layers_plus_one"], previous: Int64[np.ndarray, "k_before"] | None
    ) -> Int64[np.ndarray, "k"]:
        """Decode k positions; the counts that their models are made from are part of the index."""
        information, left = self._information, self._side.left
        positions = super().positions(k, edges, previous)
        self._index += self._information - information + 8 * (left - self._side.left)
        return positions

    def raw(self, length: int) -> memoryview:
        """Return the next bytes unchanged, as side information."""
        self._side_bits += 8 * length
        return super().raw(length)

    def levels(self, counts: Int64[np.ndarray, "layers"], bounds: Bounds) -> Int[np.ndarray, "m"]:
        """Decode the levels, `counts` of them in each layer; their tables are side information."""
        information, left, packed = self._information, self._side.left, self._packed_bits
        levels = super().levels(counts, bounds)
        self._value += self._information - information
        self._side_bits += 8 * (left - self._side.left) - (self._packed_bits - packed)
        return levels

    @property
    def bits(self) -> PartBits:
        """The bits of each part; rounding is what the coder's whole words, and its integer arithmetic, add."""
        index, value = (round(part * PARTS_OF_A_BIT) / PARTS_OF_A_BIT for part in (self._index, self._value))
        rest = self._body_bits - self._header - index - self._side_bits - value
        return PartBits(header=float(self._header), index=index, side=self._side_bits, value=value, rounding=rest)

    def _packed_levels(self, count: int, largest: int) -> Int[np.ndarray, "count"]:
        levels = super()._packed_levels(count, largest)
        self._information += count
        self._packed_bits += 8 * packed_bytes(count, 1)
        return levels

    def _decode(
        self, count: int, weights: Float64[np.ndarray, "alphabet"], model: Any = None
    ) -> Int32[np.ndarray, "count"]:
        symbols = super()._decode(count, weights, model)
        self._information += information(symbols, weights)
        return symbols

    def _equal_probabilities(self, bits: int, count: int) -> Int64[np.ndarray, "count"]:
        self._information += bits * count
        return super()._equal_probabilities(bits, count)


def information(symbols: Int32[np.ndarray, "m"], weights: Float64[np.ndarray, "alphabet"]) -> float:
    """Return −Σ log₂ of the probabilities that the coder gives these symbols, in bits.

    It holds probabilities in 2^24 parts: one for every symbol, so that none is impossible, the others by the weights,
    rounded down cumulatively (constriction's `Categorical(perfect=False)`).
    """
    cuts = np.floor(np.cumsum(weights) * ((2**PROBABILITY_BITS - len(weights)) / weights.sum()))
    parts = np.diff(cuts, prepend=0.0) + 1
    return float(np.bincount(symbols, minlength=len(weights)) @ (PROBABILITY_BITS - np.log2(parts)))
