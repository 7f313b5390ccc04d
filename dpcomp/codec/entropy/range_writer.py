"""The writing half of the range coder."""

import numpy as np
from constriction import stream  # pyright: ignore[reportAttributeAccessIssue]  # a compiled module
from jaxtyping import Float64, Int, Int32, Int64

from dpcomp.codec.entropy.alphabet import EXACT, Alphabet, leading_bits
from dpcomp.codec.entropy.integers import IntegerWriter
from dpcomp.codec.entropy.models import CHUNK_BITS, FAR, gap_models, own_tables
from dpcomp.codec.entropy.positions import World, cheaper, split
from dpcomp.codec.quantize.quantizer import Bounds


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
        alone = cheaper(World(positions, edges))
        worlds = [] if previous is None else [cheaper(world) for world in split(positions, previous, edges)]
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
        if not bounds.coded.all():
            levels, counts = levels[np.repeat(bounds.coded, counts)], np.where(bounds.coded, counts, 0)
        own = own_tables(levels, counts)
        self._side.raw(np.packbits(own).tobytes())
        shared = levels[np.repeat(~own, counts)] if own.any() else levels
        if len(shared):
            self._group(shared)
        edges = np.cumsum([0, *counts])
        for layer in np.flatnonzero(own):
            self._group(levels[edges[layer] : edges[layer + 1]])

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
        self._encode(np.minimum(upper, FAR), high)
        self._encode((gaps >> rest_bits) & ((1 << low_bits) - 1), low)
        self._equal_chances(gaps, rest_bits)
        self._equal_chances(upper[upper >= FAR] - FAR, (places >> (low_bits + rest_bits)).bit_length())

    def _group(self, levels: Int32[np.ndarray, "m"]) -> None:
        alphabet = Alphabet.of(*histogram(levels))
        alphabet.write(self._side)
        if alphabet.leading == EXACT:
            self._encode(levels - np.int32(alphabet.lowest), alphabet.weights)
            return
        symbols, below = leading_bits(levels, alphabet.leading)
        self._encode(symbols - alphabet.lowest, alphabet.weights)
        for bits in range(1, int(below.max()) + 1):
            self._equal_chances(np.abs(levels[below == bits]), bits)

    def _equal_chances(self, numbers: Int[np.ndarray, "m"], bits: int) -> None:
        """The lowest bits of the numbers, as they are."""
        for start in range(0, bits if len(numbers) else 0, CHUNK_BITS):
            width = min(CHUNK_BITS, bits - start)
            symbols = ((numbers >> start) & ((1 << width) - 1)).astype(np.int32)
            self._coder.encode(symbols, stream.model.Uniform(1 << width))

    def _encode(self, symbols: Int[np.ndarray, "m"], weights: Float64[np.ndarray, "alphabet"]) -> None:
        if len(weights) > 1 and len(symbols):
            self._coder.encode(symbols.astype(np.int32, copy=False), stream.model.Categorical(weights, perfect=False))


def histogram(levels: Int32[np.ndarray, "m"]) -> tuple[Int64[np.ndarray, "present"], Int64[np.ndarray, "present"]]:
    """The levels that occur, ascending, and how often."""
    lowest = int(levels.min())
    occurrences = np.bincount(levels - np.int32(lowest))
    present = np.flatnonzero(occurrences)
    return present + lowest, occurrences[present]
