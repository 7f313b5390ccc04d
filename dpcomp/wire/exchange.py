"""The exchange of a round: a client sends and the server receives, the server broadcasts and clients follow."""

from dataclasses import replace
from typing import Any

import numpy as np

from dpcomp.core.address import SERVER
from dpcomp.core.checks import check_type
from dpcomp.core.errors import DpcompError, VersionMismatch
from dpcomp.wire.channel import Channel
from dpcomp.wire.feedback import Kept
from dpcomp.wire.frame import Frame
from dpcomp.wire.headers import Incoming, Payload, read, unsealed
from dpcomp.wire.links import Link
from dpcomp.wire.memory import ClientMemory, ServerMemory
from dpcomp.wire.payload import Encoded, decode, encode, signal_estimate
from dpcomp.wire.update import UNKNOWN, Update, with_claim


def send(channel: Channel, update: Update, memory: ClientMemory) -> tuple[Payload, ClientMemory]:
    """Encode a client's update.

    Args:
        channel: The channel of both ends: `pipeline.channel`.
        update: A release or a value derived from it; the clean update, if the server is trusted.
        memory: The sender's memory; the feedback adds what it keeps there to the update.

    Returns:
        The payload, and the sender's memory for the time after the server accepts the payload.

    Raises:
        NotPrivate: The server is not trusted, and the update was not released by this pipeline.
        VersionMismatch: The memory is of another pipeline.
        TypeError: `update` is not an `Update`, or `memory` not a `ClientMemory`.
        ValueError: The update has another run, client or layout, or values that are not finite.
        DpcompError: The update is of a round beyond those of the federation's terms.
    """
    check_type(memory, ClientMemory, f"send: a client sends, with a ClientMemory, not a {type(memory).__name__}")
    check_type(update, Update, f"send: give an Update, from release or its .derive, not a {type(update).__name__}")
    if not channel.server_sees_clean:
        channel.refuse_unreleased(update.claim)
    if (update.address.run, update.address.client) != (memory.seed.number, memory.client):
        raise ValueError(
            f"send: the update is of {update.address}, the memory of client {memory.client} in run "
            f"{memory.seed.number}: send an update with the memory that it was released with"
        )
    if memory.rounds is not None and update.address.round >= memory.rounds:
        raise DpcompError(
            f"send: the update is of {update.address}, and the terms of this federation are for {memory.rounds:,} "
            "rounds, from 0: nothing is sent beyond them, since no client has agreed on what that would cost. Agree on "
            "terms of more rounds"
        )
    update = channel.clipped(update)
    tracked, address = None, update.address
    if memory.tracked is not None and channel.uplink.averaged_clients is not None:
        update, tracked = signal_estimate(update, memory.tracked, channel.uplink.averaged_clients)
    encoded, kept = _encode_with_feedback(channel, update, memory)
    listed = encoded.listed if channel.uplink.needs_last_support else None
    link = memory.link.advanced(encoded.payload.tag, address, memory.shared.version, listed)
    return encoded.payload, memory.after_sending(kept, link, tracked)


def _encode_with_feedback(channel: Channel, update: Update, memory: ClientMemory) -> tuple[Encoded, Kept]:
    """Encode an update with what its sender carries over, and return what it keeps once the payload is accepted."""
    feedback = channel.sender_feedback
    if feedback is None:
        return encode(channel, channel.uplink, update, memory, None), memory.kept
    weighted = update if feedback.weight == 1 else update.derive(np.float32(feedback.weight) * update.dense())
    carried = feedback.carried(memory.kept, update.learning_rate)
    encoded = encode(channel, channel.uplink, weighted, memory, carried)
    assert encoded.residual is not None
    return encoded, feedback.after_sending(memory.kept, update, encoded.residual, encoded.decoded)


