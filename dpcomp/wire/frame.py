"""Frame: what the full header of a payload states, and how a header is written, read and checked."""

import hashlib
import struct
from dataclasses import dataclass, fields
from operator import attrgetter
from typing import Annotated, Generic, TypeVar, get_type_hints

from xxhash import xxh3_64

from dpcomp.core.address import Address
from dpcomp.core.checks import check_type
from dpcomp.core.errors import CorruptPayload

CHECKSUM_BYTES = 8

Record = TypeVar("Record")


def digest(*parts: bytes | bytearray | memoryview) -> bytes:
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
        self._values = attrgetter(*self._names)
        self._header = struct.Struct(f"<{len(magic)}s" + "".join(formats) + "I")
        self.header_bytes = self._header.size + CHECKSUM_BYTES

    def seal(self, record: Record, *body: bytes | bytearray | memoryview) -> bytes:
        """Write a message with a body, which may come in parts: the message is the only copy that is made of them."""
        return b"".join((self.header(record, sum(map(len, body)), body_digest(*body)), *body))

    def header(self, record: Record, body_bytes: int, digest_of_body: bytes) -> bytes:
        """Write the header of a message, of which the last `CHECKSUM_BYTES` are the checksum.

        Args:
            record: The fields.
            body_bytes: The length of the body.
            digest_of_body: The body digest.
        """
        header = self._header.pack(self._magic, *self._values(record), body_bytes)
        return header + digest(header, digest_of_body)

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
        body = memoryview(message)[self.header_bytes :]
        if body_bytes != len(body):
            raise CorruptPayload(f"the header announces {body_bytes} bytes; {len(body)} follow it")
        if digest(message[: self._header.size], body_digest(body)) != self.checksum_of(message):
            raise CorruptPayload("the checksum does not match: the message was damaged on the way; send it again")
        return record, body

    def checksum_of(self, message: bytes) -> bytes:
        """Read the checksum of a message, which is not compared with its content."""
        return bytes(message[self._header.size : self.header_bytes])

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


@dataclass(frozen=True, kw_only=True)
class Frame:
    """What the full header of a payload states: whose it is, and which state it was coded against.

    Attributes:
        pipeline: The fingerprint of codec, mechanism and layout.
        run: The run of the payload's address.
        client: The sender's number.
        round: The round of the payload's address.
        version: The version of shared memory that the payload was coded against.
        shared: The digest of that shared memory.
        link_count: The number of payloads of this client that were accepted before.
        link: The digest of those payloads.
    """

    pipeline: Annotated[bytes, "8s"]
    run: Annotated[int, "Q"]
    client: Annotated[int, "I"]
    round: Annotated[int, "I"]
    version: Annotated[int, "I"]
    shared: Annotated[bytes, "8s"]
    link_count: Annotated[int, "I"]
    link: Annotated[bytes, "8s"]

    @property
    def address(self) -> Address:
        """The address of the update in the payload."""
        return Address(self.run, self.client, self.round)


MAGIC = b"dpc\x06"  # the last byte is the format's number
PAYLOAD = Format(Frame, MAGIC)
FULL_HEADER_BYTES = PAYLOAD.header_bytes
