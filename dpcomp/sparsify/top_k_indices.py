"""Exact selection of the k largest magnitudes, in about the time it takes to read the vector."""

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64, UInt

SCAN_BLOCK = 2**18  # coordinates scanned at once: their keys about fill a core's own cache; fewer cost more calls
PARTITIONED = 2**17  # coordinates up to which passes over all keys take less time than a scan block by block
PARTITIONED_WHOLE = 2**14  # keys up to which not even a sample of one in 16 is faster
SAMPLED_OF_FEW = 16
INFINITE = {2: 0xF800, 4: 0xFF000000, 8: 0xFFE0000000000000}  # the key of infinity, by the bytes of a float
SAMPLE_SIZE = 2**16  # magnitudes at most, and one in 64: more of them cost more than the better bound saves


def top_k_indices(x: Any, k: int) -> Int64[np.ndarray, "k"]:
    """Return the positions of the k largest magnitudes of a vector, ascending; of equal ones the lower position wins.

    The result is exact: that of a full stable sort. A sample gives a threshold that is almost surely a little below the
    k-th magnitude; one pass over the vector collects the few values above it, and only they are ranked. Where the
    threshold was wrong, all magnitudes are partitioned, which takes longer. Everything works on the floats' own bits
    without the sign, unsigned integers that rank as the magnitudes do, with infinity and NaN above all the rest.

    float16, float32 and float64 are ranked as they are, other real numbers as float64. Beside the result it
    holds a few blocks and the candidates; only the partition copies the vector.

    Args:
        x: A (d,) array, or anything that NumPy reads as one: a torch or JAX array on the CPU, a list.
        k: How many positions to return, from 0 to d.

    Returns:
        The (k,) positions, ascending, as int64.

    Raises:
        ValueError: x is not one row, k is not in [0, d], or some value is NaN or infinite.

    Examples:
        >>> top_k_indices([0.5, -4.0, 1.0, 3.0], 2)
        array([1, 3])
    """
    x = np.asarray(x)
    if x.ndim != 1 or not 0 <= k <= len(x):
        raise ValueError(f"top_k_indices: k = {k} of an array of shape {x.shape}; give a row (d,) and 0 ≤ k ≤ d")
    if x.dtype not in (np.float16, np.float32, np.float64):
        x = x.astype(np.float64, casting="same_kind")
    if k == 0:  # the largest magnitude alone says whether all are finite
        return top_k_indices(x, min(1, len(x)))[:0] if len(x) else np.empty(0, dtype=np.int64)
    bits = x.view(f"u{x.dtype.itemsize}")
    if len(bits) <= PARTITIONED:
        return _of_few(bits, k)
    chosen = _by_sample(bits, k)
    return _by_partition(bits, k) if chosen is None else chosen


def top_k_of_sum(
    one: Float32[np.ndarray, "d"], other: Float32[np.ndarray, "d"], k: int, out: Float32[np.ndarray, "d"]
) -> Int64[np.ndarray, "k"]:
    """Add two vectors, and return the positions of the k largest magnitudes of the sum, as `top_k_indices` does.

    The sum is scanned block by block while it is made: memory is read and written once.

    Args:
        one: A (d,) vector.
        other: The other one.
        k: How many positions to return, from 0 to d.
        out: Where the sum is written to, all of it even where an error is raised.

    Returns:
        The (k,) positions, ascending, as int64.

    Raises:
        ValueError: A sum is NaN or infinite.
    """
    if len(out) <= PARTITIONED or not 0 < k < len(out):
        np.add(one, other, out=out)
        return top_k_indices(out, k)
    bits, addends = out.view(np.uint32), (one, other)
    chosen = _by_sample(bits, k, addends)
    return _by_partition(bits, k) if chosen is None else chosen


