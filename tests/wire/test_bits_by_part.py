"""What a body's parts take adds up to its bytes, and each part takes what it would alone."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import gammaln

import dpcomp as dp
from dpcomp.codec.entropy.range_meter import information
from dpcomp.core.public_context import PublicContext
from dpcomp.wire.bits_by_part import layer_bits, measure_payload
from dpcomp.wire.frame import FULL_HEADER_BYTES
from dpcomp.wire.short_header import SHORT_HEADER_BYTES
from dpcomp.wire.update import with_claim
from tests.wire.test_round_trip import messages

ENTROPIES = st.sampled_from([dp.FixedWidth(), dp.RangeCoder()])
UNIFORM = [dp.Uniform(bits) for bits in (2, 8, 16, dp.Equal(5), dp.Waterfill(2))]
QUANTIZERS = st.sampled_from([None, dp.Float16(), *UNIFORM, dp.Sign(), dp.Ternary(), dp.Rotated()])
ROUNDING_BITS = 2 * 32 + 32  # the coder's last words


def total(bits):
    return sum((bits.value, bits.rounding, bits.index, bits.header, bits.side))  # in any order


@settings(max_examples=150, deadline=None)
@given(message=messages(), entropy=ENTROPIES, quantize=QUANTIZERS, data=st.data())
def test_the_parts_of_any_body_add_up_to_its_bytes(message, entropy, quantize, data):
    layout, support, values = message
    previous = dp.Listed(np.flatnonzero(data.draw(st.lists(st.booleans(), min_size=layout.size, max_size=layout.size))))
    mask = support if isinstance(support, dp.Seeded) else None
    common = PublicContext(
        layout=layout, public_support=mask, previous_support=data.draw(st.sampled_from([None, previous]))
    )
    codec = dp.Codec(quantize=quantize, entropy=entropy)
    body, decoded = codec.encode(values, support, common)
    found, bits = codec.measure(body, common)
    assert total(bits) == bits.total == 8 * len(body)
    assert min(bits.index, bits.side, bits.value) >= 0
    assert -1e-3 * len(values) <= bits.rounding <= ROUNDING_BITS + 7 * (len(layout.shapes) + 2)
    assert found.support == support
    assert codec.quantizer.values(found.levels, found.side, found.counts, found.context).tobytes() == decoded.tobytes()
    if not isinstance(support, dp.Listed):
        assert bits.index == 0


def test_packed_parts_are_what_their_widths_say():
    layout, rng = dp.Layout.of({"a": (900,), "b": (124,)}), np.random.default_rng(0)
    support = dp.Listed(np.arange(0, 1024, 10))
    codec = dp.Codec(quantize=dp.Uniform(3), entropy=dp.FixedWidth())
    body, _ = codec.encode(rng.standard_normal(103).astype(np.float32), support, PublicContext(layout=layout))
    _, bits = codec.measure(body, PublicContext(layout=layout))
    assert (bits.header, bits.index, bits.side, bits.value) == (8 * 2, 103 * 10, 2 * 16, 103 * 3)
    assert bits.rounding == 8 * len(body) - 16 - 1030 - 32 - 309 == (-1030 % 8) + (-90 * 3 % 8) + (-13 * 3 % 8)


@pytest.mark.parametrize(("quantize", "width"), [(None, 32), (dp.Float16(), 16)])
@pytest.mark.parametrize("entropy", [dp.FixedWidth(), dp.RangeCoder()], ids=str)
def test_floats_are_values_and_not_side_information(quantize, width, entropy):
    codec, common = dp.Codec(quantize=quantize, entropy=entropy), PublicContext(layout=dp.Layout.of(50))
    body, _ = codec.encode(np.ones(50, np.float32), dp.Everywhere(), common)
    _, bits = codec.measure(body, common)
    assert (bits.value, bits.side, bits.index) == (50 * width, 0, 0)


def parts_of(quantize, kept, levels, d=200_000):
    """What a body's parts take whose support is random, and whose values are a share `levels` of ones among zeros."""
    rng, common = np.random.default_rng(0), PublicContext(layout=dp.Layout.of(d))
    support = dp.Listed(np.sort(rng.choice(d, kept, replace=False)))
    codec = dp.Codec(quantize=quantize)
    body, _ = codec.encode((rng.random(kept) < levels).astype(np.float32), support, common)
    return codec.measure(body, common)[1]


def test_in_the_shared_stream_each_part_has_its_own_information():
    kept, d = 4000, 200_000
    support = (gammaln(d + 1) - gammaln(kept + 1) - gammaln(d - kept + 1)) / np.log(2)
    for levels, entropy in ((0.5, 1.0), (0.1, 0.469)):
        bits = parts_of(dp.Uniform(8), kept, levels)
        assert support <= bits.index <= 1.002 * support + 40
        assert bits.value == pytest.approx(kept * entropy, rel=0.03)
        assert 0 <= bits.rounding <= ROUNDING_BITS
    one_level = parts_of(dp.Uniform(8), kept, 1.0)
    assert one_level.value == 0
    assert one_level.index == bits.index


