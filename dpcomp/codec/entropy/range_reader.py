"""The reader of the range coder."""

from itertools import accumulate, pairwise
from typing import Any

import numpy as np
from constriction import stream  # pyright: ignore[reportAttributeAccessIssue]  # a compiled module
from jaxtyping import Float64, Int, Int32, Int64

from dpcomp.codec.entropy.alphabet import ALL_BITS, Alphabet, symbols_to_levels
from dpcomp.codec.entropy.bit_packing import packed_bytes, unpack
from dpcomp.codec.entropy.integers import IntegerReader
from dpcomp.codec.entropy.models import CHUNK_BITS, ESCAPE, OWN_TABLE_LEVELS, PACKED, categorical, gap_models
from dpcomp.codec.entropy.positions import merge_with_previous
from dpcomp.codec.quantize.quantizer import Bounds, refuse_levels_outside
from dpcomp.core.errors import CorruptPayload

LEVEL_BLOCK = 2**16  # levels that are assembled at once, to keep temporary arrays small


class RangeReader:
    """Decodes a body, in the order in which it was written."""

    def __init__(self, body: bytes | memoryview):
        whole = IntegerReader(body)
        self._side = IntegerReader(whole.raw(whole.number()))
        words = whole.raw(whole.left)
        if len(words) % 4:
            raise CorruptPayload(f"the coded stream has {len(words)} bytes, but it is made of 4-byte words")
        self._coder = stream.queue.RangeDecoder(np.frombuffer(words, dtype="<u4").astype(np.uint32))

    def positions(
        self, k: int, edges: Int64[np.ndarray, "layers_plus_one"], previous: Int64[np.ndarray, "k_before"] | None
    ) -> Int64[np.ndarray, "k"]:
        """Decode the k ascending positions of a listed support."""
        sets = self._side.number()
        if sets not in (1, 2) or (sets == 2 and previous is None):
            raise CorruptPayload(
                f"the support is coded in {sets} candidate sets; it has 1, or 2 if there is a previous support"
            )
        if previous is None or sets == 1:
            positions = self._ranks(k, edges)
        else:
            edges_before = np.searchsorted(previous, edges)
            kept = self._ranks(k, edges_before)
            positions = merge_with_previous(kept, self._ranks(k - len(kept), edges - edges_before), previous)
        if len(positions) != k:
            raise CorruptPayload(f"the support has {len(positions)} positions, but the body says {k}")
        return positions

    def raw(self, length: int) -> memoryview:
        """Return the next bytes unchanged, as a view of the body."""
        return self._side.raw(length)

    def levels(self, counts: Int64[np.ndarray, "layers"], bounds: Bounds) -> Int[np.ndarray, "m"]:
        """Decode the levels, `counts` of them in each layer."""
        flags, total = bytes(self._side.raw((len(counts) + 7) // 8)), int(np.add.reduce(counts))
        if total and bounds.all_coded and bounds.equal and not any(flags):  # as a rule: all layers share a table
            levels = self._group(total, max(-bounds.common[0], bounds.common[1]))
        else:
            levels = self._levels_of_groups(flags, counts, bounds)
        refuse_levels_outside(levels, counts, bounds)
        return levels

    def _levels_of_groups(
        self, flags: bytes, counts: Int64[np.ndarray, "layers"], bounds: Bounds
    ) -> Int[np.ndarray, "m"]:
        """Decode levels, of which some may not be coded, and those of the flagged layers have their own tables."""
        coded = counts if bounds.all_coded else np.where(bounds.coded, counts, 0)
        own = np.unpackbits(np.frombuffer(flags, dtype=np.uint8), count=len(counts)).astype(bool)
        if (own & (coded < OWN_TABLE_LEVELS)).any():
            raise CorruptPayload(
                f"a layer of fewer than {OWN_TABLE_LEVELS} levels has its own table, which no sender writes"
            )
        largest, shared = np.maximum(-bounds.lowest, bounds.highest), (coded > 0) > own
        together, total = int(coded[shared].sum()), int(counts.sum())
        pooled = self._group(together, int(largest[shared].max())) if together else None
        if pooled is not None and together == total:
            return pooled
        levels = np.repeat(bounds.lowest, counts)
        if pooled is not None:
            levels[np.repeat(shared, counts)] = pooled
        edges = np.cumsum([0, *counts])
        for layer in np.flatnonzero(own):
            levels[edges[layer] : edges[layer + 1]] = self._group(int(coded[layer]), int(largest[layer]))
        return levels

    def finish(self) -> None:
        """Check that integers and stream are read to their ends."""
        if self._side.left or not self._coder.maybe_exhausted():
            raise CorruptPayload("the body has more bytes after its last value")

    def _ranks(self, most: int, edges: Int64[np.ndarray, "cuts"]) -> Int64[np.ndarray, "k"]:
        """Decode the ranks of a `CandidateSet`, at most `most` of them; the edges are those of its layers."""
        layers = self._side.number()
        if layers not in (1, len(edges) - 1):
            raise CorruptPayload(f"the support is cut into {layers} layers, but the model has {len(edges) - 1}")
        firsts = [int(edges[0]), int(edges[-1])] if layers == 1 else edges.tolist()
        gaps: list[np.ndarray] = []
        counts: list[int] = []
        begins: list[int] = []
        sizes: list[int] = []
        for first, after in pairwise(firsts):
            if places := after - first:
                count = self._side.number()
                if count > min(most, places):
                    raise CorruptPayload(
                        f"the support has {count} of {places} places in a layer, but at most {most} are left"
                    )
                if count:
                    gaps.append(self._gaps(count, places))
                    counts.append(count)
                    begins.append(first)
                    sizes.append(places)
                most -= count
        if not gaps:
            return np.empty(0, dtype=np.int64)
        return ranks_of(gaps[0] if len(gaps) == 1 else np.concatenate(gaps), counts, begins, sizes)

    def _gaps(self, count: int, places: int) -> Int[np.ndarray, "count"]:
        """Decode the gaps between `count` ranks among so many places."""
        if count == places:
            return np.zeros(count, dtype=np.int64)
        models = gap_models(count, places)
        gaps = self._decode(count, models.upper, models.upper_model)
        middle = None
        if models.middle_model is not None:
            middle = self._decode(count, models.middle, models.middle_model)
        lowest = self._equal_probabilities(models.lowest_bits, count) if models.lowest_bits else None
        if np.maximum.reduce(gaps) == ESCAPE:
            gaps = gaps.astype(np.int64)
            escaped, above = np.flatnonzero(gaps == ESCAPE), models.middle_bits + models.lowest_bits
            gaps[escaped] += self._equal_probabilities((places >> above).bit_length(), len(escaped))
            if float(gaps.sum(dtype=np.float64)) * (1 << above) > places:
                raise CorruptPayload(f"the support goes beyond its {places} places")
        if middle is not None:
            gaps <<= models.middle_bits
            gaps |= middle
        if lowest is not None:
            gaps = gaps.astype(np.int64)
            gaps <<= models.lowest_bits
            gaps |= lowest
        return gaps

    def _group(self, count: int, largest: int) -> Int[np.ndarray, "count"]:
        """Decode levels that share a frequency table, of magnitude up to `largest`."""
        if self._side.skipped(PACKED):
            return self._packed_levels(count, largest)
        alphabet = Alphabet.read(self._side, largest)
        levels = self._decode(count, alphabet.weights)
        levels += np.int32(alphabet.lowest)
        if alphabet.leading == ALL_BITS:
            return levels
        below = np.empty(count, dtype=np.uint8)
        for start in range(0, count, LEVEL_BLOCK):
            here = slice(start, start + LEVEL_BLOCK)
            levels[here], below[here] = symbols_to_levels(levels[here], alphabet.leading)
        for bits in range(1, int(below.max()) + 1):
            with_bits = np.flatnonzero(below == bits).astype(np.int32)
            for start in range(0, len(with_bits), LEVEL_BLOCK):
                here = with_bits[start : start + LEVEL_BLOCK]
                lower = self._equal_probabilities(bits, len(here))
                levels[here] += np.where(levels[here] < 0, -lower, lower).astype(np.int32)
        return levels

    def _packed_levels(self, count: int, largest: int) -> Int[np.ndarray, "count"]:
        """Read levels that were packed in a bit each, of magnitude up to `largest`."""
        lowest = self._side.signed()
        if not -largest <= lowest < largest:
            raise CorruptPayload(f"packed levels begin at {lowest}, but levels end at {largest}")
        packed = np.frombuffer(self._side.raw(packed_bytes(count, 1)), dtype=np.uint8)
        dtype = next(
            kind for kind in (np.int8, np.int16, np.int32) if np.iinfo(kind).min <= lowest < np.iinfo(kind).max
        )
        levels = np.empty(count, dtype=dtype)
        unpack(packed, lowest, 1, out=levels)
        return levels

    def _decode(
        self, count: int, weights: Float64[np.ndarray, "alphabet"], model: Any = None
    ) -> Int32[np.ndarray, "count"]:
        """Decode symbols with these weights; `model` is the coder's model of them, if there is one already."""
        if len(weights) == 1 or count == 0:
            return np.zeros(count, dtype=np.int32)
        return self._decoded(categorical(weights) if model is None else model, count)

    def _equal_probabilities(self, bits: int, count: int) -> Int64[np.ndarray, "count"]:
        numbers = np.zeros(count, dtype=np.int64)
        for start in range(0, bits if count else 0, CHUNK_BITS):
            width = min(CHUNK_BITS, bits - start)
            numbers |= self._decoded(stream.model.Uniform(1 << width), count).astype(np.int64) << start
        return numbers

    def _decoded(self, model: Any, count: int) -> Int32[np.ndarray, "count"]:
        try:
            return self._coder.decode(model, count)
        except (AssertionError, ValueError) as error:
            raise CorruptPayload(f"the coded stream cannot be decoded: {error}") from error


def ranks_of(
    gaps: Int[np.ndarray, "k"], counts: list[int], begins: list[int], sizes: list[int]
) -> Int64[np.ndarray, "k"]:
    """Return the ranks with these gaps, and refuse those that lie beyond their layer.

    Args:
        gaps: The (k,) gaps, layer after layer.
        counts: How many of them each layer has, one at least.
        begins: The rank where each layer begins.
        sizes: The number of places in each layer.
    """
    ranks = gaps.cumsum(dtype=np.int64)
    ranks += np.arange(len(ranks))
    ends = list(accumulate(counts))
    before = -1
    for start, end, begin, places in zip((0, *ends), ends, begins, sizes, strict=False):
        last = ranks.item(end - 1)
        if last - before > places:
            raise CorruptPayload(f"the support has rank {last - before - 1} among {places} places")
        ranks[start:end] += begin - before - 1
        before = last
    return ranks