def _of_few(bits: UInt[np.ndarray, "d"], k: int) -> Int64[np.ndarray, "k"]:
    """Return the positions of the k largest of a short vector, by a partition of its keys.

    Above PARTITIONED_WHOLE only the keys above a sampled threshold are partitioned, if these are k or more.
    """
    keys, d = _keys(bits), len(bits)
    n = d // SAMPLED_OF_FEW
    rank = _four_deviations_above(n * k / d)
    candidates, ranked = None, keys
    if d > PARTITIONED_WHOLE and 4 * rank < n:  # else the sample leaves too many
        above = np.flatnonzero(keys >= _kth(keys.take(sample_positions(d, n)), rank))
        if len(above) >= k:
            candidates, ranked = above, keys.take(above)
    kth = _kth(ranked.copy(), k)
    chosen = np.flatnonzero(ranked >= kth)
    of_chosen = ranked.take(chosen)
    if candidates is not None:
        chosen = candidates.take(chosen)
    _refuse_unranked(bits, np.maximum.reduce(of_chosen))
    surplus = len(chosen) - k
    return np.delete(chosen, np.flatnonzero(of_chosen == kth)[-surplus:]) if surplus else chosen


@lru_cache(maxsize=8)
def sample_positions(d: int, n: int) -> Int64[np.ndarray, "n"]:
    """Return one position out of each of n equal stretches of d coordinates, the same at every call.

    From stretch to stretch the position within it moves by the golden ratio (Knuth, TAOCP 3, 6.4): an even stride would
    meet only one weight of every 3 x 3 kernel, whenever 9 divides it.
    """
    stretch, numbers = d // n, np.arange(n, dtype=np.int64)
    positions = numbers * stretch + ((numbers * 2654435769 % 2**32 * stretch) >> 32)
    positions.flags.writeable = False
    return positions