def test_information_is_what_the_coder_spends():
    stream = pytest.importorskip("constriction").stream
    weights = np.array([1e9, 5.0, 1.0, 1000.0, 0.0, 3e5])  # some of them below the coder's finest chance
    for symbol in range(len(weights)):
        symbols, coder = np.full(100_000, symbol, np.int32), stream.queue.RangeEncoder()
        coder.encode(symbols, stream.model.Categorical(weights, perfect=False))
        assert information(symbols, weights) == pytest.approx(32 * len(coder.get_compressed()), rel=1e-4, abs=64)


@dataclass(frozen=True)
class Unmetered:
    """Writes and reads as another coder does, and says nothing of it."""

    packed = True

    def writer(self):
        return dp.FixedWidth().writer()

    def reader(self, body):
        return dp.FixedWidth().reader(body)


def test_a_coder_without_a_meter_codes_but_is_not_measured():
    codec, common = dp.Codec(entropy=Unmetered()), PublicContext(layout=dp.Layout.of(3))
    body, _ = codec.encode(np.ones(3, np.float32), dp.Everywhere(), common)
    assert codec.decode(body, common)[0].tolist() == [1, 1, 1]
    with pytest.raises(TypeError, match=r"give it a \.meter"):
        codec.measure(body, common)


def test_damaged_bodies_are_refused_as_in_reading():
    for entropy in (dp.FixedWidth(), dp.RangeCoder()):
        codec, common = dp.Codec(quantize=dp.Uniform(4), entropy=entropy), PublicContext(layout=dp.Layout.of(30))
        body, _ = codec.encode(np.arange(30, dtype=np.float32), dp.Everywhere(), common)
        for damaged in (b"", body[:3], body[:-1], body + bytes(1)):
            with pytest.raises(dp.CorruptPayload):
                codec.measure(damaged, common)


def a_run(codec, **terms):
    layout = dp.Layout.of({"a": (3000,), "b": (1000,)})
    pipeline = dp.Pipeline(mechanism=dp.unsafe("a measurement of the wire"), codec=codec, **terms)
    seed = dp.PublicSeed(0)
    return pipeline, pipeline.init_client(layout, seed, client=5), pipeline.init_server(layout, seed)


@pytest.mark.parametrize(
    "codec",
    [
        dp.Codec(sparsify=dp.TopK(0.05), quantize=dp.Uniform(4)),
        dp.Codec(predict=dp.LastBroadcast(), sparsify=dp.TopK(0.05), quantize=dp.Uniform(dp.Waterfill(3))),
        dp.Codec(sparsify=dp.RandomK(0.1), quantize=dp.Sign()),
    ],
    ids=str,
)
def test_every_payload_of_a_run_is_measured_by_whoever_has_yet_to_accept_it(codec):
    pipeline, memory, server = a_run(codec, downlink=dp.Codec(quantize=dp.Uniform(8)))
    gains = 8 * 2 if codec.predict else 0
    steady, rng = np.random.default_rng(1).standard_t(3, 4000), np.random.default_rng(2)
    for number in range(3):
        values = (steady + 0.1 * rng.standard_normal(4000)).astype(np.float32)
        update = with_claim(dp.Update(values=values, layout=memory.layout, address=memory.address), pipeline.claim)
        before = memory
        payload, memory = pipeline.send(update, memory)
        _, bits = measure_payload(pipeline.channel, payload, server)
        assert measure_payload(pipeline.channel, payload, before)[1] == bits
        assert total(bits) == 8 * len(payload)
        common = pipeline.channel.message_context(codec, before)
        header = SHORT_HEADER_BYTES if number else FULL_HEADER_BYTES
        _, body_bits = codec.measure(payload[header + (gains // 8 if number else 0) :], common)
        assert bits == replace(
            body_bits, header=body_bits.header + 8 * header, side=body_bits.side + (gains if number else 0)
        )
        estimate, after = pipeline.receive(payload, server)
        for late in (after, memory):
            for look in (measure_payload, layer_bits) if late is after else (measure_payload,):
                with pytest.raises(dp.VersionMismatch, match=r"payload number|is a repeat|a payload is missing"):
                    look(pipeline.channel, payload, late)
        down, server = pipeline.broadcast(estimate.dense(), after)
        body, bits = measure_payload(pipeline.channel, down, memory)
        assert total(bits) == 8 * len(down)
        assert measure_payload(pipeline.channel, down, after)[1] == bits
        assert body.support == dp.Everywhere()
        memory = pipeline.follow(down, memory)


def test_a_support_told_by_its_changes_is_measured_so():
    pipeline, memory, server = a_run(dp.Codec(sparsify=dp.TopK(0.05), quantize=dp.Uniform(4)), feedback=False)
    values, index = np.random.default_rng(1).standard_t(3, 4000).astype(np.float32), []
    for _ in range(2):
        update = with_claim(dp.Update(values=values, layout=memory.layout, address=memory.address), pipeline.claim)
        payload, memory = pipeline.send(update, memory)
        index.append(measure_payload(pipeline.channel, payload, server)[1].index)
        _, server = pipeline.receive(payload, server)
    assert index[0] > 200 * 5
    assert index[1] < 8 * 10
