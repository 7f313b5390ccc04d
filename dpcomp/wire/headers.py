"""Headers: a payload travels with a full header, or a short one where its reader knows what the full one states."""

from collections.abc import Sequence
from dataclasses import dataclass

from dpcomp.core.address import SERVER
from dpcomp.core.checks import check_type
from dpcomp.core.errors import CorruptPayload, VersionMismatch
from dpcomp.wire.frame import CHECKSUM_BYTES, MAGIC, PAYLOAD, Frame, body_digest
from dpcomp.wire.links import Link
from dpcomp.wire.memory import NO_DIGEST, ClientMemory, ServerMemory
from dpcomp.wire.short_header import (
    SHORT,
    SHORT_HEADER_BYTES,
    ShortHeader,
    read_short_header,
    write_short_header,
)

FIRST_BYTE = 128 + MAGIC[-1]  # of a payload with a short header


@dataclass(frozen=True, kw_only=True, eq=False)
class Payload:
    """A payload that this end has made, or has read against its memory.

    Attributes:
        frame: What the full header states.
        full_header: The full header.
        header: The header that it travels with, full or short.
        message: The bytes that travel.
    """

    frame: Frame
    full_header: bytes
    header: bytes
    message: bytes

    @property
    def client(self) -> int:
        """The number of its sender."""
        return self.frame.client

    @property
    def tag(self) -> bytes:
        """The 8 bytes that name the payload, and all payloads before it of its sender."""
        return self.full_header[-CHECKSUM_BYTES:]

    @property
    def body(self) -> memoryview:
        """A view of the bytes after the header."""
        return memoryview(self.message)[len(self.header) :]

    def in_full(self) -> bytes:
        """Return the payload with a full header, which any reader of its pipeline understands."""
        return b"".join((self.full_header, self.body))


def sealed(
    frame: Frame, parts: Sequence[bytes | bytearray | memoryview], memory: ClientMemory | ServerMemory
) -> Payload:
    """Make a payload of its sender's frame and body; its header is short where the reader knows the rest.

    A reader does, once the connection was opened: by a payload with a full header that was accepted, by a broadcast, or
    by a question and its reply, from which a client knows the run id.

    Args:
        frame: What the full header states.
        parts: The body, which may come in parts. The message is the only copy that is made of them, and is made at
            once, so that they may change later.
        memory: The sender's memory.
    """
    digest_of_body = body_digest(*parts)
    full_header = PAYLOAD.header(frame, sum(map(len, parts)), digest_of_body)
    opened = memory.shared.version > 0
    if isinstance(memory, ClientMemory):
        opened = memory.link.count > 0 or memory.genesis.run_id != NO_DIGEST
    header = full_header
    if opened and frame.round == frame.version:
        tag = full_header[-CHECKSUM_BYTES:]
        header = write_short_header(FIRST_BYTE, frame.version, frame.client, tag, digest_of_body)
    return Payload(frame=frame, full_header=full_header, header=header, message=b"".join((header, *parts)))


def shortened(payload: Payload) -> bytes:
    """Return a payload with a short header, for a reader that has stated the version before it in full."""
    frame, digest_of_body = payload.frame, body_digest(payload.body)
    header = write_short_header(FIRST_BYTE, frame.version, frame.client, payload.tag, digest_of_body)
    return b"".join((header, payload.body))


@dataclass(frozen=True, kw_only=True, eq=False)
class ShortPayload:
    """A payload with a short header whose bytes are undamaged; `read_against` finds what it was coded against.

    Attributes:
        header: The fields of the header.
        message: The bytes that have arrived.
        digest_of_body: The body digest.
    """

    header: ShortHeader
    message: bytes
    digest_of_body: bytes

    @property
    def client(self) -> int:
        """The number of its sender, as the header states it."""
        return self.header.client

    @property
    def body(self) -> memoryview:
        """A view of the bytes after the header."""
        return memoryview(self.message)[SHORT_HEADER_BYTES:]

    def read_against(self, memory: ClientMemory | ServerMemory) -> Payload:
        """Return the payload, with the full header that its sender has left out.

        Args:
            memory: The reader's memory, or the sender's from before the payload.

        Raises:
            VersionMismatch: The sender's state is another. The `reason` is "version" for another version or other
                broadcasts, "repeat" for the last payload that was accepted, else "link".
        """
        frame = stated(self.client, self.header.version_near(memory.shared.version), memory)
        full_header = PAYLOAD.header(frame, len(self.message) - SHORT_HEADER_BYTES, self.digest_of_body)
        if full_header[-CHECKSUM_BYTES:] != self.header.tag:
            raise self._mismatch(frame)
        header = self.message[:SHORT_HEADER_BYTES]
        return Payload(frame=frame, full_header=full_header, header=header, message=self.message)

    def _mismatch(self, expected: Frame) -> VersionMismatch:
        """Return why the tag is not that of the full header that this end expects."""
        if self.client == SERVER:
            return VersionMismatch(
                f"the broadcast at version {expected.version} has a short header, and was coded against other "
                f"broadcasts than this end's ({expected.shared.hex()}), or by another pipeline or run: resync this end "
                "before the payload is used",
                reason="version",
            )
        sender = f"client {self.client} sends a payload with a short header"
        if self.header.tag == expected.link:
            return VersionMismatch(
                f"{sender} that is the last of the {expected.link_count} that were accepted: it is a repeat",
                reason="repeat",
            )
        return VersionMismatch(
            f"{sender}, which does not follow from what this end knows: {expected.link_count} accepted payloads "
            f"({expected.link.hex()}) at version {expected.version} ({expected.shared.hex()}), pipeline and layout "
            f"{expected.pipeline.hex()}, run {expected.run}: a payload is missing, or one end is another or was set "
            "back. Resync the client",
            reason="link",
        )


