"""What a payload spends its bits on, read as by an end that has yet to accept it; nothing changes."""

from dataclasses import replace
from typing import TYPE_CHECKING

from dpcomp.codec import Codec
from dpcomp.codec.codec import Body
from dpcomp.codec.entropy.coder import PartBits
from dpcomp.core.address import SERVER
from dpcomp.core.public_context import Common
from dpcomp.wire.exchange import downlink_of, downwards, refuse_elsewhere, refuse_other_link
from dpcomp.wire.frame import HEADER_BYTES, PAYLOAD
from dpcomp.wire.memory import ClientMemory, ServerMemory
from dpcomp.wire.payload import common_of

if TYPE_CHECKING:
    from dpcomp.pipeline import Pipeline


def layer_bits(pipeline: "Pipeline", payload: bytes, memory: ClientMemory | ServerMemory) -> dict[str, float]:
    """Bits a value that a payload spends on each layer. Memory and errors as in `measure`."""
    codec, _, body, common = _opened(pipeline, payload, memory)
    bits = codec.layer_bits(body, common)
    return {name: float(spent) for (name, _), spent in zip(memory.layout.shapes, bits, strict=True)}


def measure(pipeline: "Pipeline", payload: bytes, memory: ClientMemory | ServerMemory) -> tuple[Body, PartBits]:
    """What stands in a payload, and the bits that each part of it takes: they add up to 8·len(payload).

    A client's payload is read with the server's memory, or the sender's, from before it; a broadcast with any end's
    memory from before it.

    Raises:
        CorruptPayload: the bytes are damaged.
        VersionMismatch: they are sound, but do not follow on what this memory knows.
        TypeError: the codec's entropy coder has no meter.
    """
    codec, gains, body, common = _opened(pipeline, payload, memory)
    found, bits = codec.measure(body, common)
    return found, replace(bits, header=bits.header + 8 * HEADER_BYTES, side=bits.side + 8 * len(gains))


def _opened(
    pipeline: "Pipeline", payload: bytes, memory: ClientMemory | ServerMemory
) -> tuple[Codec, bytes, bytes, Common]:
    """The codec of a payload that is only looked at, its gains, its body, and what both ends know of it."""
    frame, body = PAYLOAD.unseal(payload)
    refuse_elsewhere(pipeline, frame, memory)
    codec, link = pipeline.codec, memory.link if isinstance(memory, ClientMemory) else memory.link(frame.client)
    if frame.client == SERVER:
        codec, link = downlink_of(pipeline), downwards(memory)
    else:
        refuse_other_link(frame, link)
    gains = len(memory.layout.sizes) if codec.predict and memory.shared.reference is not None else 0
    return codec, body[:gains], body[gains:], common_of(pipeline, codec, memory, frame.client, link)
