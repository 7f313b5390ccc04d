"""The codec: sparsify, quantize, entropy; from a vector to a body of bytes and back."""

import struct
from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Float64, Int32, Int64

from dpcomp.codec.allocation import Waterfill
from dpcomp.codec.entropy import EntropyCoder, RangeCoder
from dpcomp.codec.entropy.coder import Metered, PartBits, Reader
from dpcomp.codec.prediction import LastBroadcast
from dpcomp.codec.quantize import Bounds, Float16, Quantizer, Uniform
from dpcomp.codec.quantize import Float32 as Unquantized
from dpcomp.codec.rate import entropy_bits
from dpcomp.core.errors import CorruptPayload
from dpcomp.core.layout import Layout
from dpcomp.core.public_context import Common
from dpcomp.core.support import Everywhere, Listed, Seeded, Support
from dpcomp.sparsify import RandomK, TopK

SUPPORT = struct.Struct("<BI")  # the kind of support, and how many coordinates it holds
KINDS: tuple[type[Support], ...] = (Everywhere, Seeded, Listed)


@runtime_checkable
class Sparsifier(Protocol):
    """Chooses what is sent."""

    def select(self, vector: Float32[np.ndarray, "d"], candidates: Support, layout: Layout, mask_key: int) -> Support:
        """A support within the candidates."""
        ...


@dataclass(frozen=True, kw_only=True)
class Codec:
    """Its slots, in the order in which a sender goes through them: what is expected, which coordinates of the rest
    are sent, in how many bits, coded how.

    `predict` None codes the update itself; `sparsify` None sends every coordinate of the update's support;
    `quantize` None sends float32.
    """

    predict: LastBroadcast | None = None
    sparsify: TopK | RandomK | Sparsifier | None = None
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
        bits = self.quantize.bits if isinstance(self.quantize, Uniform) else None
        return bits.clients if isinstance(bits, Waterfill) else None

    @property
    def allocates(self) -> bool:
        """Whether layers get bits of their own."""
        return isinstance(self.quantize, Uniform) and not isinstance(self.quantize.bits, int)

    @property
    def quantizer(self) -> Quantizer:
        """What `quantize` means."""
        return Unquantized() if self.quantize is None else self.quantize

    def select(self, vector: Float32[np.ndarray, "d"], candidates: Support, layout: Layout, mask_key: int) -> Support:
        """What of the vector is sent."""
        return candidates if self.sparsify is None else self.sparsify.select(vector, candidates, layout, mask_key)

    def encode(
        self, values: Float32[np.ndarray, "k"], support: Support, common: Common
    ) -> tuple[bytes, Float32[np.ndarray, "k"]]:
        """The body, and the values that its reader will find in it."""
        common = replace(common, packed=self.entropy.packed)
        layout, writer = common.layout, self.entropy.writer()
        counts = layer_counts(support, layout)
        if isinstance(support, Listed):
            previous = None if common.previous is None else common.previous.positions
            writer.positions(support.positions, layout.edges, previous)
        levels, side = self.quantizer.levels(values, counts, common)
        writer.raw(side)
        bounds = self.quantizer.bounds(side, common)
        if bounds.coded.any() and len(values):
            writer.levels(levels, counts, bounds)
        head = SUPPORT.pack(KINDS.index(type(support)), len(values))
        return head + writer.finish(), self.quantizer.values(levels, side, counts, common)

    def decode(self, body: bytes | memoryview, common: Common) -> tuple[Float32[np.ndarray, "k"], Support]:
        """The values and their support.

        Raises:
            CorruptPayload: the body cannot come from this codec. Nothing larger than the update is
                allocated to find out.
        """
        found = self._read(body, common)
        values = self.quantizer.values(found.levels, found.side, found.counts, found.common)
        if not np.isfinite(values).all():
            raise CorruptPayload("the body holds values that are not finite")
        return values, found.support

    def layer_bits(self, body: bytes | memoryview, common: Common) -> Float64[np.ndarray, "layers"]:
        """Bits a value that a body spends on each layer: the levels' width or entropy; 0 where nothing is sent."""
        found = self._read(body, common)
        if not found.bounds.coded.any():
            return np.where(found.counts > 0, 8 * len(found.side) / max(1, int(found.counts.sum())), 0.0)
        if self.entropy.packed:
            return np.where(found.counts > 0, found.bounds.widths, 0).astype(np.float64)
        layers = np.split(found.levels, np.cumsum(found.counts)[:-1])
        return np.array([entropy_bits(np.bincount(layer - layer.min())) if len(layer) else 0.0 for layer in layers])

    def measure(self, body: bytes | memoryview, common: Common) -> tuple["Body", PartBits]:
        """What stands in a body, and the bits that each part of it takes: they add up to all of its bytes.

        Raises:
            CorruptPayload: the body cannot come from this codec.
            TypeError: the entropy coder has no meter.
        """
        if not isinstance(self.entropy, Metered):
            raise TypeError(
                f"{self.entropy!r} cannot tell what its parts take: give it a .meter(body), as RangeCoder has"
            )
        meter = self.entropy.meter(body[SUPPORT.size :])
        found, bits = self._read(body, common, meter), meter.bits
        if isinstance(self.quantizer, (Unquantized, Float16)):  # what stands beside no levels is the values
            bits = replace(bits, side=0.0, value=bits.side)
        return found, replace(bits, header=bits.header + 8 * SUPPORT.size)

    def _read(self, body: bytes | memoryview, common: Common, reader: Reader | None = None) -> "Body":
        common = replace(common, packed=self.entropy.packed)
        layout = common.layout
        if len(body) < SUPPORT.size:
            raise CorruptPayload(f"a body of {len(body)} bytes holds no support")
        kind, k = SUPPORT.unpack_from(body)
        if kind >= len(KINDS) or k > layout.size:
            raise CorruptPayload(f"no support of kind {kind} with {k} of {layout.size} coordinates is known")
        reader = self.entropy.reader(body[SUPPORT.size :]) if reader is None else reader
        support: Support | None = Everywhere() if KINDS[kind] is Everywhere else common.mask
        if KINDS[kind] is Listed:
            previous = None if common.previous is None else common.previous.positions
            support = Listed(reader.positions(k, layout.edges, previous))
        if support is None or support.count(layout.size) != k:
            raise CorruptPayload(f"the body is on {KINDS[kind].__name__} of {k}, where the pipeline has {support}")
        counts = layer_counts(support, layout)
        side = reader.raw(self.quantizer.side_bytes(counts, common))
        bounds = self.quantizer.bounds(side, common)
        levels = reader.levels(counts, bounds) if bounds.coded.any() and k else np.repeat(bounds.lowest, counts)
        reader.finish()
        return Body(support=support, counts=counts, side=side, bounds=bounds, levels=levels, common=common)


@dataclass(frozen=True, kw_only=True, eq=False)
class Body:
    """What stands in a body, before the levels become values."""

    support: Support
    counts: Int64[np.ndarray, "layers"]
    side: bytes
    bounds: Bounds
    levels: Int32[np.ndarray, "m"]
    common: Common


def layer_counts(support: Support, layout: Layout) -> Int64[np.ndarray, "layers"]:
    """How many coordinates of the support lie in each layer."""
    if isinstance(support, Everywhere):
        return np.diff(layout.edges)
    return np.diff(np.searchsorted(support.indices(layout.size), layout.edges))
