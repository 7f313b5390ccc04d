"""A range code of the levels of a layered quantiser, whose probabilities follow from their layers and dither.

The reader knows the dither u and the step of each value, so a level n says that the value lies between (n − u − ½)
and (n − u + ½) steps. Values that follow a Laplace law of a known scale give each level a probability; nearly all of
them are 0 with a probability near 1, and cost next to nothing. All probabilities are whole numbers of 2⁻²⁴ from one
table, at places that IEEE 754 computes alike on every machine. The coder is constriction's (Bamler 2022, 2201.01741).
"""

import math
from decimal import Context, Decimal
from typing import Any, NamedTuple

import numpy as np
from constriction import stream  # pyright: ignore[reportAttributeAccessIssue]  # a compiled module
from jaxtyping import Float64, Int64

from dpcomp.core.errors import CorruptPayload

PROBABILITY_BITS = 24  # of the coder
WHOLE = 1 << PROBABILITY_BITS
PLACES_A_SCALE = 8  # of the table: a probability is off by 3 % on average, which costs 0.05 % of the bits
SCALES_LONG = 17  # the table; beyond, a probability is 2⁻²⁴
UNARY = 16  # steps of a magnitude that are coded one after the other; the rest is coded by its number of bits
LENGTHS = 64  # of such a rest, in bits; more than 44 are not written
MOST_BITS = 44
CHUNK_BITS = 16  # that are coded at once where all probabilities are equal
SCALES = 64  # of a layer: the largest value, times a power of √½
HALF_ROOT = 0.7071067811865476  # √½
AROUND = 3  # so many scales at each side of the mean magnitude are tried

_BERNOULLI = stream.model.Bernoulli(perfect=False)
_CHANGES = stream.model.Categorical(
    np.array([2.0 ** max(0, 20 - abs(change)) for change in range(1 - SCALES, SCALES)]), perfect=False
)


