"""The codec: predict, sparsify, quantise and entropy-code; a vector becomes a body of bytes, and is decoded from it."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Float64, Int, Int64

from dpcomp.codec.allocation import FixedStep
from dpcomp.codec.entropy import EntropyCoder, RangeCoder
from dpcomp.codec.entropy.coder import Metered, PartBits, Reader
from dpcomp.codec.prediction import LastBroadcast
from dpcomp.codec.quantize import Bounds, ExactGaussian, Quantizer
from dpcomp.codec.quantize import Float32 as Unquantized
from dpcomp.codec.quantize.quantizer import decoded_at_sender, quantised, takes_type
from dpcomp.codec.rate import entropy_bits
from dpcomp.codec.standalone import codec_digest, compress, decompress
from dpcomp.codec.support_code import LISTED, is_open_union, read_support, support_code, write_support
from dpcomp.core.checks import missing_members
from dpcomp.core.errors import CorruptPayload
from dpcomp.core.finite import all_finite
from dpcomp.core.layout import split_by_counts
from dpcomp.core.public_context import HasPublicSupport, PublicContext
from dpcomp.core.support import Everywhere, Listed, Support, checked_support, same_positions
from dpcomp.display import html
from dpcomp.display.text import short_call


@runtime_checkable
class Sparsifier(Protocol):
    """The protocol of a sparsifier: it chooses which coordinates of a vector are sent.

    The sender alone calls `select`. A support that is not the message's public one is sent as a list of positions; for
    a support that the receiver computes, so that it costs no byte, add `public_support` (`HasPublicSupport`). Write it
    as a frozen dataclass, and give it to `Codec(sparsify=...)`.

    **Privacy:** the vector is released, so the choice may depend on it (PRIVACY_RULES 1).
    """

    def select(self, vector: Float32[np.ndarray, "d"], candidates: Support, context: PublicContext) -> Support:
        """Return the support to send.

        Args:
            vector: The (d,) vector to be sent, residual included and prediction subtracted; it must stay unchanged.
            candidates: The coordinates that may be chosen: the support of the update.
            context: The public values of the message.

        Returns:
            A support within the candidates.
        """
        ...


@runtime_checkable
class SelectsOfSum(Protocol):
    """The protocol of a sparsifier that also chooses while the vector is made, as residual + update. Optional."""

    def select_of_sum(
        self,
        residual: Float32[np.ndarray, "d"],
        update: Float32[np.ndarray, "d"],
        out: Float32[np.ndarray, "d"],
        context: PublicContext,
    ) -> Support:
        """Write residual + update to `out`, and return the support that `select` would choose of all its coordinates.

        Args:
            residual: The (d,) residual; it must stay unchanged.
            update: The (d,) update; it must stay unchanged.
            out: The (d,) array of the sum, which is complete even where an error is raised.
            context: The public values of the message.

        Returns:
            The support to send.

        Raises:
            ValueError: A sum is not finite. Each of the d sums is looked at.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Codec:
    """A lossy code of vectors as bytes, made of four slots through which a sender goes in this order.

    A body is a byte that says which support it has, the number and positions of a listed support, the quantiser's side
    information, and the levels. Sender and receiver need the same codec and the same `PublicContext`;
    a pipeline sees to that. What the codec loses is known to the sender, who adds it to its next update, if there is
    feedback. `pipeline.send` calls the codec. `compress` and `decompress` use it alone, on any array.

    **Privacy:** a codec works on released values, or on a clean uplink to a trusted server; it adds no guarantee and
    costs none (PRIVACY_RULES 1).

    Attributes:
        predict: `LastBroadcast()`, which predicts an update from what both ends know, so that only the difference is
            sent; None codes the update itself.
        sparsify: Chooses the coordinates that are sent; None sends every coordinate of the update's support.
        quantize: Makes levels of values; None sends float32.
        entropy: Makes bytes of positions and levels.

    Raises:
        TypeError: A slot has something that lacks members of its protocol; the message names them.
        ValueError: The quantiser has a fixed step, and the entropy coder packs a fixed number of bits; or the quantiser
            codes whole vectors itself, and there is another part beside it.

    Examples:
        >>> import dpcomp as dp
        >>> vector = np.random.default_rng(0).standard_normal(10_000).astype(np.float32)
        >>> codec = dp.Codec(sparsify=dp.TopK(0.01), quantize=dp.Uniform(4))
        >>> context = dp.PublicContext(layout=dp.Layout.of(10_000))
        >>> support = codec.select(vector, dp.Everywhere(), context)
        >>> body, decoded = codec.encode(vector[support.indices(10_000)], support, context)
        >>> len(body), len(decoded)  # 40,000 bytes as float32
        (143, 100)
        >>> received, where = codec.decode(body, context)
        >>> where == support, np.array_equal(received, decoded)
        (True, True)
    """

    predict: LastBroadcast | None = None
    sparsify: Sparsifier | None = None
    quantize: Quantizer | None = None
    entropy: EntropyCoder = field(default_factory=RangeCoder)

    def __post_init__(self):
        for name, protocol in (
            ("predict", LastBroadcast),
            ("sparsify", Sparsifier),
            ("quantize", Quantizer),
            ("entropy", EntropyCoder),
        ):
            part = getattr(self, name)
            if part is None and name != "entropy":
                continue
            if isinstance(part, type) or not isinstance(part, protocol):
                raise TypeError(_why_no_part(name, part, protocol))
        if self.entropy.packed and isinstance(getattr(self.quantize, "bits", None), FixedStep):
            raise ValueError(
                f"{self.quantize} gives no number of bits, which {self.entropy} needs: use dp.RangeCoder(), or a width"
            )
        if self.codes_itself and (self.predict, self.sparsify, self.entropy) != (None, None, RangeCoder()):
            raise ValueError(
                f"{self}: {self.quantize} codes the whole vector itself, so nothing may stand before it, and nothing "
                f"codes after it: write dp.Codec(quantize={self.quantize})"
            )

    def __repr__(self) -> str:
        return short_call(self)

    def _repr_html_(self) -> str:
        from dpcomp.codec.chain import codec_steps

        return html.panel("Codec", html.chain(codec_steps(self, place="encoder", state=None)))

    @property
    def averaged_clients(self) -> int | None:
        """The number of updates that the server averages, if the quantiser separates signal from noise; else None."""
        return getattr(self.quantizer, "averaged_clients", None)

    @property
    def allocates(self) -> bool:
        """Whether the quantiser gives layers rates of their own."""
        return getattr(self.quantizer, "allocates", False)

    @property
    def codes_itself(self) -> bool:
        """Whether the quantiser codes its levels itself, instead of the entropy coder."""
        return getattr(self.quantize, "codes_itself", False)

    @property
    def noise_share(self) -> ExactGaussian | None:
        """The quantiser, if its error is a share of the privacy noise; its proof is of that class alone."""
        return self.quantize if isinstance(self.quantize, ExactGaussian) else None

    @property
    def needs_last_support(self) -> bool:
        """Whether the entropy coder codes listed positions by their difference from those listed before.

        Both ends then keep the last support of a link. `needs_last_support = False` in an entropy coder says no.
        """
        return getattr(self.entropy, "needs_last_support", True)

    @cached_property
    def selects_publicly(self) -> bool:
        """Whether the sparsifier has a public support."""
        return isinstance(self.sparsify, HasPublicSupport)

    @cached_property
    def selects_of_sum(self) -> SelectsOfSum | None:
        """The sparsifier, if it chooses while residual and update are added."""
        return self.sparsify if isinstance(self.sparsify, SelectsOfSum) else None

    @property
    def quantizer(self) -> Quantizer:
        """The quantiser in use: `quantize`, or `Float32()` for None."""
        return Unquantized() if self.quantize is None else self.quantize

    @property
    def is_lossless(self) -> bool:
        """Whether all coordinates are sent as float32, so that nothing is dropped but the rounding of a prediction."""
        return self.sparsify is None and isinstance(self.quantizer, Unquantized)

    @cached_property
    def standalone_digest(self) -> bytes:
        """4 bytes that name the codec in payloads of `compress`.

        Raises:
            TypeError, ValueError: As `compress` does of the codec.
        """
        return codec_digest(self)

    def compress(self, value: Any, *, number: int = 0) -> bytes:
        """Compress an array, or arrays by name, without pipeline, ledger or memory.

        Floats are coded as float32, with the loss of the codec; whole numbers and bools are kept as they are. The
        payload holds no names and shapes, only a digest of them.

        **Privacy:** this adds no noise and charges nothing: the payload tells what the values tell.

        Args:
            value: An array of any shape, of NumPy, PyTorch or JAX, or a mapping of names to arrays, such as a state
                dict. An array may be empty or a scalar.
            number: What `RandomK`, `Rotated`, `Stochastic` and `Dithered` draw from, from 0 to 2⁶⁴ − 1; it stands in
                the payload. Give each payload another number where errors shall average out.

        Returns:
            The payload.

        Raises:
            TypeError: A value is no array, or has a type such as complex; or a part is not a frozen dataclass.
            ValueError: A float is not finite, or beyond the range of float32; the message names its index. Or a part
                of the codec needs a link: `LastBroadcast`, `ExactGaussian`, a part that reads history, an allocator
                that knows the noise, `RandomK(per="client")`.

        Examples:
            >>> import dpcomp as dp
            >>> codec = dp.Codec(sparsify=dp.TopK(0.01), quantize=dp.Uniform(4))
            >>> vector = np.random.default_rng(0).standard_normal(10_000)
            >>> payload = codec.compress(vector)
            >>> decoded = codec.decompress(payload, like=vector)
            >>> len(payload), int(np.count_nonzero(decoded))  # of 80,000 bytes
            (161, 100)
        """
        return compress(self, value, number, self.standalone_digest)

    def decompress(self, payload: bytes | bytearray | memoryview, like: Any) -> Any:
        """Decompress what `compress` returned.

        Args:
            payload: The payload.
            like: An array, or a mapping of names to arrays, with the names and shapes of what was compressed. Its
                values are not read; the result has its types, frameworks and devices.

        Returns:
            A new array, or a dict of new arrays in the order of `like`. A decoded value beyond the range of a 16-bit
            type becomes the largest number of it.

        Raises:
            TypeError: The payload is not bytes, or `like` holds something else than arrays.
            ValueError: As `compress` does of the codec.
            CorruptPayload: The payload is damaged, or is none of `compress`.
            VersionMismatch: The payload is undamaged, but of another codec, or of arrays with other names or shapes.

        Examples:
            >>> import dpcomp as dp
            >>> weights = {"weight": np.ones((3, 2), np.float32), "steps": np.array(7)}
            >>> codec = dp.Codec(quantize=dp.Uniform(8))
            >>> codec.decompress(codec.compress(weights), like=weights)["steps"]
            array(7)
        """
        return decompress(self, payload, like, self.standalone_digest)

    def select(self, vector: Float32[np.ndarray, "d"], candidates: Support, context: PublicContext) -> Support:
        """Return the coordinates of a (d,) vector that are sent: the sparsifier's choice, or all candidates.

        Args:
            vector: The (d,) vector to be sent.
            candidates: The coordinates that may be chosen.
            context: The public values of the message.

        Returns:
            A support within the candidates, or the public support of the message.

        Raises:
            TypeError: The sparsifier returned no support.
            ValueError: It returned positions outside the vector or the candidates, or not its public support.
        """
        public = context.public_support
        if self.sparsify is None:
            return (
                public if public is not None and same_positions(candidates, public, context.layout.size) else candidates
            )
        seen = vector.view()
        seen.flags.writeable = False  # what select wrote into it would be sent
        where = f"{self.sparsify!r}: select returned"
        support = checked_support(self.sparsify.select(seen, candidates, context), where)
        d = context.layout.size
        try:
            support.count(d)
        except ValueError as error:
            raise ValueError(f"{where} a support outside the vector ({error}): return positions below {d}") from error
        if public is not None and same_positions(support, public, d):
            return public
        if public is not None and self.selects_publicly and not is_open_union(public):
            raise ValueError(
                f"{where} another support than its public_support, so its positions would cost bytes: return "
                "self.public_support(context), or leave out that method"
            )
        if not isinstance(candidates, Everywhere) and support != candidates:
            positions, allowed = support.indices(d), candidates.indices(d)
            outside = positions[~np.isin(positions, allowed, assume_unique=True)]
            if len(outside):
                raise ValueError(
                    f"{where} position {outside[0]}, which is not among the {len(allowed)} candidates: choose among "
                    "candidates.indices(context.layout.size)"
                )
        return support

    def encode(
        self,
        values: Float32[np.ndarray, "k"],
        support: Support,
        context: PublicContext,
    ) -> tuple[bytes, Float32[np.ndarray, "k"]]:
        """Encode values on their support as a body.

        Args:
            values: A (k,) float32 vector, in ascending order of position.
            support: Their coordinates: `Everywhere`, `Listed`, or the public support.
            context: The public values of the message.

        Returns:
            The body, and the (k,) values that the receiver decodes from it.

        Raises:
            TypeError: The quantiser's levels, side information or values have another type than its protocol says.
            ValueError: The support is none of the three; or the quantiser's levels lie outside its bounds, or what it
                returns has another length than its protocol says, so that no receiver could decode the body.
        """
        parts, decoded = self.encode_in_parts(values, support, context)
        return b"".join(parts), decoded.copy() if decoded is values else decoded

    def encode_in_parts(
        self,
        values: Float32[np.ndarray, "k"],
        support: Support,
        context: PublicContext,
    ) -> tuple[Sequence[bytes | bytearray | memoryview], Float32[np.ndarray, "k"]]:
        """Encode values as `encode` does, and return the parts of the body, which follow each other in a message.

        Args:
            values: As for `encode`; they must stay unchanged until the parts are joined, which may be views of them.
            support: As for `encode`.
            context: As for `encode`.

        Returns:
            The parts of the body, and the (k,) values that the receiver decodes from it: `values` itself where the
            quantiser is lossless.

        Raises:
            TypeError, ValueError: As `encode` does.
        """
        context, quantizer = self._with_packing(context), self.quantizer
        layout, writer = context.layout, self.entropy.writer()
        counts, code = layout.counts(support), support_code(support, context.public_support)
        if code == LISTED:
            writer.positions(support.indices(layout.size), layout.edges, _previous_positions(context))
        levels, side, bounds = quantised(quantizer, values, counts, context)
        if self.codes_itself:
            decoded = decoded_at_sender(quantizer, levels, side, counts, len(values), context)
            return (write_support(code, support, len(values)), side), decoded
        writer.raw(side)
        if bounds.any_coded and len(values):
            taken = levels if takes_type(self.entropy, levels) else levels.astype(np.int32)
            writer.levels(taken, counts, bounds)
        parts = (write_support(code, support, len(values)), *writer.finish())
        if getattr(quantizer, "lossless", False):
            return parts, values
        return parts, decoded_at_sender(quantizer, levels, side, counts, len(values), context)

    def decode(
        self,
        body: bytes | memoryview,
        context: PublicContext,
    ) -> tuple[Float32[np.ndarray, "k"], Support]:
        """Decode the values of a body, and their support.

        Args:
            body: What `encode` returned.
            context: As for `encode`.

        Returns:
            The (k,) values, and their support.

        Raises:
            CorruptPayload: The body cannot come from this codec. Nothing larger than the update is allocated to find
                that out.
        """
        parts = self._read(body, context)
        values = self.quantizer.values(parts.levels, parts.side, parts.counts, parts.context)
        if not all_finite(values):
            raise CorruptPayload("the body holds values that are not finite, which no sender writes")
        return values, parts.support

    def layer_bits(
        self,
        body: bytes | memoryview,
        context: PublicContext,
    ) -> Float64[np.ndarray, "layers"]:
        """Estimate the bits a value that a body spends on each layer: its width, or the entropy of its levels.

        It is an estimate: the entropy is that of the layer's own levels, while the coder may share a table between
        layers. Positions, side information and tables are not counted, so the sum over all values is less than the
        body; `measure` counts every bit. Of a float format, it is the bits of the format.

        Args:
            body: What `encode` returned.
            context: As for `encode`.

        Returns:
            (layers,) bits a value; 0 for a layer of which nothing is sent.

        Raises:
            CorruptPayload: The body cannot come from this codec.
        """
        parts = self._read(body, context)
        if not parts.bounds.any_coded:
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
        """Return the contents of a body, and the bits that each part of it takes.

        Args:
            body: What `encode` returned.
            context: As for `encode`.

        Returns:
            The parsed body, and the bits of its parts, which add up to 8 times its bytes.

        Raises:
            CorruptPayload: The body cannot come from this codec.
            TypeError: The entropy coder has no meter.
        """
        if not isinstance(self.entropy, Metered):
            raise TypeError(
                f"{self.entropy!r} does not count the bits of its parts: give it a .meter(body), as RangeCoder has"
            )
        start = read_support(memoryview(body), context)[2]
        if self.codes_itself:
            return self._read(body, context), PartBits(header=8 * start, value=8.0 * (len(body) - start))
        meter = self.entropy.meter(body[start:])
        parts, bits = self._read(body, context, meter), meter.bits
        if getattr(self.quantizer, "side_holds_values", not parts.bounds.any_coded):
            bits = replace(bits, side=0.0, value=bits.value + bits.side)
        return parts, replace(bits, header=bits.header + 8 * start)

    def _with_packing(self, context: PublicContext) -> PublicContext:
        return context if context.packed == self.entropy.packed else replace(context, packed=self.entropy.packed)

    def _read(self, body: bytes | memoryview, context: PublicContext, reader: Reader | None = None) -> "Body":
        context, body = self._with_packing(context), memoryview(body)
        layout = context.layout
        support, k, start = read_support(body, context)
        if self.codes_itself:
            return self._read_whole(support, bytes(body[start:]), context)
        reader = self.entropy.reader(body[start:]) if reader is None else reader
        if support is None:
            support = Listed(reader.positions(k, layout.edges, _previous_positions(context)))
        counts = layout.counts(support)
        side = reader.raw(self.quantizer.side_bytes(counts, context))
        if not getattr(self.quantizer, "side_holds_values", False):
            side = bytes(side)
        try:
            bounds = self.quantizer.bounds(side, context)
        except ValueError as error:  # of its own side information none: the sender computed the same bounds
            raise CorruptPayload(f"the side information is none that {self.quantizer!r} writes: {error}") from error
        levels = reader.levels(counts, bounds) if bounds.any_coded and k else np.repeat(bounds.lowest, counts)
        if not takes_type(self.quantizer, levels):
            levels = levels.astype(np.int32)
        reader.finish()
        return Body(support=support, counts=counts, side=side, bounds=bounds, levels=levels, context=context)

    def _read_whole(self, support: Support | None, side: bytes, context: PublicContext) -> "Body":
        """Return the body of a quantiser that codes whole vectors itself."""
        layout = context.layout
        if not isinstance(support, Everywhere):
            raise CorruptPayload(f"the body has the support {support}, but {self.quantizer} codes all coordinates")
        counts, bounds = layout.counts(Everywhere()), self.quantizer.bounds(side, context)
        levels = np.repeat(bounds.lowest, counts)
        return Body(support=Everywhere(), counts=counts, side=side, bounds=bounds, levels=levels, context=context)


