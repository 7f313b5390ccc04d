"""The four messages of a round: send and receive upwards, broadcast and follow downwards.

A sender encodes target = residual + update on the update's support, and remembers as its new residual
what the receiver will not find in the bytes (error feedback: Seide et al. 2014; Karimireddy et al. 2019).
"""

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float32

from dpcomp.claim import Claim, Released, Unbounded
from dpcomp.codec import Codec
from dpcomp.codec.frame import Frame, digest, seal, unseal
from dpcomp.errors import NotPrivate, VersionMismatch
from dpcomp.memory import ClientMemory, ServerMemory
from dpcomp.randomness import PublicSeed
from dpcomp.sparsify import RandomK
from dpcomp.update import SERVER, Address, Layout, Listed, Seeded, Update

if TYPE_CHECKING:
    from dpcomp.pipeline import Pipeline

CLEAN_UPLINK = Unbounded(
    because="the server is trusted, so the uplink is clean, and what is decoded from it was never released",
    remedy="Release the aggregate first: pipeline.release(blocks, server_memory, secret, permit)",
)


def refuse_foreign(pipeline: "Pipeline", memory: ClientMemory | ServerMemory) -> None:
    """Refuse a memory that another pipeline made: its residual may hold what this one must not send."""
    if memory.pipeline != pipeline.fingerprint(memory.layout):
        raise VersionMismatch(
            f"the memory is of pipeline {memory.pipeline.hex()}, not of this one: pipeline.init makes a fresh one"
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
    payload, _, residual = _encoded(pipeline, pipeline.codec, update, memory, link_count=memory.link.count)
    link = memory.link.advanced(digest(memory.link.digest, payload), update.address, memory.shared.version)
    return payload, replace(memory, residual=residual, link=link)


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
    if frame.link_count != link.count:
        raise VersionMismatch(
            f"client {frame.client} sends its payload number {frame.link_count}; the server has accepted {link.count} "
            "of it: a repeat, or one went missing"
        )
    if link.last is not None and link.last.run != frame.run:
        raise VersionMismatch(f"client {frame.client} sends for run {frame.run}; its run here is {link.last.run}")
    if pipeline.trust == "server" and link.last_version == frame.version:
        raise VersionMismatch(
            f"client {frame.client} sends twice at version {frame.version}: two updates of a client in a round "
            "are twice the sensitivity"
        )
    claim = pipeline.claim if pipeline.trust == "nobody" else CLEAN_UPLINK
    update = _decoded(pipeline, pipeline.codec, body, address, claim, memory)
    link = link.advanced(digest(link.digest, payload), address, frame.version)
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
    payload, decoded, residual = _encoded(pipeline, _downlink(pipeline), aggregate, memory, link_count=0)
    shared = memory.shared.advanced(digest(memory.shared.digest, payload), decoded)
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
    decoded = _decoded(pipeline, _downlink(pipeline), body, address, pipeline.claim, memory)
    return replace(memory, shared=memory.shared.advanced(digest(memory.shared.digest, payload), decoded))


def _encoded(
    pipeline: "Pipeline", codec: Codec, update: Update, memory: ClientMemory | ServerMemory, *, link_count: int
) -> tuple[bytes, Update, Float32[np.ndarray, "d"] | None]:
    """The sealed bytes, what their reader will find in them, and the sender's new residual."""
    refuse_foreign(pipeline, memory)
    layout, shared = memory.layout, memory.shared
    if update.layout != layout:
        raise ValueError(f"the update has layout {update.layout}, the memory {layout}: they are not of one model")
    target = update.dense() if memory.residual is None else memory.residual + update.dense()
    if not np.isfinite(target).all():
        raise ValueError("the update holds values that are not finite: nothing was sent; look at the model")
    support = codec.select(target, update.support, memory.mask_key)
    indices = support.indices(layout.size)
    if isinstance(support, Seeded) and support != _seeded(pipeline, codec, memory):
        support = Listed(indices)  # of another round than the one whose mask the receiver knows
    values = target[indices]
    body, decoded = codec.encode(values, support, layout)
    residual = None
    if memory.residual is not None:
        target[indices] = values - decoded
        residual = target
    frame = Frame(
        pipeline=memory.pipeline,
        run=update.address.run,
        client=update.address.client,
        round=update.address.round,
        version=shared.version,
        shared=shared.digest,
        link_count=link_count,
        body_bytes=len(body),
    )
    return seal(frame, body), replace(update, values=decoded, support=support), residual


def _decoded(
    pipeline: "Pipeline", codec: Codec, body: bytes, address: Address, claim: Claim, memory: ClientMemory | ServerMemory
) -> Update:
    seeded = _seeded(pipeline, codec, memory)
    values, support = codec.decode(body, seeded, memory.layout)
    return Update(values=values, layout=memory.layout, address=address, support=support, claim=claim)


def _seeded(pipeline: "Pipeline", codec: Codec, memory: ClientMemory | ServerMemory) -> Seeded | None:
    """The public support of the round, which never travels: the codec's, or the mechanism's."""
    masks = [stage for stage in (codec.sparsify, *pipeline.stages) if isinstance(stage, RandomK)]
    return masks[0].support(memory.layout.size, memory.mask_key) if masks else None


def _downlink(pipeline: "Pipeline") -> Codec:
    return pipeline.codec if pipeline.downlink is None else pipeline.downlink


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
