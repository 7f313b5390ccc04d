"""The models of the range coder, which both ends build from the same integers: of gaps, and of groups of layers."""

from functools import lru_cache

import numpy as np
from jaxtyping import Bool, Float64, Int32, Int64

from dpcomp.codec.entropy.alphabet import leading_bits
from dpcomp.core.layout import split_by_counts

FAR = 255  # the symbol of a gap's upper part that says: 255 more, and what is beyond them stands at the end
TABLE_BITS = 10  # of a gap's middle part; the bits below it are as good as random
SHARED_BITS = 5  # the leading bits by which layers are compared, before their tables are made
CHUNK_BITS = 16  # that are coded at once where all chances are equal
OWN_FROM = 64  # values that a layer with a table of its own has: fewer cannot pay for it, only slow a reader down
TABLE_BYTES = 4  # what stands before a table of its own, beside a byte a level


@lru_cache(maxsize=64)
def gap_models(k: int, places: int) -> tuple[int, int, Float64[np.ndarray, "high"], Float64[np.ndarray, "low"]]:
    """The geometric law of gaps with success k/places, in three parts: bits of the middle and of the lowest, and
    the chances of the upper and the middle part; the lowest bits have equal chances.

    For a geometric gap the parts are independent, so nothing is lost by the split, and the tables stay short.
    Powers are running products: IEEE multiplication is the same everywhere, `pow` is not.
    """
    bits = max(0, (places // k).bit_length() - 5)
    low_bits, rest_bits = min(bits, TABLE_BITS), max(0, bits - TABLE_BITS)
    miss = (places - k) / places
    for _ in range(rest_bits):
        miss *= miss
    low = np.multiply.accumulate(np.concatenate([[1.0], np.full((1 << low_bits) - 1, miss)]))
    high = np.multiply.accumulate(np.concatenate([[1.0], np.full(FAR, low[-1] * miss)]))
    high[:FAR] -= high[1:]
    return low_bits, rest_bits, high, low


def own_tables(levels: Int32[np.ndarray, "m"], counts: Int64[np.ndarray, "layers"]) -> Bool[np.ndarray, "layers"]:
    """Which layers save more by a table of their own than it costs."""
    if np.count_nonzero(counts) < 2:
        return np.zeros(len(counts), dtype=bool)
    lowest = int(levels.min())
    symbols = leading_bits(np.arange(lowest, int(levels.max()) + 1), SHARED_BITS)[0]
    starts = np.flatnonzero(np.diff(symbols, prepend=symbols[0] - 1))  # of the levels that share a symbol
    layers = split_by_counts(levels, counts)
    found = [np.bincount(layer - np.int32(lowest), minlength=len(symbols)) for layer in layers]
    frequencies = np.stack([np.add.reduceat(occurrences, starts) for occurrences in found])
    pooled = np.log2(np.maximum(frequencies.sum(axis=0), 1) / max(1, len(levels)))
    alone = np.log2(np.maximum(frequencies, 1) / np.maximum(counts, 1)[:, None])
    saved = np.sum(frequencies * (alone - pooled), axis=1)
    return (counts >= OWN_FROM) & (saved > 8 * (np.count_nonzero(frequencies, axis=1) + TABLE_BYTES))
