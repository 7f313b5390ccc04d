"""Payloads of a codec that is used alone: without a pipeline, memory, ledger or permit.

A payload is, in this order:

    1 byte     192 + the format number
    8 bytes    the tag: XXH3 of all other bytes
    4 bytes    the digest of the codec
    4 bytes    the digest of the names and shapes
    1 byte     how many bytes the number takes
    0–8 bytes  the number that random parts draw from, little-endian, without leading zeros
               the exact arrays, in order of their names, little-endian
               the body of the codec; nothing where there are no floats

The tag detects damage. It has no key, so it shows nothing of who has written the payload.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float32
from xxhash import xxh3_64

from dpcomp.codec.arrays import DIGEST_BYTES, Flat, Form, flattened, form_of, named_arrays, restored
from dpcomp.core.calls import as_table
from dpcomp.core.checks import check_type, whole_number
from dpcomp.core.errors import CorruptPayload, VersionMismatch
from dpcomp.core.layout import Layout
from dpcomp.core.public_context import HasPublicSupport, PublicContext, ReadsHistory
from dpcomp.core.randomness import LARGEST_SEED, PublicSeed
from dpcomp.core.read_only import read_only
from dpcomp.core.support import Everywhere, Listed, Support, checked_support

FIRST_BYTE = 192 + 1  # of format number 1
TAG_END = 1 + 8
HEADER_BYTES = TAG_END + 2 * DIGEST_BYTES + 1  # and the number


class VectorCodec(Protocol):
    """What is asked of a codec here; `dp.Codec` has it."""

    @property
    def predict(self) -> object | None:
        """What predicts from broadcasts; None without."""
        ...

    @property
    def sparsify(self) -> object | None:
        """What chooses coordinates; None for all."""
        ...

    @property
    def quantize(self) -> object | None:
        """What makes levels of values; None for float32."""
        ...

    @property
    def noise_share(self) -> object | None:
        """The quantiser, if its error is a share of privacy noise."""
        ...

    @property
    def averaged_clients(self) -> int | None:
        """How many updates a server averages, if the quantiser separates signal from noise."""
        ...

    def select(self, vector: Float32[np.ndarray, "d"], candidates: Support, context: PublicContext) -> Support:
        """Return the coordinates that are sent."""
        ...

    def encode_in_parts(
        self, values: Float32[np.ndarray, "k"], support: Support, context: PublicContext
    ) -> tuple[Sequence[bytes | bytearray | memoryview], Float32[np.ndarray, "k"]]:
        """Encode values on their support."""
        ...

    def decode(self, body: bytes | memoryview, context: PublicContext) -> tuple[Float32[np.ndarray, "k"], Support]:
        """Decode the values of a body, and their support."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Message:
    """An encoded vector.

    Attributes:
        payload: The bytes.
        decoded: The (k,) values that a reader decodes.
        support: Their coordinates.
    """

    payload: bytes
    decoded: Float32[np.ndarray, "k"]
    support: Support

    def vector(self, d: int) -> Float32[np.ndarray, "d"]:
        """Return the (d,) vector that a reader decodes; it may be the one that was encoded."""
        return _dense(self.decoded, self.support, d)


def codec_digest(codec: VectorCodec) -> bytes:
    """Return 4 bytes that name a codec in its payloads, and refuse a codec that needs more than a vector.

    Args:
        codec: The codec.

    Raises:
        ValueError: A part needs the memory of a link, the privacy noise of a pipeline, or a number of clients.
        TypeError: A part is not a frozen dataclass, so that it has no description that both ends could compare.
    """
    for why in _needs(codec):
        raise ValueError(
            f"{why}: a codec that is used alone has none. Use another part, or the codec in a dp.Pipeline, whose send "
            "and receive have it"
        )
    return hashlib.blake2b(repr(as_table(codec, "codec")).encode(), digest_size=DIGEST_BYTES).digest()


