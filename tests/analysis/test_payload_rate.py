"""A payload's parts are its bytes, and its entropies are those of counting."""

from math import comb, log2

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import entropy

import dpcomp as dp
from analysis.measures.payload_rate import PayloadRate
from dpcomp.wire.update import with_claim

LAYOUT = dp.Layout.of({"dense": (1000,), "sparse": (3000,)})


@settings(deadline=None)
@given(layers=st.lists(st.lists(st.integers(-300, 300), min_size=1, max_size=30), min_size=1, max_size=4))
def test_levels_have_the_entropy_of_their_own_layers(layers):
    layout = dp.Layout.of({f"layer {number}": (len(layer),) for number, layer in enumerate(layers)})
    codec = dp.Codec(quantize=dp.Uniform(dp.FixedStep(1.0)))  # so the values are their own levels
    pipeline = dp.Pipeline(mechanism=dp.unsafe("a measurement of the wire"), codec=codec, feedback=False)
    memory = pipeline.init_client(layout, dp.PublicSeed(0), client=0)
    values = np.array([level for layer in layers for level in layer], dtype=np.float32)
    update = with_claim(dp.Update(values=values, layout=layout, address=memory.address), pipeline.claim)
    payload, _ = pipeline.send(update, memory)
    expected = sum(len(layer) * entropy(np.unique(layer, return_counts=True)[1], base=2) for layer in layers)
    assert PayloadRate.of(pipeline, payload, memory).value_entropy_bits == pytest.approx(expected, abs=1e-9)


def rates_of_a_run(codec, rounds=3, noise=0.1, **terms):
    """What a client's payloads spend, round after round, and the payloads; the first layer has most large values."""
    pipeline = dp.Pipeline(mechanism=dp.unsafe("a measurement of the wire"), codec=codec, feedback=False, **terms)
    seed = dp.PublicSeed(0)
    memory, server = pipeline.init_client(LAYOUT, seed, client=5), pipeline.init_server(LAYOUT, seed)
    rng, rates, payloads = np.random.default_rng(0), [], []
    steady = rng.standard_t(3, LAYOUT.size) * np.where(np.arange(LAYOUT.size) < 1000, 3, 1)
    for _ in range(rounds):
        values = (steady + noise * rng.standard_normal(LAYOUT.size)).astype(np.float32)
        update = with_claim(dp.Update(values=values, layout=LAYOUT, address=memory.address), pipeline.claim)
        payload, memory = pipeline.send(update, memory)
        rates.append(PayloadRate.of(pipeline, payload, server))
        _, server = pipeline.receive(payload, server)
        payloads.append(payload)
    return rates, payloads


CODECS = [
    dp.Codec(sparsify=sparsify, quantize=quantize, entropy=coder)
    for sparsify in (None, dp.TopK(0.05), dp.TopK(0.05, per="layer"), dp.RandomK(0.05))
    for quantize in (None, dp.Uniform(4), dp.Uniform(dp.Waterfill(3)))
    for coder in (dp.RangeCoder(), dp.FixedWidth())
]


@pytest.mark.parametrize("codec", CODECS, ids=str)
def test_the_parts_of_a_payload_add_up_to_its_bytes(codec):
    for rate, payload in zip(*rates_of_a_run(codec, rounds=2), strict=True):
        parts = rate.header_bits, rate.index_bits, rate.side_bits, rate.value_bits, rate.rounding_bits
        assert sum(parts) == sum(reversed(parts)) == 8 * len(payload) == 8 * rate.payload_bytes
        assert rate.coordinates == 4000
        assert rate.kept == (4000 if codec.sparsify is None else 200)
        listed = isinstance(codec.sparsify, dp.TopK)
        assert (rate.index_bits > 0) == (rate.support_entropy_bits > 0) == listed
        assert np.isnan(rate.value_entropy_bits) == (codec.quantize is None)


def test_range_coded_parts_take_little_more_than_their_entropies():
    first, second, third = rates_of_a_run(dp.Codec(sparsify=dp.TopK(0.1), quantize=dp.Uniform(4)))[0]
    assert np.isnan(first.conditional_entropy_bits)
    # The layers differ in density, which their counts tell.
    assert first.support_entropy_bits_by_layer < 0.97 * first.support_entropy_bits
    assert first.support_entropy_bits_by_layer <= first.index_bits <= 1.02 * first.support_entropy_bits_by_layer + 8 * 6
    for later in (second, third):
        assert later.conditional_entropy_bits_by_layer <= later.conditional_entropy_bits
        best = min(later.conditional_entropy_bits, later.conditional_entropy_bits_by_layer + 8 * 4)
        assert later.index_bits <= 1.03 * best + 8 * 8
        assert later.index_bits < 0.7 * first.index_bits
    for rate in (first, second, third):
        assert 0.95 * rate.value_entropy_bits <= rate.value_bits <= 1.1 * rate.value_entropy_bits


def test_entropies_of_a_payload_are_those_of_its_support():
    rates, _ = rates_of_a_run(dp.Codec(sparsify=dp.TopK(0.05), quantize=dp.Uniform(4)), rounds=1)
    assert rates[0].support_entropy_bits == pytest.approx(log2(comb(4000, 200)))
    rates, _ = rates_of_a_run(dp.Codec(sparsify=dp.TopK(0.05, per="layer"), quantize=dp.Uniform(4)), rounds=2, noise=0)
    assert rates[0].support_entropy_bits_by_layer == pytest.approx(log2(comb(1000, 50)) + log2(comb(3000, 150)))
    assert rates[1].conditional_entropy_bits == rates[1].conditional_entropy_bits_by_layer == 0  # the same again


def test_conditional_entropies_count_the_supports_that_differ_so():
    pipeline = dp.Pipeline(
        mechanism=dp.unsafe("a measurement of the wire"), codec=dp.Codec(sparsify=dp.TopK(0.05)), feedback=False
    )
    memory, supports, rng = pipeline.init_client(LAYOUT, dp.PublicSeed(0), client=0), [], np.random.default_rng(0)
    steady = rng.standard_t(3, LAYOUT.size) * np.where(np.arange(LAYOUT.size) < 1000, 3, 1)
    for _ in range(2):
        values = (steady + 0.5 * rng.standard_normal(LAYOUT.size)).astype(np.float32)
        supports.append(set(np.argsort(-np.abs(values))[:200].tolist()))
        update = with_claim(dp.Update(values=values, layout=LAYOUT, address=memory.address), pipeline.claim)
        before = memory
        payload, memory = pipeline.send(update, before)
    rate = PayloadRate.of(pipeline, payload, before)

    def possibilities(places):
        last, now = (support & set(places) for support in supports)
        return comb(len(last), len(now & last)) * comb(len(places) - len(last), len(now - last))

    assert supports[0] != supports[1]
    assert rate.conditional_entropy_bits == pytest.approx(log2(possibilities(range(4000))))
    by_layer = log2(possibilities(range(1000))) + log2(possibilities(range(1000, 4000)))
    assert rate.conditional_entropy_bits_by_layer == pytest.approx(by_layer)


def test_noise_takes_index_bits_and_leaves_the_rest():
    codec = dp.Codec(sparsify=dp.TopK(0.05), quantize=dp.Uniform(4))
    still, noisy = (rates_of_a_run(codec, noise=noise)[0][-1] for noise in (0.05, 8.0))
    assert noisy.index_bits > 2 * still.index_bits
    assert noisy.header_bits == still.header_bits
