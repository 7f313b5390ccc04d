"""The reading half of the range coder."""

from typing import Any

import numpy as np
from constriction import stream  # pyright: ignore[reportAttributeAccessIssue]  # a compiled module
from jaxtyping import Float64, Int32, Int64

from dpcomp.codec.entropy.alphabet import EXACT, Alphabet, without_low_bits
from dpcomp.codec.entropy.integers import IntegerReader
from dpcomp.codec.entropy.models import CHUNK_BITS, FAR, OWN_FROM, gap_models
from dpcomp.codec.entropy.positions import merged
from dpcomp.codec.quantize.quantizer import Bounds, refuse_outside
from dpcomp.core.errors import CorruptPayload

BLOCK = 2**16  # levels that are put together at once: what that takes beside them stays small


class RangeReader:
    """Decodes what a writer coded, in the same order."""

    def __init__(self, body: bytes | memoryview):
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
        return bytes(self._side.raw(length))

    def levels(self, counts: Int64[np.ndarray, "layers"], bounds: Bounds) -> Int32[np.ndarray, "m"]:
        """Levels, `counts` of them a layer."""
        coded = np.where(bounds.coded, counts, 0)
        flags = np.frombuffer(self._side.raw((len(counts) + 7) // 8), dtype=np.uint8)
        own = np.unpackbits(flags, count=len(counts)).astype(bool)
        if (own & (coded < OWN_FROM)).any():
            raise CorruptPayload(f"a layer of fewer than {OWN_FROM} levels has a table of its own")
        largest, edges, shared = np.maximum(-bounds.lowest, bounds.highest), np.cumsum([0, *counts]), ~own & (coded > 0)
        found = self._group(int(coded[shared].sum()), int(largest[shared].max())) if shared.any() else None
        if found is not None and shared.all():
            levels = found
        else:
            levels = np.repeat(bounds.lowest, counts)
            if found is not None:
                levels[np.repeat(shared, counts)] = found
        for layer in np.flatnonzero(own):
            levels[edges[layer] : edges[layer + 1]] = self._group(int(coded[layer]), int(largest[layer]))
        refuse_outside(levels, counts, bounds)
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
        upper = self._decode(count, high).astype(np.int64)
        middle, lowest = self._decode(count, low).astype(np.int64), self._equal_chances(rest_bits, count)
        far = np.flatnonzero(upper == FAR)
        upper[far] += self._equal_chances((places >> (low_bits + rest_bits)).bit_length(), len(far))
        if float(upper.sum(dtype=np.float64)) * (1 << (low_bits + rest_bits)) > places:
            raise CorruptPayload(f"the support goes beyond its {places} places")
        ranks = np.cumsum((upper << (low_bits + rest_bits)) + (middle << rest_bits) + lowest + 1) - 1
        if ranks[-1] >= places:
            raise CorruptPayload(f"the support names place {ranks[-1]} of {places}")
        return ranks

    def _group(self, count: int, largest: int) -> Int32[np.ndarray, "count"]:
        alphabet = Alphabet.read(self._side, largest)
        levels = self._decode(count, alphabet.weights)
        levels += np.int32(alphabet.lowest)
        if alphabet.leading == EXACT:
            return levels
        below = np.empty(count, dtype=np.uint8)
        for start in range(0, count, BLOCK):
            here = slice(start, start + BLOCK)
            levels[here], below[here] = without_low_bits(levels[here], alphabet.leading)
        for bits in range(1, int(below.max()) + 1):
            open_ones = np.flatnonzero(below == bits).astype(np.int32)
            for start in range(0, len(open_ones), BLOCK):
                here = open_ones[start : start + BLOCK]
                lower = self._equal_chances(bits, len(here))
                levels[here] += np.where(levels[here] < 0, -lower, lower).astype(np.int32)
        return levels

    def _decode(self, count: int, weights: Float64[np.ndarray, "alphabet"]) -> Int32[np.ndarray, "count"]:
        if len(weights) == 1 or count == 0:
            return np.zeros(count, dtype=np.int32)
        return self._decoded(stream.model.Categorical(weights, perfect=False), count)

    def _equal_chances(self, bits: int, count: int) -> Int64[np.ndarray, "count"]:
        numbers = np.zeros(count, dtype=np.int64)
        for start in range(0, bits if count else 0, CHUNK_BITS):
            width = min(CHUNK_BITS, bits - start)
            numbers |= self._decoded(stream.model.Uniform(1 << width), count).astype(np.int64) << start
        return numbers

    def _decoded(self, model: Any, count: int) -> Int32[np.ndarray, "count"]:
        try:
            return self._coder.decode(model, count)
        except (AssertionError, ValueError) as error:
            raise CorruptPayload(f"the coded stream is none: {error}") from error
