"""The codec: sparsify, quantize, entropy; from a vector to a body of bytes and back."""

import struct
from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Float64, Int32, Int64

from dpcomp.codec.entropy import EntropyCoder, RangeCoder
from dpcomp.codec.entropy.coder import Metered, PartBits, Reader
from dpcomp.codec.prediction import LastBroadcast
from dpcomp.codec.quantize import Bounds, Quantizer
from dpcomp.codec.quantize import Float32 as Unquantized
from dpcomp.codec.rate import entropy_bits
from dpcomp.core.errors import CorruptPayload
from dpcomp.core.layout import split_by_counts
from dpcomp.core.public_context import PublicContext
from dpcomp.core.support import Everywhere, Listed, Support

SUPPORT = struct.Struct("<BI")  # the kind of support, and how many coordinates it holds
EVERYWHERE, PUBLIC, LISTED = range(3)  # the kinds: all coordinates; those that both ends compute; those listed here


@runtime_checkable
class Sparsifier(Protocol):
    """Chooses which coordinates of a vector are sent."""

    def select(self, vector: Float32[np.ndarray, "d"], candidates: Support, context: PublicContext) -> Support:
        """Return a support within the candidates, for a (d,) vector."""
        ...


@dataclass(frozen=True, kw_only=True)
class Codec:
    """Code a vector as bytes, in four slots that a sender goes through in this order.

    Args:
        predict: What an update is expected to be, which is not sent; None codes the update itself.
        sparsify: Which coordinates are sent; None sends every coordinate of the update's support.
        quantize: In how many bits a value is sent; None sends float32.
        entropy: How positions and levels become bits.

    Example:
        >>> import dpcomp as dp
        >>> dp.Codec(sparsify=dp.TopK(0.01), quantize=dp.Uniform(4)).allocates
        False
    """

    predict: LastBroadcast | None = None
    sparsify: Sparsifier | None = None
    quantize: Quantizer | None = None
    entropy: EntropyCoder = field(default_factory=RangeCoder)

    def __post_init__(self):
        for name, kind in (
            ("predict", LastBroadcast),
            ("sparsify", Sparsifier),
            ("quantize", Quantizer),
            ("entropy", EntropyCoder),
        ):
            part = getattr(self, name)
            if isinstance(part, type) or not (isinstance(part, kind) or (part is None and name != "entropy")):
                raise TypeError(f"Codec({name}={part!r}): it must be a {kind}")

    @property
    def averaged_clients(self) -> int | None:
        """Of how many updates the server wants the mean, where the allocator sees the privacy noise."""
        return getattr(self.quantizer, "averaged_clients", None)

    @property
    def allocates(self) -> bool:
        """Whether layers get bits of their own."""
        return getattr(self.quantizer, "allocates", False)

    @property
    def quantizer(self) -> Quantizer:
        """What `quantize` means: None is float32."""
        return Unquantized() if self.quantize is None else self.quantize

    def select(self, vector: Float32[np.ndarray, "d"], candidates: Support, context: PublicContext) -> Support:
        """Return the coordinates of a (d,) vector that are sent."""
        return candidates if self.sparsify is None else self.sparsify.select(vector, candidates, context)

    def encode(
        self,
        values: Float32[np.ndarray, "k"],
        support: Support,
        context: PublicContext,
    ) -> tuple[bytes, Float32[np.ndarray, "k"]]:
        """Write values on their support as a body.

        Args:
            values: A (k,) float32 vector, in ascending order of position.
            support: Where they stand: `Everywhere`, `Listed`, or the public support.
            context: What both ends know of the message.

        Returns:
            The body, and the (k,) values that its reader will find in it.

        Raises:
            ValueError: The support is none of the three.
        """
        context = replace(context, packed=self.entropy.packed)
        layout, writer = context.layout, self.entropy.writer()
        counts, kind = layout.counts(support), _kind(support, context.public_support)
        if kind == LISTED:
            writer.positions(support.indices(layout.size), layout.edges, _previous_positions(context))
        levels, side = self.quantizer.levels(values, counts, context)
        writer.raw(side)
        bounds = self.quantizer.bounds(side, context)
        if bounds.coded.any() and len(values):
            writer.levels(levels, counts, bounds)
        head = SUPPORT.pack(kind, len(values))
        return head + writer.finish(), self.quantizer.values(levels, side, counts, context)

    def decode(
        self,
        body: bytes | memoryview,
        context: PublicContext,
    ) -> tuple[Float32[np.ndarray, "k"], Support]:
        """Read the values of a body, and their support.

        Args:
            body: What `encode` wrote.
            context: As for `encode`.

        Raises:
            CorruptPayload: The body cannot come from this codec. Nothing larger than the update is allocated to find
                that out.
        """
        parts = self._read(body, context)
        values = self.quantizer.values(parts.levels, parts.side, parts.counts, parts.context)
        if not np.isfinite(values).all():
            raise CorruptPayload("the body holds values that are not finite")
        return values, parts.support

    def layer_bits(
        self,
        body: bytes | memoryview,
        context: PublicContext,
    ) -> Float64[np.ndarray, "layers"]:
        """Return the bits a value that a body spends on each layer: the levels' width or entropy; 0 where none is sent.

        Args:
            body: What `encode` wrote.
            context: As for `encode`.
        """
        parts = self._read(body, context)
        if not parts.bounds.coded.any():
            return np.where(parts.counts > 0, 8 * len(parts.side) / max(1, int(parts.counts.sum())), 0.0)
        if self.entropy.packed:
            return np.where(parts.counts > 0, parts.bounds.widths, 0).astype(np.float64)
        layers = split_by_counts(parts.levels, parts.counts)
        return np.array([entropy_bits(np.bincount(layer - layer.min())) if len(layer) else 0.0 for layer in layers])

    def measure(
        self,
        body: bytes | memoryview,
        context: PublicContext,
    ) -> tuple["Body", PartBits]:
        """Return what stands in a body, and the bits that each part of it takes: they add up to all of its bytes.

        Args:
            body: What `encode` wrote.
            context: As for `encode`.

        Raises:
            CorruptPayload: The body cannot come from this codec.
            TypeError: The entropy coder has no meter.
        """
        if not isinstance(self.entropy, Metered):
            raise TypeError(
                f"{self.entropy!r} cannot tell what its parts take: give it a .meter(body), as RangeCoder has"
            )
        meter = self.entropy.meter(body[SUPPORT.size :])
        parts, bits = self._read(body, context, meter), meter.bits
        if getattr(self.quantizer, "side_holds_values", not parts.bounds.coded.any()):
            bits = replace(bits, side=0.0, value=bits.value + bits.side)
        return parts, replace(bits, header=bits.header + 8 * SUPPORT.size)

    def _read(self, body: bytes | memoryview, context: PublicContext, reader: Reader | None = None) -> "Body":
        context = replace(context, packed=self.entropy.packed)
        layout = context.layout
        if len(body) < SUPPORT.size:
            raise CorruptPayload(f"a body of {len(body)} bytes holds no support")
        kind, k = SUPPORT.unpack_from(body)
        if kind > LISTED or k > layout.size:
            raise CorruptPayload(f"no support of kind {kind} with {k} of {layout.size} coordinates is known")
        reader = self.entropy.reader(body[SUPPORT.size :]) if reader is None else reader
        support: Support | None = Everywhere() if kind == EVERYWHERE else context.public_support
        if kind == LISTED:
            support = Listed(reader.positions(k, layout.edges, _previous_positions(context)))
        if support is None or support.count(layout.size) != k:
            raise CorruptPayload(f"the body is on {k} coordinates of kind {kind}, where the pipeline has {support}")
        counts = layout.counts(support)
        side = reader.raw(self.quantizer.side_bytes(counts, context))
        bounds = self.quantizer.bounds(side, context)
        levels = reader.levels(counts, bounds) if bounds.coded.any() and k else np.repeat(bounds.lowest, counts)
        reader.finish()
        return Body(support=support, counts=counts, side=side, bounds=bounds, levels=levels, context=context)


@dataclass(frozen=True, kw_only=True, eq=False)
class Body:
    """What stands in a body, before the levels become values."""

    support: Support
    counts: Int64[np.ndarray, "layers"]
    side: bytes
    bounds: Bounds
    levels: Int32[np.ndarray, "m"]
    context: PublicContext


def _kind(support: Support, public: Support | None) -> int:
    """How a body says on which coordinates it is."""
    if isinstance(support, Everywhere):
        return EVERYWHERE
    if public is not None and support == public:
        return PUBLIC
    if isinstance(support, Listed):
        return LISTED
    raise ValueError(f"the support {support} is neither listed nor the public one, {public}: list its positions")


def _previous_positions(context: PublicContext) -> Int64[np.ndarray, "k_before"] | None:
    return None if context.previous_support is None else context.previous_support.positions
