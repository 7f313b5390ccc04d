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
        if not bounds.all_coded:
            levels, counts = levels[np.repeat(bounds.coded, counts)], np.where(bounds.coded, counts, 0)
        if not len(levels):
            self._side.raw(bytes(-(-len(counts) // 8)))
            return
        lowest, histograms = layer_histograms(levels, counts)
        own = layers_with_own_table(lowest, histograms, counts)
        self._side.raw(np.packbits(own).tobytes())
        if not own.any():
            self._group(levels, lowest, np.add.reduce(histograms, axis=0))
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
        firsts = candidates.edges.tolist()
        self._side.number(len(firsts) - 1)
        gaps = np.empty(len(ranks), dtype=np.int64)
        np.subtract(ranks[1:], ranks[:-1], out=gaps[1:])
        gaps[1:] -= 1
        coded: list[tuple[int, int, int]] = []
        for first, after, start, stop in zip(firsts, firsts[1:], starts, starts[1:], strict=False):
            if after > first:
                self._side.number(stop - start)
            if start < stop:
                gaps[start] = ranks[start] - first
                if stop - start < after - first:
                    coded.append((start, stop, after - first))
        if coded:
            self._gaps(gaps, coded)

    def _gaps(self, gaps: Int64[np.ndarray, "k"], coded: Sequence[tuple[int, int, int]]) -> None:
        """Encode the gaps before the ranks of layers, each less one.

        Args:
            gaps: The (k,) gaps of all layers.
            coded: Where the gaps of each coded layer begin and end, and its number of places.
        """
        models = [gap_models(stop - start, places) for start, stop, places in coded]
        uppers = gaps >> _of_each(gaps, coded, [model.middle_bits + model.lowest_bits for model in models])
        escapes = bool(np.maximum.reduce(uppers) >= ESCAPE)
        capped = (np.minimum(uppers, ESCAPE) if escapes else uppers).astype(np.int32)
        middles = gaps
        if any(model.lowest_bits for model in models):
            middles = gaps >> _of_each(gaps, coded, [model.lowest_bits for model in models])
        middles = (middles & _of_each(gaps, coded, [(1 << model.middle_bits) - 1 for model in models])).astype(np.int32)
        for (start, stop, places), model in zip(coded, models, strict=True):
            self._coder.encode(capped[start:stop], model.upper_model)
            if model.middle_model is not None:
                self._coder.encode(middles[start:stop], model.middle_model)
            if model.lowest_bits:
                self._equal_probabilities(gaps[start:stop], model.lowest_bits)
            if escapes and ESCAPE in capped[start:stop]:
                upper = uppers[start:stop]
                excess_bits = (places >> (model.middle_bits + model.lowest_bits)).bit_length()
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


def _of_each(
    gaps: Int64[np.ndarray, "k"], coded: Sequence[tuple[int, int, int]], numbers: list[int]
) -> Int64[np.ndarray, "..."] | int:
    """Return for each gap its layer's number, or the number alone where all coded layers have the same."""
    if numbers.count(numbers[0]) == len(numbers):
        return numbers[0]
    spread = np.zeros(len(gaps), dtype=np.int64)
    for (start, stop, _), number in zip(coded, numbers, strict=True):
        spread[start:stop] = number
    return spread
