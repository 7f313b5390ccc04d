"""Bits that are packed by words, blocks of layers, and levels of two values under the range coder."""

import struct
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dpcomp as dp
from dpcomp.codec.entropy import bit_packing
from dpcomp.codec.entropy.bit_packing import pack, unpack
from dpcomp.codec.quantize import quantizer
from dpcomp.codec.quantize.quantizer import layer_blocks
from dpcomp.core.public_context import PublicContext

CHUNK = bit_packing.PACK_CHUNK


def bit_by_bit(numbers, bits):
    """The numbers' lowest bits one after the other, and the bytes that they fill."""
    rows = np.unpackbits(numbers.astype("<u4").view(np.uint8).reshape(-1, 4), axis=1, bitorder="little")[:, :bits]
    return np.packbits(rows.reshape(-1), bitorder="little")


@pytest.mark.parametrize("bits", range(1, 33))
def test_words_give_the_bytes_of_packing_bit_by_bit(bits):
    rng = np.random.default_rng(bits)
    for count in (0, 1, 7, 8, 9, 250, CHUNK, CHUNK + 3):
        numbers = rng.integers(0, 1 << bits, count)
        packed = pack(numbers, 0, bits)
        np.testing.assert_array_equal(packed, bit_by_bit(numbers, bits))
        out = np.full(count, -1, dtype=np.int64)
        unpack(packed, 0, bits, out)
        np.testing.assert_array_equal(out, numbers)


@pytest.mark.parametrize(("dtype", "bits"), [*((np.int8, bits) for bits in range(1, 9)), (np.int16, 9), (np.int16, 16)])
def test_levels_of_narrow_types_are_packed_from_their_lowest(dtype, bits):
    numbers = np.random.default_rng(bits).integers(0, 1 << bits, 1000)
    for lowest in (-(1 << (bits - 1)), -(1 << (bits - 1)) + (bits < 8)):
        levels = (numbers + lowest).astype(dtype)
        packed = pack(levels, lowest, bits)
        np.testing.assert_array_equal(packed, bit_by_bit(numbers, bits))
        out = np.empty(1000, dtype=dtype)
        unpack(packed, lowest, bits, out)
        np.testing.assert_array_equal(out, levels)


def test_a_number_beyond_the_type_is_outside_the_bounds_after_it_wraps():
    layout = dp.Layout.of({"a": (3,), "b": (5,)})
    for bits in (8, 16):
        codec, context = dp.Codec(quantize=dp.Uniform(bits), entropy=dp.FixedWidth()), PublicContext(layout=layout)
        body, _ = codec.encode(np.ones(8, np.float32), dp.Everywhere(), context)
        forged = body[: -bits // 8] + b"\xff" * (bits // 8)
        with pytest.raises(dp.CorruptPayload, match="outside"):
            codec.decode(forged, context)


def set_block(patch, size):
    """Set the size of blocks, without what is remembered of vectors that fit a block of another size."""
    patch.setattr(quantizer, "BLOCK", size)
    patch.setattr(quantizer, "_only_block", quantizer._only_block.__wrapped__)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 30), max_size=12))
def test_blocks_cover_all_layers_in_order(sizes):
    counts = np.array(sizes, dtype=np.int64)
    with pytest.MonkeyPatch.context() as patch:
        set_block(patch, 8)
        blocks = list(layer_blocks(counts))
    at, seen = 0, []
    for where, layers, starts in blocks:
        assert where.start == at < where.stop <= at + 8
        at = where.stop
        seen.append(np.broadcast_to(layers, where.stop - where.start))
        assert not starts[0]
        assert np.array_equal(np.flatnonzero(np.diff(seen[-1])) + 1, starts[1:])
    assert at == counts.sum()
    np.testing.assert_array_equal(np.concatenate([np.empty(0, int), *seen]), np.repeat(np.arange(len(counts)), counts))


@pytest.mark.parametrize(
    "quantize",
    [
        dp.Uniform(3),
        dp.Uniform(12),
        dp.Uniform(4, rounding=dp.Dithered()),
        dp.Uniform(4, rounding=dp.Stochastic()),
        dp.Sign(),
        dp.Ternary(),
    ],
    ids=str,
)
@pytest.mark.parametrize("entropy", [dp.FixedWidth(), dp.RangeCoder()], ids=str)
def test_the_size_of_blocks_changes_no_bit(quantize, entropy, monkeypatch):
    layout = dp.Layout.of({"a": (300,), "none": (0,), "b": (3,), "c": (5,), "d": (100, 7), "e": (2,)})
    values = np.random.default_rng(1).laplace(size=layout.size).astype(np.float32) * np.float32(3)
    values[layout.edges[2] : layout.edges[3]] = 0.0
    codec, context = dp.Codec(quantize=quantize, entropy=entropy), PublicContext(layout=layout, dither_key=5)
    whole, decoded = codec.encode(values, dp.Everywhere(), context)
    set_block(monkeypatch, 64)
    body, again = codec.encode(values, dp.Everywhere(), context)
    assert body == whole
    assert again.tobytes() == decoded.tobytes() == codec.decode(body, context)[0].tobytes()


def signs(share, count):
    values = np.ones(count, np.float32)
    values[: round(share * count)] = -1.0
    return np.random.default_rng(0).permutation(values)


