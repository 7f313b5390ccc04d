"""The frame: the wire format around every body, as one table."""

import hashlib
import struct
from dataclasses import dataclass, fields
from typing import Annotated, get_type_hints

from dpcomp.errors import CorruptPayload

MAGIC = b"dpc\x02"  # the last byte is the format's version
CHECKSUM_BYTES = 8
LINK_BYTES = 4


@dataclass(frozen=True, kw_only=True)
class Frame:
    """What every payload says of itself, in wire order; little-endian, behind the magic."""

    pipeline: Annotated[bytes, "8s"]  # the fingerprint of codec, mechanism and layout
    run: Annotated[int, "Q"]
    client: Annotated[int, "I"]
    round: Annotated[int, "I"]
    version: Annotated[int, "I"]  # of the shared memory that it was coded against
    shared: Annotated[bytes, "8s"]  # its digest
    link_count: Annotated[int, "I"]  # payloads of this client that were accepted before
    link: Annotated[bytes, f"{LINK_BYTES}s"]  # the beginning of the digest of those
    body_bytes: Annotated[int, "I"]


_FORMATS = [hint.__metadata__[0] for hint in get_type_hints(Frame, include_extras=True).values()]
_HEADER = struct.Struct("<4s" + "".join(_FORMATS))
HEADER_BYTES = _HEADER.size + CHECKSUM_BYTES


def digest(*parts: bytes) -> bytes:
    """8 bytes of BLAKE2b: integrity, not authentication, which is the transport's."""
    state = hashlib.blake2b(digest_size=CHECKSUM_BYTES)
    for part in parts:
        state.update(part)
    return state.digest()


def named(payload: bytes) -> bytes:
    """What stands for a payload in a hash chain: its header, and the checksum over header and body."""
    return bytes(payload[:HEADER_BYTES])


def seal(frame: Frame, body: bytes) -> bytes:
    """header ‖ checksum of header and body ‖ body."""
    header = _HEADER.pack(MAGIC, *(getattr(frame, field.name) for field in fields(frame)))
    return b"".join((header, digest(header, body), body))


def unseal(payload: bytes) -> tuple[Frame, bytes]:
    """The frame and the body of an undamaged payload.

    Raises:
        CorruptPayload: the bytes are not what was sealed. Nothing of them is used before that is known.
    """
    if not isinstance(payload, (bytes, bytearray, memoryview)):
        raise TypeError(f"a payload is bytes, not {type(payload).__name__}")
    payload = bytes(payload)
    if len(payload) < HEADER_BYTES:
        raise CorruptPayload(f"{len(payload)} bytes are no payload: the header alone has {HEADER_BYTES}")
    header, body = payload[: _HEADER.size], payload[HEADER_BYTES:]
    magic, *values = _HEADER.unpack(header)
    if magic != MAGIC:
        raise CorruptPayload(f"the payload begins with {magic!r}; this format begins with {MAGIC!r}")
    frame = Frame(**{field.name: value for field, value in zip(fields(Frame), values, strict=True)})
    if frame.body_bytes != len(body):
        raise CorruptPayload(f"the header announces {frame.body_bytes} bytes; {len(body)} follow it")
    if digest(header, body) != payload[_HEADER.size : HEADER_BYTES]:
        raise CorruptPayload("the checksum does not fit: the payload was damaged; ask for it again")
    return frame, body
