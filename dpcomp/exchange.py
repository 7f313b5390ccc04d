"""The four messages of a round: send and receive upwards, broadcast and follow downwards.

What a sender does, in this order:

    target      = residual + update            feedback: what earlier payloads left out (Seide et al. 2014)
    target      = s²/(s² + σ²) · target        where the allocator sees the privacy noise; then without feedback
    innovation  = target − gain · broadcast    where the codec predicts; gain is one number a layer
    payload     = innovation on the codec's support, quantised and coded
    residual    = innovation − decoded innovation, and so target − what the receiver has
"""

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float32

from dpcomp.claim import Claim, Released, Unbounded
from dpcomp.codec import Codec, Common
from dpcomp.codec.frame import LINK_BYTES, Frame, digest, seal, unseal
from dpcomp.errors import CorruptPayload, NotPrivate, VersionMismatch
from dpcomp.memory import ClientMemory, Link, ServerMemory
from dpcomp.randomness import PublicSeed
from dpcomp.sparsify import RandomK
from dpcomp.tracking import Tracked
from dpcomp.update import SERVER, Address, Everywhere, Layout, Listed, Seeded, Support, Update

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
    tracked = None
    if memory.tracked is not None and pipeline.codec.averaged_clients is not None:
        update, tracked = _estimated(update, memory.tracked, pipeline.codec.averaged_clients)
    payload, _, support, residual = _encoded(pipeline, pipeline.codec, update, memory, memory.link)
    address, version = update.address, memory.shared.version
    link = memory.link.advanced(digest(memory.link.digest, payload), address, version, support)
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
    if link.last is not None and link.last.run != frame.run:
        raise VersionMismatch(f"client {frame.client} sends for run {frame.run}; its run here is {link.last.run}")
    if pipeline.trust == "server" and link.last_version == frame.version:
        raise VersionMismatch(
            f"client {frame.client} sends twice at version {frame.version}: two updates of a client in a round "
            "are twice the sensitivity"
        )
    claim = pipeline.claim if pipeline.trust == "nobody" else CLEAN_UPLINK
    update, support = _decoded(pipeline, pipeline.codec, body, address, claim, memory, link)
    link = link.advanced(digest(link.digest, payload), address, frame.version, support)
    return update, memory.accepted(frame.client, link)


def layer_bits(pipeline: "Pipeline", payload: bytes, memory: ServerMemory) -> dict[str, float]:
    """Bits a value that a client's payload spends on each layer, as the server that has yet to receive it reads it."""
    frame, body = unseal(payload)
    _refuse_elsewhere(pipeline, frame, memory)
    codec, reference = pipeline.codec, memory.shared.reference
    gains = len(memory.layout.sizes) if codec.predict and reference is not None else 0
    common = _common(pipeline, codec, memory, frame.client, memory.link(frame.client))
    bits = codec.layer_bits(body[gains:], common)
    return {name: float(spent) for (name, _), spent in zip(memory.layout.shapes, bits, strict=True)}


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
    payload, decoded, support, residual = _encoded(pipeline, _downlink(pipeline), aggregate, memory, _downwards(memory))
    shared = memory.shared.advanced(digest(memory.shared.digest, payload), decoded, support)
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
    decoded, support = _decoded(pipeline, codec, body, address, claim, memory, _downwards(memory))
    shared = memory.shared.advanced(digest(memory.shared.digest, payload), decoded, support)
    if not isinstance(memory, ClientMemory) or memory.tracked is None:
        return replace(memory, shared=shared)
    return replace(memory, shared=shared, tracked=memory.tracked.followed(decoded.dense(), memory.layout))


def _estimated(update: Update, tracked: Tracked, clients: int) -> tuple[Update, Tracked]:
    """The Wiener estimate of the signal in an update."""
    if update.noise_stddev is None:
        raise ValueError(
            "the codec's allocator sees the privacy noise, but this update does not say how much it has: use plain "
            "SGD locally, or update.derive(vector, noise_stddev=…)"
        )
    tracked = tracked.sent(update.noise_stddev, clients)
    factors = np.repeat(tracked.factors.astype(np.float32), update.layout.sizes)
    return update.derive(factors * update.dense(), noise_stddev=None), tracked


