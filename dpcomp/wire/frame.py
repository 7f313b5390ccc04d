"""The frame: the wire format around every body, as one table; and the format of any such table."""

import hashlib
import struct
from dataclasses import dataclass, fields
from typing import Annotated, Generic, TypeVar, get_type_hints

from dpcomp.core.errors import CorruptPayload

CHECKSUM_BYTES = 8
LINK_BYTES = 4

Record = TypeVar("Record")


def digest(*parts: bytes) -> bytes:
    """8 bytes of BLAKE2b: integrity, not authentication, which is the transport's."""
    state = hashlib.blake2b(digest_size=CHECKSUM_BYTES)
    for part in parts:
        state.update(part)
    return state.digest()


class Format(Generic[Record]):
    """magic ‖ the record's fields ‖ length of the body ‖ checksum of all but itself ‖ body; little-endian.

    A record is a dataclass whose fields are annotated with their `struct` formats, in wire order.
    """

    def __init__(self, record: type[Record], magic: bytes):
        formats = [hint.__metadata__[0] for hint in get_type_hints(record, include_extras=True).values()]
        self._record, self._magic = record, magic
        self._names = [field.name for field in fields(record)]  # pyright: ignore[reportArgumentType]
        self._header = struct.Struct(f"<{len(magic)}s" + "".join(formats) + "I")
        self.header_bytes = self._header.size + CHECKSUM_BYTES

    def seal(self, record: Record, body: bytes = b"") -> bytes:
        """The message."""
        header = self._header.pack(self._magic, *(getattr(record, name) for name in self._names), len(body))
        return b"".join((header, digest(header, body), body))

    def unseal(self, message: bytes) -> tuple[Record, bytes]:
        """The record and the body of an undamaged message.

        Raises:
            CorruptPayload: the bytes are not what was sealed. Nothing of them is used before that is known.
        """
        if not isinstance(message, (bytes, bytearray, memoryview)):
            raise TypeError(f"a message is bytes, not {type(message).__name__}")
        message = bytes(message)
        if len(message) < self.header_bytes:
            raise CorruptPayload(f"{len(message)} bytes are no message: the header alone has {self.header_bytes}")
        header, body = message[: self._header.size], message[self.header_bytes :]
        magic, *values, body_bytes = self._header.unpack(header)
        if magic != self._magic:
            raise CorruptPayload(f"the message begins with {magic!r}; this format begins with {self._magic!r}")
        if body_bytes != len(body):
            raise CorruptPayload(f"the header announces {body_bytes} bytes; {len(body)} follow it")
        if digest(header, body) != message[self._header.size : self.header_bytes]:
            raise CorruptPayload("the checksum does not fit: the message was damaged; ask for it again")
        return self._record(**dict(zip(self._names, values, strict=True))), body

    def begins(self, message: bytes) -> bool:
        """Whether a message says of itself that it has this format."""
        return message[: len(self._magic)] == self._magic

    def split(self, stream: bytes) -> list[bytes]:
        """The messages of a stream in which one follows the other; they are not yet unsealed.

        Raises:
            CorruptPayload: the stream ends within a message.
        """
        messages, begin = [], 0
        while begin < len(stream):
            if len(stream) - begin < self.header_bytes:
                raise CorruptPayload(f"a stream of {len(stream)} bytes ends within the header at {begin}")
            end = begin + self.header_bytes + self._header.unpack_from(stream, begin)[-1]
            if end > len(stream):
                raise CorruptPayload(f"a stream of {len(stream)} bytes ends within the message from {begin} to {end}")
            messages.append(stream[begin:end])
            begin = end
        return messages


@dataclass(frozen=True, kw_only=True)
class Frame:
    """What every payload says of itself."""

    pipeline: Annotated[bytes, "8s"]  # the fingerprint of codec, mechanism and layout
    run: Annotated[int, "Q"]
    client: Annotated[int, "I"]
    round: Annotated[int, "I"]
    version: Annotated[int, "I"]  # of the shared memory that it was coded against
    shared: Annotated[bytes, "8s"]  # its digest
    link_count: Annotated[int, "I"]  # payloads of this client that were accepted before
    link: Annotated[bytes, f"{LINK_BYTES}s"]  # the beginning of the digest of those


MAGIC = b"dpc\x02"  # the last byte is the format's version
PAYLOAD = Format(Frame, MAGIC)
HEADER_BYTES = PAYLOAD.header_bytes


def named(payload: bytes) -> bytes:
    """What stands for a payload in a hash chain: its header, and the checksum over header and body."""
    return bytes(payload[:HEADER_BYTES])
