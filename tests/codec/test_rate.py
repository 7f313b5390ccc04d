"""The size of a payload against what information theory allows."""

import math

import numpy as np
import pytest
from scipy.special import gammaln
from scipy.stats import entropy

import dpcomp as dp
from dpcomp.wire.update import with_claim


def payload_and_bound(pipeline, vector, bits):
    """The bytes sent, and the bound: 1.005 × (the support's and the levels' information), and some side information."""
    layout, d = dp.Layout.of({"a": (len(vector) // 2,), "b": (len(vector) - len(vector) // 2,)}), len(vector)
    memory, server = (
        pipeline.init_client(layout, dp.PublicSeed(0), client=0),
        pipeline.init_server(layout, dp.PublicSeed(0)),
    )
    update = with_claim(dp.Update(values=vector, layout=layout, address=memory.address), pipeline.claim)
    payload, _ = pipeline.send(update, memory)
    estimate, _ = pipeline.receive(payload, server)
    k, middle = len(estimate.values), layout.edges[1]
    support_bits = (gammaln(d + 1) - gammaln(k + 1) - gammaln(d - k + 1)) / math.log(2)
    dense, levels = estimate.dense(), []
    for layer in (dense[:middle], dense[middle:]):
        step = np.abs(layer).max() / (2 ** (bits - 1) - 1)
        levels.append(np.rint(layer / step))
    sent = np.concatenate(levels)[estimate.support.indices(d)]
    counts = np.unique(sent, return_counts=True)[1]
    level_bits = k * entropy(counts, base=2)
    return len(payload), 1.005 * (support_bits + level_bits) / 8 + 96 + 6 * 2 + len(counts)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize(("d", "fraction"), [(1000, 0.01), (10**5, 0.001), (10**5, 0.5), (10**6, 0.01), (10**6, 0.1)])
def test_a_sparse_payload_is_within_a_two_hundredth_of_its_information(d, fraction, bits):
    codec = dp.Codec(sparsify=dp.TopK(fraction), quantize=dp.Uniform(bits))
    pipeline = dp.Pipeline(mechanism=dp.unsafe("a measurement of the wire"), codec=codec)
    vector = np.random.default_rng(0).standard_normal(d).astype(np.float32)
    payload_bytes, bound = payload_and_bound(pipeline, vector, bits)
    assert payload_bytes <= bound


@pytest.mark.slow
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("fraction", [0.01, 0.1])
def test_so_is_that_of_a_large_model(fraction, bits):
    codec = dp.Codec(sparsify=dp.TopK(fraction), quantize=dp.Uniform(bits))
    pipeline = dp.Pipeline(mechanism=dp.unsafe("a measurement of the wire"), codec=codec)
    vector = np.random.default_rng(0).laplace(size=11_000_000).astype(np.float32)
    payload_bytes, bound = payload_and_bound(pipeline, vector, bits)
    assert payload_bytes <= bound


@pytest.mark.parametrize("bits", [2, 5, 8, 10])
@pytest.mark.parametrize("d", [100, 10**4, 10**6])
@pytest.mark.parametrize("law", ["standard_normal", "laplace"])
def test_a_dense_payload_is_within_a_two_hundredth_of_its_information(d, bits, law):
    pipeline = dp.Pipeline(mechanism=dp.unsafe("a measurement of the wire"), codec=dp.Codec(quantize=dp.Uniform(bits)))
    vector = getattr(np.random.default_rng(0), law)(size=d).astype(np.float32)
    payload_bytes, bound = payload_and_bound(pipeline, vector, bits)
    assert payload_bytes <= bound


def test_an_int8_payload_is_a_quarter_of_float32_and_a_header():
    codec = dp.Codec(quantize=dp.Uniform(8), entropy=dp.FixedWidth())
    pipeline = dp.Pipeline(mechanism=dp.unsafe("a measurement of the wire"), codec=codec)
    vector = np.random.default_rng(0).standard_normal(10_000).astype(np.float32)
    payload_bytes, _ = payload_and_bound(pipeline, vector, 8)
    assert 10_000 < payload_bytes <= 10_000 + 64 + 5 + 2 * 2


def test_a_random_support_costs_no_byte():
    vector, payload_bytes = np.random.default_rng(0).standard_normal(100_000).astype(np.float32), []
    for sparsify in (dp.RandomK(0.01), dp.TopK(0.01)):
        codec = dp.Codec(sparsify=sparsify, quantize=dp.Uniform(8), entropy=dp.FixedWidth())
        pipeline = dp.Pipeline(mechanism=dp.unsafe("a measurement of the wire"), codec=codec)
        payload_bytes.append(payload_and_bound(pipeline, vector, 8)[0])
    assert payload_bytes[0] <= 1000 + 80
    assert payload_bytes[1] - payload_bytes[0] == 1000 * 17 // 8 + 2  # positions, and their number
