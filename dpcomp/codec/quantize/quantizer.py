"""The protocol of a quantiser, and what all quantisers share."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float32, Int, Int32, Int64

from dpcomp.core.errors import CorruptPayload
from dpcomp.core.public_context import PublicContext


@dataclass(frozen=True, eq=False)
class Bounds:
    """The lowest and the highest level that each layer may have.

    The entropy coder reads from them how many bits hold a level, and refuses levels outside. A layer whose bounds are
    equal has nothing to code: its levels are not sent.

    Attributes:
        lowest: (layers,) the lowest level of each layer.
        highest: (layers,) the highest.
    """

    lowest: Int32[np.ndarray, "layers"]
    highest: Int32[np.ndarray, "layers"]

    @property
    def coded(self) -> Bool[np.ndarray, "layers"]:
        """Which layers have their levels sent."""
        return self.highest > self.lowest

    @property
    def widths(self) -> Int64[np.ndarray, "layers"]:
        """The bits that hold any level of each layer."""
        return np.frexp(self.highest - self.lowest)[1].astype(np.int64)


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

    Three attributes are optional:

    - `side_holds_values` (bool): the side information is the values, as in a float format, so `measure` counts its bits
      as values. If absent, it is taken to be so in a body without levels.
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

    def bounds(self, side: bytes, context: PublicContext) -> Bounds:
        """Return the lowest and highest level of each layer of `context.layout`, given the side information."""
        ...

    def levels(
        self, values: Float32[np.ndarray, "k"], counts: Int64[np.ndarray, "layers"], context: PublicContext
    ) -> tuple[Int32[np.ndarray, "m"], bytes]:
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
        self, levels: Int32[np.ndarray, "m"], side: bytes, counts: Int64[np.ndarray, "layers"], context: PublicContext
    ) -> Float32[np.ndarray, "k"]:
        """Decode values, at both ends.

        Args:
            levels: A level for each value, within the bounds; the lowest level in layers that are not coded.
            side: The side information.
            counts: How many of the k values each layer has.
            context: The public values of the message.

        Returns:
            The (k,) decoded values, a new array.

        Raises:
            CorruptPayload: The side information cannot come from this quantiser.
        """
        ...


def refuse_levels_outside(levels: Int32[np.ndarray, "m"], counts: Int64[np.ndarray, "layers"], bounds: Bounds) -> None:
    """Check that the levels of every layer lie within its bounds.

    The reader of a body calls it; `quantised` checks the sender.

    Args:
        levels: The levels, layer after layer.
        counts: How many of them each layer has.
        bounds: The lowest and highest level of each layer.

    Raises:
        CorruptPayload: A level lies outside.
    """
    layers = pairwise(np.cumsum([0, *counts]))
    for (start, stop), lowest, highest in zip(layers, bounds.lowest, bounds.highest, strict=True):
        if stop > start and not (lowest <= levels[start:stop].min() and levels[start:stop].max() <= highest):
            raise CorruptPayload(f"a level lies outside its layer's bounds, {lowest} to {highest}")


def quantised(
    quantizer: Quantizer,
    values: Float32[np.ndarray, "k"],
    counts: Int64[np.ndarray, "layers"],
    context: PublicContext,
) -> tuple[Int32[np.ndarray, "m"], bytes, Bounds]:
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
    made, side = quantizer.levels(values, counts, context)
    levels, k = _array(made, "iu", f"{quantizer!r}: levels", "whole numbers, an int32 array"), len(values)
    if not isinstance(side, bytes):
        raise TypeError(f"{quantizer!r}: levels returned side information of {type(side).__name__}: return bytes")
    announced = quantizer.side_bytes(counts, context)
    if len(side) != announced:
        raise ValueError(
            f"{quantizer!r}: levels returned {len(side)} bytes of side information, but side_bytes returned "
            f"{announced}, and the receiver reads as many: make the two agree"
        )
    bounds = quantizer.bounds(side, context)
    if not isinstance(bounds, Bounds):
        raise TypeError(f"{quantizer!r}: bounds returned a {type(bounds).__name__}: return Bounds(lowest, highest)")
    if not bounds.lowest.shape == bounds.highest.shape == counts.shape:
        raise ValueError(
            f"{quantizer!r}: bounds have the shapes {bounds.lowest.shape} and {bounds.highest.shape}: return a lowest "
            f"and a highest level for each layer, {counts.shape}"
        )
    if levels.shape != (k,) and (bounds.coded.any() or levels.shape != (0,)):
        raise ValueError(f"{quantizer!r}: levels have the shape {levels.shape}: return one for each value, ({k},)")
    if len(levels):
        _refuse_unsendable(quantizer, levels, counts, bounds, context)
        if not bounds.coded.all():
            levels = np.where(np.repeat(bounds.coded, counts), levels, np.repeat(bounds.lowest, counts))
    return levels.astype(np.int32, copy=False), side, bounds


def decoded_at_sender(
    quantizer: Quantizer,
    levels: Int32[np.ndarray, "m"],
    side: bytes,
    counts: Int64[np.ndarray, "layers"],
    context: PublicContext,
) -> Float32[np.ndarray, "k"]:
    """Decode at the sender what it sends, and check the type and the number of the values.

    Args:
        quantizer: The quantiser.
        levels: As `quantised` returns them.
        side: The side information.
        counts: How many of the k values each layer has.
        context: The public values of the message.

    Returns:
        The (k,) values that the receiver decodes.

    Raises:
        TypeError: The quantiser's `values` returned something else than a float32 array.
        ValueError: It has another shape than (k,).
    """
    made, k = quantizer.values(levels, side, counts, context), int(counts.sum())
    values = _array(made, "f", f"{quantizer!r}: values", "a float32 array, the same bits at both ends")
    if values.dtype != np.float32:
        raise TypeError(f"{quantizer!r}: values returned {values.dtype}: return a float32 array")
    if values.shape != (k,):
        raise ValueError(f"{quantizer!r}: values have the shape {values.shape}: return one for each level, ({k},)")
    return values


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
    sent = np.flatnonzero(bounds.coded & (counts > 0))
    if not len(sent):
        return
    if bounds.lowest[sent].max() <= levels.min() and levels.max() <= bounds.highest[sent].min():
        return  # as a rule: all layers have the same bounds
    starts = np.cumsum([0, *counts])
    for layer in sent:
        within = levels[starts[layer] : starts[layer + 1]]
        for level in (within.min(), within.max()):
            if not bounds.lowest[layer] <= level <= bounds.highest[layer]:
                raise ValueError(
                    f"{quantizer!r}: levels returned the level {level} in layer {context.layout.shapes[layer][0]!r}, "
                    f"outside its bounds, {bounds.lowest[layer]} to {bounds.highest[layer]}: clip the levels, or widen "
                    "the bounds"
                )


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
    for (start, stop), scale in zip(pairwise(np.cumsum([0, *counts])), scales, strict=True):
        values[start:stop] *= scale
    return values