Incoming = bytes | Payload | ShortPayload  # the bytes that arrived, or what was read of them


def unsealed(message: Incoming) -> Payload | ShortPayload:
    """Verify that the bytes of a payload are undamaged, unless that was done before.

    Args:
        message: The bytes that arrived, or what this function returned for them.

    Returns:
        The payload; with a short header, it is still to be read against a memory.

    Raises:
        CorruptPayload: The bytes are damaged, are no payload, or have another format number.
        TypeError: `message` is not bytes.
    """
    if isinstance(message, Payload | ShortPayload):
        return message
    check_type(message, (bytes, bytearray, memoryview), f"a message is bytes, not {type(message).__name__}")
    message = bytes(message)
    if message[:1] < bytes([128]):
        frame, _ = PAYLOAD.unseal(message)
        header = message[: PAYLOAD.header_bytes]
        return Payload(frame=frame, full_header=header, header=header, message=message)
    if message[0] != FIRST_BYTE:
        raise CorruptPayload(
            f"the message begins with the byte {message[0]}; a payload with a short header of format number "
            f"{MAGIC[-1]} begins with {FIRST_BYTE}: both ends must run versions with one format number "
            "(docs/reference/formats.md)"
        )
    if len(message) < SHORT_HEADER_BYTES:
        raise CorruptPayload(f"{len(message)} bytes are no message: a short header takes {SHORT_HEADER_BYTES} bytes")
    digest_of_body = body_digest(memoryview(message)[SHORT_HEADER_BYTES:])
    header = read_short_header(message, digest_of_body)
    return ShortPayload(header=header, message=message, digest_of_body=digest_of_body)


def read(message: Incoming, memory: ClientMemory | ServerMemory) -> Payload:
    """Read the header of a payload; what a full header states is not compared with the memory.

    Args:
        message: The bytes that arrived, or what `unsealed` or this function returned for them.
        memory: The reader's memory, or the sender's from before the payload.

    Raises:
        CorruptPayload, TypeError: As `unsealed` does.
        VersionMismatch: As `ShortPayload.read_against` does.
    """
    payload = unsealed(message)
    return payload.read_against(memory) if isinstance(payload, ShortPayload) else payload


def stated(client: int, version: int, memory: ClientMemory | ServerMemory) -> Frame:
    """Return what the next payload of a sender states, if its state is the one that is remembered here.

    Args:
        client: The sender's number, or `SERVER`.
        version: The version that the payload was coded against.
        memory: The memory of either end.

    Raises:
        VersionMismatch: This end does not remember that version; the `reason` is "version".
    """
    shared, link = memory.shared, Link()
    if isinstance(memory, ServerMemory):
        shared = memory.shared_at(version)
        link = memory.link(client) if client != SERVER else link
    elif client != SERVER:
        link = memory.link
    if shared.version != version:
        raise VersionMismatch(
            f"the payload was coded against version {version} of shared memory, this end is at version "
            f"{shared.version}: resync it before the payload is used",
            reason="version",
        )
    return Frame(
        pipeline=memory.pipeline,
        run=memory.seed.number,
        client=client,
        round=version,
        version=version,
        shared=shared.digest,
        link_count=link.count,
        link=link.digest,
    )


def is_payload(message: bytes) -> bool:
    """Return whether a message begins as a payload does, with either header."""
    return PAYLOAD.begins(message) or message[:1] == bytes([FIRST_BYTE])


def tag_of(message: bytes) -> bytes:
    """Read the tag of a payload that this end has made or unsealed before."""
    if PAYLOAD.begins(message):
        return PAYLOAD.checksum_of(message)
    return ShortHeader(*SHORT.unpack_from(message)).tag
