"""The four messages of a round: send and receive upwards, broadcast and follow downwards."""

from dataclasses import replace

import numpy as np
from jaxtyping import Float32

from dpcomp.core.address import SERVER
from dpcomp.core.errors import VersionMismatch
from dpcomp.wire.channel import Channel
from dpcomp.wire.frame import LINK_BYTES, Frame, OpenedPayload, chained
from dpcomp.wire.memory import ClientMemory, Link, ServerMemory
from dpcomp.wire.payload import decode, encode, signal_estimate
from dpcomp.wire.update import Update


def send(channel: Channel, update: Update, memory: ClientMemory) -> tuple[bytes, ClientMemory]:
    """Encode a client's update.

    Args:
        channel: What both ends are built from.
        update: A release, or what was derived from it; under a trusted server, the clean update.
        memory: The sender's.

    Returns:
        The payload, and the sender's memory once it is accepted.

    Raises:
        NotPrivate: The server is not trusted, and the update was not released by this pipeline.
        VersionMismatch: Another pipeline made the memory.
        TypeError: The update or the memory is of another type.
        ValueError: The update has another client or layout, or values that are not finite.
    """
    if not isinstance(memory, ClientMemory):
        raise TypeError(f"send: a client sends, with a ClientMemory, not a {type(memory).__name__}")
    if not isinstance(update, Update):
        raise TypeError(f"send: an update is what release gave, or .derive of it, not a {type(update).__name__}")
    if not channel.server_sees_clean:
        channel.refuse_unreleased(update.claim)
    if update.address.client != memory.client:
        raise ValueError(f"send: the update is of {update.address}, the memory of client {memory.client}")
    tracked, address = None, update.address
    if memory.tracked is not None and channel.uplink.averaged_clients is not None:
        update, tracked = signal_estimate(update, memory.tracked, channel.uplink.averaged_clients)
    encoded = encode(channel, channel.uplink, update, memory)
    chain = chained(memory.link.digest, encoded.payload)
    link = memory.link.advanced(chain, address, memory.shared.version, encoded.listed)
    return encoded.payload, replace(memory, residual=encoded.residual, link=link, tracked=tracked)


def receive(channel: Channel, payload: bytes | OpenedPayload, memory: ServerMemory) -> tuple[Update, ServerMemory]:
    """Decode a client's payload at the server.

    Args:
        channel: What both ends are built from.
        payload: The bytes, or what `OpenedPayload.of` gave for them.
        memory: The server's.

    Returns:
        The update, and the server's memory once it accepts the payload.

    Raises:
        CorruptPayload: The bytes are damaged.
        VersionMismatch: They are sound, but were coded against another state; the memory stays as it is.
    """
    if not isinstance(memory, ServerMemory):
        raise TypeError(f"receive: the server receives, with a ServerMemory, not a {type(memory).__name__}")
    opened = OpenedPayload.of(payload)
    frame, then = opened.frame, replace(memory, shared=memory.at(opened.frame.version))
    refuse_other_state(channel, frame, then)
    if frame.client == SERVER:
        raise VersionMismatch(
            "this payload is a broadcast: clients follow it, the server does not receive it", reason="direction"
        )
    link = memory.link(frame.client)
    if link.last is not None and link.last.run != frame.run:
        raise VersionMismatch(
            f"client {frame.client} sends for run {frame.run}; its run here is {link.last.run}", reason="run"
        )
    refuse_other_link(frame, link)
    if channel.server_sees_clean and link.last_version == frame.version:
        raise VersionMismatch(
            f"client {frame.client} sends twice at version {frame.version}: two updates of a client in a round "
            "are twice the sensitivity",
            reason="twice",
        )
    update, listed = decode(channel, channel.uplink, opened, channel.uplink_claim, then, link)
    link = link.advanced(chained(link.digest, opened.payload), frame.address, frame.version, listed)
    return update, memory.accepted(frame.client, link)


