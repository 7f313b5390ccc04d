"""The frame and what stands in it: damaged or hostile bytes are refused, and cost nothing."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dpcomp as dp
from dpcomp.codec.entropy.integers import IntegerWriter
from dpcomp.wire.frame import FULL_HEADER_BYTES, PAYLOAD, Frame
from dpcomp.wire.update import with_claim
from tests.cpu_time import cpu_loops

D = 400
CODECS = {
    "float32": dp.Codec(),
    "int8": dp.Codec(quantize=dp.Uniform(8), entropy=dp.FixedWidth()),
    "coded": dp.Codec(quantize=dp.Uniform(5)),
    "wide": dp.Codec(quantize=dp.Uniform(12)),
    "top": dp.Codec(sparsify=dp.TopK(0.05), quantize=dp.Uniform(4)),
    "top float32": dp.Codec(sparsify=dp.TopK(0.05)),
    "top fixed": dp.Codec(sparsify=dp.TopK(0.05), quantize=dp.Uniform(8), entropy=dp.FixedWidth()),
    "random": dp.Codec(sparsify=dp.RandomK(0.05), quantize=dp.Uniform(4)),
}
EVERY_CODEC = pytest.mark.parametrize("name", CODECS)
FRAME = Frame(
    pipeline=b"pipeline",
    run=2**64 - 1,
    client=2**32 - 1,
    round=3,
    version=4,
    shared=b"together",
    link_count=5,
    link=b"accepted",
)


def ends(name):
    """A pipeline with this codec, a payload for its server, and that server."""
    pipeline = dp.Pipeline(mechanism=dp.unsafe("a test of the wire"), codec=CODECS[name])
    layout, seed = dp.Layout.of({"a": (D - 30,), "b": (30,)}), dp.PublicSeed(0)
    memory, server = pipeline.init_client(layout, seed, client=1), pipeline.init_server(layout, seed)
    values = np.random.default_rng(0).standard_normal(D).astype(np.float32)
    update = with_claim(dp.Update(values=values, layout=layout, address=memory.address), pipeline.claim)
    payload, _ = pipeline.send(update, memory)
    return pipeline, payload, server


def state(server):
    return server.shared.version, server.shared.digest, dict(server.links), server.residual.tobytes()


def refused(pipeline, payload, server):
    """That these bytes are refused as they should be, and leave no trace."""
    before = state(server)
    with pytest.raises((dp.CorruptPayload, dp.VersionMismatch)):
        pipeline.receive(payload, server)
    assert state(server) == before


def forged(payload, body):
    """The payload with another body, under a checksum that fits."""
    frame, _ = PAYLOAD.unseal(payload)
    return PAYLOAD.seal(frame, body)


def test_a_frame_comes_back_as_it_was_sealed():
    for body in (b"", b"x", bytes(1000)):
        assert PAYLOAD.unseal(PAYLOAD.seal(FRAME, body)) == (FRAME, body)


def test_the_full_header_has_at_most_64_bytes():
    assert len(PAYLOAD.seal(FRAME, b"")) == FULL_HEADER_BYTES <= 64


@EVERY_CODEC
def test_every_truncation_is_refused(name):
    pipeline, payload, server = ends(name)
    pipeline.receive(payload, server)
    for length in range(len(payload)):
        refused(pipeline, payload[:length], server)


@EVERY_CODEC
def test_every_flipped_bit_is_refused(name):
    pipeline, payload, server = ends(name)
    bits = 8 * len(payload)
    for bit in range(0, bits, max(1, bits // 400)):
        damaged = bytearray(payload)
        damaged[bit // 8] ^= 1 << bit % 8
        refused(pipeline, bytes(damaged), server)


def test_every_flipped_bit_of_a_header_is_refused():
    pipeline, payload, server = ends("coded")
    for bit in range(8 * FULL_HEADER_BYTES):
        damaged = bytearray(payload)
        damaged[bit // 8] ^= 1 << bit % 8
        refused(pipeline, bytes(damaged), server)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=300))
def test_garbage_is_refused(garbage):
    pipeline, payload, server = ends("top")
    for damaged in (garbage, payload[:4] + garbage, payload[:FULL_HEADER_BYTES] + garbage, payload + garbage + b"\0"):
        refused(pipeline, damaged, server)


@pytest.mark.parametrize("payload", ["text", None, 3, [1, 2]])
def test_a_payload_is_bytes(payload):
    pipeline, _, server = ends("coded")
    with pytest.raises(TypeError, match="message is bytes"):
        pipeline.receive(payload, server)


@EVERY_CODEC
def test_any_view_of_the_bytes_will_do(name):
    pipeline, payload, server = ends(name)
    estimate, _ = pipeline.receive(payload, server)
    for view in (bytearray(payload), memoryview(payload)):
        np.testing.assert_array_equal(pipeline.receive(view, server)[0].values, estimate.values)


@EVERY_CODEC
def test_a_hostile_body_is_read_as_an_update_or_refused_and_nothing_else(name):
    pipeline, payload, server = ends(name)
    _, body = PAYLOAD.unseal(payload)
    rng, before, found = np.random.default_rng(1), state(server), []
    for _ in range(250):
        hostile = bytearray(body)
        # The integers in front decide how the rest is read, so half of the changes are made there.
        for _ in range(rng.integers(1, 5)):
            reach = len(hostile) if rng.random() < 0.5 else min(40, len(hostile))
            hostile[rng.integers(reach)] = rng.choice([0, 1, 127, 128, 255, rng.integers(256)])
        hostile = bytes(hostile[: rng.integers(len(hostile))] if rng.random() < 0.2 else hostile)
        hostile += rng.bytes(rng.integers(1, 9)) if rng.random() < 0.2 else b""
        try:
            estimate, _ = pipeline.receive(forged(payload, hostile), server)
        except dp.CorruptPayload:
            found.append("refused")
        else:
            assert np.isfinite(estimate.dense()).all()
            assert estimate.dense().shape == (D,)
        assert state(server) == before
    assert len(found) > 60


ONE_WORLD = b"\x01\x01"  # one world, not cut into layers; how many of the positions lie in it comes next
STEPS = b"\x80\x3f\x80\x3f"  # 1, in both layers
SHARED = b"\x00"  # no layer has a table of its own
TABLE = b"\x10\x00\x01\x01"  # all bits of a level are its symbol; from level 0 on, one of them, with a frequency


def leb128(number):
    writer = IntegerWriter()
    writer.number(number)
    return writer.finish()


def listed(k, world=ONE_WORLD + b"\x14", steps=STEPS, own=SHARED, table=TABLE, words=b""):
    """A body of "top": kind 2, k positions, the integers, and coded words."""
    side = world + steps + own + table
    return b"\x02" + leb128(k) + bytes([len(side)]) + side + words


def test_the_body_that_hostile_ones_are_made_of_is_sound():
    pipeline, payload, server = ends("top")
    estimate, _ = pipeline.receive(forged(payload, listed(20)), server)
    assert len(estimate.values) == 20
    assert np.count_nonzero(estimate.values) == 0


SEVENS = b"\x10\x0e\x01\x01"  # level 7, and no other
FARTHEST = b"\xff\xff\xff\xff\x7f"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\x02",
        listed(D + 1),
        listed(2**32 - 1),
        bytes([3]) + listed(20)[2:],
        bytes([255]) + listed(20)[2:],
        bytes([0]) + listed(20)[2:],
        bytes([1]) + listed(20)[2:],
        b"\x02\x14" + b"\x80\x3f",
        listed(20, world=b""),
        listed(20, world=b"\x00"),
        listed(20, world=b"\x02\x01\x0a\x01\x0a"),  # two worlds, where there was no support before
        listed(20, world=b"\x03\x01\x14"),
        listed(20, world=b"\x01\x00"),
        listed(20, world=b"\x01\x03\x14\x00\x00"),
        listed(20, world=ONE_WORLD + b"\x13"),
        listed(20, world=ONE_WORLD + b"\x15"),
        listed(20, world=ONE_WORLD + FARTHEST),
        listed(20, world=ONE_WORLD + b"\xff" * 6),
        listed(20, world=b"\x01\x02\x14\x14"),
        listed(20, own=b"", table=b""),
        listed(20, own=b"\xc0"),  # tables of their own, and one alone follows
        listed(20, own=b"\x40"),  # where the second layer has no level
        listed(20, table=b""),
        listed(20, table=TABLE[:-1]),
        listed(20, table=b"\x10\x00\x01\x00"),
        listed(20, table=b"\x10\x00\x01\x00\x01"),  # an empty table
        listed(20, table=b"\x10\x00\x02\x01\x00\x02"),  # one that ends behind itself
        listed(20, table=b"\x10\x00\x03\x01\x00\x00"),
        listed(20, table=b"\x10\x00\x00"),
        listed(20, table=b"\x10\x00" + FARTHEST + b"\x01"),
        listed(20, table=b"\x00\x00\x01\x01"),
        listed(20, table=b"\x11\x00\x01\x01"),
        listed(20, table=b"\x10\x10\x01\x01"),  # level 8, of 4 bits
        listed(20, table=b"\x10\x0f\x01\x01"),  # level -8
        listed(20, table=b"\x10" + FARTHEST + b"\x01\x01"),
        listed(20, table=TABLE + b"\x00"),
        listed(20, words=b"\x00" * 3),
        listed(20, words=b"\x00" * 4000),
        listed(20, words=b"\xff" * 40),
        listed(20, steps=b"\x80\x7f\x80\x7f"),
        listed(20, steps=b"\x80\xbf\x80\x3f"),
        listed(20, table=SEVENS, steps=b"\x80\x7f\x80\x7f"),
        listed(20, table=SEVENS, steps=b"\xc0\x7f\xc0\x7f"),
        b"\x02\x14" + b"\xff\xff",
    ],
    ids=lambda body: body.hex()[:60],
)
def test_a_crafted_body_is_corrupt_at_once(body):
    pipeline, payload, server = ends("top")
    before = state(server)
    with pytest.raises(dp.CorruptPayload):
        pipeline.receive(forged(payload, body), server)
    assert state(server) == before


@pytest.mark.parametrize("at", [[5, 5], [9, 3], [0, 511], [0, D]])
def test_fixed_width_positions_that_repeat_descend_or_leave_the_vector_are_corrupt(at):
    pipeline, payload, server = ends("top fixed")
    packed = (at[0] | at[1] << 9).to_bytes(3, "little")  # 9 bits a position below 400
    body = b"\x02\x02" + packed + b"\x80\x3f\x80\x3f" + b"\x80\x80"
    with pytest.raises(dp.CorruptPayload):
        pipeline.receive(forged(payload, body), server)


def test_a_fixed_width_level_outside_the_quantiser_is_corrupt():
    pipeline, payload, server = ends("int8")
    _, body = PAYLOAD.unseal(payload)
    pipeline.receive(forged(payload, body[:-1] + b"\xfe"), server)
    with pytest.raises(dp.CorruptPayload):
        pipeline.receive(forged(payload, body[:-1] + b"\xff"), server)


@pytest.mark.parametrize("wild", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_corrupt(wild):
    pipeline, payload, server = ends("float32")
    _, body = PAYLOAD.unseal(payload)
    with pytest.raises(dp.CorruptPayload, match="not finite"):
        pipeline.receive(forged(payload, body[:-4] + np.float32(wild).tobytes()), server)


def test_a_short_message_that_declares_much_costs_little():
    d = 10**7
    pipeline = dp.Pipeline(mechanism=dp.unsafe("a test of the wire"), codec=CODECS["top"], feedback=False)
    memory, server = pipeline.init_client(d, dp.PublicSeed(0), client=1), pipeline.init_server(d, dp.PublicSeed(0))
    values = np.zeros(d, np.float32)
    update = with_claim(dp.Update(values=values, layout=memory.layout, address=memory.address), pipeline.claim)
    payload, _ = pipeline.send(update, memory)
    step = b"\x80\x3f"
    hostile = [
        listed(k, world=ONE_WORLD + count, steps=step) for k in (2, 2**20, 2**32 - 1) for count in (b"\x01", FARTHEST)
    ]
    hostile += [listed(1, world=ONE_WORLD + b"\x01", steps=step, table=b"\x10\x00" + FARTHEST + b"\x01")]
    hostile += [listed(2**20, world=ONE_WORLD + b"\x80\x80\x40", steps=step, words=b"\xff" * 40)]
    for body in hostile:
        tracemalloc.start()
        with cpu_loops() as loops, pytest.raises(dp.CorruptPayload):
            pipeline.receive(forged(payload, body), server)
        _, peak_bytes = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert loops.count < 80
        assert peak_bytes < 4 * d