def _by_sample(
    bits: UInt[np.ndarray, "d"], k: int, addends: tuple[np.ndarray, np.ndarray] | None = None
) -> Int64[np.ndarray, "k"] | None:
    """Return the positions of the k largest, if the threshold from a sample leads to them; otherwise None.

    With addends, the floats of the bits are first written, as their sums.

    The number of sampled keys among the k largest has a standard deviation of at most the root of its
    expectation; four of them on either side miss about once in 10,000 vectors. Where fewer than k keys exceed
    the threshold, it is the k-th key if enough are equal to it: of a vector that is nearly all zeros the first
    zeros are taken, and nothing is ranked.
    """
    d = len(bits)
    n = min(d // 64, SAMPLE_SIZE)
    rank = _four_deviations_above(n * k / d)
    if rank >= n:
        _add(addends, bits, slice(None))
        return None
    places = sample_positions(d, n)
    sampled = bits[places] if addends is None else (addends[0][places] + addends[1][places]).view(bits.dtype)
    sample = _keys(sampled)
    threshold, limit = _kth(sample, rank), _four_deviations_above(rank) * d // n
    above, keys = _first_positions(bits, np.greater, threshold, limit + 1, addends)
    _refuse_unranked(bits, keys.max(initial=threshold))
    if len(above) > limit:
        return None
    if len(above) >= k:
        kth = _kth(keys.copy(), k)
        kept = keys > kth
        kept[np.flatnonzero(keys == kth)[: k - np.count_nonzero(kept)]] = True
        return above[kept]
    if np.count_nonzero(sample == threshold) == 1:  # hardly equal to many: looking for them would cost a pass
        return None
    ties, _ = _first_positions(bits, np.equal, threshold, k - len(above))
    return _merge_ascending(above, ties) if len(above) + len(ties) == k else None


def _four_deviations_above(count: float) -> int:
    return int(count + 4 * math.sqrt(count) + 4)


def _by_partition(bits: UInt[np.ndarray, "d"], k: int) -> Int64[np.ndarray, "k"]:
    """Return the positions of the k largest, by a partition of all keys that gives the k-th."""
    kth, room = _kth(_keys(bits), k), k + SCAN_BLOCK
    candidates, keys = _first_positions(bits, np.greater_equal, kth, room)
    if len(candidates) < room:  # all of them, and as a rule no tie too many
        _refuse_unranked(bits, keys.max())
        surplus = len(candidates) - k
        return np.delete(candidates, np.flatnonzero(keys == kth)[-surplus:]) if surplus else candidates
    above, keys = _first_positions(bits, np.greater, kth, k)
    _refuse_unranked(bits, keys.max(initial=kth))
    ties, _ = _first_positions(bits, np.equal, kth, k - len(above))
    return _merge_ascending(above, ties)


def _refuse_unranked(bits: UInt[np.ndarray, "d"], largest: Any) -> None:
    """Raise ValueError if the largest key is not that of a finite number; it counts all such values."""
    if largest >= INFINITE[bits.dtype.itemsize]:
        unranked = len(bits) - int(np.count_nonzero(np.isfinite(bits.view(f"f{bits.dtype.itemsize}"))))
        raise ValueError(f"top_k_indices: {unranked} of {len(bits)} values are NaN or infinite: they have no rank")


def _merge_ascending(above: Int64[np.ndarray, "m"], ties: Int64[np.ndarray, "n"]) -> Int64[np.ndarray, "k"]:
    return np.sort(np.concatenate([above, ties]), kind="stable")  # it merges ascending runs


def _kth(keys: UInt[np.ndarray, "d"], k: int) -> Any:
    """Return the k-th largest key; the array is left in another order."""
    keys.partition(len(keys) - k)
    return keys[len(keys) - k]


def _first_positions(
    bits: UInt[np.ndarray, "d"],
    compare: Callable[..., np.ndarray],
    threshold: Any,
    limit: int,
    addends: tuple[np.ndarray, np.ndarray] | None = None,
) -> tuple[Int64[np.ndarray, "m"], UInt[np.ndarray, "m"]]:
    """Return the first positions, at most `limit`, whose keys satisfy the comparison with the threshold; and the keys.

    NumPy looks up sparse hits one by one, at 20 ns each. There are at most an eighth as many words of eight hits that
    hold any; and it is faster still where a tenth of all are true, so as many are added after the end, and cut off.
    """
    positions, found_keys = np.empty(limit, dtype=np.int64), np.empty(limit, dtype=bits.dtype)
    size = min(SCAN_BLOCK, -(-len(bits) // 8) * 8)  # whole words of eight hits
    keys, hits = np.empty(size, dtype=bits.dtype), np.empty(size, dtype=bool)
    words, occupied = hits.view(np.uint64), np.ones(size // 8 + size // 64 + 1, dtype=bool)
    count = 0
    for start in range(0, len(bits), SCAN_BLOCK):
        block = bits[start : start + SCAN_BLOCK]
        _add(addends, bits, slice(start, start + SCAN_BLOCK))
        _keys(block, out=keys[: len(block)])
        compare(keys[: len(block)], threshold, out=hits[: len(block)])
        hits[len(block) :] = False
        np.not_equal(words, 0, out=occupied[: len(words)])
        places = np.flatnonzero(occupied)[: len(words) - len(occupied)]
        among = np.flatnonzero(words[places].view(bool))
        within = (places[among >> 3] * 8 + (among & 7))[: limit - count]
        end = count + len(within)
        np.add(within, start, out=positions[count:end])
        keys.take(within, out=found_keys[count:end], mode="clip")
        count = end
        if count == limit:
            _add(addends, bits, slice(start + SCAN_BLOCK, None))
            break
    return positions[:count], found_keys[:count]


def _add(addends: tuple[np.ndarray, np.ndarray] | None, bits: UInt[np.ndarray, "d"], where: slice) -> None:
    """Write the sums of the addends, if there are any, as the floats of the bits."""
    if addends is not None:
        np.add(addends[0][where], addends[1][where], out=bits[where].view(addends[0].dtype))


def _keys(bits: UInt[np.ndarray, "d"], out: UInt[np.ndarray, "d"] | None = None) -> UInt[np.ndarray, "d"]:
    """Return the bits of floats without the sign, which doubling shifts out."""
    return np.add(bits, bits, out=out)
