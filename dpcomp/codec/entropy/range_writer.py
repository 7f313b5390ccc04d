"""The writer of the range coder."""

from collections.abc import Sequence

import numpy as np
from constriction import stream  # pyright: ignore[reportAttributeAccessIssue]  # a compiled module
from jaxtyping import Float64, Int, Int64

from dpcomp.codec.entropy.alphabet import ALL_BITS, Alphabet, levels_to_symbols
from dpcomp.codec.entropy.bit_packing import pack
from dpcomp.codec.entropy.integers import IntegerWriter
from dpcomp.codec.entropy.models import (
    CHUNK_BITS,
    ESCAPE,
    PACKED,
    categorical,
    gap_models,
    layer_histograms,
    layers_with_own_table,
    packs,
)
from dpcomp.codec.entropy.positions import CandidateSet, cheaper_layerings, split_by_previous
from dpcomp.codec.quantize.quantizer import BLOCK, Bounds


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
        split = () if previous is None else split_by_previous(positions, previous, edges)
        sets, bits = cheaper_layerings([CandidateSet(positions, edges), *split])
        sets = sets[1:] if split and sum(bits[1:]) < bits[0] else sets[:1]
        self._side.number(len(sets))
        for candidates in sets:
            self._ranks(candidates)

    def raw(self, part: bytes | memoryview) -> None:
        """Write bytes unchanged, among the integers."""
        self._side.raw(part)

    def levels(self, levels: Int[np.ndarray, "m"], counts: Int64[np.ndarray, "layers"], bounds: Bounds) -> None:
        """Encode levels under a table that layers share, and tables of single layers where those pay."""
        if not bounds.coded.all():
            levels, counts = levels[np.repeat(bounds.coded, counts)], np.where(bounds.coded, counts, 0)
        if not len(levels):
            self._side.raw(bytes(-(-len(counts) // 8)))
            return
        lowest, histograms = layer_histograms(levels, counts)
        own = layers_with_own_table(lowest, histograms, counts)
        self._side.raw(np.packbits(own).tobytes())
        if not own.any():
            self._group(levels, lowest, histograms.sum(axis=0))
            return
        shared = levels[np.repeat(~own, counts)]
        if len(shared):
            self._group(shared, lowest, histograms[~own].sum(axis=0))
        edges = np.cumsum([0, *counts])
        for layer in np.flatnonzero(own):
            self._group(levels[edges[layer] : edges[layer + 1]], lowest, histograms[layer])

    def finish(self) -> Sequence[bytes | bytearray | memoryview]:
        """Return the body in parts: the length of the integers, the integers, and the coded words."""
        length, side = IntegerWriter(), self._side.parts()
        length.number(sum(map(len, side)))
        words = self._coder.get_compressed().astype("<u4", copy=False)
        return (length.finish(), *side, words.tobytes())

    def _ranks(self, candidates: CandidateSet) -> None:
        """Encode ranks as gaps, layer by layer; a layer of which none or all are chosen needs its count alone."""
        ranks, starts = candidates.ranks, candidates.starts.tolist()
        places, firsts = candidates.places.tolist(), candidates.edges.tolist()
        self._side.number(len(places))
        gaps = np.empty(len(ranks), dtype=np.int64)
        np.subtract(ranks[1:], ranks[:-1], out=gaps[1:])
        gaps[1:] -= 1
        for layer, start in enumerate(starts[:-1]):
            stop = starts[layer + 1]
            if places[layer]:
                self._side.number(stop - start)
            if start < stop:
                gaps[start] = ranks[start] - firsts[layer]
            if 0 < stop - start < places[layer]:
                self._gaps(gaps[start:stop], places[layer])

    def _gaps(self, gaps: Int64[np.ndarray, "k"], places: int) -> None:
        """Encode the gaps before the ranks of k places among so many, each less one."""
        models = gap_models(len(gaps), places)
        upper = gaps >> (models.middle_bits + models.lowest_bits)
        largest = int(upper.max())
        capped = upper.astype(np.int32)
        self._coder.encode(np.minimum(capped, ESCAPE) if largest >= ESCAPE else capped, models.upper_model)
        if models.middle_model is not None:
            middle = gaps >> models.lowest_bits if models.lowest_bits else gaps
            self._coder.encode((middle & ((1 << models.middle_bits) - 1)).astype(np.int32), models.middle_model)
        self._equal_probabilities(gaps, models.lowest_bits)
        if largest >= ESCAPE:
            excess_bits = (places >> (models.middle_bits + models.lowest_bits)).bit_length()
            self._equal_probabilities(upper[upper >= ESCAPE] - ESCAPE, excess_bits)

    def _group(self, levels: Int[np.ndarray, "m"], lowest: int, occurrences: Int64[np.ndarray, "symbols"]) -> None:
        """Encode levels that share a frequency table, after the table; pack them where a bit each is as short."""
        present = np.flatnonzero(occurrences)
        if packs(occurrences[present]) and present[1] == present[0] + 1:
            lower = lowest + int(present[0])
            self._side.number(PACKED)
            self._side.signed(lower)
            self._side.raw(pack(levels, lower, 1).data)
            return
        alphabet = Alphabet.fit(present + lowest, occurrences[present])
        alphabet.write(self._side)
        if alphabet.leading == ALL_BITS:
            self._encode(levels, alphabet.weights, alphabet.lowest)
            return
        symbols, below = levels_to_symbols(levels, alphabet.leading)
        self._encode(symbols, alphabet.weights, alphabet.lowest)
        for bits in range(1, int(below.max()) + 1):
            self._equal_probabilities(np.abs(levels[below == bits]), bits)

    def _equal_probabilities(self, numbers: Int[np.ndarray, "m"], bits: int) -> None:
        """Encode the lowest bits of the numbers under equal probabilities."""
        for start in range(0, bits if len(numbers) else 0, CHUNK_BITS):
            width = min(CHUNK_BITS, bits - start)
            symbols = ((numbers >> start) & ((1 << width) - 1)).astype(np.int32)
            self._coder.encode(symbols, stream.model.Uniform(1 << width))

    def _encode(self, symbols: Int[np.ndarray, "m"], weights: Float64[np.ndarray, "alphabet"], lowest: int = 0) -> None:
        """Encode symbols, of which the lowest one has the first weight."""
        if len(weights) > 1 and len(symbols):
            model = categorical(weights)
            for start in range(0, len(symbols), BLOCK):
                block = symbols[start : start + BLOCK].astype(np.int32)
                block -= np.int32(lowest)
                self._coder.encode(block, model)
