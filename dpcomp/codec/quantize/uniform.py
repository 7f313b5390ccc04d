"""Uniform: evenly spaced levels, with a step for each layer."""

from dataclasses import dataclass, field
from functools import lru_cache
from numbers import Integral

import numpy as np
from jaxtyping import Float32, Int, Int64

from dpcomp.codec.allocation import Allocator
from dpcomp.codec.quantize.bfloat16 import LARGEST_FLOAT32, read_scales, round_up_to_bfloat16, widen_bfloat16
from dpcomp.codec.quantize.quantizer import BLOCK, Bounds, equal_bounds, largest_magnitudes, layer_blocks
from dpcomp.codec.quantize.rounding import Nearest, Rounding
from dpcomp.codec.rate import LARGEST_LEVEL, MAX_LEVEL_BITS
from dpcomp.core.checks import missing_members, whole_number
from dpcomp.core.public_context import PublicContext


@dataclass(frozen=True)
class Uniform:
    """Round to evenly spaced levels, symmetric about 0, with a step Δ for each layer.

    With a whole number of bits b, each layer has 2^b − 1 levels that span its largest magnitude: Δ = max |x| ÷
    (2^(b−1) − 1). With an allocator, each layer has a width of its own if levels are packed, and a step of its own if
    they are entropy-coded. The squared error is about Δ²/12 a value where the levels are not clipped. `FixedWidth`
    spends b bits on a value, `RangeCoder` the entropy of the levels: 2.6 to 2.9 of 4 bits on Gaussian layers of 10⁶ to
    10⁴ values.

    Side information is two bytes a layer for the step, rounded up to a bfloat16, the same number on every machine; and
    half a byte a layer for the width, if an allocator chose it.

    **Privacy:** post-processing of a release (PRIVACY_RULES 1). The step of a clean layer would be an observable of
    private data (PRIVACY_RULES, rule zero).

    Attributes:
        bits: A whole number from 2 to 16, or an allocator: `Equal`, `Waterfill`, `FixedStep` or one of your own.
        rounding: `Nearest` (biased, smallest error), `Stochastic` or `Dithered` (both unbiased).

    Raises:
        TypeError: `bits` is neither a whole number nor an allocator, or `rounding` is not a rounding rule.
        ValueError: `bits` lies outside 2 to 16.

    Examples:
        >>> import dpcomp as dp
        >>> context = dp.PublicContext(layout=dp.Layout.of(4))
        >>> values = np.array([0.7, -0.2, 0.0, 0.36], dtype=np.float32)
        >>> _, decoded = dp.Codec(quantize=dp.Uniform(4)).encode(values, dp.Everywhere(), context)
        >>> [round(float(value), 3) for value in decoded]  # the step is 0.7/7, rounded up
        [0.701, -0.2, 0.0, 0.4]
    """

    bits: int | Allocator
    rounding: Rounding = field(default_factory=Nearest)

    def __post_init__(self):
        if isinstance(self.bits, Integral) and not isinstance(self.bits, bool):
            object.__setattr__(self, "bits", whole_number(self.bits, "Uniform(bits)", least=2, most=MAX_LEVEL_BITS))
        elif isinstance(self.bits, type) or not isinstance(self.bits, Allocator):
            raise TypeError(
                f"Uniform(bits={self.bits!r}): give a whole number from 2 to {MAX_LEVEL_BITS}, or an allocator such as "
                f"dp.Waterfill(4), with the methods {' and '.join(missing_members(object(), Allocator))}"
            )
        if not isinstance(self.rounding, Rounding) or isinstance(self.rounding, type):
            raise TypeError(
                f"Uniform(rounding={self.rounding!r}) is no rounding rule: give dp.Nearest(), dp.Stochastic() or "
                "dp.Dithered()"
            )

    side_holds_values = False
    narrow_levels = True

    @property
    def allocates(self) -> bool:
        """Whether an allocator gives layers rates of their own."""
        return not isinstance(self.bits, int)

    @property
    def averaged_clients(self) -> int | None:
        """The number of updates that the server averages, if the allocator separates signal from noise; else None."""
        return getattr(self.bits, "averaged_clients", None)

    @property
    def unbiased(self) -> bool:
        """Whether the rounding is unbiased; a layer to which an allocator gives no bits is decoded as zeros even so."""
        return self.rounding.unbiased

    def side_bytes(self, counts: Int64[np.ndarray, "layers"], context: PublicContext) -> int:
        """Return two bytes a layer for its step, and half a byte for its width, if an allocator chose it."""
        return 2 * len(counts) + (len(counts) + 1) // 2 * self._sends_widths(context)

    def bounds(self, side: bytes, context: PublicContext) -> Bounds:
        """Return ±(2^(width−1) − 1) for each layer."""
        if not self._sends_widths(context):
            top = (1 << (self.bits if isinstance(self.bits, int) else MAX_LEVEL_BITS) - 1) - 1
            return equal_bounds(len(context.layout.shapes), -top, top)
        layers = len(context.layout.shapes)
        return _bounds_of_widths(bytes(side[2 * layers :]), layers)

    def levels(
        self, values: Float32[np.ndarray, "k"], counts: Int64[np.ndarray, "layers"], context: PublicContext
    ) -> tuple[Int[np.ndarray, "k"], bytes]:
        """Return the rounded and clipped ratios value ÷ step, and the steps and widths as side information."""
        width_bytes = b""
        if isinstance(self.bits, int):
            spacing = largest_magnitudes(values, counts).astype(np.float64)
            spacing /= 2 ** (self.bits - 1) - 1
        elif context.packed:
            widths, chosen = self.bits.widths_and_steps(values, counts)
            spacing = np.where(np.array(widths) > 0, chosen, 0.0)  # of no bits zeros are decoded, whatever the dither
            width_bytes = _pack_widths(widths)
        else:
            finest = largest_magnitudes(values, counts).astype(np.float64) / LARGEST_LEVEL
            spacing = np.maximum(self.bits.steps(values, counts), finest)
        steps = round_up_to_bfloat16(np.asarray(spacing, dtype=np.float64))
        bounds = self.bounds(bytes(2 * len(counts)) + width_bytes, context)
        tops = None if bounds.equal else bounds.highest.astype(np.float32)
        divisors = np.where(steps > 0, widen_bfloat16(steps), np.float32(np.inf))  # a step of 0: all values are 0
        offset = self.rounding.sender_offset(len(values), context.dither_key)
        levels = np.empty(len(values), dtype=bounds.level_type)
        room = np.empty(min(BLOCK, len(values)), dtype=np.float32)
        for block, layers, _ in layer_blocks(counts):
            ratio = room[: block.stop - block.start]
            top = np.float32(bounds.common[1]) if tops is None else tops[layers]
            np.divide(values[block], divisors[layers], out=ratio)
            if isinstance(offset, np.ndarray):
                ratio += offset[block]
            elif offset:
                ratio += offset
            np.rint(ratio, out=ratio)
            ratio.clip(-top, top, out=ratio)
            levels[block] = ratio
        return levels, steps.astype("<u2").tobytes() + width_bytes

    def values(
        self, levels: Int[np.ndarray, "k"], side: bytes, counts: Int64[np.ndarray, "layers"], context: PublicContext
    ) -> Float32[np.ndarray, "k"]:
        """Return (level − receiver offset) × the layer's step."""
        scale = read_scales(side[: 2 * len(counts)])
        offset = self.rounding.receiver_offset(len(levels), context.dither_key)
        if np.maximum.reduce(scale) <= LARGEST_FLOAT32 / 2**MAX_LEVEL_BITS:
            return _scaled(levels, offset, scale, counts)
        with np.errstate(over="ignore"):
            values = _scaled(levels, offset, scale, counts)
        # Half a step more than the largest float is that float.
        return np.clip(values, -LARGEST_FLOAT32, LARGEST_FLOAT32, out=values)

    def _sends_widths(self, context: PublicContext) -> bool:
        return context.packed and not isinstance(self.bits, int)


