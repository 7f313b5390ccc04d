"""What a payload spends its bits on, read as by an end that has yet to accept it; nothing changes."""

from dataclasses import replace

from dpcomp.codec.codec import Body, Codec
from dpcomp.codec.entropy.coder import PartBits
from dpcomp.core.address import SERVER
from dpcomp.wire.channel import Channel
from dpcomp.wire.exchange import refuse_other_link, refuse_other_state
from dpcomp.wire.frame import HEADER_BYTES, OpenedPayload
from dpcomp.wire.memory import ClientMemory, ServerMemory
from dpcomp.wire.payload import BodyParts, body_parts


def layer_bits(channel: Channel, payload: bytes, memory: ClientMemory | ServerMemory) -> dict[str, float]:
    """Return the bits a value that a payload spends on each layer, by the layer's name.

    Args:
        channel: What both ends are built from.
        payload: A client's payload or a broadcast.
        memory: As in `measure_payload`.

    Raises:
        CorruptPayload, VersionMismatch: As `measure_payload` does.
    """
    codec, parts = _parts(channel, payload, memory)
    bits = codec.layer_bits(parts.coded, parts.context)
    return {name: float(spent) for (name, _), spent in zip(memory.layout.shapes, bits, strict=True)}


def measure_payload(channel: Channel, payload: bytes, memory: ClientMemory | ServerMemory) -> tuple[Body, PartBits]:
    """Return what stands in a payload, and the bits that each part of it takes: they add up to 8·len(payload).

    Args:
        channel: What both ends are built from.
        payload: A client's payload or a broadcast.
        memory: From before the payload: the server's or the sender's for a client's payload, any end's for a broadcast.

    Raises:
        CorruptPayload: The bytes are damaged.
        VersionMismatch: They are sound, but do not follow on what this memory knows.
        TypeError: The codec's entropy coder has no meter.
    """
    codec, parts = _parts(channel, payload, memory)
    body, bits = codec.measure(parts.coded, parts.context)
    return body, replace(bits, header=bits.header + 8 * HEADER_BYTES, side=bits.side + 8 * len(parts.gains))


def _parts(channel: Channel, payload: bytes, memory: ClientMemory | ServerMemory) -> tuple[Codec, BodyParts]:
    """The codec of a payload, and the parts of its body."""
    opened = OpenedPayload.of(payload)
    refuse_other_state(channel, opened.frame, memory)
    if opened.frame.client == SERVER:
        return channel.downlink, body_parts(channel, channel.downlink, opened, memory, memory.broadcast_link)
    link = memory.link if isinstance(memory, ClientMemory) else memory.link(opened.frame.client)
    refuse_other_link(opened.frame, link)
    return channel.uplink, body_parts(channel, channel.uplink, opened, memory, link)
