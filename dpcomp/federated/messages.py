"""Control messages: the hello by which a client states its state, and the server's reply to hellos and payloads."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import Float32

from dpcomp.codec.entropy import RangeCoder
from dpcomp.core.address import Address
from dpcomp.core.errors import CorruptPayload, Reason
from dpcomp.core.layout import Layout
from dpcomp.core.support import Listed
from dpcomp.wire.frame import Format, Frame, body_digest
from dpcomp.wire.headers import Payload, is_payload, shortened, tag_of
from dpcomp.wire.links import Link
from dpcomp.wire.memory import NO_DIGEST as NO_DIGEST
from dpcomp.wire.memory import Shared
from dpcomp.wire.short_header import SHORT_HEADER_BYTES, read_short_header, write_short_header

# What the `refusal` of a reply says, by its number; no number may change its meaning within a format number.
REFUSALS = (
    *("", "corrupt", "pipeline", "run", "model", "version", "round", "link", "repeat", "twice", "direction"),
    *("uninvited", "size", "unread"),
)
UNREAD = REFUSALS.index("unread")  # a short header that the server cannot read: nothing is decided by it
FOREIGN: tuple[Reason, ...] = ("pipeline", "run", "model")  # the two ends are of different federations
LONGEST_REASON = 500  # bytes of a refusal's text


@dataclass(frozen=True, kw_only=True)
class Hello:
    """A client's question to the server, which states the client's version, link and pending payload.

    Attributes:
        pipeline: The fingerprint of pipeline and layout.
        run: The number of the run's public seed.
        first_model: The digest of the client's first model.
        run_id: What the server's first reply told this client; zeros before it.
        client: The client's number.
        nonce: A number that distinguishes this question from all others of the client.
        version: The version of the client's shared memory.
        shared: The digest of the client's shared memory.
        link_count: The number of payloads of the client that it knows were accepted.
        link: The digest of those payloads.
        pending: The link's digest once the pending payload is accepted; zeros if no payload is pending.
        pending_version: The version of shared memory that the pending payload was coded against.
        pending_shared: The digest of that shared memory.
    """

    pipeline: Annotated[bytes, "8s"]
    run: Annotated[int, "Q"]
    first_model: Annotated[bytes, "8s"]
    run_id: Annotated[bytes, "8s"]
    client: Annotated[int, "I"]
    nonce: Annotated[int, "Q"]
    version: Annotated[int, "I"]
    shared: Annotated[bytes, "8s"]
    link_count: Annotated[int, "I"]
    link: Annotated[bytes, "8s"]
    pending: Annotated[bytes, "8s"]
    pending_version: Annotated[int, "I"]
    pending_shared: Annotated[bytes, "8s"]


@dataclass(frozen=True, kw_only=True)
class Reply:
    """The server's reply to a payload or a hello, which states the server's version and its link with the client.

    The body of a reply to a hello brings the client to the server's version: it holds the whole link, if the client has
    another link; then the broadcasts since the client's version, or a snapshot. The body of a reply that refuses a
    message of another federation is the reason, as text.

    Attributes:
        answers: The checksum of the message that is answered, or the tag of the payload.
        run_id: What distinguishes the server's federation from all others.
        client: The client's number.
        version: The version of the server's shared memory.
        shared: The digest of the server's shared memory.
        link_count: The number of payloads of the client that the server has accepted.
        link: The digest of those payloads.
        usable: 1 if the client may send its pending payload again, else 0.
        link_bytes: The number of bytes at the beginning of the body that hold the whole link.
        snapshot: 1 if a snapshot follows in the body, 0 if broadcasts follow.
        refusal: Why the message was not accepted, as a place in `REFUSALS`; 0 if it was.
    """

    answers: Annotated[bytes, "8s"]
    run_id: Annotated[bytes, "8s"]
    client: Annotated[int, "I"]
    version: Annotated[int, "I"]
    shared: Annotated[bytes, "8s"]
    link_count: Annotated[int, "I"]
    link: Annotated[bytes, "8s"]
    usable: Annotated[int, "B"]
    link_bytes: Annotated[int, "I"]
    snapshot: Annotated[int, "B"]
    refusal: Annotated[int, "B"]


WithdrawalReason = Literal["budget", "policy", "done", "round"]
WITHDRAWAL_REASONS: tuple[WithdrawalReason, ...] = get_args(WithdrawalReason)


@dataclass(frozen=True, kw_only=True)
class Withdrawal:
    """A client's statement that it will send no update of a round or a later one, for now; or with "round", none of it.

    Messages may come twice or late, so it names the round: once the server has accepted an update of that round or a
    later one, the client has come back, and the statement is out of date.

    Whether a budget allows a further release depends on what was charged before, and not on any data.

    Attributes:
        pipeline: The fingerprint of pipeline and layout.
        run: The number of the run's public seed.
        run_id: The run id of the federation; zeros for a client that does not know it.
        client: The client's number.
        round: The first round of which the client sends no update.
        reason: Why, as a place in `WITHDRAWAL_REASONS`.
    """

    pipeline: Annotated[bytes, "8s"]
    run: Annotated[int, "Q"]
    run_id: Annotated[bytes, "8s"]
    client: Annotated[int, "I"]
    round: Annotated[int, "I"]
    reason: Annotated[int, "B"]


def first_unsent_round(version: int, last: Address | None) -> int:
    """Return the first round of which a client has sent no update, and may still do so.

    Args:
        version: The version that the client, or its server, is at.
        last: The address of the last update that it has sent; None for none.
    """
    return version if last is None else max(version, last.round + 1)


WITHDRAWAL = Format(Withdrawal, b"dpw\x02")
HELLO = Format(Hello, b"dph\x04")
REPLY = Format(Reply, b"dpr\x04")
RECEIPT = 192 + 4  # the first byte of a receipt: above that of a payload with a short header


def name_of(message: bytes) -> bytes:
    """Return the 8 bytes by which a reply names the message that it answers: a payload has one name with any header."""
    if is_payload(message):
        return tag_of(message)
    return (WITHDRAWAL if WITHDRAWAL.begins(message) else HELLO).checksum_of(message)


def largest_message(d: int) -> int:
    """Return the most bytes of a message from a client; a server reads no longer one.

    A coordinate takes at most 8 bytes for its value and 4 for its position; the rest is left to frames, side
    information and tables.

    Args:
        d: The number of coordinates.
    """
    return 2**18 + 16 * d


def receipt_of(frame: Frame, tag: bytes, run_id: bytes) -> Reply:
    """Return the reply to a payload that is accepted as the next one of its sender, at the version that it was sent at.

    Args:
        frame: What the payload's full header states.
        tag: The payload's tag.
        run_id: The run id of the federation.
    """
    return Reply(
        answers=tag,
        run_id=run_id,
        client=frame.client,
        version=frame.version,
        shared=frame.shared,
        link_count=frame.link_count + 1,
        link=tag,
        usable=0,
        link_bytes=0,
        snapshot=0,
        refusal=0,
    )


def seal_receipt(receipt: Reply) -> bytes:
    """Write a receipt as a short header alone, for a client that knows what it will say if its payload is accepted."""
    tag = REPLY.checksum_of(REPLY.seal(receipt))
    return write_short_header(RECEIPT, receipt.version, receipt.client, tag, body_digest())


def is_reply(message: bytes) -> bool:
    """Return whether a message begins as a reply does, with either header."""
    return REPLY.begins(message) or is_receipt(message)


def is_receipt(message: bytes) -> bool:
    """Return whether a message begins as a receipt does."""
    return message[:1] == bytes([RECEIPT])


def recipient_of(message: bytes) -> int:
    """Return the number of the client that a receipt is for. What else it says, `seal_receipt` of the same reply shows.

    Raises:
        CorruptPayload: The message is damaged.
    """
    if len(message) != SHORT_HEADER_BYTES:
        raise CorruptPayload(f"a receipt has {SHORT_HEADER_BYTES} bytes; this message has {len(message)}")
    return read_short_header(message, body_digest()).client


def write_broadcasts(broadcasts: Sequence[Payload]) -> bytes:
    """Write broadcasts that follow each other as the body of a reply, each after its length and with a short header.

    The client that reads them has stated the version before them in its question.
    """
    messages = [shortened(broadcast) for broadcast in broadcasts]
    return b"".join(part for message in messages for part in (_LENGTH.pack(len(message)), message))


def read_broadcasts(body: bytes) -> list[bytes]:
    """Cut the body of a reply into broadcasts.

    Raises:
        CorruptPayload: The body ends within a broadcast.
    """
    messages: list[bytes] = []
    while body:
        _refuse_short(body, _LENGTH.size)
        (length,) = _LENGTH.unpack_from(body)
        messages.append(body[_LENGTH.size : _LENGTH.size + length])
        _refuse_short(messages[-1], length)
        body = body[_LENGTH.size + length :]
    return messages


class Snapshot(NamedTuple):
    """All that a client needs to be at the server's version.

    Attributes:
        shared: The server's shared memory.
        model: The parameters as a (d,) vector.
    """

    shared: Shared
    model: Float32[np.ndarray, "d"]


_LENGTH = struct.Struct("<I")
BROADCAST_BYTES = _LENGTH.size + SHORT_HEADER_BYTES  # that a broadcast in a reply takes beside its body
_SNAPSHOT = struct.Struct("<I8sB")  # version, digest, and the flags below
_REFERENCE, _HISTORY = 1, 2  # flags: this vector follows the model
_LINK = struct.Struct("<I8sQIIi")  # count, digest, last address, last version
_SUPPORT = struct.Struct("<II")  # 1 + count, or 0 for no support; bytes of the positions


def write_snapshot(snapshot: Snapshot, layout: Layout) -> bytes:
    """Write a snapshot as the body of a reply, little-endian, for `read_snapshot`.

    It holds the version, the digest and a byte of flags; the last listed support; and as float32 the model of d values,
    the reference of d values if a codec predicts, and the history of h values if a part keeps one.

    Args:
        snapshot: The server's shared memory and model.
        layout: The layers of the vector, by which the positions of the support are coded.

    Returns:
        The bytes.
    """
    shared = snapshot.shared
    vectors = _REFERENCE * (shared.reference is not None) + _HISTORY * (shared.history is not None)
    head = _SNAPSHOT.pack(shared.version, shared.digest, vectors)
    arrays = [array for array in (snapshot.model, shared.reference, shared.history) if array is not None]
    floats = [np.asarray(array, dtype="<f4").tobytes() for array in arrays]
    return b"".join((head, _write_support(shared.last_support, layout), *floats))


def read_snapshot(body: bytes, layout: Layout) -> Snapshot:
    """Read the snapshot in a body.

    Raises:
        CorruptPayload: The body is no snapshot of this layout.
    """
    _refuse_short(body, _SNAPSHOT.size)
    version, chained, vectors = _SNAPSHOT.unpack_from(body)
    last_support, rest = _read_support(body[_SNAPSHOT.size :], layout)
    dense = layout.size * (1 + bool(vectors & _REFERENCE))
    longer = len(rest) - 4 * dense
    if longer < 0 or longer % 4 or (longer and not vectors & _HISTORY):
        raise CorruptPayload(f"a snapshot of {layout.size} coordinates does not have {len(rest)} bytes of values")
    values = np.frombuffer(rest, dtype="<f4").astype(np.float32)
    if not np.isfinite(values).all():
        raise CorruptPayload("the snapshot holds values that are not finite")
    model, *reference = values[:dense].reshape(-1, layout.size)
    shared = Shared(
        version=version,
        digest=chained,
        reference=reference[0] if reference else None,
        last_support=last_support,
        history=values[dense:] if vectors & _HISTORY else None,
    )
    return Snapshot(shared, model)


def write_link(link: Link, layout: Layout) -> bytes:
    """Write a whole link; a link that counts no payload is written as no bytes."""
    if link.last is None:
        return b""
    last = link.last
    head = _LINK.pack(link.count, link.digest, last.run, last.client, last.round, link.last_version)
    return head + _write_support(link.last_support, layout)


def read_link(body: bytes, layout: Layout) -> Link:
    """Read the link in a body; no bytes are a new link.

    Raises:
        CorruptPayload: The body is no link of this layout.
    """
    if not body:
        return Link()
    _refuse_short(body, _LINK.size)
    count, chained, run, client, number, last_version = _LINK.unpack_from(body)
    support, rest = _read_support(body[_LINK.size :], layout)
    if rest:
        raise CorruptPayload(f"{len(rest)} bytes follow a link")
    last = Address(run, client, number)
    return Link(count=count, digest=chained, last=last, last_version=last_version, last_support=support)


def _write_support(support: Listed | None, layout: Layout) -> bytes:
    if support is None:
        return _SUPPORT.pack(0, 0)
    writer = RangeCoder().writer()
    writer.positions(support.positions, layout.edges, None)
    coded = b"".join(writer.finish())
    return _SUPPORT.pack(1 + len(support.positions), len(coded)) + coded


def _read_support(body: bytes, layout: Layout) -> tuple[Listed | None, bytes]:
    """Read the support at the beginning of a body; return it, and what follows it."""
    _refuse_short(body, _SUPPORT.size)
    count, coded_bytes = _SUPPORT.unpack_from(body)
    coded, rest = body[_SUPPORT.size :][:coded_bytes], body[_SUPPORT.size + coded_bytes :]
    _refuse_short(coded, coded_bytes)
    if not count:
        return None, rest
    if count - 1 > layout.size:
        raise CorruptPayload(f"a support of {count - 1} coordinates does not fit into {layout.size}")
    reader = RangeCoder().reader(coded)
    support = Listed(reader.positions(count - 1, layout.edges, None))
    reader.finish()
    return support, rest


def _refuse_short(body: bytes, expected: int) -> None:
    if len(body) < expected:
        raise CorruptPayload(f"the message has {len(body)} bytes left, where {expected} were announced")
