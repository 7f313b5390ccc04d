"""The four messages of a round: send and receive upwards, broadcast and follow downwards."""

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float32

from dpcomp.codec import Codec
from dpcomp.core.address import SERVER, Address
from dpcomp.core.errors import NotPrivate, VersionMismatch
from dpcomp.core.layout import Layout
from dpcomp.core.randomness import PublicSeed
from dpcomp.core.support import Support
from dpcomp.privacy.claim import Claim, Released, Unbounded
from dpcomp.wire.frame import LINK_BYTES, PAYLOAD, Frame, digest, named
from dpcomp.wire.memory import ClientMemory, Link, ServerMemory, Shared
from dpcomp.wire.payload import decode, encode, estimated, refuse_foreign
from dpcomp.wire.update import Update

if TYPE_CHECKING:
    from dpcomp.pipeline import Pipeline

CLEAN_UPLINK = Unbounded(
    because="the server is trusted, so the uplink is clean, and what is decoded from it was never released",
    remedy="Release the aggregate first: pipeline.release(blocks, server_memory, secret, permit)",
)


def genesis(pipeline: "Pipeline", layout: Layout, seed: PublicSeed) -> bytes:
    """The digest of shared memory before any broadcast."""
    return digest(pipeline.fingerprint(layout), seed.number.to_bytes(8, "little"))


def send(pipeline: "Pipeline", update: Update, memory: ClientMemory) -> tuple[bytes, ClientMemory]:
    """The payload of an update, and the memory of a sender whose payload is accepted."""
    if not isinstance(memory, ClientMemory):
        raise TypeError(f"send: a client sends, with a ClientMemory, not a {type(memory).__name__}")
    if not isinstance(update, Update):
        raise TypeError(f"send: an update is what release gave, or .derive of it, not a {type(update).__name__}")
    if pipeline.trust == "nobody":
        refuse_unreleased(pipeline, update.claim)
    if update.address.client != memory.client:
        raise ValueError(f"send: the update is of {update.address}, the memory of client {memory.client}")
    tracked = None
    if memory.tracked is not None and pipeline.codec.averaged_clients is not None:
        update, tracked = estimated(update, memory.tracked, pipeline.codec.averaged_clients)
    payload, _, support, residual = encode(pipeline, pipeline.codec, update, memory, memory.link)
    address, version = update.address, memory.shared.version
    link = memory.link.advanced(digest(memory.link.digest, named(payload)), address, version, support)
    return payload, replace(memory, residual=residual, link=link, tracked=tracked)


def receive(pipeline: "Pipeline", payload: bytes, memory: ServerMemory) -> tuple[Update, ServerMemory]:
    """The update in a client's payload, and the memory of a server that accepts it.

    Raises:
        CorruptPayload: the bytes are damaged.
        VersionMismatch: they are sound, but belong elsewhere. The memory is as it was.
    """
    if not isinstance(memory, ServerMemory):
        raise TypeError(f"receive: the server receives, with a ServerMemory, not a {type(memory).__name__}")
    frame, body = PAYLOAD.unseal(payload)
    then = replace(memory, shared=memory.at(frame.version))
    refuse_elsewhere(pipeline, frame, then)
    if frame.client == SERVER:
        raise VersionMismatch(
            "this payload is a broadcast: clients follow it, the server does not receive it", reason="direction"
        )
    link, address = memory.link(frame.client), Address(frame.run, frame.client, frame.round)
    if link.last is not None and link.last.run != frame.run:
        raise VersionMismatch(
            f"client {frame.client} sends for run {frame.run}; its run here is {link.last.run}", reason="run"
        )
    refuse_other_link(frame, link)
    if pipeline.trust == "server" and link.last_version == frame.version:
        raise VersionMismatch(
            f"client {frame.client} sends twice at version {frame.version}: two updates of a client in a round "
            "are twice the sensitivity",
            reason="twice",
        )
    claim = pipeline.claim if pipeline.trust == "nobody" else CLEAN_UPLINK
    update, support = decode(pipeline, pipeline.codec, body, address, claim, then, link)
    link = link.advanced(digest(link.digest, named(payload)), address, frame.version, support)
    return update, memory.accepted(frame.client, link)