def _needs(codec: VectorCodec) -> Sequence[str]:
    """Return what parts of a codec need beside a vector."""
    needs: list[str] = []
    if codec.predict is not None:
        needs.append(f"{codec.predict} predicts from the last broadcast")
    if codec.noise_share is not None:
        needs.append(f"{codec.noise_share} draws a share of the privacy noise from a secret of client and server")
    if codec.averaged_clients is not None:
        needs.append(f"{codec.quantize} scales by the privacy noise of an update, which a pipeline knows")
    if getattr(codec.sparsify, "varies_by_client", False):
        needs.append(f"{codec.sparsify} draws a support for each client of a round")
    for part in (codec.sparsify, codec.quantize):
        if isinstance(part, ReadsHistory):
            needs.append(f"{part} reads the history of broadcasts")
    return needs


def compress(codec: VectorCodec, value: Any, number: int, digest: bytes) -> bytes:
    """Do what `Codec.compress` does.

    Args:
        codec: The codec.
        value: An array, or a mapping of names to arrays.
        number: The number that random parts draw from.
        digest: What `codec_digest` returned.
    """
    return encode(codec, flattened(value, "compress"), checked_number(number, "compress"), digest).payload


def decompress(codec: VectorCodec, payload: bytes | bytearray | memoryview, like: Any, digest: bytes) -> Any:
    """Do what `Codec.decompress` does.

    Args:
        codec: The codec.
        payload: What `compress` returned.
        like: An array, or a mapping of names to arrays.
        digest: What `codec_digest` returned.
    """
    arrays = named_arrays(like, "decompress")
    form = form_of(arrays)
    made = restored(arrays, form, *decode(codec, payload, form, digest))
    return {name: made[name] for name in like} if isinstance(like, Mapping) else made[""]


def checked_number(number: int, where: str) -> int:
    """Return the number that random parts draw from as Python's int.

    Args:
        number: What a caller gave.
        where: The name of the public function, for errors.

    Raises:
        TypeError: It is not a whole number.
        ValueError: It lies outside [0, 2⁶⁴ − 1].
    """
    return whole_number(number, f"{where}(number)", least=0, most=LARGEST_SEED)