def _scaled(
    levels: Int[np.ndarray, "k"],
    offset: Float32[np.ndarray, "k"] | float,
    scales: Float32[np.ndarray, "layers"],
    counts: Int64[np.ndarray, "layers"],
) -> Float32[np.ndarray, "k"]:
    """Return (level − offset) × the layer's scale."""
    values = np.empty(len(levels), dtype=np.float32)
    for block, layers, _ in layer_blocks(counts):
        here = values[block]
        here[:] = levels[block]
        if isinstance(offset, np.ndarray):
            here -= offset[block]
        elif offset:
            here -= offset
        here *= scales[layers]
    return values


def _pack_widths(widths: tuple[int, ...]) -> bytes:
    """Pack each width into half a byte: 0 for no bits, else the width less one."""
    codes = np.zeros(len(widths) + len(widths) % 2, dtype=np.uint8)
    codes[: len(widths)] = [max(width - 1, 0) for width in widths]
    return (codes[::2] | codes[1::2] << 4).tobytes()


@lru_cache(maxsize=64)
def _bounds_of_widths(packed: bytes, layers: int) -> Bounds:
    """Return the bounds of so many layers with these packed widths."""
    widths = _unpack_widths(packed, layers)
    tops = np.where(widths > 0, (1 << np.maximum(widths - 1, 0)) - 1, 0).astype(np.int32)
    return Bounds(-tops, tops)


def _unpack_widths(packed: bytes, layers: int) -> Int64[np.ndarray, "layers"]:
    """Unpack the widths of so many layers: the inverse of `_pack_widths`."""
    halves = np.frombuffer(packed, dtype=np.uint8)
    codes = np.stack([halves & 15, halves >> 4], axis=1).reshape(-1)[:layers].astype(np.int64)
    return codes + (codes > 0)