def broadcast(
    channel: Channel, aggregate: Update | Float32[np.ndarray, "d"], memory: ServerMemory
) -> tuple[bytes, ServerMemory]:
    """Encode the server's step for all clients.

    Args:
        channel: What both ends are built from.
        aggregate: A release or what was derived from it; where the server is not trusted all that it has is released,
            so a plain (d,) vector will do.
        memory: The server's.

    Returns:
        The payload that brings every client from this version to the next, and the server's memory at the next.

    Raises:
        NotPrivate: The aggregate was not released by this pipeline.
        VersionMismatch: Another pipeline made the memory.
        TypeError: The memory is no server's.
        ValueError: The aggregate has another layout, or values that are not finite.
    """
    if not isinstance(memory, ServerMemory):
        raise TypeError(f"broadcast: the server sends, with a ServerMemory, not a {type(memory).__name__}")
    if not isinstance(aggregate, Update):
        aggregate = Update(values=aggregate, layout=memory.layout, address=memory.address, claim=channel.uplink_claim)
    channel.refuse_unreleased(aggregate.claim)
    aggregate = replace(aggregate, address=replace(memory.address, run=aggregate.address.run))
    encoded = encode(channel, channel.downlink, aggregate, memory)
    shared = channel.shared_after(
        memory.shared,
        chained(memory.shared.digest, encoded.payload),
        encoded.decoded.dense(),
        encoded.listed,
        memory.layout,
    )
    return encoded.payload, replace(memory, residual=encoded.residual, shared=shared, step=encoded.decoded)


def follow(channel: Channel, payload: bytes | OpenedPayload, memory: ClientMemory) -> ClientMemory:
    """Decode a broadcast at a client.

    Args:
        channel: What both ends are built from.
        payload: The bytes, or what `OpenedPayload.of` gave for them.
        memory: The client's.

    Returns:
        The client's memory at the next version; its `step` is what the model moves by.

    Raises:
        CorruptPayload: The bytes are damaged.
        VersionMismatch: They are sound, but do not follow on what this client knows.
    """
    opened = OpenedPayload.of(payload)
    frame = opened.frame
    refuse_other_state(channel, frame, memory)
    if frame.client != SERVER:
        raise VersionMismatch(
            f"this payload is an update of client {frame.client}: the server receives it", reason="direction"
        )
    decoded, listed = decode(channel, channel.downlink, opened, channel.claim, memory, memory.broadcast_link)
    chain = chained(memory.shared.digest, opened.payload)
    shared = channel.shared_after(memory.shared, chain, decoded.dense(), listed, memory.layout)
    tracked = memory.tracked
    if tracked is not None:
        tracked = tracked.after_broadcast(decoded.dense(), memory.layout)
    return replace(memory, shared=shared, step=decoded, tracked=tracked)


def refuse_other_state(channel: Channel, frame: Frame, memory: ClientMemory | ServerMemory) -> None:
    """Refuse a payload of another pipeline, or coded against other shared memory.

    Raises:
        VersionMismatch: Saying which of both.
    """
    channel.refuse_foreign_memory(memory)
    shared = memory.shared
    if frame.pipeline != memory.pipeline:
        raise VersionMismatch(
            f"the payload is of pipeline and layout {frame.pipeline.hex()}, this end runs {memory.pipeline.hex()}: "
            "both ends must be built from one configuration",
            reason="pipeline",
        )
    if (frame.version, frame.shared) != (shared.version, shared.digest):
        raise VersionMismatch(
            f"the payload was coded against version {frame.version} ({frame.shared.hex()}), this end stands at "
            f"version {shared.version} ({shared.digest.hex()}): resync before it is used",
            reason="version",
        )


def refuse_other_link(frame: Frame, link: Link) -> None:
    """Refuse a payload whose sender remembers other payloads than this link.

    Raises:
        VersionMismatch: It repeats an accepted payload, follows on one that is missing, or on other ones.
    """
    if frame.link_count != link.count:
        repeated = frame.link_count < link.count
        raise VersionMismatch(
            f"client {frame.client} sends its payload number {frame.link_count}; the server has accepted {link.count} "
            f"of it: {'a repeat' if repeated else 'one went missing'}",
            reason="repeat" if repeated else "link",
        )
    if frame.link != link.digest[:LINK_BYTES]:
        raise VersionMismatch(
            f"client {frame.client} remembers other payloads ({frame.link.hex()}) than the {link.count} that were "
            f"accepted of it here ({link.digest[:LINK_BYTES].hex()}): resync it",
            reason="link",
        )
