"""Short header: 16 bytes in place of a full header whose fields the reader knows.

It holds the checksum of the full header, which covers the body. The reader writes the full header from its own memory,
and the checksum of what it wrote must be that one. So another state at either end is noticed as surely as damage is.
(Robust header compression does the same: each end has a context, and a checksum over the header before compression
tells whether they agree; RFC 3095, section 5.9.2.)

A short header is also a check of itself and the body, which needs no memory: it tells damage from another state.
"""

import struct
from typing import NamedTuple

from dpcomp.core.errors import CorruptPayload
from dpcomp.wire.frame import digest

SHORT = struct.Struct("<BBI8s2s")  # a `ShortHeader`
SHORT_HEADER_BYTES = SHORT.size
CHECK_BYTES = 2  # it decides nothing but whether a message that is not read is called damaged
VERSIONS = 256  # of which a short header states one


class ShortHeader(NamedTuple):
    """The fields of a short header.

    Attributes:
        first_byte: What kind of message it is, and the format's number; above 127, with which no magic begins.
        version: The last byte of the version of shared memory that the message is of.
        client: The sender's number; of a reply, the number of the client that it is for.
        tag: The checksum of the full header.
        check: The beginning of the digest of all that is before it, and of the body's digest.
    """

    first_byte: int
    version: int
    client: int
    tag: bytes
    check: bytes

    def version_near(self, version: int) -> int:
        """Return the version whose last byte is stated: of all such, the one that is nearest to a version."""
        half = VERSIONS // 2
        nearest = version - half + (self.version - version + half) % VERSIONS
        return nearest if nearest >= 0 else nearest + VERSIONS


def write_short_header(first_byte: int, version: int, client: int, tag: bytes, digest_of_body: bytes) -> bytes:
    """Write a short header.

    Args:
        first_byte: What kind of message it is, and the format's number.
        version: The version of shared memory that the message is of.
        client: The sender's number; of a reply, the number of the client that it is for.
        tag: The checksum of the full header.
        digest_of_body: The body digest.

    Returns:
        16 bytes.
    """
    before_check = SHORT.pack(first_byte, version % VERSIONS, client, tag, b"")[:-CHECK_BYTES]
    return before_check + digest(before_check, digest_of_body)[:CHECK_BYTES]


def read_short_header(message: bytes, digest_of_body: bytes) -> ShortHeader:
    """Read the short header of a message, and verify its check.

    Args:
        message: The message, at least as long as a short header.
        digest_of_body: The body digest of the bytes after the header.

    Raises:
        CorruptPayload: The message is damaged.
    """
    header = ShortHeader(*SHORT.unpack_from(message))
    if digest(message[: SHORT.size - CHECK_BYTES], digest_of_body)[:CHECK_BYTES] != header.check:
        raise CorruptPayload("the check does not match: the message was damaged on the way; send it again")
    return header