def encode(codec: VectorCodec, flat: Flat, number: int, digest: bytes) -> Message:
    """Encode the contents of arrays.

    Args:
        codec: The codec.
        flat: The contents.
        number: The number that random parts draw from.
        digest: What `codec_digest` returned.

    Returns:
        The payload, and what a reader decodes from it.

    Raises:
        TypeError, ValueError: A part of the codec breaks its protocol.
    """
    layout, body = flat.form.layout, ()
    decoded, support = flat.vector, Everywhere()
    if layout is not None:
        context = _context(codec, layout, number)
        support = codec.select(flat.vector, Everywhere(), context)
        if not isinstance(support, (Everywhere, Listed)) and support != context.public_support:
            support = Listed(support.indices(layout.size))
        values = flat.vector if isinstance(support, Everywhere) else flat.vector[support.indices(layout.size)]
        body, decoded = codec.encode_in_parts(read_only(values), support, context)
    written = number.to_bytes((number.bit_length() + 7) // 8, "little")
    head = b"".join((digest, flat.form.digest, bytes([len(written)]), written))
    tag = _tag(head, *flat.exact, *body)
    return Message(
        payload=b"".join((bytes([FIRST_BYTE]), tag, head, *flat.exact, *body)), decoded=decoded, support=support
    )


def decode(
    codec: VectorCodec, payload: bytes | bytearray | memoryview, form: Form, digest: bytes
) -> tuple[Float32[np.ndarray, "d"], bytes]:
    """Decode the contents of arrays.

    Args:
        codec: The codec.
        payload: What `encode` wrote.
        form: The names and shapes of the arrays.
        digest: What `codec_digest` returned.

    Returns:
        The (d,) values, and the bytes of all exact arrays.

    Raises:
        TypeError: The payload is not bytes.
        CorruptPayload: It is damaged, or none that this codec writes.
        VersionMismatch: It is undamaged, but of another codec, or of other names or shapes.
    """
    check_type(payload, (bytes, bytearray, memoryview), f"decompress: a payload is bytes, not {type(payload).__name__}")
    view = memoryview(payload).cast("B")
    if len(view) < HEADER_BYTES:
        raise CorruptPayload(f"{len(view)} bytes are no payload of codec.compress: the header takes {HEADER_BYTES}")
    if view[0] != FIRST_BYTE:
        raise CorruptPayload(
            f"the payload begins with the byte {view[0]}, and one of codec.compress with {FIRST_BYTE}: a payload of a "
            "pipeline is read by pipeline.receive"
        )
    if view[1:TAG_END] != _tag(view[TAG_END:]):
        raise CorruptPayload("the payload is damaged: its bytes do not have the tag that it states")
    _refuse_other(view[TAG_END:], digest, form)
    start = HEADER_BYTES + view[HEADER_BYTES - 1]
    number = int.from_bytes(view[HEADER_BYTES:start], "little")
    if number > LARGEST_SEED or len(view) < start + form.exact_bytes:
        raise CorruptPayload("the payload ends early, or its number takes more than 8 bytes")
    exact, body = bytes(view[start : start + form.exact_bytes]), view[start + form.exact_bytes :]
    if form.layout is None:
        if len(body):
            raise CorruptPayload(f"the payload has {len(body)} bytes of values, but there are no floats")
        return np.zeros(0, np.float32), exact
    values, support = codec.decode(body, _context(codec, form.layout, number))
    return _dense(values, support, form.layout.size), exact


def _refuse_other(head: memoryview, digest: bytes, form: Form) -> None:
    """Refuse an undamaged payload of another codec, or of other arrays."""
    if head[:DIGEST_BYTES] != digest:
        raise VersionMismatch(
            f"the payload is of the codec {bytes(head[:DIGEST_BYTES]).hex()}, this one is {digest.hex()}: decompress "
            "with a codec that has the same parts",
            reason="pipeline",
        )
    if head[DIGEST_BYTES : 2 * DIGEST_BYTES] != form.digest:
        shown = ", ".join(f"{name or 'array'} {shape}" for name, shape in form.coded[:4])
        raise VersionMismatch(
            f"the payload is of arrays with other names or shapes than `like`, which has {len(form.coded)} of floats "
            f"({shown}{', …' if len(form.coded) > 4 else ''}) and {len(form.exact)} of other types: give `like` the "
            "names and shapes of what was compressed",
            reason="pipeline",
        )


def _context(codec: VectorCodec, layout: Layout, number: int) -> PublicContext:
    """Return the public context of a vector, in which all keys come from the number."""
    mask_key, run_key, dither_key = _keys(number)
    context = PublicContext(layout=layout, mask_key=mask_key, run_key=run_key, dither_key=dither_key)
    if codec.sparsify is None or not isinstance(codec.sparsify, HasPublicSupport):
        return context
    support = checked_support(codec.sparsify.public_support(context), f"{codec.sparsify!r}: public_support returned")
    return replace(context, public_support=support)


@lru_cache(maxsize=64)
def _keys(number: int) -> tuple[int, int, int]:
    """Return the keys of supports, of dealt supports, and of rounding and rotation."""
    seed = PublicSeed(number)
    return seed.key("mask alone"), seed.key("run alone"), seed.key("dither alone")


def _dense(values: Float32[np.ndarray, "k"], support: Support, d: int) -> Float32[np.ndarray, "d"]:
    """Return the (d,) vector of values on their support."""
    if isinstance(support, Everywhere):
        return values
    vector = np.zeros(d, dtype=np.float32)
    vector[support.indices(d)] = values
    return vector


def _tag(*parts: bytes | bytearray | memoryview) -> bytes:
    """Return 8 bytes of XXH3 over parts."""
    state = xxh3_64()
    for part in parts:
        state.update(part)
    return state.digest()