@pytest.mark.parametrize("share", [0.0, 0.03, 0.2, 0.5, 0.97, 1.0])
@pytest.mark.parametrize("sizes", [(4000,), (100, 3000, 900), (1, 3)])
def test_signs_take_a_bit_each_or_less(share, sizes):
    layout = dp.Layout.of({str(number): (size,) for number, size in enumerate(sizes)})
    values, context = signs(share, layout.size), PublicContext(layout=layout)
    codec = dp.Codec(quantize=dp.Sign())
    body, decoded = codec.encode(values, dp.Everywhere(), context)
    received, _ = codec.decode(body, context)
    assert received.tobytes() == decoded.tobytes()
    entropy = -sum(p * np.log2(p) for p in (share, 1 - share) if p)
    beside = 1 + 2 * len(sizes) + 12  # scales, flags, lengths and a table
    assert len(body) <= min(1.01 * entropy, 1) * layout.size / 8 + beside
    _, bits = codec.measure(body, context)
    assert bits.total == 8 * len(body)
    assert bits.value <= layout.size
    if share == 0.5:
        assert bits.value == layout.size


def test_packed_levels_that_no_sender_writes_are_corrupt():
    layout = dp.Layout.of(64)
    codec, context = dp.Codec(quantize=dp.Sign()), PublicContext(layout=layout)
    body, _ = codec.encode(signs(0.5, 64), dp.Everywhere(), context)
    header, side = body[:2], body[2:]
    assert header[-1] == len(side) == 2 + 1 + 1 + 1 + 8  # the scale, a flag, PACKED, the lowest level, a bit a level
    assert side[3:5] == b"\x00\x00"
    for lowest in (b"\x01", b"\x02", b"\x03", b"\x04", b"\x7e"):  # -1, 1, -2, 2, 63
        with pytest.raises(dp.CorruptPayload):
            codec.decode(header + side[:4] + lowest + side[5:], context)
    for wrong in (side[:-1], side + b"\x00"):
        with pytest.raises(dp.CorruptPayload):
            codec.decode(header[:-1] + bytes([len(wrong)]) + wrong, context)


class OwnQuantiser:
    """Doubles what it reads in the type that it is given, as one written for int32 may."""

    unbiased = False

    def side_bytes(self, counts, context):
        return 0

    def bounds(self, side, context):
        return quantizer.equal_bounds(len(context.layout.shapes), -100, 100)

    def levels(self, values, counts, context):
        return np.rint(values).astype(np.int8), b""

    def values(self, levels, side, counts, context):
        assert levels.dtype == np.int32
        return (levels * 2).astype(np.float32) / 2


@pytest.mark.parametrize("entropy", [dp.FixedWidth(), dp.RangeCoder()], ids=str)
def test_an_own_quantiser_is_given_int32(entropy):
    codec, context = dp.Codec(quantize=OwnQuantiser(), entropy=entropy), PublicContext(layout=dp.Layout.of(200))
    values = np.arange(-100, 100, dtype=np.float32)
    body, decoded = codec.encode(values, dp.Everywhere(), context)
    np.testing.assert_array_equal(decoded, values)
    np.testing.assert_array_equal(codec.decode(body, context)[0], values)


def test_a_float_that_does_not_lie_at_a_whole_word_is_read():
    layout = dp.Layout.of(5)
    codec, context = dp.Codec(), PublicContext(layout=layout)
    values = np.arange(5, dtype=np.float32)
    body, _ = codec.encode(values, dp.Everywhere(), context)
    for shift in range(4):
        room = memoryview(bytes(shift) + body)[shift:]
        received, _ = codec.decode(room, context)
        np.testing.assert_array_equal(received, values)
        assert received.flags.aligned


def test_what_is_decoded_does_not_change_with_the_message_or_the_vector():
    layout = dp.Layout.of(5)
    codec, context = dp.Codec(), PublicContext(layout=layout)
    values = np.arange(5, dtype=np.float32)
    body, decoded = codec.encode(values, dp.Everywhere(), context)
    message = bytearray(body)
    received, _ = codec.decode(message, context)
    values[:] = 9
    message[:] = bytes(len(message))
    for kept in (decoded, received):
        np.testing.assert_array_equal(kept, np.arange(5))


def test_a_message_that_says_more_than_it_has_is_refused_before_memory_is_taken():
    codec = dp.Codec(quantize=dp.Uniform(4), entropy=dp.FixedWidth())
    context = PublicContext(layout=dp.Layout.of(2**31))
    with pytest.raises(dp.CorruptPayload, match="before its last value"):
        codec.decode(struct.pack("<BI", 0, 2**31) + bytes(2), replace(context, packed=True))


@settings(deadline=None)
@given(
    st.tuples(st.integers(-32_000, 32_000), st.integers(1, 40), st.integers(2, 70), st.integers(0, 2**32 - 1)),
)
def test_two_levels_arrive_whatever_lies_between_them(case):
    lower, apart, count, seed = case
    values = (lower + apart * np.random.default_rng(seed).integers(0, 2, count)).astype(np.float32)
    codec = dp.Codec(quantize=dp.Uniform(dp.FixedStep(1.0)))
    context = PublicContext(layout=dp.Layout.of(count), public_support=dp.Everywhere(), dither_key=0)
    body, decoded = codec.encode(values, dp.Everywhere(), context)
    np.testing.assert_array_equal(decoded, values)
    np.testing.assert_array_equal(codec.decode(body, context)[0], values)
