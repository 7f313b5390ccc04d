"""The models of the range coder, which both ends build from the same integers: of gaps, and of groups of layers."""

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from constriction import stream  # pyright: ignore[reportAttributeAccessIssue]  # a compiled module
from jaxtyping import Bool, Float64, Int, Int64

from dpcomp.codec.entropy.alphabet import levels_to_symbols
from dpcomp.codec.quantize.quantizer import layer_blocks
from dpcomp.codec.rate import entropy_bits

ESCAPE = 255  # the symbol of a gap's upper part that is 255 or more: the excess is coded after all gaps
MIDDLE_BITS = 10  # of a gap's middle part, at most; the bits below it are practically uniform
SHARED_BITS = 5  # the leading bits by which layers are compared, before their tables are made
CHUNK_BITS = 16  # that are coded at once where all probabilities are equal
OWN_TABLE_LEVELS = 64  # that a layer with its own table has at least: fewer cannot pay for it, only slow a reader
TABLE_HEADER_BYTES = 4  # of a layer's own table, beside a byte a level
PACKED = 0  # stands where a table says how many leading bits it has: no table, but a bit a level among the integers
PACKED_LOSS = 2**-8  # of its bits, that a group of two levels may lose by being packed: coding takes 20 times as long


@dataclass(frozen=True, eq=False)
class GapModels:
    """The law of a gap's three parts: an upper part, a middle part, and lowest bits that have equal probabilities.

    Attributes:
        middle_bits: The bits of the middle part.
        lowest_bits: The lowest bits.
        upper: The weights of the upper part, ESCAPE included.
        middle: The weights of the middle part.
    """

    middle_bits: int
    lowest_bits: int
    upper: Float64[np.ndarray, "upper"]
    middle: Float64[np.ndarray, "middle"]

    @cached_property
    def upper_model(self) -> Any:
        """The coder's model of the upper part."""
        return categorical(self.upper)

    @cached_property
    def middle_model(self) -> Any:
        """The coder's model of the middle part; None where it has no bits."""
        return categorical(self.middle) if self.middle_bits else None


def categorical(weights: Float64[np.ndarray, "alphabet"]) -> Any:
    """Return the coder's model of symbols with these weights, of which there are two or more."""
    return stream.model.Categorical(weights, perfect=False)


@lru_cache(maxsize=256)
def gap_models(k: int, places: int) -> GapModels:
    """Return the geometric law of the gaps between k random positions among so many places, as a law of three parts.

    For a geometric gap the parts are independent, so nothing is lost by the split, and the tables stay short.
    Powers are running products: IEEE multiplication is the same everywhere, `pow` is not.

    Args:
        k: The number of positions, above 0 and below `places`.
        places: The number of candidates.

    Returns:
        The bits of the parts, and the weights of those that are not uniform.
    """
    bits = max(0, (places // k).bit_length() - 5)
    middle_bits, lowest_bits = min(bits, MIDDLE_BITS), max(0, bits - MIDDLE_BITS)
    miss = (places - k) / places
    for _ in range(lowest_bits):
        miss *= miss
    middle = np.full(1 << middle_bits, miss)
    middle[0] = 1.0
    np.multiply.accumulate(middle, out=middle)
    upper = np.full(ESCAPE + 1, middle[-1] * miss)
    upper[0] = 1.0
    np.multiply.accumulate(upper, out=upper)
    upper[:ESCAPE] -= upper[1:]
    return GapModels(middle_bits, lowest_bits, upper, middle)


def layer_histograms(
    levels: Int[np.ndarray, "m"], counts: Int64[np.ndarray, "layers"]
) -> tuple[int, Int64[np.ndarray, "layers symbols"]]:
    """Count how often each level occurs in each layer.

    Args:
        levels: The (m,) levels, layer after layer; one at least.
        counts: How many of them each layer has.

    Returns:
        The lowest level; and for each layer the occurrences of all levels from it to the highest.
    """
    lowest = int(np.minimum.reduce(levels))
    symbols = int(np.maximum.reduce(levels)) - lowest + 1
    histograms = np.zeros((len(counts), symbols), dtype=np.int64)
    for block, layers, _ in layer_blocks(counts):
        if symbols == 2 and isinstance(layers, int):  # a bit a level is counted in a fifth of the time
            here = levels[block]
            upper = np.count_nonzero(here.view(bool) if lowest == 0 and here.itemsize == 1 else here != lowest)
            histograms[layers] += (block.stop - block.start - upper, upper)
            continue
        places = levels[block] - np.int64(lowest)
        if isinstance(layers, int):
            histograms[layers] += np.bincount(places, minlength=symbols)
        else:
            places += layers * symbols
            found = np.bincount(places, minlength=histograms.size).reshape(histograms.shape)
            if len(levels) == len(places):
                return lowest, found
            histograms += found
    return lowest, histograms


def layers_with_own_table(
    lowest: int, histograms: Int64[np.ndarray, "layers symbols"], counts: Int64[np.ndarray, "layers"]
) -> Bool[np.ndarray, "layers"]:
    """Return which layers save more bits by a frequency table of their own than it costs.

    Args:
        lowest: The lowest level of all.
        histograms: The occurrences of each level in each layer, from the lowest on.
        counts: The number of levels in each layer.

    Returns:
        A bool for each layer.
    """
    large = counts >= OWN_TABLE_LEVELS
    if not large.any() or np.count_nonzero(counts) < 2:
        return np.zeros(len(counts), dtype=bool)
    frequencies = histograms
    if max(-lowest, lowest + histograms.shape[1] - 1) >= 1 << SHARED_BITS:  # else each level has a symbol of its own
        symbols = levels_to_symbols(np.arange(lowest, lowest + histograms.shape[1]), SHARED_BITS)[0]
        starts = np.flatnonzero(np.diff(symbols, prepend=symbols[0] - 1))  # of the levels that share a symbol
        frequencies = np.add.reduceat(histograms, starts, axis=1)
    together = np.add.reduce(frequencies, axis=0)
    pooled = np.log2(np.maximum(together, 1) / max(1, int(np.add.reduce(together))))
    saved = np.log2(np.maximum(frequencies, 1) / np.maximum(counts, 1)[:, None])
    saved -= pooled
    saved *= frequencies
    table_bytes = np.add.reduce(frequencies > 0, axis=1) + TABLE_HEADER_BYTES
    return large & (np.add.reduce(saved, axis=1) > 8 * table_bytes)


def packs(occurrences: Int64[np.ndarray, "present"]) -> bool:
    """Return whether a group of levels is packed in a bit each: there are two levels, and coding would save nothing.

    Args:
        occurrences: How often each level that is present occurs.
    """
    if len(occurrences) != 2:
        return False
    count = int(occurrences.sum())
    return entropy_bits(occurrences) * count + 8 * TABLE_HEADER_BYTES > (1 - PACKED_LOSS) * count
