"""Parts of somebody's own work as ours do."""

from dataclasses import dataclass

import numpy as np
import pytest

import dpcomp as dp
from dpcomp.codec.quantize.quantizer import Bounds
from dpcomp.wire.bits_by_part import measure_payload

D, SEED = 10_000, dp.PublicSeed(0)


@dataclass(frozen=True)
class OwnMask:
    """RandomK, written by somebody else."""

    fraction: float

    def claim(self, before, where):
        return before

    def public_support(self, context):
        return dp.Seeded(seed=context.mask_key, k=round(self.fraction * context.layout.size))

    def apply(self, value, context):
        return value.restrict(self.public_support(context))

    def select(self, vector, candidates, context):
        return self.public_support(context)


@dataclass(frozen=True)
class BFloat16:
    """A float format of somebody's own: the upper half of a float32."""

    unbiased = False

    def bounds(self, side, context):
        nothing = np.zeros(len(context.layout.shapes), np.int32)
        return Bounds(nothing, nothing)

    def side_bytes(self, counts, context):
        return 2 * int(counts.sum())

    def levels(self, values, counts, context):
        return np.empty(0, np.int32), (values.view(np.uint32) >> 16).astype("<u2").tobytes()

    def values(self, levels, side, counts, context):
        return (np.frombuffer(side, "<u2").astype(np.uint32) << 16).view(np.float32)


def sent(pipeline):
    memory, server = pipeline.init_client(D, SEED, client=0), pipeline.init_server(D, SEED)
    permit = dp.Ledger().charge(pipeline.cost, memory.address)
    block = np.random.default_rng(0).normal(size=(1, D)).astype(np.float32)
    update = pipeline.release([block], memory, dp.SecretSeed(1), permit)
    payload, _ = pipeline.send(update, memory)
    received, _ = pipeline.receive(payload, server)
    return payload, received, measure_payload(pipeline.channel, payload, server)[1]


@pytest.mark.parametrize("place", ["mechanism", "codec"])
def test_a_public_mask_of_ones_own_costs_what_ours_costs(place):
    payloads = {}
    for mask in (dp.RandomK(0.01), OwnMask(0.01)):
        before = (mask,) if place == "mechanism" else ()
        codec = dp.Codec(sparsify=mask if place == "codec" else None, quantize=dp.Uniform(4))
        pipeline = dp.Pipeline(mechanism=(*before, dp.Clip(1.0), dp.Gaussian(1.0)), codec=codec, feedback=False)
        payload, received, bits = sent(pipeline)
        assert bits.index == 0
        assert bits.total == 8 * len(payload)
        assert isinstance(received.support, dp.Seeded)
        payloads[type(mask)] = payload[60:]
    assert payloads[OwnMask] == payloads[dp.RandomK]


def test_two_public_supports_are_refused_whoever_wrote_them():
    with pytest.raises(ValueError, match="public support"):
        dp.Pipeline(mechanism=(OwnMask(0.1), dp.Clip(1.0), dp.Gaussian(1.0)), codec=dp.Codec(sparsify=dp.RandomK(0.1)))


def test_the_values_of_an_own_float_format_are_counted_as_values():
    pipeline = dp.Pipeline(
        mechanism=(dp.Clip(1.0), dp.Gaussian(1.0)), codec=dp.Codec(quantize=BFloat16()), feedback=False
    )
    payload, received, bits = sent(pipeline)
    assert (bits.value, bits.side) == (16 * D, 0)
    assert bits.total == 8 * len(payload)
    np.testing.assert_array_equal(received.values.view(np.uint32) & 0xFFFF, 0)


def test_the_side_of_our_own_quantisers_stays_side_information():
    quantizers = (dp.Uniform(4), dp.Sign(), dp.Ternary(), dp.Rotated(), dp.Uniform(dp.Waterfill(0.01)))
    for quantize in quantizers:
        pipeline = dp.Pipeline(mechanism=(dp.Clip(1.0), dp.Gaussian(1.0)), codec=dp.Codec(quantize=quantize))
        payload, _, bits = sent(pipeline)
        assert bits.side > 0, quantize
        assert bits.total == pytest.approx(8 * len(payload))


def test_own_parts_cannot_write_to_what_they_are_given():
    found = []

    def attempt(array):
        with pytest.raises(ValueError, match="read-only"):
            array[:] = 0.0
        found.append(array)

    @dataclass(frozen=True)
    class Writes:
        def initial_history(self, layout):
            return np.zeros(layout.size, np.float32)

        def update_history(self, history, broadcast, layout):
            attempt(history)
            attempt(broadcast)
            return kept[0]

        def select(self, vector, candidates, context):
            attempt(vector)
            attempt(context.history)
            return candidates

    kept = [np.ones(8, np.float32)]  # the part goes on to hold it, and writes to it
    codec = dp.Codec(sparsify=Writes())
    pipeline = dp.Pipeline(mechanism=(dp.Clip(1.0), dp.Gaussian(1.0)), codec=codec)
    client = pipeline.init_client(8, dp.PublicSeed(0), client=0)
    server = pipeline.init_server(8, dp.PublicSeed(0))
    update = pipeline.release([], client, dp.SecretSeed(), dp.Ledger().charge(pipeline.cost, client.address))
    payload, client = pipeline.send(update, client)
    estimate, server = pipeline.receive(payload, server)
    down, server = pipeline.broadcast(estimate, server)
    client = pipeline.follow(down, client)
    assert len(found) >= 6
    kept[0][:] = 7.0
    np.testing.assert_array_equal(client.shared.history, np.ones(8))
    np.testing.assert_array_equal(server.shared.history, np.ones(8))
