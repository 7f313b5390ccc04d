"""The frame: the wire format around every body, as one table; and the format of any such table."""

import hashlib
import struct
from dataclasses import dataclass, fields
from typing import Annotated, Generic, TypeVar, get_type_hints

from dpcomp.core.address import Address
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
        record, body_bytes = self._read_header(message)
        header, body = message[: self._header.size], message[self.header_bytes :]
        if body_bytes != len(body):
            raise CorruptPayload(f"the header announces {body_bytes} bytes; {len(body)} follow it")
        if digest(header, body) != message[self._header.size : self.header_bytes]:
            raise CorruptPayload("the checksum does not fit: the message was damaged; ask for it again")
        return record, body

    def record_of(self, message: bytes) -> Record:
        """Read the record of a message that this end made or unsealed before: no checksum is computed."""
        return self._read_header(message)[0]

    def _read_header(self, message: bytes) -> tuple[Record, int]:
        """Read the record and the announced length of the body."""
        if len(message) < self.header_bytes:
            raise CorruptPayload(f"{len(message)} bytes are no message: the header alone has {self.header_bytes}")
        magic, *values, body_bytes = self._header.unpack(message[: self._header.size])
        if magic[:-1] == self._magic[:-1] and magic != self._magic:
            raise CorruptPayload(
                f"the message has format number {magic[-1]}, and this dpcomp reads number {self._magic[-1]}: "
                "both ends must run versions with one format number (docs/formats.md)"
            )
        if magic != self._magic:
            raise CorruptPayload(f"the message begins with {magic!r}; this format begins with {self._magic!r}")
        return self._record(**dict(zip(self._names, values, strict=True))), body_bytes

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

    @property
    def address(self) -> Address:
        """Where the payload belongs."""
        return Address(self.run, self.client, self.round)


MAGIC = b"dpc\x03"  # the last byte is the format's version
PAYLOAD = Format(Frame, MAGIC)
HEADER_BYTES = PAYLOAD.header_bytes


def chained(digest_before: bytes, payload: bytes) -> bytes:
    """Return the hash chain after a payload; its header holds the checksum of header and body, and stands for both."""
    return digest(digest_before, bytes(payload[:HEADER_BYTES]))


@dataclass(frozen=True, kw_only=True)
class OpenedPayload:
    """A payload whose checksum was verified, once: its frame and its body."""

    payload: bytes
    frame: Frame
    body: bytes

    @classmethod
    def of(cls, payload: "bytes | OpenedPayload") -> "OpenedPayload":
        """Verify a payload, or return one that was verified before.

        Raises:
            CorruptPayload: The bytes are damaged, no payload, or of another format number.
            TypeError: It is not bytes.
        """
        if isinstance(payload, OpenedPayload):
            return payload
        frame, body = PAYLOAD.unseal(payload)
        return cls(payload=bytes(payload), frame=frame, body=body)
