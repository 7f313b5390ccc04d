"""The reading half of the range coder."""

from typing import Any

import numpy as np
from constriction import stream  # pyright: ignore[reportAttributeAccessIssue]  # a compiled module
from jaxtyping import Float64, Int32, Int64

from dpcomp.codec.entropy.alphabet import EXACT, Alphabet, without_low_bits
from dpcomp.codec.entropy.integers import IntegerReader
from dpcomp.codec.entropy.models import FAR, gap_models, groups
from dpcomp.codec.entropy.positions import merged
from dpcomp.codec.quantize.quantizer import Bounds
from dpcomp.errors import CorruptPayload


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
        for members in groups(own, coded):
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
        if alphabet.leading == EXACT:
            return symbols
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
