"""The codec: sparsify, quantize, entropy; from a released vector to a body of bytes and back."""

import struct
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Int64

from dpcomp.codec.fixed_width import FixedWidth
from dpcomp.codec.quantize import Uniform
from dpcomp.codec.range_coder import RangeCoder
from dpcomp.errors import CorruptPayload
from dpcomp.sparsify import RandomK, TopK
from dpcomp.update import Everywhere, Layout, Listed, Seeded, Support

SUPPORT = struct.Struct("<BI")  # the kind of support, and how many coordinates it holds
LARGEST_STEP = 0x7F7F  # the upper half of the largest float32
KINDS: tuple[type[Support], ...] = (Everywhere, Seeded, Listed)


@runtime_checkable
class Sparsifier(Protocol):
    """Chooses what is sent."""

    def select(self, vector: Float32[np.ndarray, "d"], candidates: Support, mask_key: int) -> Support:
        """A support within the candidates."""
        ...


@dataclass(frozen=True, kw_only=True)
class Codec:
    """Three slots: which coordinates, in how many bits, coded how.

    `sparsify` None sends every coordinate of the update's support; `quantize` None sends float32.
    """

    sparsify: TopK | RandomK | Sparsifier | None = None
    quantize: Uniform | None = None
    entropy: FixedWidth | RangeCoder = field(default_factory=RangeCoder)

    def select(self, vector: Float32[np.ndarray, "d"], candidates: Support, mask_key: int) -> Support:
        """What of the vector is sent."""
        return candidates if self.sparsify is None else self.sparsify.select(vector, candidates, mask_key)

    def encode(
        self, values: Float32[np.ndarray, "k"], support: Support, layout: Layout
    ) -> tuple[bytes, Float32[np.ndarray, "k"]]:
        """The body, and the values that its reader will find in it."""
        indices, writer = support.indices(layout.size), self.entropy.writer()
        if isinstance(support, Listed):
            writer.positions(indices, layout.size)
        if self.quantize is None:
            side, decoded = values.astype("<f4").tobytes(), values
        else:
            counts = _layer_counts(indices, layout)
            levels, steps = self.quantize.levels(values, counts, layout)
            writer.levels(levels, counts, self.quantize.widths(layout))
            side, decoded = steps.astype("<u2").tobytes(), self.quantize.values(levels, steps, counts)
        head = SUPPORT.pack(KINDS.index(type(support)), len(indices))
        return b"".join((head, side, writer.finish())), decoded

    def decode(self, body: bytes, seeded: Seeded | None, layout: Layout) -> tuple[Float32[np.ndarray, "k"], Support]:
        """The values and their support; `seeded` is the public support of the round, if there is one.

        Raises:
            CorruptPayload: the body cannot come from this codec. Nothing larger than the update is
                allocated to find out.
        """
        if len(body) < SUPPORT.size:
            raise CorruptPayload(f"a body of {len(body)} bytes holds no support")
        kind, k = SUPPORT.unpack_from(body)
        if kind >= len(KINDS) or k > layout.size:
            raise CorruptPayload(f"no support of kind {kind} with {k} of {layout.size} coordinates is known")
        side_bytes = 4 * k if self.quantize is None else 2 * len(layout.shapes)
        side, rest = body[SUPPORT.size : SUPPORT.size + side_bytes], body[SUPPORT.size + side_bytes :]
        if len(side) < side_bytes:
            raise CorruptPayload(f"the body ends {side_bytes - len(side)} bytes early")
        reader = self.entropy.reader(rest)
        support: Support | None = Everywhere() if KINDS[kind] is Everywhere else seeded
        if KINDS[kind] is Listed:
            support = Listed(reader.positions(k, layout.size))
        if support is None or support.count(layout.size) != k:
            raise CorruptPayload(f"the body is on {KINDS[kind].__name__} of {k}, where the pipeline has {support}")
        if self.quantize is None:
            values = np.frombuffer(side, dtype="<f4").astype(np.float32)
        else:
            counts = _layer_counts(support.indices(layout.size), layout)
            levels = reader.levels(counts, self.quantize.widths(layout))
            steps = np.frombuffer(side, dtype="<u2").astype(np.uint16)
            if (steps > LARGEST_STEP).any():
                raise CorruptPayload("a quantiser's step is negative or not finite")
            with np.errstate(over="ignore"):  # looked at below
                values = self.quantize.values(levels, steps, counts)
        reader.finish()
        if not np.isfinite(values).all():
            raise CorruptPayload("the body holds values that are not finite")
        return values, support


def _layer_counts(indices: Int64[np.ndarray, "k"], layout: Layout) -> Int64[np.ndarray, "layers"]:
    """How many of the positions lie in each layer."""
    return np.diff(np.searchsorted(indices, layout.edges))