def _tail() -> Int64[np.ndarray, "places"]:
    """Return the probability that a Laplace number is above each place, in 2⁻²⁴; `decimal` rounds alike everywhere."""
    context, last = Context(prec=30), PLACES_A_SCALE * SCALES_LONG
    logarithms = [-(Decimal(2 * place + 1) / Decimal(2 * PLACES_A_SCALE)) for place in range(last + 1)]
    return np.array([max(1, round(context.exp(each) * (WHOLE // 2))) for each in logarithms], dtype=np.int64)


TAIL = _tail()
LAST = len(TAIL) - 1


class Margins(NamedTuple):
    """What a reader knows of each value of a block before it reads the level.

    A level is reflected by the sign of the dither, so that a small value rounds to 0 or 1 rather than to −1.

    Attributes:
        near: (n,) the least value whose reflected level is 1.
        far: (n,) the least magnitude of a value whose reflected level is −1.
        step: (n,) the quantiser's step.
    """

    near: Float64[np.ndarray, "n"]
    far: Float64[np.ndarray, "n"]
    step: Float64[np.ndarray, "n"]

    @classmethod
    def of(cls, dither: Float64[np.ndarray, "n"], step: Float64[np.ndarray, "n"]) -> "Margins":
        """Return the margins of values with this dither and these steps."""
        distance = np.abs(dither)
        return cls((0.5 - distance) * step, (0.5 + distance) * step, step)

    def places(self, scale: Float64[np.ndarray, "n"]) -> "Places":
        """Return where each margin lies in the table, for values whose Laplace law has this scale."""
        inverse = PLACES_A_SCALE / scale
        return Places(*(np.minimum(each * inverse, LAST).astype(np.int64) for each in self))


class Places(NamedTuple):
    """The places of `Margins` in the table of probabilities."""

    near: Int64[np.ndarray, "n"]
    far: Int64[np.ndarray, "n"]
    step: Int64[np.ndarray, "n"]

    def up(self) -> Int64[np.ndarray, "n"]:
        """Return the probabilities of a reflected level of 1 or more."""
        return TAIL[self.near]

    def down(self) -> Int64[np.ndarray, "n"]:
        """Return the probabilities of a reflected level of −1 or less, if it is not 1 or more."""
        return np.maximum((TAIL[self.far] << PROBABILITY_BITS) // (WHOLE - TAIL[self.near]), 1)

    def further(self) -> Int64[np.ndarray, "n"]:
        """Return the probabilities that a magnitude goes on by another step; a Laplace law forgets how far it came."""
        return 2 * TAIL[self.step]


def scale_of(number: Int64[np.ndarray, "n"], largest: float) -> Float64[np.ndarray, "n"]:
    """Return the scales of these numbers, from 0 for the largest possible value on.

    Args:
        number: (n,) numbers below SCALES.
        largest: The largest possible value.
    """
    powers = np.ldexp(largest, -(number // 2))
    return np.where(number % 2, powers * HALF_ROOT, powers)


def usual_number(d: int) -> int:
    """Return the number of the scale of d values alike whose L2 norm is the largest possible value."""
    return min((2 * d).bit_length() - 1, SCALES - 1)


class LaplaceWriter:
    """Encodes the scales of all layers, then levels, block after block."""

    def __init__(self):
        self._coder = stream.queue.RangeEncoder()

    def scales(self, numbers: Int64[np.ndarray, "layers"], d: int) -> None:
        """Encode the number of each layer's scale, as changes from layer to layer.

        Args:
            numbers: The numbers.
            d: The number of values in all layers.
        """
        changes = np.diff(numbers, prepend=usual_number(d)) + (SCALES - 1)
        self._coder.encode(changes.astype(np.int32), _CHANGES)

    def levels(self, reflected: Int64[np.ndarray, "n"], places: Places) -> None:
        """Encode the reflected levels of a block."""
        self._decide(reflected >= 1, places.up())
        others = np.flatnonzero(reflected < 1)
        self._decide(reflected[others] <= -1, places.down()[others])
        beyond = np.flatnonzero(reflected)
        rest, further = np.abs(reflected[beyond]) - 1, places.further()[beyond]
        for _ in range(UNARY):
            more = rest > 0
            self._decide(more, further)
            rest, further = rest[more] - 1, further[more]
        bits = np.frexp((rest + 1).astype(np.float64))[1].astype(np.int64) - 1
        if bits.max(initial=0) > MOST_BITS:
            raise ValueError("a value has so narrow a layer, below 2⁻⁴⁰ of the noise, that its level cannot be coded")
        if len(rest):
            self._coder.encode(bits.astype(np.int32), stream.model.Uniform(LENGTHS))
        for start in range(0, int(bits.max(initial=0)), CHUNK_BITS):
            chunk = ((rest + 1 - (1 << bits))[bits > start] >> start) & ((1 << CHUNK_BITS) - 1)
            self._coder.encode(chunk.astype(np.int32), stream.model.Uniform(1 << CHUNK_BITS))

    def finish(self) -> bytes:
        """Return the shortest bytes that name a point in the coder's interval; zeros follow them unwritten."""
        count, (low, width) = self._coder.pos()
        words = np.asarray(self._coder.get_compressed()).astype(">u4").tobytes()
        length = 4 * count + 8
        inside = int.from_bytes(words.ljust(length, b"\0"), "big")  # a point in the interval, of all its bytes
        lowest = inside - (inside - low) % (1 << 64)
        for zeros in range(8, -1, -1):
            unit = 1 << 8 * zeros
            point = -(-lowest // unit) * unit
            if point < lowest + width:
                return point.to_bytes(length, "big").rstrip(b"\0")
        raise AssertionError("the coder's interval is empty")

    def _decide(self, choices: Any, probabilities: Int64[np.ndarray, "n"]) -> None:
        if len(choices):
            self._coder.encode(choices.astype(np.int32), _BERNOULLI, probabilities / WHOLE)


class LaplaceReader:
    """Decodes what a `LaplaceWriter` wrote.

    Bytes that no writer wrote decode to some levels, or raise CorruptPayload; whoever reads to the end writes the
    levels again, and compares. The work is bounded by the number of values.

    Args:
        coded: The bytes.
    """

    def __init__(self, coded: bytes):
        words = np.frombuffer(coded + bytes(-len(coded) % 4 + 8), dtype=">u4")
        self._coder = stream.queue.RangeDecoder(words.astype(np.uint32))

    def scales(self, layers: int, d: int) -> Int64[np.ndarray, "layers"]:
        """Decode the number of each layer's scale.

        Args:
            layers: The number of layers.
            d: The number of values in all layers.

        Raises:
            CorruptPayload: A number lies outside its range.
        """
        numbers = usual_number(d) + np.cumsum(self._decoded(_CHANGES, layers) - (SCALES - 1))
        if numbers.min() < 0 or numbers.max() >= SCALES:
            raise CorruptPayload(f"the scale of a layer has a number outside 0 to {SCALES - 1}")
        return numbers

    def levels(self, places: Places) -> Int64[np.ndarray, "n"]:
        """Decode the reflected levels of a block.

        Raises:
            CorruptPayload: A level has more bits than any writer's, or than its number of bits.
        """
        reflected = self._decided(places.up()).astype(np.int64)
        others = np.flatnonzero(reflected == 0)
        reflected[others] = -self._decided(places.down()[others])
        beyond = np.flatnonzero(reflected)
        further, signs = places.further()[beyond], reflected[beyond]
        for _ in range(UNARY):
            more = self._decided(further) > 0
            beyond, further, signs = beyond[more], further[more], signs[more]
            reflected[beyond] += signs
        bits = self._decoded(stream.model.Uniform(LENGTHS), len(beyond))
        if bits.max(initial=0) > MOST_BITS:
            raise CorruptPayload(f"a level has more than {MOST_BITS} bits, which no sender writes")
        rest = np.zeros(len(beyond), dtype=np.int64)
        for start in range(0, int(bits.max(initial=0)), CHUNK_BITS):
            longer = np.flatnonzero(bits > start)
            rest[longer] |= self._decoded(stream.model.Uniform(1 << CHUNK_BITS), len(longer)) << start
        if np.logical_or.reduce(rest >> bits):
            raise CorruptPayload("a level has more bits than its number of bits says, which no sender writes")
        reflected[beyond] += signs * (rest + (1 << bits) - 1)
        return reflected

    def _decided(self, probabilities: Int64[np.ndarray, "n"]) -> Int64[np.ndarray, "n"]:
        return self._read(_BERNOULLI, probabilities / WHOLE) if len(probabilities) else np.empty(0, np.int64)

    def _decoded(self, model: Any, count: int) -> Int64[np.ndarray, "n"]:
        return self._read(model, count) if count else np.empty(0, np.int64)

    def _read(self, model: Any, counted: Any) -> Int64[np.ndarray, "n"]:
        try:
            return np.asarray(self._coder.decode(model, counted), dtype=np.int64)
        except (AssertionError, ValueError) as error:
            raise CorruptPayload(f"the coded levels cannot be decoded: {error}") from error


class ScaleSearch:
    """Finds the scales of layers that make a message the shortest; scales are sent as changes along the layers.

    Args:
        magnitudes: (layers,) the mean magnitude of the values of each layer.
        largest: The largest possible value.
        d: The number of values in all layers.
    """

    def __init__(self, magnitudes: Float64[np.ndarray, "layers"], largest: float, d: int):
        self._largest, self._usual = largest, usual_number(d)
        self._numbers = np.array([self._tried(mean) for mean in magnitudes.tolist()])
        self._bits = np.zeros(self._numbers.shape)

    def _tried(self, mean: float) -> Int64[np.ndarray, "tried"]:
        """Return the numbers that are tried for a layer: near its mean magnitude, or of any size if that is zero."""
        if mean == 0:
            return np.linspace(self._usual, SCALES - 1, 2 * AROUND + 1).astype(np.int64)
        middle = round(2 * math.log2(self._largest / mean))
        return np.clip(np.arange(middle - AROUND, middle + AROUND + 1), 0, SCALES - 1)

    def add(self, reflected: Int64[np.ndarray, "n"], margins: Margins, layers: Int64[np.ndarray, "n"]) -> None:
        """Add the bits of a block's levels under each scale that is tried.

        Args:
            reflected: The reflected levels.
            margins: What is known of the values.
            layers: The number of each value's layer.
        """
        widest = scale_of(self._numbers[:, 0], self._largest)[layers]
        # Zeros with wide margins cost nothing under any scale that is tried.
        kept = np.flatnonzero((reflected != 0) | (margins.near < SCALES_LONG * widest))
        reflected, layers = reflected[kept], layers[kept]
        margins = Margins(*(each[kept] for each in margins))
        for tried in range(self._numbers.shape[1]):
            places = margins.places(scale_of(self._numbers[:, tried], self._largest)[layers])
            bits = _bits(reflected, places)
            self._bits[:, tried] += np.bincount(layers, weights=bits, minlength=len(self._bits))

    def best(self) -> Int64[np.ndarray, "layers"]:
        """Return the number of each layer's scale, by dynamic programming over the layers (Viterbi 1967)."""
        totals, came_from = self._bits[0] + np.abs(self._numbers[0] - self._usual), list[Any]()
        for before, here, bits in zip(self._numbers, self._numbers[1:], self._bits[1:], strict=False):
            paths = totals[:, None] + np.abs(before[:, None] - here[None, :])  # a bit for each step of the change
            came_from.append(paths.argmin(axis=0))
            totals = paths.min(axis=0) + bits
        chosen = [int(totals.argmin())]
        for places in reversed(came_from):
            chosen.append(int(places[chosen[-1]]))
        return self._numbers[np.arange(len(chosen)), chosen[::-1]]


def _bits(reflected: Int64[np.ndarray, "n"], places: Places) -> Float64[np.ndarray, "n"]:
    """Return the bits of each level, but for those of magnitudes beyond the unary steps."""
    up, down, further = places.up() / WHOLE, places.down() / WHOLE, places.further() / WHOLE
    above, below = reflected >= 1, reflected <= -1
    probabilities = np.where(above, up, (1 - up) * np.where(below, down, 1 - down))
    steps = np.minimum(np.abs(reflected) - 1, UNARY)
    magnitude = steps * np.log2(further) + np.where(steps < UNARY, np.log2(1 - further), 0.0)
    return -np.log2(probabilities) - np.where(reflected != 0, magnitude, 0.0)
