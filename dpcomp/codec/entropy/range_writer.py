"""The writer of the range coder."""

import numpy as np
from constriction import stream  # pyright: ignore[reportAttributeAccessIssue]  # a compiled module
from jaxtyping import Float64, Int, Int32, Int64

from dpcomp.codec.entropy.alphabet import ALL_BITS, Alphabet, levels_to_symbols
from dpcomp.codec.entropy.integers import IntegerWriter
from dpcomp.codec.entropy.models import CHUNK_BITS, ESCAPE, gap_models, layers_with_own_table
from dpcomp.codec.entropy.positions import CandidateSet, cheaper_layering, split_by_previous
from dpcomp.codec.quantize.quantizer import Bounds


class RangeWriter:
    """Encodes one body: the integers of all models first, then one range-coded stream."""

    def __init__(self):
        self._side, self._coder = IntegerWriter(), stream.queue.RangeEncoder()

    def positions(
        self,
        positions: Int64[np.ndarray, "k"],
        edges: Int64[np.ndarray, "layers_plus_one"],
        previous: Int64[np.ndarray, "k_before"] | None,
    ) -> None:
        """Encode positions by themselves, or as kept and new beside the previous ones, whichever takes fewer bits."""
        alone = cheaper_layering(CandidateSet(positions, edges))
        sets = [] if previous is None else [*map(cheaper_layering, split_by_previous(positions, previous, edges))]
        if not sets or alone.bits <= sum(candidates.bits for candidates in sets):
            sets = [alone]
        self._side.number(len(sets))
        for candidates in sets:
            self._side.number(len(candidates.edges) - 1)
            starts = np.searchsorted(candidates.ranks, candidates.edges)
            layers = zip(np.diff(candidates.edges), candidates.edges, starts, starts[1:], strict=False)
            for places, first, start, stop in layers:
                if places:
                    self._side.number(int(stop - start))
                    self._gaps(candidates.ranks[start:stop] - first, int(places))

    def raw(self, part: bytes) -> None:
        """Write bytes unchanged, among the integers."""
        self._side.raw(part)

    def levels(self, levels: Int32[np.ndarray, "m"], counts: Int64[np.ndarray, "layers"], bounds: Bounds) -> None:
        """Encode levels under a table that layers share, and tables of single layers where those pay."""
        if not bounds.coded.all():
            levels, counts = levels[np.repeat(bounds.coded, counts)], np.where(bounds.coded, counts, 0)
        own = layers_with_own_table(levels, counts)
        self._side.raw(np.packbits(own).tobytes())
        shared = levels[np.repeat(~own, counts)] if own.any() else levels
        if len(shared):
            self._group(shared)
        edges = np.cumsum([0, *counts])
        for layer in np.flatnonzero(own):
            self._group(levels[edges[layer] : edges[layer + 1]])

    def finish(self) -> bytes:
        """Return the body: the length of the integers, the integers, and the coded words."""
        length, side = IntegerWriter(), self._side.finish()
        length.number(len(side))
        return length.finish() + side + self._coder.get_compressed().astype("<u4").tobytes()

    def _gaps(self, ranks: Int64[np.ndarray, "k"], places: int) -> None:
        """Encode ascending ranks among so many places as gaps; none or all need nothing."""
        if len(ranks) in (0, places):
            return
        middle_bits, lowest_bits, upper_weights, middle_weights = gap_models(len(ranks), places)
        gaps = np.diff(ranks, prepend=-1) - 1
        upper = gaps >> (middle_bits + lowest_bits)
        self._encode(np.minimum(upper, ESCAPE), upper_weights)
        self._encode((gaps >> lowest_bits) & ((1 << middle_bits) - 1), middle_weights)
        self._equal_probabilities(gaps, lowest_bits)
        excess_bits = (places >> (middle_bits + lowest_bits)).bit_length()
        self._equal_probabilities(upper[upper >= ESCAPE] - ESCAPE, excess_bits)

    def _group(self, levels: Int32[np.ndarray, "m"]) -> None:
        """Encode levels that share a frequency table, after the table."""
        alphabet = Alphabet.fit(*histogram(levels))
        alphabet.write(self._side)
        if alphabet.leading == ALL_BITS:
            self._encode(levels - np.int32(alphabet.lowest), alphabet.weights)
            return
        symbols, below = levels_to_symbols(levels, alphabet.leading)
        self._encode(symbols - alphabet.lowest, alphabet.weights)
        for bits in range(1, int(below.max()) + 1):
            self._equal_probabilities(np.abs(levels[below == bits]), bits)

    def _equal_probabilities(self, numbers: Int[np.ndarray, "m"], bits: int) -> None:
        """Encode the lowest bits of the numbers under equal probabilities."""
        for start in range(0, bits if len(numbers) else 0, CHUNK_BITS):
            width = min(CHUNK_BITS, bits - start)
            symbols = ((numbers >> start) & ((1 << width) - 1)).astype(np.int32)
            self._coder.encode(symbols, stream.model.Uniform(1 << width))

    def _encode(self, symbols: Int[np.ndarray, "m"], weights: Float64[np.ndarray, "alphabet"]) -> None:
        if len(weights) > 1 and len(symbols):
            self._coder.encode(symbols.astype(np.int32, copy=False), stream.model.Categorical(weights, perfect=False))


def histogram(levels: Int32[np.ndarray, "m"]) -> tuple[Int64[np.ndarray, "present"], Int64[np.ndarray, "present"]]:
    """Return the levels that occur, ascending, and how often each does."""
    lowest = int(levels.min())
    occurrences = np.bincount(levels - np.int32(lowest))
    present = np.flatnonzero(occurrences)
    return present + lowest, occurrences[present]
