"""Entropy coding with a range coder, under models that both ends build from the same integers.

Positions are coded as gaps under the geometric law of a random support, in the worlds where they are cheapest;
levels under tables of their frequencies, a layer with its own where that pays. The coder is constriction's
(Bamler 2022, 2201.01741).
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from constriction import stream  # pyright: ignore[reportAttributeAccessIssue]  # a compiled module
from jaxtyping import Bool, Float64, Int, Int32, Int64

from dpcomp.codec.entropy.alphabet import Alphabet, leading_bits, without_low_bits
from dpcomp.codec.entropy.integers import IntegerReader, IntegerWriter
from dpcomp.codec.entropy.positions import World, merged, split
from dpcomp.codec.quantize.quantizer import Bounds
from dpcomp.errors import CorruptPayload

FAR = 255  # the symbol of a gap's upper part that says: 255 more, and read on
TABLE_BITS = 10  # of a gap's middle part; the bits below it are as good as random
SHARED_BITS = 5  # the leading bits by which layers are compared, before their tables are made


class RangeWriter:
    """Codes one body: the integers of all models first, then one range-coded stream."""

    def __init__(self):
        self._side, self._coder = IntegerWriter(), stream.queue.RangeEncoder()

    def positions(
        self,
        positions: Int64[np.ndarray, "k"],
        edges: Int64[np.ndarray, "layers_plus_one"],
        previous: Int64[np.ndarray, "k_before"] | None,
    ) -> None:
        """Ascending positions in the layers between the edges; `previous` are the last ones, if they are known."""
        alone = _cheaper(World(positions, edges))
        worlds = [] if previous is None else [_cheaper(world) for world in split(positions, previous, edges)]
        if not worlds or alone.bits <= sum(world.bits for world in worlds):
            worlds = [alone]
        self._side.number(len(worlds))
        for world in worlds:
            self._side.number(len(world.edges) - 1)
            starts = np.searchsorted(world.ranks, world.edges)
            for places, first, start, stop in zip(np.diff(world.edges), world.edges, starts, starts[1:], strict=False):
                if places:
                    self._side.number(int(stop - start))
                    self._gaps(world.ranks[start:stop] - first, int(places))

    def raw(self, part: bytes) -> None:
        """Bytes as they are."""
        self._side.raw(part)

    def levels(self, levels: Int32[np.ndarray, "m"], counts: Int64[np.ndarray, "layers"], bounds: Bounds) -> None:
        """Levels, `counts` of them a layer."""
        levels, counts = levels[np.repeat(bounds.coded, counts)], np.where(bounds.coded, counts, 0)
        own = _own_tables(levels, counts)
        self._side.raw(np.packbits(own).tobytes())
        for members in _groups(own, counts):
            self._group(levels[np.repeat(members, counts)])

    def finish(self) -> bytes:
        """The length of the integers, the integers, and the coded words."""
        length, side = IntegerWriter(), self._side.finish()
        length.number(len(side))
        return length.finish() + side + self._coder.get_compressed().astype("<u4").tobytes()

    def _gaps(self, ranks: Int64[np.ndarray, "k"], places: int) -> None:
        if len(ranks) in (0, places):
            return
        low_bits, rest_bits, high, low = gap_models(len(ranks), places)
        gaps = np.diff(ranks, prepend=-1) - 1
        upper = gaps >> (low_bits + rest_bits)
        while len(upper):
            self._encode(np.minimum(upper, FAR), high)
            upper = upper[upper >= FAR] - FAR
        self._encode((gaps >> rest_bits) & ((1 << low_bits) - 1), low)
        self._equal_chances(gaps, rest_bits)

    def _group(self, levels: Int32[np.ndarray, "m"]) -> None:
        alphabet = Alphabet.of(*histogram(levels))
        alphabet.write(self._side)
        symbols, below = leading_bits(levels, alphabet.leading)
        self._encode(symbols - alphabet.lowest, alphabet.weights)
        for bits in range(1, int(below.max()) + 1):
            self._equal_chances(np.abs(levels[below == bits]), bits)

    def _equal_chances(self, numbers: Int[np.ndarray, "m"], bits: int) -> None:
        """The lowest bits of the numbers, as they are."""
        if bits and len(numbers):
            symbols = (numbers & ((1 << bits) - 1)).astype(np.int32)
            self._coder.encode(symbols, stream.model.Uniform(1 << bits))

    def _encode(self, symbols: Int64[np.ndarray, "m"], weights: Float64[np.ndarray, "alphabet"]) -> None:
        if len(weights) > 1 and len(symbols):
            self._coder.encode(symbols.astype(np.int32), stream.model.Categorical(weights, perfect=False))


class RangeReader:
    """Decodes what a writer coded, in the same order."""

    def __init__(self, body: bytes):
        whole = IntegerReader(body)
        self._side = IntegerReader(whole.raw(whole.number()))
        words = whole.raw(whole.left)
        if len(words) % 4:
            raise CorruptPayload(f"the coded stream has {len(words)} bytes; it is made of 4-byte words")
        self._coder = stream.queue.RangeDecoder(np.frombuffer(words, dtype="<u4").astype(np.uint32))

    def positions(
        self, k: int, edges: Int64[np.ndarray, "layers_plus_one"], previous: Int64[np.ndarray, "k_before"] | None
    ) -> Int64[np.ndarray, "k"]:
        """k ascending positions."""
        worlds = self._side.number()
        if worlds not in (1, 2) or (worlds == 2 and previous is None):
            raise CorruptPayload(
                f"the support is told in {worlds} parts; one is expected, or two beside a last support"
            )
        if previous is None or worlds == 1:
            positions = self._world(k, edges)
        else:
            edges_before = np.searchsorted(previous, edges)
            kept = self._world(k, edges_before)
            positions = merged(kept, self._world(k - len(kept), edges - edges_before), previous)
        if len(positions) != k:
            raise CorruptPayload(f"the support holds {len(positions)} positions where {k} are announced")
        return positions

    def raw(self, length: int) -> bytes:
        """Bytes as they are."""
        return self._side.raw(length)

    def levels(self, counts: Int64[np.ndarray, "layers"], bounds: Bounds) -> Int32[np.ndarray, "m"]:
        """Levels, `counts` of them a layer."""
        coded = np.where(bounds.coded, counts, 0)
        flags = np.frombuffer(self._side.raw((len(counts) + 7) // 8), dtype=np.uint8)
        own = np.unpackbits(flags, count=len(counts)).astype(bool)
        if (own & (coded == 0)).any():
            raise CorruptPayload("a layer without levels has a table of its own")
        levels = np.repeat(bounds.lowest, counts)
        for members in _groups(own, coded):
            largest = int(np.max(np.maximum(-bounds.lowest, bounds.highest)[members]))
            levels[np.repeat(members, counts)] = self._group(int(coded[members].sum()), largest)
        if (levels < np.repeat(bounds.lowest, counts)).any() or (levels > np.repeat(bounds.highest, counts)).any():
            raise CorruptPayload("a level lies outside its layer's quantiser")
        return levels

    def finish(self) -> None:
        """Nothing may be left."""
        if self._side.left or not self._coder.maybe_exhausted():
            raise CorruptPayload("the body goes on behind its last value")

    def _world(self, most: int, edges: Int64[np.ndarray, "cuts"]) -> Int64[np.ndarray, "k"]:
        layers = self._side.number()
        if layers not in (1, len(edges) - 1):
            raise CorruptPayload(f"the support is cut into {layers} layers; the model has {len(edges) - 1}")
        edges = edges[[0, -1]] if layers == 1 else edges
        ranks = [np.empty(0, dtype=np.int64)]
        for places, first in zip(np.diff(edges), edges, strict=False):
            if places:
                count = self._side.number()
                if count > min(most, places):
                    raise CorruptPayload(f"the support names {count} of {places} places, {most} in all")
                ranks.append(self._gaps(count, int(places)) + first)
                most -= count
        return np.concatenate(ranks)

    def _gaps(self, count: int, places: int) -> Int64[np.ndarray, "count"]:
        if count in (0, places):
            return np.arange(count)
        low_bits, rest_bits, high, low = gap_models(count, places)
        upper, going_on = np.zeros(count, dtype=np.int64), np.arange(count)
        while len(going_on):
            symbols = self._decode(len(going_on), high)
            upper[going_on] += symbols
            if (int(upper.sum()) << (low_bits + rest_bits)) > places:
                raise CorruptPayload(f"the support goes beyond its {places} places")
            going_on = going_on[symbols == FAR]
        gaps = (upper << (low_bits + rest_bits)) + (self._decode(count, low) << rest_bits)
        ranks = np.cumsum(gaps + self._equal_chances(rest_bits, count) + 1) - 1
        if ranks[-1] >= places:
            raise CorruptPayload(f"the support names place {ranks[-1]} of {places}")
        return ranks

    def _group(self, count: int, largest: int) -> Int64[np.ndarray, "count"]:
        alphabet = Alphabet.read(self._side, largest)
        symbols = self._decode(count, alphabet.weights) + alphabet.lowest
        levels, below = without_low_bits(symbols, alphabet.leading)
        for bits in range(1, int(below.max()) + 1):
            here = below == bits
            lower = self._equal_chances(bits, int(np.count_nonzero(here)))
            levels[here] += np.where(levels[here] < 0, -lower, lower)
        return levels

    def _decode(self, count: int, weights: Float64[np.ndarray, "alphabet"]) -> Int64[np.ndarray, "count"]:
        if len(weights) == 1 or count == 0:
            return np.zeros(count, dtype=np.int64)
        return self._decoded(stream.model.Categorical(weights, perfect=False), count)

    def _equal_chances(self, bits: int, count: int) -> Int64[np.ndarray, "count"]:
        if bits == 0 or count == 0:
            return np.zeros(count, dtype=np.int64)
        return self._decoded(stream.model.Uniform(1 << bits), count)

    def _decoded(self, model: Any, count: int) -> Int64[np.ndarray, "count"]:
        try:
            return self._coder.decode(model, count).astype(np.int64)
        except (AssertionError, ValueError) as error:
            raise CorruptPayload(f"the coded stream is none: {error}") from error


@dataclass(frozen=True)
class RangeCoder:
    """Positions and levels, each at the entropy of its model, to within a few bytes."""

    packed = False

    def writer(self) -> RangeWriter:
        """A fresh writer, for one body."""
        return RangeWriter()

    def reader(self, body: bytes) -> RangeReader:
        """A reader of one body."""
        return RangeReader(body)


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


def histogram(levels: Int32[np.ndarray, "m"]) -> tuple[Int64[np.ndarray, "present"], Int64[np.ndarray, "present"]]:
    """The levels that occur, ascending, and how often."""
    lowest = int(levels.min())
    occurrences = np.bincount(levels - lowest)
    present = np.flatnonzero(occurrences)
    return present + lowest, occurrences[present]


def _cheaper(world: World) -> World:
    """With one density for all, or with one a layer."""
    whole = world.whole()
    return world if world.bits < whole.bits else whole


def _groups(own: Bool[np.ndarray, "layers"], counts: Int64[np.ndarray, "layers"]) -> list[Bool[np.ndarray, "layers"]]:
    """The layers that share a table: first those without one of their own, then each of the others."""
    shared = ~own & (counts > 0)
    alone = [np.arange(len(own)) == layer for layer in np.flatnonzero(own)]
    return [shared, *alone] if shared.any() else alone


def _own_tables(levels: Int32[np.ndarray, "m"], counts: Int64[np.ndarray, "layers"]) -> Bool[np.ndarray, "layers"]:
    """Which layers save more by a table of their own than it costs."""
    if np.count_nonzero(counts) < 2:
        return np.zeros(len(counts), dtype=bool)
    symbols = leading_bits(levels, SHARED_BITS)[0]
    symbols -= symbols.min()
    layers = [np.bincount(part, minlength=int(symbols.max()) + 1) for part in np.split(symbols, np.cumsum(counts)[:-1])]
    frequencies = np.stack(layers)
    pooled = np.log2(np.maximum(frequencies.sum(axis=0), 1) / max(1, len(levels)))
    alone = np.log2(np.maximum(frequencies, 1) / np.maximum(counts, 1)[:, None])
    saved = np.sum(frequencies * (alone - pooled), axis=1)
    return saved > 8 * (np.count_nonzero(frequencies, axis=1) + 4)