@dataclass(frozen=True, kw_only=True, eq=False)
class Body:
    """The parsed contents of a body, before the levels are decoded to values.

    Attributes:
        support: The coordinates of the values.
        counts: (layers,) how many of them each layer has.
        side: The quantiser's side information; a view of the body, where that holds the values.
        bounds: The lowest and highest level of each layer.
        levels: A level for each value; the lowest level in layers that are not coded.
        context: The public values of the message, with `packed` set.
    """

    support: Support
    counts: Int64[np.ndarray, "layers"]
    side: bytes | memoryview
    bounds: Bounds
    levels: Int[np.ndarray, "m"]
    context: PublicContext


def _why_no_part(name: str, part: object, protocol: type) -> str:
    """Return the message of an error: why a part does not fit into its slot, and what to give."""
    if isinstance(part, type):
        return f"Codec({name}={part.__name__}) is a class: give an instance of it, such as {part.__name__}(…)"
    if protocol is LastBroadcast:
        return f"Codec({name}={part!r}): it takes no other prediction than dp.LastBroadcast(): give that, or None"
    missing = ", ".join(missing_members(part, protocol))
    return (
        f"Codec({name}={part!r}) is no {protocol.__name__}; it lacks: {missing}. Give an instance of a class that has "
        f"the members of {protocol.__module__}.{protocol.__qualname__}"
    )


def _previous_positions(context: PublicContext) -> Int64[np.ndarray, "k"] | None:
    return None if context.previous_support is None else context.previous_support.positions