def receive(channel: Channel, payload: Incoming, memory: ServerMemory) -> tuple[Update, ServerMemory]:
    """Decode a client's payload at the server.

    Args:
        channel: The channel of both ends: `pipeline.channel`.
        payload: The bytes, or what `unsealed` or `read` returned for them.
        memory: The server's memory, which is not changed.

    Returns:
        The update, and the server's memory for the time after it accepts the payload.

    Raises:
        CorruptPayload: The bytes are damaged.
        VersionMismatch: The bytes are sound, but were coded against another state; or the payload would be the second
            of a client in a round, where the server is trusted.
        TypeError: `memory` is not a `ServerMemory`.
    """
    opened = read_at_server(channel, payload, memory)
    frame, link = opened.frame, memory.link(opened.frame.client)
    at_payload = memory.at_version(frame.version)
    update, listed = decode(channel, channel.uplink, opened, channel.uplink_claim, at_payload, link)
    listed = listed if channel.uplink.needs_last_support else None
    return update, memory.accepted(frame.client, link.advanced(opened.tag, frame.address, frame.version, listed))


def read_at_server(channel: Channel, payload: Incoming, memory: ServerMemory) -> Payload:
    """Read the header of a client's payload, and refuse what `receive` refuses before it decodes anything.

    Args:
        channel: The channel of both ends: `pipeline.channel`.
        payload: The bytes, or what `unsealed` or `read` returned for them.
        memory: The server's memory.

    Raises:
        CorruptPayload, VersionMismatch: As `receive` does.
        TypeError: `memory` is not a `ServerMemory`.
    """
    check_type(
        memory, ServerMemory, f"receive: the server receives, with a ServerMemory, not a {type(memory).__name__}"
    )
    channel.refuse_foreign_memory(memory)
    arrived = unsealed(payload)
    if arrived.client == SERVER:
        raise VersionMismatch(
            "this payload is a broadcast: clients follow it, the server does not receive it", reason="direction"
        )
    opened = read(arrived, memory)
    frame, link = opened.frame, memory.link(opened.client)
    refuse_other_state(frame, memory.at_version(frame.version))
    refuse_other_link(frame, link)
    if channel.server_sees_clean and link.last_version == frame.version:
        raise VersionMismatch(
            f"client {frame.client} sends a second update at version {frame.version}: two updates of a client in a "
            "round have twice the sensitivity. Wait for the next broadcast",
            reason="twice",
        )
    return opened


def broadcast(channel: Channel, aggregate: Any, memory: ServerMemory) -> tuple[Payload, ServerMemory]:
    """Encode the server's step for all clients.

    Args:
        channel: The channel of both ends: `pipeline.channel`.
        aggregate: A release or a value derived from it. If the server is not trusted, all that it has is released, and
            a plain (d,) vector may be given.
        memory: The server's memory, which is not changed.

    Returns:
        The payload that brings each client to the next version, and the server's memory at the next version.

    Raises:
        NotPrivate: The aggregate was not released by this pipeline.
        VersionMismatch: The memory is of another pipeline.
        TypeError: `memory` is not a `ServerMemory`.
        ValueError: The aggregate has another run or layout, or values that are not finite.
    """
    check_type(memory, ServerMemory, f"broadcast: the server sends, with a ServerMemory, not a {type(memory).__name__}")
    if not isinstance(aggregate, Update):
        if not hasattr(aggregate, "shape"):
            raise TypeError(f"broadcast: give an Update or a (d,) array, not a {type(aggregate).__name__}")
        aggregate = Update(values=aggregate, layout=memory.layout, address=memory.address)
        aggregate = with_claim(aggregate, channel.uplink_claim)
    channel.refuse_unreleased(aggregate.claim)
    if aggregate.address.run != memory.seed.number:
        raise ValueError(
            f"broadcast: the aggregate is of run {aggregate.address.run}, the memory of run {memory.seed.number}: "
            "build both from one PublicSeed"
        )
    aggregate = with_claim(replace(aggregate, address=memory.address, claim=UNKNOWN), aggregate.claim)
    encoded = encode(channel, channel.downlink, aggregate, memory, memory.residual)
    shared = channel.shared_after(
        memory.shared,
        encoded.payload.tag,
        encoded.decoded.dense(),
        encoded.listed,
        memory.layout,
    )
    kept = Kept(residual=encoded.residual)
    return encoded.payload, replace(memory, kept=kept, shared=shared, step=encoded.decoded)


