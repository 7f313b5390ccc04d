"""Measure the bits that each part of a payload takes, without accepting it."""

from dataclasses import replace

from dpcomp.codec.codec import Body, Codec
from dpcomp.codec.entropy.coder import PartBits
from dpcomp.core.address import SERVER
from dpcomp.wire.channel import Channel
from dpcomp.wire.exchange import refuse_other_link, refuse_other_state
from dpcomp.wire.headers import Payload, read
from dpcomp.wire.memory import ClientMemory, ServerMemory
from dpcomp.wire.payload import BodyParts, body_parts


def layer_bits(channel: Channel, payload: bytes, memory: ClientMemory | ServerMemory) -> dict[str, float]:
    """Estimate the bits that a payload spends on a value of each layer: the width, or the entropy, of its levels.

    Positions and side information are not counted, and a coder spends a little more than the entropy; `measure_payload`
    counts every bit of the payload, but not by layer.

    Args:
        channel: The channel of both ends: `pipeline.channel`.
        payload: A client's payload or a broadcast.
        memory: A memory from before the payload, as for `measure_payload`.

    Returns:
        Bits a value, by the layer's name; 0 for a layer of which nothing is sent.

    Raises:
        CorruptPayload, VersionMismatch: As `measure_payload` does.
    """
    _, codec, parts = _parts(channel, payload, memory)
    bits = codec.layer_bits(parts.coded, parts.context)
    return {name: float(spent) for (name, _), spent in zip(memory.layout.shapes, bits, strict=True)}


def measure_payload(channel: Channel, payload: bytes, memory: ClientMemory | ServerMemory) -> tuple[Body, PartBits]:
    """Measure the bits of each part of a payload; they add up to 8·len(payload).

    Args:
        channel: The channel of both ends: `pipeline.channel`.
        payload: A client's payload or a broadcast.
        memory: A memory from before the payload: for a client's payload that of the server or of the sender, for a
            broadcast that of any end.

    Returns:
        The decoded levels and support, and the bits by part.

    Raises:
        CorruptPayload: The bytes are damaged.
        VersionMismatch: The bytes are sound, but were coded against another state than this memory's.
        TypeError: The codec's entropy coder cannot measure.
    """
    opened, codec, parts = _parts(channel, payload, memory)
    body, bits = codec.measure(parts.coded, parts.context)
    return body, replace(bits, header=bits.header + 8 * len(opened.header), side=bits.side + 8 * len(parts.gains))


def _parts(channel: Channel, payload: bytes, memory: ClientMemory | ServerMemory) -> tuple[Payload, Codec, BodyParts]:
    """Return a payload with its header read, its codec, and the parts of its body."""
    channel.refuse_foreign_memory(memory)
    opened = read(payload, memory)
    refuse_other_state(opened.frame, memory)
    if opened.client == SERVER:
        return opened, channel.downlink, body_parts(channel, channel.downlink, opened, memory, memory.broadcast_link)
    link = memory.link if isinstance(memory, ClientMemory) else memory.link(opened.client)
    refuse_other_link(opened.frame, link)
    return opened, channel.uplink, body_parts(channel, channel.uplink, opened, memory, link)