def _encoded(
    pipeline: "Pipeline", codec: Codec, update: Update, memory: ClientMemory | ServerMemory, link: Link
) -> tuple[bytes, Update, Support, Float32[np.ndarray, "d"] | None]:
    """The sealed bytes, what their reader will find in them, on what support they are, and the new residual."""
    refuse_foreign(pipeline, memory)
    layout, shared = memory.layout, memory.shared
    if update.layout != layout:
        raise ValueError(f"the update has layout {update.layout}, the memory {layout}: they are not of one model")
    innovation = update.dense() if memory.residual is None else memory.residual + update.dense()
    _refuse_not_finite(innovation)
    candidates, gains, prediction = update.support, b"", None
    if codec.predict and shared.reference is not None:
        reference = shared.reference.dense()
        factors = codec.predict.gains(innovation, reference, layout)
        prediction = codec.predict.prediction(reference, factors, layout)
        candidates, gains, innovation = Everywhere(), factors.tobytes(), innovation - prediction
    common = _common(pipeline, codec, memory, update.address.client, link)
    support = codec.select(innovation, candidates, layout, memory.mask_key)
    if isinstance(support, Seeded) and support != common.mask:
        support = Listed(support.indices(layout.size))  # of another round than the one whose mask the receiver knows
    values = innovation if isinstance(support, Everywhere) else innovation[support.indices(layout.size)]
    body, decoded = codec.encode(values, support, common)
    residual = None
    if memory.residual is not None:
        residual = innovation
        if isinstance(support, Everywhere):
            residual -= decoded
        else:
            residual[support.indices(layout.size)] = values - decoded
    frame = Frame(
        pipeline=memory.pipeline,
        run=update.address.run,
        client=update.address.client,
        round=update.address.round,
        version=shared.version,
        shared=shared.digest,
        link_count=link.count,
        link=link.digest[:LINK_BYTES],
        body_bytes=len(gains) + len(body),
    )
    found = replace(update, values=decoded, support=support, noise_stddev=None)
    return seal(frame, gains + body), _behind(found, prediction), support, residual


def _decoded(
    pipeline: "Pipeline",
    codec: Codec,
    body: bytes,
    address: Address,
    claim: Claim,
    memory: ClientMemory | ServerMemory,
    link: Link,
) -> tuple[Update, Support]:
    """The update in a body, and the support that the body is on."""
    layout, reference, prediction = memory.layout, memory.shared.reference, None
    if codec.predict and reference is not None:
        gains, body = body[: len(layout.sizes)], body[len(layout.sizes) :]
        if len(gains) < len(layout.sizes):
            raise CorruptPayload(f"a body of {len(gains)} bytes holds no gains of {len(layout.sizes)} layers")
        prediction = codec.predict.prediction(reference.dense(), np.frombuffer(gains, dtype=np.int8), layout)
    values, support = codec.decode(body, _common(pipeline, codec, memory, address.client, link))
    found = Update(values=values, layout=layout, address=address, support=support, claim=claim)
    return _behind(found, prediction), support


def _behind(innovation: Update, prediction: Float32[np.ndarray, "d"] | None) -> Update:
    """What an innovation says, given the prediction."""
    if prediction is None:
        return innovation
    return replace(innovation, values=prediction + innovation.dense(), support=Everywhere())


def _common(pipeline: "Pipeline", codec: Codec, memory: ClientMemory | ServerMemory, sender: int, link: Link) -> Common:
    """What both ends of a way know; the public support of the round is the codec's or the mechanism's, never both."""
    masks = [stage for stage in (codec.sparsify, *pipeline.stages) if isinstance(stage, RandomK)]
    return Common(
        layout=memory.layout,
        mask=masks[0].support(memory.layout.size, memory.mask_key) if masks else None,
        previous=link.last_support,
        dither_key=memory.seed.key("dither", sender, memory.shared.version, link.count),
    )


def _downwards(memory: ClientMemory | ServerMemory) -> Link:
    """The way down is one for all clients: shared memory has counted its payloads already."""
    return Link(last_support=memory.shared.last_support)


def _refuse_not_finite(target: Float32[np.ndarray, "d"]) -> None:
    if not np.isfinite(target.sum()) and not np.isfinite(target).all():  # the sum may overflow; it hides nothing
        raise ValueError("the update holds values that are not finite: nothing was sent; look at the model")


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
