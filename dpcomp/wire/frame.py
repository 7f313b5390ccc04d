"""Frame: the header of each payload, and how a header is written, read and checked."""

import hashlib
import struct
from dataclasses import dataclass, fields
from typing import Annotated, Generic, TypeVar, get_type_hints

from xxhash import xxh3_64

from dpcomp.core.address import Address
from dpcomp.core.checks import check_type
from dpcomp.core.errors import CorruptPayload

CHECKSUM_BYTES = 8
LINK_BYTES = 4

Record = TypeVar("Record")


def digest(*parts: bytes) -> bytes:
    """Return 8 bytes of BLAKE2b over the parts, which are short, or hashed once a run.

    It names what is compared for a whole run: pipelines, first models, shared memory, links. So that none of these can
    be made to have a given name, it is a cryptographic hash, unlike `body_digest`.
    """
    state = hashlib.blake2b(digest_size=CHECKSUM_BYTES)
    for part in parts:
        state.update(part)
    return state.digest()


def body_digest(*parts: bytes | bytearray | memoryview) -> bytes:
    """Return 8 bytes of XXH3 over the parts of a body: they detect damage, at the speed of memory.

    XXH3 is no cryptographic hash: who may change a body can keep its digest. That body passes any check without a key,
    for its new checksum could be computed as well; authentication is the task of the transport.
    """
    state = xxh3_64()
    for part in parts:
        state.update(part)
    return state.digest()


class Format(Generic[Record]):
    """Writes and reads messages: magic ‖ fields of a record ‖ length of the body ‖ checksum ‖ body, little-endian.

    The checksum is the digest of the header before it and of the body's digest, so it covers all but itself.

    Args:
        record: A dataclass whose fields are annotated with their `struct` formats, in wire order.
        magic: The first bytes of each message; the last of them is the format number.
    """

    def __init__(self, record: type[Record], magic: bytes):
        formats = [hint.__metadata__[0] for hint in get_type_hints(record, include_extras=True).values()]
        self._record, self._magic = record, magic
        self._names = [field.name for field in fields(record)]  # pyright: ignore[reportArgumentType]
        self._header = struct.Struct(f"<{len(magic)}s" + "".join(formats) + "I")
        self.header_bytes = self._header.size + CHECKSUM_BYTES

    def seal(self, record: Record, *body: bytes | bytearray | memoryview) -> bytes:
        """Write a message with a body, which may come in parts: the message is the only copy that is made of them."""
        length = sum(map(len, body))
        header = self._header.pack(self._magic, *(getattr(record, name) for name in self._names), length)
        return b"".join((header, digest(header, body_digest(*body)), *body))

    def unseal(self, message: bytes) -> tuple[Record, bytes]:
        """Check a message, and return its record and body.

        Raises:
            CorruptPayload: The message is damaged, or has another format. It is raised before any content is used.
            TypeError: `message` is not bytes.
        """
        check_type(message, (bytes, bytearray, memoryview), f"a message is bytes, not {type(message).__name__}")
        record, body = self.unseal_view(bytes(message))
        return record, bytes(body)

    def unseal_view(self, message: bytes) -> tuple[Record, memoryview]:
        """Check a message as `unseal` does, and return its record and a view of its body, which is not copied.

        Raises:
            CorruptPayload: As `unseal` does.
        """
        record, body_bytes = self._read_header(message)
        header, body = message[: self._header.size], memoryview(message)[self.header_bytes :]
        if body_bytes != len(body):
            raise CorruptPayload(f"the header announces {body_bytes} bytes; {len(body)} follow it")
        if digest(header, body_digest(body)) != message[self._header.size : self.header_bytes]:
            raise CorruptPayload("the checksum does not match: the message was damaged on the way; send it again")
        return record, body

    def record_of(self, message: bytes) -> Record:
        """Read the record of a message that this end sealed or unsealed before; its checksum is not computed again."""
        return self._read_header(message)[0]

    def _read_header(self, message: bytes) -> tuple[Record, int]:
        """Read the record and the announced length of the body."""
        if len(message) < self.header_bytes:
            raise CorruptPayload(
                f"{len(message)} bytes are no message: the header alone takes {self.header_bytes} bytes"
            )
        magic, *values, body_bytes = self._header.unpack(message[: self._header.size])
        if magic[:-1] == self._magic[:-1] and magic != self._magic:
            raise CorruptPayload(
                f"the message has format number {magic[-1]}, and this dpcomp reads number {self._magic[-1]}: "
                "both ends must run versions with one format number (docs/reference/formats.md)"
            )
        if magic != self._magic:
            raise CorruptPayload(f"the message begins with {magic!r}; this format begins with {self._magic!r}")
        return self._record(**dict(zip(self._names, values, strict=True))), body_bytes

    def begins(self, message: bytes) -> bool:
        """Return whether a message begins with the magic of this format."""
        return message[: len(self._magic)] == self._magic

    def split(self, stream: bytes) -> list[bytes]:
        """Cut a stream of messages into its messages, without unsealing them.

        Raises:
            CorruptPayload: The stream ends within a message.
        """
        messages: list[bytes] = []
        begin = 0
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
    """The header of a payload: whose it is, and which state it was coded against.

    Attributes:
        pipeline: The fingerprint of codec, mechanism and layout.
        run: The run of the payload's address.
        client: The sender's number.
        round: The round of the payload's address.
        version: The version of shared memory that the payload was coded against.
        shared: The digest of that shared memory.
        link_count: The number of payloads of this client that were accepted before.
        link: The beginning of the digest of those payloads.
    """

    pipeline: Annotated[bytes, "8s"]
    run: Annotated[int, "Q"]
    client: Annotated[int, "I"]
    round: Annotated[int, "I"]
    version: Annotated[int, "I"]
    shared: Annotated[bytes, "8s"]
    link_count: Annotated[int, "I"]
    link: Annotated[bytes, f"{LINK_BYTES}s"]

    @property
    def address(self) -> Address:
        """The address of the update in the payload."""
        return Address(self.run, self.client, self.round)


MAGIC = b"dpc\x05"  # the last byte is the format's version
PAYLOAD = Format(Frame, MAGIC)
HEADER_BYTES = PAYLOAD.header_bytes


def chained(digest_before: bytes, payload: bytes) -> bytes:
    """Return the hash chain after a payload; the header alone is hashed, since it holds the checksum of the whole."""
    return digest(digest_before, bytes(payload[:HEADER_BYTES]))


@dataclass(frozen=True, kw_only=True)
class OpenedPayload:
    """A payload whose checksum was verified.

    Attributes:
        payload: All bytes of the message.
        frame: Its header.
        body: A view of the bytes after the header.
    """

    payload: bytes
    frame: Frame
    body: memoryview

    @classmethod
    def of(cls, payload: "bytes | OpenedPayload") -> "OpenedPayload":
        """Verify the checksum of a payload, unless it was verified before.

        Raises:
            CorruptPayload: The bytes are damaged, are no payload, or have another format number.
            TypeError: `payload` is not bytes.
        """
        if isinstance(payload, OpenedPayload):
            return payload
        check_type(payload, (bytes, bytearray, memoryview), f"a message is bytes, not {type(payload).__name__}")
        message = bytes(payload)
        frame, body = PAYLOAD.unseal_view(message)
        return cls(payload=message, frame=frame, body=body)