def broadcast(
    pipeline: "Pipeline", aggregate: Update | Float32[np.ndarray, "d"], memory: ServerMemory
) -> tuple[bytes, ServerMemory]:
    """The payload of an aggregate, and the memory of the server behind it.

    Where nobody is trusted all that a server has is released, so a plain (d,) vector will do; a trusted
    server broadcasts its release, or what was derived from it.
    """
    if not isinstance(memory, ServerMemory):
        raise TypeError(f"broadcast: the server sends, with a ServerMemory, not a {type(memory).__name__}")
    if not isinstance(aggregate, Update):
        claim = pipeline.claim if pipeline.trust == "nobody" else CLEAN_UPLINK
        aggregate = Update(values=aggregate, layout=memory.layout, address=memory.address, claim=claim)
    refuse_unreleased(pipeline, aggregate.claim)
    aggregate = replace(aggregate, address=replace(memory.address, run=aggregate.address.run))
    payload, decoded, support, residual = encode(pipeline, downlink_of(pipeline), aggregate, memory, downwards(memory))
    shared = _advanced(pipeline, payload, memory.shared, decoded, support)
    return payload, replace(memory, residual=residual, shared=shared, step=decoded)


def follow(pipeline: "Pipeline", payload: bytes, memory: ClientMemory) -> ClientMemory:
    """A client's memory after a broadcast.

    Raises:
        CorruptPayload: the bytes are damaged.
        VersionMismatch: they are sound, but do not follow on what this client knows.
    """
    frame, body = PAYLOAD.unseal(payload)
    refuse_elsewhere(pipeline, frame, memory)
    if frame.client != SERVER:
        raise VersionMismatch(
            f"this payload is an update of client {frame.client}: the server receives it", reason="direction"
        )
    address = Address(frame.run, frame.client, frame.round)
    codec, claim = downlink_of(pipeline), pipeline.claim
    decoded, support = decode(pipeline, codec, body, address, claim, memory, downwards(memory))
    shared, tracked = _advanced(pipeline, payload, memory.shared, decoded, support), memory.tracked
    if tracked is not None:
        tracked = tracked.followed(decoded.dense(), memory.layout)
    return replace(memory, shared=shared, step=decoded, tracked=tracked)


def refuse_unreleased(pipeline: "Pipeline", claim: Claim) -> None:
    """Refuse what is not this pipeline's release, or derived from it."""
    if isinstance(claim, Released) and claim != pipeline.claim:
        raise NotPrivate(f"the update was released by another mechanism ({claim.event}): its cost is not this one's")
    if not isinstance(claim, Released):
        because = claim.because if isinstance(claim, Unbounded) else "the value is clipped, but carries no noise"
        remedy = claim.remedy if isinstance(claim, Unbounded) else "Add the noise first"
        raise NotPrivate(f"{because}, so it may not leave: {remedy}")


def refuse_elsewhere(pipeline: "Pipeline", frame: Frame, memory: ClientMemory | ServerMemory) -> None:
    """Refuse a payload of another pipeline, or coded against other shared memory."""
    refuse_foreign(pipeline, memory)
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
    """Refuse a payload whose sender remembers other payloads than this link."""
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


def _advanced(pipeline: "Pipeline", payload: bytes, shared: Shared, broadcast: Update, support: Support) -> Shared:
    """Shared memory one version on: what every end does alike."""
    predicts = pipeline.codec.predict or downlink_of(pipeline).predict
    return shared.advanced(digest(shared.digest, named(payload)), broadcast.dense() if predicts else None, support)


def downwards(memory: ClientMemory | ServerMemory) -> Link:
    """The way down is one for all clients: shared memory has counted its payloads already."""
    return Link(last_support=memory.shared.last_support)


def downlink_of(pipeline: "Pipeline") -> Codec:
    """The codec of the broadcasts."""
    return pipeline.codec if pipeline.downlink is None else pipeline.downlink
