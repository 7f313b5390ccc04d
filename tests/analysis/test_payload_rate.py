"""Entropies are those of counting, and a payload's parts are its bytes."""

from dataclasses import astuple, replace
from itertools import combinations
from math import comb, log2

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.special import entr
from scipy.stats import entropy

import dpcomp as dp
from analysis.measures.payload_rate import (
    PayloadRate,
    conditional_support_entropy,
    conditional_support_entropy_approximation,
    level_entropy,
    rate_table,
    support_entropy,
    support_entropy_approximation,
)
from analysis.measures.ranking import SupportChange

WORLDS = st.lists(
    st.integers(0, 400).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n))), min_size=1, max_size=5
)
LAYOUT = dp.Layout.of({"dense": (1000,), "sparse": (3000,)})


def binary_entropy(p):
    return float(entr(p) + entr(1 - p)) / np.log(2)


@given(worlds=WORLDS)
def test_a_support_costs_the_logarithm_of_how_many_there_are(worlds):
    coordinates, kept = (np.array(column) for column in zip(*worlds, strict=True))
    assume(kept.any())
    expected = sum(log2(comb(n, k)) for n, k in worlds) / kept.sum()
    found = support_entropy(coordinates, kept)
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-9)
    above = support_entropy_approximation(coordinates, kept) * kept.sum() - found * kept.sum()
    assert -1e-6 <= above <= sum(log2(n + 1) for n, _ in worlds)


def test_of_nothing_kept_there_is_no_entropy_a_coordinate():
    nothing = np.array([10, 0]), np.array([0, 0])
    assert np.isnan(support_entropy(*nothing)) and np.isnan(support_entropy_approximation(*nothing))


@pytest.mark.parametrize("density", [0.001, 0.01, 0.1])
def test_the_approximation_is_h2_of_the_density_over_the_density(density):
    world = np.array([10**7]), np.array([round(density * 10**7)])
    assert support_entropy_approximation(*world) == pytest.approx(binary_entropy(density) / density)
    assert support_entropy(*world) == pytest.approx(binary_entropy(density) / density, rel=2e-4)


@pytest.mark.parametrize("density", [0.001, 0.01, 0.1])
@pytest.mark.parametrize("overlap", [0.0, 0.3, 0.8, 1.0])
def test_given_the_last_support_it_costs_h_of_the_overlap(density, overlap):
    d, k = 10**6, round(density * 10**6)
    kept = round(overlap * k)
    change = SupportChange(kept=kept, new=k - kept, dropped=k - kept, coordinates=d)
    r, kappa = overlap, density
    h = binary_entropy(r) + (1 - kappa) / kappa * binary_entropy((1 - r) * kappa / (1 - kappa))
    assert conditional_support_entropy_approximation(change) == pytest.approx(h)
    assert conditional_support_entropy(change) == pytest.approx(h, rel=0.01, abs=0.02)


def test_by_chance_alike_supports_tell_nothing_of_each_other():
    d, k = 10**6, 10**4
    change = SupportChange(kept=100, new=9900, dropped=9900, coordinates=d)
    alone = support_entropy_approximation(np.array([d]), np.array([k]))
    assert conditional_support_entropy_approximation(change) == pytest.approx(alone)


def test_the_conditional_entropy_counts_the_supports_that_differ_so():
    previous, d = {0, 2, 3}, 7
    alike = [after for after in combinations(range(d), 4) if len(previous & set(after)) == 2]
    change = SupportChange(kept=2, new=2, dropped=1, coordinates=d)
    assert 4 * conditional_support_entropy(change) == pytest.approx(log2(len(alike)))


@given(layers=st.lists(st.lists(st.integers(-300, 300), max_size=30), min_size=1, max_size=4))
def test_levels_have_the_entropy_of_their_own_layers(layers):
    levels = np.array([level for layer in layers for level in layer], dtype=np.int32)
    expected = sum(len(layer) * entropy(np.unique(layer, return_counts=True)[1], base=2) for layer in layers if layer)
    found = level_entropy(levels, np.array([len(layer) for layer in layers]))
    assert found == pytest.approx(expected / max(1, len(levels)), abs=1e-9)


def rates_of_a_run(codec, rounds=3, noise=0.1, **terms):
    """What a client's payloads spend, round after round, and the payloads; the first layer has most large values."""
    pipeline = dp.Pipeline(mechanism=dp.unsafe("a measurement of the wire"), codec=codec, feedback=False, **terms)
    seed = dp.PublicSeed(0)
    memory, server = pipeline.init_client(LAYOUT, seed, client=5), pipeline.init_server(LAYOUT, seed)
    rng, rates, payloads = np.random.default_rng(0), [], []
    steady = rng.standard_t(3, LAYOUT.size) * np.where(np.arange(LAYOUT.size) < 1000, 3, 1)
    for _ in range(rounds):
        values = (steady + noise * rng.standard_normal(LAYOUT.size)).astype(np.float32)
        update = dp.Update(values=values, layout=LAYOUT, address=memory.address, claim=pipeline.claim)
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


def test_noise_takes_index_bits_and_leaves_the_rest():
    codec = dp.Codec(sparsify=dp.TopK(0.05), quantize=dp.Uniform(4))
    still, noisy = (rates_of_a_run(codec, noise=noise)[0][-1] for noise in (0.05, 8.0))
    assert noisy.index_bits > 2 * still.index_bits
    assert noisy.header_bits == still.header_bits


def test_a_table_has_a_row_a_payload_and_what_a_kept_coordinate_takes():
    rates, payloads = rates_of_a_run(dp.Codec(sparsify=dp.TopK(0.05), quantize=dp.Uniform(4)))
    table = rate_table(rates)
    assert table["payload_bytes"].tolist() == [len(payload) for payload in payloads]
    assert table["index_bits_per_kept"].tolist() == [rate.index_bits / 200 for rate in rates]
    assert table["compression_ratio"].tolist() == [4 * 4000 / len(payload) for payload in payloads]
    assert (table["density"] == 0.05).all()
    assert table["conditional_entropy_bits_per_kept"].isna().tolist() == [True, False, False]
    assert tuple(table.iloc[1])[: len(astuple(rates[1]))] == astuple(rates[1])


def test_a_payload_that_keeps_nothing_has_no_number_a_kept_coordinate():
    rates, _ = rates_of_a_run(dp.Codec(sparsify=dp.TopK(0.05), quantize=dp.Uniform(4)), rounds=1)
    assert np.isnan(rate_table([replace(rates[0], kept=0)]).loc[0, "index_bits_per_kept"])
