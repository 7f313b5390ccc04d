"""The protocol of a quantiser, and what all quantisers share."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float32, Int, Int32, Int64

from dpcomp.codec.rate import LARGEST_LEVEL
from dpcomp.core.checks import whole_number
from dpcomp.core.errors import CorruptPayload
from dpcomp.core.finite import all_finite
from dpcomp.core.public_context import PublicContext

BLOCK = 2**16  # values that are worked on at once, in a core's own cache


@dataclass(frozen=True, eq=False)
class Bounds:
    """The lowest and the highest level that each layer may have.

    The entropy coder reads from them how many bits hold a level, and refuses levels outside. A layer whose bounds are
    equal has nothing to code: its levels are not sent.

    Attributes:
        lowest: (layers,) the lowest level of each layer; kept as a read-only int32 copy.
        highest: (layers,) the highest.

    Raises:
        TypeError: The two are not arrays of whole numbers.
        ValueError: They differ in shape, a lowest level is above the highest, or a level is above 2¹⁵ − 1 in magnitude.
    """

    lowest: Int32[np.ndarray, "layers"]
    highest: Int32[np.ndarray, "layers"]

    def __post_init__(self):
        for name in ("lowest", "highest"):
            given: object = getattr(self, name)
            if not isinstance(given, np.ndarray) or given.dtype.kind not in "iu":
                shown = given.dtype if isinstance(given, np.ndarray) else type(given).__name__
                raise TypeError(f"Bounds({name}) is of {shown}: give an int32 array with a level for each layer")
            if given.size and not -LARGEST_LEVEL <= int(given.min()) <= int(given.max()) <= LARGEST_LEVEL:
                raise ValueError(
                    f"Bounds({name}) goes from {given.min()} to {given.max()}: the entropy coders take levels from "
                    f"-{LARGEST_LEVEL} to {LARGEST_LEVEL}"
                )
            kept = given.astype(np.int32)
            kept.flags.writeable = False
            object.__setattr__(self, name, kept)
        if self.lowest.ndim != 1 or self.lowest.shape != self.highest.shape or (self.lowest > self.highest).any():
            raise ValueError(
                f"Bounds(lowest={self.lowest}, highest={self.highest}): give a lowest level and a highest one for each "
                "layer, in this order; the lowest may not be above the highest"
            )

    @cached_property
    def coded(self) -> Bool[np.ndarray, "layers"]:
        """Which layers have their levels sent."""
        return self.highest > self.lowest

    @cached_property
    def any_coded(self) -> bool:
        """Whether the levels of a layer are sent."""
        return bool(self.coded.any())

    @cached_property
    def all_coded(self) -> bool:
        """Whether the levels of all layers are sent."""
        return bool(self.coded.all())

    @cached_property
    def equal(self) -> bool:
        """Whether all layers have the same bounds."""
        return self.common == (
            int(self.lowest.min(initial=LARGEST_LEVEL)),
            int(self.highest.max(initial=-LARGEST_LEVEL)),
        )

    @cached_property
    def widths(self) -> Int64[np.ndarray, "layers"]:
        """The bits that hold any level of each layer."""
        return np.frexp(self.highest - self.lowest)[1].astype(np.int64)

    @cached_property
    def common(self) -> tuple[int, int]:
        """The highest of the lowest levels and the lowest of the highest: what lies between suits every layer."""
        return int(self.lowest.max(initial=-LARGEST_LEVEL)), int(self.highest.min(initial=LARGEST_LEVEL))

    @cached_property
    def level_type(self) -> type[np.signedinteger]:
        """The smallest type that holds all levels: int8 or int16."""
        smallest = self.lowest.min(initial=0) >= -128 and self.highest.max(initial=0) <= 127
        return np.int8 if smallest else np.int16


@lru_cache(maxsize=64)
def equal_bounds(layers: int, lowest: int, highest: int) -> Bounds:
    """Return the same bounds for all layers.

    Args:
        layers: The number of layers.
        lowest: The lowest level of each.
        highest: The highest level of each.
    """
    return Bounds(np.full(layers, lowest, dtype=np.int32), np.full(layers, highest, dtype=np.int32))


@runtime_checkable
class Quantizer(Protocol):
    """The protocol of a quantiser: values become levels and side information at the sender, values again at both ends.

    A message is the side information (bytes, sent as they are), then the levels (whole numbers, which the entropy coder
    codes). The sender calls `levels`; the receiver calls `side_bytes`, reads so many bytes, calls `bounds`, reads the
    levels and calls `values`. The sender calls `values` too, to know what the receiver decodes: so `values` must return
    the same bits on both machines. Use whole numbers and products of float32; draw randomness from `context.dither_key`
    alone. The entropy coders are made for levels within 2¹⁵ − 1 in magnitude. Write a quantiser as a frozen dataclass.

    A quantiser without levels, such as a float format, puts the values in the side information: its `bounds` are equal
    in every layer, and its `levels` an empty array.

    Six attributes are optional:

    - `side_holds_values` (bool): the side information is the values, as in a float format, so `measure` counts its bits
      as values, and `values` may be given a memoryview of it, which is not copied. If absent, the bits are counted so
      in a body without levels.
    - `codes_itself` (bool): the side information is the whole body, in as many bytes as it needs, for a quantiser whose
      levels have probabilities that both ends know. `side_bytes` is not called, `levels` is an empty array, and
      `values` reads to the end. Such a quantiser stands alone in its codec. Absent is False.
    - `lossless` (bool): the decoded values are the values, bit for bit, so a sender need not decode. Absent is False.
    - `narrow_levels` (bool): `values` takes levels of int8 and int16 too, in which sums and products can wrap. Absent
      is False: it is given int32.
    - `allocates` (bool): layers get rates of their own, as from an allocator. Absent is False.
    - `averaged_clients` (int or None): the number of updates that the server averages, for a quantiser that separates
      signal from privacy noise; its values are then Wiener estimates. Absent is None.

    **Privacy:** a quantiser works on released values, so it may use them in any way (PRIVACY_RULES 1 and 12).

    Examples:
        >>> import dpcomp as dp
        >>> @dataclass(frozen=True)
        ... class FixedSign:
        ...     scale: float
        ...     unbiased = False
        ...
        ...     def side_bytes(self, counts, context):
        ...         return 0
        ...
        ...     def bounds(self, side, context):
        ...         zeros = np.zeros(len(context.layout.shapes), np.int32)
        ...         return Bounds(zeros, zeros + 1)
        ...
        ...     def levels(self, values, counts, context):
        ...         return (values >= 0).astype(np.int32), b""
        ...
        ...     def values(self, levels, side, counts, context):
        ...         return np.float32(self.scale) * (2 * levels - 1).astype(np.float32)
        >>> codec, context = dp.Codec(quantize=FixedSign(0.5)), dp.PublicContext(layout=dp.Layout.of(2))
        >>> body, decoded = codec.encode(np.array([0.3, -2.0], np.float32), dp.Everywhere(), context)
        >>> decoded
        array([ 0.5, -0.5], dtype=float32)
    """

    @property
    def unbiased(self) -> bool:
        """Whether the expected decoded value is the value, over the public randomness of `dither_key`."""
        ...

    def bounds(self, side: Any, context: PublicContext) -> Bounds:
        """Return the lowest and highest level of each layer of `context.layout`, given the side information."""
        ...

    def levels(
        self, values: Float32[np.ndarray, "k"], counts: Int64[np.ndarray, "layers"], context: PublicContext
    ) -> tuple[Int[np.ndarray, "m"], bytes | memoryview]:
        """Quantise values, at the sender.

        Args:
            values: The (k,) values, layer after layer; they must stay unchanged.
            counts: How many of them each layer has; they add up to k.
            context: The public values of the message.

        Returns:
            A level for each value (in layers that are not coded, any), and the side information.
        """
        ...

    def side_bytes(self, counts: Int64[np.ndarray, "layers"], context: PublicContext) -> int:
        """Return the length of the side information in bytes, which may depend on its arguments alone."""
        ...

    def values(
        self, levels: Int[np.ndarray, "m"], side: Any, counts: Int64[np.ndarray, "layers"], context: PublicContext
    ) -> Float32[np.ndarray, "k"]:
        """Decode values, at both ends.

        Args:
            levels: A level for each value, within the bounds; the lowest level in layers that are not coded.
            side: The side information, as bytes; as a memoryview, where `side_holds_values`.
            counts: How many of the k values each layer has.
            context: The public values of the message.

        Returns:
            The (k,) decoded values, a new array.

        Raises:
            CorruptPayload: The side information cannot come from this quantiser.
        """
        ...


class LayerBlock(NamedTuple):
    """A block of values that lie layer after layer: a part of one layer, or several whole layers.

    Attributes:
        where: Where the block lies.
        layers: The number of its layer; or of each value's layer, an array. Either is an index into what holds a number
            for each layer.
        starts: Where each layer that is not empty begins in the block: what `reduceat` takes.
    """

    where: slice
    layers: Any
    starts: Int64[np.ndarray, "present"]


def layer_blocks(counts: Int64[np.ndarray, "layers"]) -> Iterable[LayerBlock]:
    """Cut values that lie layer after layer into blocks of at most BLOCK values.

    Args:
        counts: How many values each layer has.
    """
    return _only_block(counts.astype("<i8", copy=False).tobytes()) or _many_blocks(counts)


@lru_cache(maxsize=16)
def _only_block(counts: bytes) -> tuple[LayerBlock, ...]:
    """Return the only block of few values, which a message asks for several times; nothing for more than one block."""
    numbers = np.frombuffer(counts, dtype="<i8").astype(np.int64)
    return tuple(_many_blocks(numbers)) if int(numbers.sum()) <= BLOCK else ()


def _many_blocks(counts: Int64[np.ndarray, "layers"]) -> Iterator[LayerBlock]:
    start = first = together = 0  # the small layers from `first` on hold so many values, from `start` on
    for layer, count in enumerate([*counts.tolist(), BLOCK + 1]):
        if together and together + count > BLOCK:
            yield _of_layers(start, first, counts[first:layer])
            start, first, together = start + together, layer, 0
        if count <= BLOCK:
            together += count
            continue
        first = layer + 1
        for begin in range(0, count if layer < len(counts) else 0, BLOCK):
            yield LayerBlock(slice(start + begin, start + min(begin + BLOCK, count)), layer, np.zeros(1, np.int64))
        start += count


def _of_layers(start: int, first: int, counts: Int64[np.ndarray, "layers"]) -> LayerBlock:
    """Return the block from `start` on of whole layers, the first of which has the number `first`."""
    layers = np.repeat(np.arange(first, first + len(counts)), counts)
    layers.flags.writeable = False
    return LayerBlock(slice(start, start + len(layers)), layers, (np.cumsum(counts) - counts)[counts > 0])


def largest_magnitudes(
    values: Float32[np.ndarray, "k"], counts: Int64[np.ndarray, "layers"]
) -> Float32[np.ndarray, "layers"]:
    """Return the largest magnitude in each layer; 0 in an empty one.

    Args:
        values: The (k,) values, layer after layer.
        counts: How many of them each layer has.
    """
    largest = np.zeros(len(counts), dtype=np.float32)
    for block, layers, starts in layer_blocks(counts):
        here = values[block]
        if isinstance(layers, int):
            largest[layers] = max(largest[layers], here.max(), -here.min())
        else:
            largest[layers[starts]] = np.maximum.reduceat(np.abs(here), starts)
    return largest


def refuse_levels_outside(levels: Int[np.ndarray, "m"], counts: Int64[np.ndarray, "layers"], bounds: Bounds) -> None:
    """Check that the levels of every layer lie within its bounds.

    The reader of a body calls it; `quantised` checks the sender.

    Args:
        levels: The levels, layer after layer.
        counts: How many of them each layer has.
        bounds: The lowest and highest level of each layer.

    Raises:
        CorruptPayload: A level lies outside.
    """
    if not len(levels) or _suit_all(levels, bounds):
        return
    for block, layers, starts in layer_blocks(counts):
        here, present = levels[block], layers if isinstance(layers, int) else layers[starts]
        outside = np.minimum.reduceat(here, starts) < bounds.lowest[present]
        outside |= np.maximum.reduceat(here, starts) > bounds.highest[present]
        if outside.any():
            layer = present if isinstance(present, int) else present[outside.argmax()]
            raise CorruptPayload(
                f"a level lies outside its layer's bounds, {bounds.lowest[layer]} to {bounds.highest[layer]}"
            )


def quantised(
    quantizer: Quantizer,
    values: Float32[np.ndarray, "k"],
    counts: Int64[np.ndarray, "layers"],
    context: PublicContext,
) -> tuple[Int[np.ndarray, "m"], bytes | memoryview, Bounds]:
    """Quantise values at the sender, and check that the receiver can decode what comes out.

    Args:
        quantizer: The quantiser.
        values: The (k,) values, layer after layer.
        counts: How many of them each layer has.
        context: The public values of the message.

    Returns:
        The levels as the receiver reads them, with the lowest level in layers that are not coded; the side information;
        and the bounds.

    Raises:
        TypeError: The levels are not whole numbers, the side information is not bytes, or the bounds are no `Bounds`.
        ValueError: A level lies outside its layer's bounds, or something has another length than the protocol says.
    """
    returned: object = quantizer.levels(_read_only(values), _read_only(counts), context)
    if not isinstance(returned, tuple) or len(returned) != 2:
        raise TypeError(f"{quantizer!r}: levels returned a {type(returned).__name__}: return the pair levels, side")
    made, side = returned
    levels, k = _array(made, "iu", f"{quantizer!r}: levels", "whole numbers, an int32 array"), len(values)
    if not isinstance(side, (bytes, memoryview)):
        raise TypeError(f"{quantizer!r}: levels returned side information of {type(side).__name__}: return bytes")
    announced = len(side)
    if not getattr(quantizer, "codes_itself", False):
        announced = whole_number(quantizer.side_bytes(counts, context), f"{quantizer!r}: side_bytes", least=0)
    if len(side) != announced:
        raise ValueError(
            f"{quantizer!r}: levels returned {len(side)} bytes of side information, but side_bytes returned "
            f"{announced}, and the receiver reads as many: make the two agree"
        )
    bounds = quantizer.bounds(side, context)
    if not isinstance(bounds, Bounds):
        raise TypeError(f"{quantizer!r}: bounds returned a {type(bounds).__name__}: return Bounds(lowest, highest)")
    if bounds.lowest.shape != counts.shape:
        raise ValueError(
            f"{quantizer!r}: bounds have the shape {bounds.lowest.shape}: return a lowest and a highest level for each "
            f"layer, {counts.shape}"
        )
    if levels.shape != (k,) and (bounds.any_coded or levels.shape != (0,)):
        raise ValueError(f"{quantizer!r}: levels have the shape {levels.shape}: return one for each value, ({k},)")
    if len(levels):
        _refuse_unsendable(quantizer, levels, counts, bounds, context)
        if not bounds.all_coded:
            levels = np.where(np.repeat(bounds.coded, counts), levels, np.repeat(bounds.lowest, counts))
    return levels if takes_type(quantizer, levels) else levels.astype(np.int32), side, bounds


def takes_type(part: Any, levels: Int[np.ndarray, "m"]) -> bool:
    """Return whether a quantiser's `values`, or an entropy coder's writer, takes levels of this type."""
    return levels.dtype == np.int32 or (levels.dtype in (np.int8, np.int16) and getattr(part, "narrow_levels", False))


def decoded_at_sender(
    quantizer: Quantizer,
    levels: Int[np.ndarray, "m"],
    side: bytes | memoryview,
    counts: Int64[np.ndarray, "layers"],
    k: int,
    context: PublicContext,
) -> Float32[np.ndarray, "k"]:
    """Decode at the sender what it sends, and check the type and the number of the values.

    Args:
        quantizer: The quantiser.
        levels: As `quantised` returns them.
        side: The side information.
        counts: How many of the k values each layer has.
        k: The number of values.
        context: The public values of the message.

    Returns:
        The (k,) values that the receiver decodes.

    Raises:
        TypeError: The quantiser's `values` returned something else than a float32 array.
        ValueError: It has another shape than (k,), or holds values that are not finite.
    """
    made = quantizer.values(levels, side, counts, context)
    values = _array(made, "f", f"{quantizer!r}: values", "a float32 array, the same bits at both ends")
    if values.dtype != np.float32:
        raise TypeError(f"{quantizer!r}: values returned {values.dtype}: return a float32 array")
    if values.shape != (k,):
        raise ValueError(f"{quantizer!r}: values have the shape {values.shape}: return one for each level, ({k},)")
    if not all_finite(values):
        raise ValueError(f"{quantizer!r}: values returned numbers that are not finite, which no receiver takes")
    return values


def _read_only(array: np.ndarray) -> np.ndarray:
    """Return a view for a part's method, which could otherwise change what the sender keeps of the array."""
    view = array.view()
    view.flags.writeable = False
    return view


