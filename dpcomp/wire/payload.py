"""From an update to a sealed payload and back: what the two ways of an exchange share.

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

from dpcomp.codec import Codec
from dpcomp.codec.wiener import Tracked
from dpcomp.core.address import Address
from dpcomp.core.errors import CorruptPayload, VersionMismatch
from dpcomp.core.public_context import Common
from dpcomp.core.support import Everywhere, Listed, Seeded, Support
from dpcomp.privacy.claim import Claim
from dpcomp.sparsify import RandomK
from dpcomp.wire.frame import LINK_BYTES, PAYLOAD, Frame
from dpcomp.wire.memory import ClientMemory, Link, ServerMemory
from dpcomp.wire.update import Update

if TYPE_CHECKING:
    from dpcomp.pipeline import Pipeline


def refuse_foreign(pipeline: "Pipeline", memory: ClientMemory | ServerMemory) -> None:
    """Refuse a memory that another pipeline made: its residual may hold what this one must not send."""
    if memory.pipeline != pipeline.fingerprint(memory.layout):
        raise VersionMismatch(
            f"the memory is of pipeline {memory.pipeline.hex()}, not of this one: pipeline.init makes a fresh one",
            reason="pipeline",
        )


def estimated(update: Update, tracked: Tracked, clients: int) -> tuple[Update, Tracked]:
    """The Wiener estimate of the signal in an update."""
    if update.noise_stddev is None:
        raise ValueError(
            "the codec's allocator sees the privacy noise, but this update does not say how much it has: use plain "
            "SGD locally, or update.derive(vector, noise_stddev=…)"
        )
    tracked = tracked.sent(update.noise_stddev, clients)
    factors = np.repeat(tracked.factors.astype(np.float32), update.layout.sizes)
    return update.derive(factors * update.dense(), noise_stddev=None), tracked


def encode(
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
        factors = codec.predict.gains(innovation, shared.reference, layout)
        prediction = codec.predict.prediction(shared.reference, factors, layout)
        with np.errstate(over="ignore"):
            candidates, gains, innovation = Everywhere(), factors.tobytes(), innovation - prediction
        _refuse_not_finite(innovation)
    common = common_of(pipeline, codec, memory, update.address.client, link)
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
    )
    found = replace(update, values=decoded, support=support, noise_stddev=None)
    return PAYLOAD.seal(frame, gains + body), _behind(found, prediction), support, residual


def decode(
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
    view = memoryview(body)  # a body may be as large as the vector: its parts are looked at where they are
    if codec.predict and reference is not None:
        gains, view = view[: len(layout.sizes)], view[len(layout.sizes) :]
        if len(gains) < len(layout.sizes):
            raise CorruptPayload(f"a body of {len(gains)} bytes holds no gains of {len(layout.sizes)} layers")
        prediction = codec.predict.prediction(reference, np.frombuffer(gains, dtype=np.int8), layout)
    values, support = codec.decode(view, common_of(pipeline, codec, memory, address.client, link))
    found = Update(values=values, layout=layout, address=address, support=support, claim=claim)
    del values  # the update has its own
    return _behind(found, prediction), support


def common_of(
    pipeline: "Pipeline", codec: Codec, memory: ClientMemory | ServerMemory, sender: int, link: Link
) -> Common:
    """What both ends of a way know; the public support of the round is the codec's or the mechanism's, never both."""
    masks = [stage for stage in (codec.sparsify, *pipeline.stages) if isinstance(stage, RandomK)]
    return Common(
        layout=memory.layout,
        mask=masks[0].support(memory.layout.size, memory.mask_key) if masks else None,
        previous=link.last_support,
        dither_key=memory.seed.key("dither", sender, memory.shared.version, link.count),
    )


def _behind(innovation: Update, prediction: Float32[np.ndarray, "d"] | None) -> Update:
    """What an innovation says, given the prediction, whose place the sum takes."""
    if prediction is None:
        return innovation
    with np.errstate(over="ignore"):
        values = np.add(prediction, innovation.dense(), out=prediction)
    if not np.isfinite(values).all():
        raise CorruptPayload("prediction and innovation add up to values that are not finite")
    return replace(innovation, values=values, support=Everywhere())


def _refuse_not_finite(target: Float32[np.ndarray, "d"]) -> None:
    with np.errstate(over="ignore", invalid="ignore"):
        total = target.sum()
    if not np.isfinite(total) and not np.isfinite(target).all():  # the sum may overflow; it hides nothing
        raise ValueError("the update holds values that are not finite: nothing was sent; look at the model")
