"""The four messages of a round: send and receive upwards, broadcast and follow downwards."""

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float32

from dpcomp.claim import Claim, Released, Unbounded
from dpcomp.codec import Codec, Common
from dpcomp.codec.codec import Body
from dpcomp.codec.entropy.coder import PartBits
from dpcomp.codec.frame import HEADER_BYTES, LINK_BYTES, Frame, digest, named, unseal
from dpcomp.coding import common_of, decode, encode, estimated, refuse_foreign
from dpcomp.errors import NotPrivate, VersionMismatch
from dpcomp.memory import ClientMemory, Link, ServerMemory
from dpcomp.randomness import PublicSeed
from dpcomp.update import SERVER, Address, Layout, Update

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
    frame, body = unseal(payload)
    _refuse_elsewhere(pipeline, frame, memory)
    if frame.client == SERVER:
        raise VersionMismatch("this payload is a broadcast: clients follow it, the server does not receive it")
    link, address = memory.link(frame.client), Address(frame.run, frame.client, frame.round)
    _refuse_other_link(frame, link)
    if link.last is not None and link.last.run != frame.run:
        raise VersionMismatch(f"client {frame.client} sends for run {frame.run}; its run here is {link.last.run}")
    if pipeline.trust == "server" and link.last_version == frame.version:
        raise VersionMismatch(
            f"client {frame.client} sends twice at version {frame.version}: two updates of a client in a round "
            "are twice the sensitivity"
        )
    claim = pipeline.claim if pipeline.trust == "nobody" else CLEAN_UPLINK
    update, support = decode(pipeline, pipeline.codec, body, address, claim, memory, link)
    link = link.advanced(digest(link.digest, named(payload)), address, frame.version, support)
    return update, memory.accepted(frame.client, link)


def layer_bits(pipeline: "Pipeline", payload: bytes, memory: ServerMemory) -> dict[str, float]:
    """Bits a value that a client's payload spends on each layer, as the server that has yet to receive it reads it."""
    codec, _, body, common = _opened(pipeline, payload, memory)
    bits = codec.layer_bits(body, common)
    return {name: float(spent) for (name, _), spent in zip(memory.layout.shapes, bits, strict=True)}


def measure(pipeline: "Pipeline", payload: bytes, memory: ClientMemory | ServerMemory) -> tuple[Body, PartBits]:
    """What stands in a payload, and the bits that each part of it takes: they add up to 8·len(payload).

    It is read as by an end that has yet to accept it: a client's payload with the server's memory, or the sender's,
    from before it; a broadcast with any end's memory from before it.

    Raises:
        CorruptPayload: the bytes are damaged.
        VersionMismatch: they are sound, but do not follow on what this memory knows.
        TypeError: the codec's entropy coder has no meter.
    """
    codec, gains, body, common = _opened(pipeline, payload, memory)
    found, bits = codec.measure(body, common)
    return found, replace(bits, header=bits.header + 8 * HEADER_BYTES, side=bits.side + 8 * len(gains))


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
    payload, decoded, support, residual = encode(pipeline, _downlink(pipeline), aggregate, memory, _downwards(memory))
    shared = memory.shared.advanced(digest(memory.shared.digest, named(payload)), decoded, support)
    return payload, replace(memory, residual=residual, shared=shared)


def follow(pipeline: "Pipeline", payload: bytes, memory: ClientMemory) -> ClientMemory:
    """A client's memory after a broadcast.

    Raises:
        CorruptPayload: the bytes are damaged.
        VersionMismatch: they are sound, but do not follow on what this client knows.
    """
    frame, body = unseal(payload)
    _refuse_elsewhere(pipeline, frame, memory)
    if frame.client != SERVER:
        raise VersionMismatch(f"this payload is an update of client {frame.client}: the server receives it")
    address = Address(frame.run, frame.client, frame.round)
    codec, claim = _downlink(pipeline), pipeline.claim
    decoded, support = decode(pipeline, codec, body, address, claim, memory, _downwards(memory))
    shared = memory.shared.advanced(digest(memory.shared.digest, named(payload)), decoded, support)
    if not isinstance(memory, ClientMemory) or memory.tracked is None:
        return replace(memory, shared=shared)
    return replace(memory, shared=shared, tracked=memory.tracked.followed(decoded.dense(), memory.layout))


def refuse_unreleased(pipeline: "Pipeline", claim: Claim) -> None:
    """Refuse what is not this pipeline's release, or derived from it."""
    if isinstance(claim, Released) and claim != pipeline.claim:
        raise NotPrivate(f"the update was released by another mechanism ({claim.event}): its cost is not this one's")
    if not isinstance(claim, Released):
        because = claim.because if isinstance(claim, Unbounded) else "the value is clipped, but carries no noise"
        remedy = claim.remedy if isinstance(claim, Unbounded) else "Add the noise first"
        raise NotPrivate(f"{because}, so it may not leave: {remedy}")


def _refuse_elsewhere(pipeline: "Pipeline", frame: Frame, memory: ClientMemory | ServerMemory) -> None:
    refuse_foreign(pipeline, memory)
    shared = memory.shared
    if frame.pipeline != memory.pipeline:
        raise VersionMismatch(
            f"the payload is of pipeline and layout {frame.pipeline.hex()}, this end runs {memory.pipeline.hex()}: "
            "both ends must be built from one configuration"
        )
    if (frame.version, frame.shared) != (shared.version, shared.digest):
        raise VersionMismatch(
            f"the payload was coded against version {frame.version} ({frame.shared.hex()}), this end stands at "
            f"version {shared.version} ({shared.digest.hex()}): resync before it is used"
        )


def _refuse_other_link(frame: Frame, link: Link) -> None:
    if frame.link_count != link.count:
        raise VersionMismatch(
            f"client {frame.client} sends its payload number {frame.link_count}; the server has accepted {link.count} "
            "of it: a repeat, or one went missing"
        )
    if frame.link != link.digest[:LINK_BYTES]:
        raise VersionMismatch(
            f"client {frame.client} remembers other payloads ({frame.link.hex()}) than the {link.count} that were "
            f"accepted of it here ({link.digest[:LINK_BYTES].hex()}): resync it"
        )


def _opened(
    pipeline: "Pipeline", payload: bytes, memory: ClientMemory | ServerMemory
) -> tuple[Codec, bytes, bytes, Common]:
    """The codec of a payload that is only looked at, its gains, its body, and what both ends know of it."""
    frame, body = unseal(payload)
    _refuse_elsewhere(pipeline, frame, memory)
    codec, link = pipeline.codec, memory.link if isinstance(memory, ClientMemory) else memory.link(frame.client)
    if frame.client == SERVER:
        codec, link = _downlink(pipeline), _downwards(memory)
    else:
        _refuse_other_link(frame, link)
    gains = len(memory.layout.sizes) if codec.predict and memory.shared.reference is not None else 0
    return codec, body[:gains], body[gains:], common_of(pipeline, codec, memory, frame.client, link)


def _downwards(memory: ClientMemory | ServerMemory) -> Link:
    """The way down is one for all clients: shared memory has counted its payloads already."""
    return Link(last_support=memory.shared.last_support)


def _downlink(pipeline: "Pipeline") -> Codec:
    return pipeline.codec if pipeline.downlink is None else pipeline.downlink
