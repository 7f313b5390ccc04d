"""The models of the range coder, which both ends build from the same integers: of gaps, and of groups of layers."""

from functools import lru_cache

import numpy as np
from jaxtyping import Bool, Float64, Int32, Int64

from dpcomp.codec.entropy.alphabet import levels_to_symbols
from dpcomp.core.layout import split_by_counts

ESCAPE = 255  # the symbol of a gap's upper part that is 255 or more: the excess is coded after all gaps
MIDDLE_BITS = 10  # of a gap's middle part, at most; the bits below it are practically uniform
SHARED_BITS = 5  # the leading bits by which layers are compared, before their tables are made
CHUNK_BITS = 16  # that are coded at once where all probabilities are equal
OWN_TABLE_LEVELS = 64  # that a layer with its own table has at least: fewer cannot pay for it, only slow a reader
TABLE_HEADER_BYTES = 4  # of a layer's own table, beside a byte a level


@lru_cache(maxsize=64)
def gap_models(k: int, places: int) -> tuple[int, int, Float64[np.ndarray, "upper"], Float64[np.ndarray, "middle"]]:
    """Return the geometric law of the gaps between k random positions among so many places, as a law of three parts.

    A gap is an upper part, a middle part and lowest bits, which have equal probabilities. For a geometric gap
    the parts are independent, so nothing is lost by the split, and the tables stay short.
    Powers are running products: IEEE multiplication is the same everywhere, `pow` is not.

    Args:
        k: The number of positions, above 0 and below `places`.
        places: The number of candidates.

    Returns:
        The number of middle bits; the number of lowest bits; the weights of the upper part, ESCAPE included; and the
        weights of the middle part.
    """
    bits = max(0, (places // k).bit_length() - 5)
    middle_bits, lowest_bits = min(bits, MIDDLE_BITS), max(0, bits - MIDDLE_BITS)
    miss = (places - k) / places
    for _ in range(lowest_bits):
        miss *= miss
    middle = np.multiply.accumulate(np.concatenate([[1.0], np.full((1 << middle_bits) - 1, miss)]))
    upper = np.multiply.accumulate(np.concatenate([[1.0], np.full(ESCAPE, middle[-1] * miss)]))
    upper[:ESCAPE] -= upper[1:]
    return middle_bits, lowest_bits, upper, middle


def layers_with_own_table(
    levels: Int32[np.ndarray, "m"], counts: Int64[np.ndarray, "layers"]
) -> Bool[np.ndarray, "layers"]:
    """Return which layers save more bits by a frequency table of their own than it costs.

    Args:
        levels: The (m,) levels, layer after layer.
        counts: How many of them each layer has.

    Returns:
        A bool for each layer.
    """
    if np.count_nonzero(counts) < 2:
        return np.zeros(len(counts), dtype=bool)
    lowest = int(levels.min())
    symbols = levels_to_symbols(np.arange(lowest, int(levels.max()) + 1), SHARED_BITS)[0]
    starts = np.flatnonzero(np.diff(symbols, prepend=symbols[0] - 1))  # of the levels that share a symbol
    layers = split_by_counts(levels, counts)
    histograms = [np.bincount(layer - np.int32(lowest), minlength=len(symbols)) for layer in layers]
    frequencies = np.stack([np.add.reduceat(occurrences, starts) for occurrences in histograms])
    pooled = np.log2(np.maximum(frequencies.sum(axis=0), 1) / max(1, len(levels)))
    alone = np.log2(np.maximum(frequencies, 1) / np.maximum(counts, 1)[:, None])
    saved = np.sum(frequencies * (alone - pooled), axis=1)
    return (counts >= OWN_TABLE_LEVELS) & (saved > 8 * (np.count_nonzero(frequencies, axis=1) + TABLE_HEADER_BYTES))