def _array(made: object, kinds: str, where: str, expected: str) -> np.ndarray:
    """Return what a method made if it is an array of a kind of numbers; refuse anything else."""
    if not isinstance(made, np.ndarray) or made.dtype.kind not in kinds:
        shown = made.dtype if isinstance(made, np.ndarray) else type(made).__name__
        raise TypeError(f"{where} returned {shown}: return {expected}")
    return made


def _refuse_unsendable(
    quantizer: Quantizer,
    levels: Int[np.ndarray, "k"],
    counts: Int64[np.ndarray, "layers"],
    bounds: Bounds,
    context: PublicContext,
) -> None:
    """Refuse levels outside the bounds of a coded layer, as the sender's error."""
    if _suit_all(levels, bounds):
        return
    for block, layers, starts in layer_blocks(counts):
        present = np.atleast_1d(layers if isinstance(layers, int) else layers[starts])
        lowest, highest = np.minimum.reduceat(levels[block], starts), np.maximum.reduceat(levels[block], starts)
        for reached, outside in (
            (lowest, bounds.coded[present] & (lowest < bounds.lowest[present])),
            (highest, bounds.coded[present] & (highest > bounds.highest[present])),
        ):
            if outside.any():
                layer, level = present[outside.argmax()], reached[outside.argmax()]
                raise ValueError(
                    f"{quantizer!r}: levels returned the level {level} in layer {context.layout.shapes[layer][0]!r}, "
                    f"outside its bounds, {bounds.lowest[layer]} to {bounds.highest[layer]}: clip the levels, or widen "
                    "the bounds"
                )


def _suit_all(levels: Int[np.ndarray, "m"], bounds: Bounds) -> bool:
    """Return whether levels, one at least, suit every layer: as a rule, since all layers have the same bounds then."""
    lowest, highest = bounds.common
    return bool(lowest <= np.minimum.reduce(levels) and np.maximum.reduce(levels) <= highest)


def scale_layers(
    values: Float32[np.ndarray, "k"], counts: Int64[np.ndarray, "layers"], scales: Float32[np.ndarray, "layers"]
) -> Float32[np.ndarray, "k"]:
    """Multiply the values of each layer by its scale, in place.

    Args:
        values: The (k,) values, layer after layer; they are overwritten.
        counts: How many of them each layer has.
        scales: Each layer's scale.

    Returns:
        The same array.
    """
    for block, layers, _ in layer_blocks(counts):
        values[block] *= scales[layers]
    return values
