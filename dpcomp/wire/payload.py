"""Encode an update as a payload, and decode it; the same for both directions.

A sender computes, in this order:

    update      = s²/(s² + σ²) · update        if the allocator uses the privacy noise; then without feedback
    target      = carried + update             feedback: what earlier payloads dropped, and momentum (`feedback`)
    innovation  = target − gain · broadcast    if the codec predicts; gain is a number a layer
    payload     = innovation on the codec's support, quantised and coded
    residual    = innovation − decoded innovation, which is target − what the receiver decodes

The first line is `signal_estimate`, which `exchange.send` calls before `encode`; what is carried comes from the
sender's feedback, `dpcomp.wire.feedback`; the others are `encode`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32

from dpcomp.codec.codec import Codec, SelectsOfSum
from dpcomp.codec.quantize.quantizer import BLOCK
from dpcomp.codec.support_code import is_union
from dpcomp.codec.wiener import TrackedSignal
from dpcomp.core.address import SERVER
from dpcomp.core.errors import CorruptPayload
from dpcomp.core.finite import all_finite
from dpcomp.core.public_context import PublicContext
from dpcomp.core.read_only import read_only
from dpcomp.core.support import Everywhere, Listed, Support, checked_support
from dpcomp.privacy.claim import Claim
from dpcomp.wire.channel import Channel
from dpcomp.wire.frame import Frame
from dpcomp.wire.headers import Payload, sealed
from dpcomp.wire.links import Link
from dpcomp.wire.memory import ClientMemory, ServerMemory
from dpcomp.wire.update import Update, decoded_update, with_claim


@dataclass(frozen=True, kw_only=True, eq=False)
class Encoded:
    """An encoded update.

    Attributes:
        payload: The payload.
        decoded: The update that a reader decodes from them.
        listed: The support, if the body lists its positions; else None.
        residual: What the codec dropped, as a (d,) vector; None without feedback.
    """

    payload: Payload
    decoded: Update
    listed: Listed | None
    residual: Float32[np.ndarray, "d"] | None


def signal_estimate(update: Update, tracked: TrackedSignal, clients: int) -> tuple[Update, TrackedSignal]:
    """Estimate the signal in a noisy update by a Wiener factor a layer.

    Args:
        update: A release with a known `noise_stddev`.
        tracked: The signal variance of each layer, as tracked from the broadcasts.
        clients: The number of updates that the server averages.

    Returns:
        The estimate, and the tracked variances after it was sent.

    Raises:
        ValueError: The update's `noise_stddev` is None.
    """
    if update.noise_stddev is None:
        raise ValueError(
            "the codec's allocator uses the privacy noise, but noise_stddev of this update is None: use plain SGD "
            "locally, or update.derive(vector, noise_stddev=…)"
        )
    tracked = tracked.with_factors(update.noise_stddev, clients)
    factors = update.layout.spread(tracked.factors.astype(np.float32))
    return update.derive(factors * update.dense(), noise_stddev=None), tracked


def encode(
    channel: Channel,
    codec: Codec,
    update: Update,
    memory: ClientMemory | ServerMemory,
    carried: Float32[np.ndarray, "d"] | None,
) -> Encoded:
    """Encode an update, plus what its sender's feedback carries over from earlier updates.

    Args:
        channel: The channel of both ends: `pipeline.channel`.
        codec: The channel's uplink for a client, its downlink for the server.
        update: The update to send.
        memory: The sender's memory.
        carried: The (d,) vector that is added to the update, such as the residual; None without feedback.

    Returns:
        The payload; and the decoded update, support and residual that the sender's next memory is made of.

    Raises:
        VersionMismatch: The memory is of another pipeline.
        ValueError: The update has another layout, or values that are not finite.
    """
    channel.refuse_foreign_memory(memory)
    layout, shared, link = memory.layout, memory.shared, memory.sending_link
    if update.layout != layout:
        raise ValueError(
            f"the update has layout {update.layout}, the memory {layout}: build both with the layout of the model"
        )
    context = channel.message_context(codec, memory)
    public, gains, prediction = context.public_support, b"", None
    predicts = codec.predict is not None and shared.reference is not None
    fused = codec.selects_of_sum if public is None and not predicts and isinstance(update.support, Everywhere) else None
    if fused is not None and carried is not None:
        innovation, support = _added_and_selected(fused, carried, update.values, context)
    else:
        if carried is None:
            innovation = update.dense()
            _refuse_not_finite(innovation)
        else:
            innovation = _finite_sum(carried, update.dense())
        candidates = update.support
        if codec.predict is not None and shared.reference is not None:
            factors = codec.predict.gains(innovation, shared.reference, layout)
            prediction = codec.predict.prediction(shared.reference, factors, layout)
            with np.errstate(over="ignore"):
                candidates, gains, innovation = Everywhere(), factors.tobytes(), innovation - prediction
            _refuse_not_finite(innovation)
        support = codec.select(read_only(innovation), candidates, context)
    if not isinstance(support, (Everywhere, Listed)) and support != public and not is_union(support, public):
        support = Listed(support.indices(layout.size))  # the receiver knows the public support of this round alone
    values = innovation if isinstance(support, Everywhere) else innovation[support.indices(layout.size)]
    body, decoded = codec.encode_in_parts(read_only(values), support, context)
    payload = _sealed(update, memory, link, [gains, *body])
    residual = None
    if carried is not None:
        residual = innovation
        if isinstance(support, Everywhere):
            residual = _less(innovation, decoded)
        else:
            residual[support.indices(layout.size)] = values - decoded
    sent = decoded_update(decoded, layout, update.address, support)
    return Encoded(
        payload=payload,
        decoded=with_claim(_with_prediction(sent, prediction), update.claim),
        listed=support if isinstance(support, Listed) and support != public else None,
        residual=residual,
    )


def _less(innovation: Float32[np.ndarray, "d"], decoded: Float32[np.ndarray, "d"]) -> Float32[np.ndarray, "d"]:
    """Return what is left of an innovation. The difference takes its memory, unless it is what was decoded."""
    if np.may_share_memory(innovation, decoded):
        return np.zeros_like(innovation)
    innovation -= decoded
    return innovation


def _added_and_selected(
    sparsifier: SelectsOfSum,
    residual: Float32[np.ndarray, "d"],
    update: Float32[np.ndarray, "d"],
    context: PublicContext,
) -> tuple[Float32[np.ndarray, "d"], Support]:
    """Return residual + update, and the support that the sparsifier chooses of it, after one pass over memory."""
    innovation = np.empty_like(residual)
    try:
        support = sparsifier.select_of_sum(residual, read_only(update), innovation, context)
    except ValueError:
        _refuse_not_finite(innovation)
        raise
    return innovation, checked_support(support, f"{sparsifier!r}: select_of_sum returned")


def _sealed(
    update: Update, memory: ClientMemory | ServerMemory, link: Link, body: Sequence[bytes | bytearray | memoryview]
) -> Payload:
    """Return the payload of a body, which is given in parts."""
    frame = Frame(
        pipeline=memory.pipeline,
        run=update.address.run,
        client=update.address.client,
        round=update.address.round,
        version=memory.shared.version,
        shared=memory.shared.digest,
        link_count=link.count,
        link=link.digest,
    )
    return sealed(frame, body, memory)


@dataclass(frozen=True, kw_only=True, eq=False)
class BodyParts:
    """The parts of a payload's body, not yet decoded.

    Attributes:
        gains: The prediction's gains, a byte a layer, if the codec predicts; else empty.
        coded: The body of the codec.
        context: The public context of the message.
    """

    gains: bytes | memoryview
    coded: bytes | memoryview
    context: PublicContext


def body_parts(
    channel: Channel, codec: Codec, payload: Payload, memory: ClientMemory | ServerMemory, link: Link
) -> BodyParts:
    """Cut the body of a payload into its parts, without decoding them.

    Args:
        channel: The channel of both ends: `pipeline.channel`.
        codec: The channel's uplink for a client's payload, its downlink for a broadcast.
        payload: The payload.
        memory: The reader's memory, at the version that the payload was coded against.
        link: The sender's link; for a broadcast, `memory.broadcast_link`.

    Returns:
        Views of the body, and the public context of the message.

    Raises:
        CorruptPayload: The body is shorter than its gains.
    """
    view, gains = memoryview(payload.body), 0
    if codec.predict and memory.shared.reference is not None:
        gains = len(memory.layout.sizes)
        if len(view) < gains:
            raise CorruptPayload(f"a body of {len(view)} bytes is too short for the gains of {gains} layers")
    context = channel.message_context(codec, memory, payload.frame.client, link)
    return BodyParts(gains=view[:gains], coded=view[gains:], context=context)


def decode(
    channel: Channel,
    codec: Codec,
    payload: Payload,
    claim: Claim,
    memory: ClientMemory | ServerMemory,
    link: Link,
) -> tuple[Update, Listed | None]:
    """Decode the update in a payload.

    Args:
        channel: The channel of both ends: `pipeline.channel`.
        codec: The channel's uplink for a client's payload, its downlink for a broadcast.
        payload: The payload.
        claim: The claim on the values in it.
        memory: The reader's memory, at the version that the payload was coded against.
        link: The sender's link; for a broadcast, `memory.broadcast_link`.

    Returns:
        The update; and its support, if the body lists its positions, else None.

    Raises:
        CorruptPayload: No sender with this codec writes such a body.
    """
    layout, prediction = memory.layout, None
    parts = body_parts(channel, codec, payload, memory, link)
    if codec.predict and memory.shared.reference is not None:
        gains = np.frombuffer(parts.gains, dtype=np.int8)
        prediction = codec.predict.prediction(memory.shared.reference, gains, layout)
    values, support = codec.decode(parts.coded, parts.context)
    address = payload.frame.address
    if codec.selects_publicly or not channel.server_sees_clean:
        _refuse_outside(support, payload.frame, parts.context)
    innovation = decoded_update(values, layout, address, support)
    listed = support if isinstance(support, Listed) and support != parts.context.public_support else None
    return with_claim(_with_prediction(innovation, prediction), claim), listed


def _refuse_outside(support: Support, frame: Frame, context: PublicContext) -> None:
    """Refuse coordinates that are none of the public support which a client's update of this round was released on.

    They would be taken for released, and one client would make the broadcast dense for all.

    Raises:
        CorruptPayload: The update has such coordinates.
    """
    public, d = context.public_support, context.layout.size
    if frame.client == SERVER or frame.round != frame.version or public is None or support == public:
        return
    if support.count(d) > public.count(d) or not np.isin(support.indices(d), public.indices(d)).all():
        raise CorruptPayload(
            f"client {frame.client} sends {support.count(d)} coordinates, of which some are not among the "
            f"{public.count(d)} of its public support: no release of this round has them"
        )


def _with_prediction(innovation: Update, prediction: Float32[np.ndarray, "d"] | None) -> Update:
    """Add the prediction to an innovation; the sum takes the prediction's memory."""
    if prediction is None:
        return innovation
    with np.errstate(over="ignore"):
        values = np.add(prediction, innovation.dense(), out=prediction)
    if not all_finite(values):
        raise CorruptPayload("prediction and innovation add up to values that are not finite")
    return decoded_update(values, innovation.layout, innovation.address, Everywhere())


def _finite_sum(one: Float32[np.ndarray, "d"], other: Float32[np.ndarray, "d"]) -> Float32[np.ndarray, "d"]:
    """Return the sum of two vectors, which is looked at block by block while it is in a core's own cache."""
    made, looks_finite = np.empty_like(one), True
    with np.errstate(over="ignore", invalid="ignore"):
        for start in range(0, len(one), BLOCK):
            here = slice(start, start + BLOCK)
            looks_finite = bool(np.isfinite(np.add(one[here], other[here], out=made[here]).sum())) and looks_finite
    if not looks_finite:  # a finite block may have an infinite sum
        _refuse_not_finite(made)
    return made


def _refuse_not_finite(target: Float32[np.ndarray, "d"]) -> None:
    if not all_finite(target):
        raise ValueError("the update holds values that are not finite, so nothing was sent: has the model diverged?")