def follow(channel: Channel, payload: Incoming, memory: ClientMemory) -> ClientMemory:
    """Decode a broadcast at a client.

    Args:
        channel: The channel of both ends: `pipeline.channel`.
        payload: The bytes, or what `unsealed` or `read` returned for them.
        memory: The client's memory, which is not changed.

    Returns:
        The client's memory at the next version; its `step` is the update to add to the model.

    Raises:
        CorruptPayload: The bytes are damaged.
        VersionMismatch: The bytes are sound, but the broadcast does not lead on from this client's version.
    """
    check_type(memory, ClientMemory, f"follow: a client follows, with a ClientMemory, not a {type(memory).__name__}")
    channel.refuse_foreign_memory(memory)
    arrived = unsealed(payload)
    if arrived.client != SERVER:
        raise VersionMismatch(
            f"this payload is an update of client {arrived.client}: the server receives it, clients do not follow it",
            reason="direction",
        )
    opened = read(arrived, memory)
    refuse_other_state(opened.frame, memory)
    decoded, listed = decode(channel, channel.downlink, opened, channel.claim, memory, memory.broadcast_link)
    shared = channel.shared_after(memory.shared, opened.tag, decoded.dense(), listed, memory.layout)
    tracked = memory.tracked
    if tracked is not None:
        tracked = tracked.after_broadcast(decoded.dense(), memory.layout)
    return replace(memory, shared=shared, step=decoded, tracked=tracked)


def refuse_other_state(frame: Frame, memory: ClientMemory | ServerMemory) -> None:
    """Refuse a payload of another pipeline or run, or coded against other shared memory.

    Args:
        frame: The payload's frame.
        memory: The reader's memory.

    Raises:
        VersionMismatch: The `reason` is "pipeline", "run" or "version".
    """
    shared = memory.shared
    if frame.pipeline != memory.pipeline:
        raise VersionMismatch(
            f"the payload is of pipeline and layout {frame.pipeline.hex()}, this end runs {memory.pipeline.hex()}: "
            "both ends must be built from one configuration",
            reason="pipeline",
        )
    if frame.run != memory.seed.number:  # before the digests, which differ then too, and which no resync would mend
        raise VersionMismatch(
            f"the payload is of run {frame.run}, this end is of run {memory.seed.number}: build both ends with one "
            "PublicSeed",
            reason="run",
        )
    if (frame.version, frame.shared) != (shared.version, shared.digest):
        raise VersionMismatch(
            f"the payload was coded against version {frame.version} ({frame.shared.hex()}), this end is at version "
            f"{shared.version} ({shared.digest.hex()}): resync it before the payload is used",
            reason="version",
        )


def refuse_other_link(frame: Frame, link: Link) -> None:
    """Refuse a payload that was coded against another link than the given link.

    Raises:
        VersionMismatch: The payload repeats an accepted payload, or its sender counts payloads as accepted that the
            reader does not have; the `reason` is "repeat" or "link".
    """
    if frame.link_count != link.count:
        repeated = frame.link_count < link.count
        raise VersionMismatch(
            f"client {frame.client} sends its payload number {frame.link_count}; the server has accepted {link.count} "
            f"payloads of this client: {'it is a repeat' if repeated else 'a payload is missing, resync the client'}",
            reason="repeat" if repeated else "link",
        )
    if frame.link != link.digest:
        raise VersionMismatch(
            f"client {frame.client} has the digest {frame.link.hex()} for its {link.count} accepted payloads, the "
            f"server has {link.digest.hex()}: resync the client",
            reason="link",
        )
