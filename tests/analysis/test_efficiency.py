"""Efficiency compares bytes that were sent."""

import numpy as np
import pytest

import dpcomp as dp
from analysis.measures.efficiency import (
    bytes_at_energy,
    bytes_for_energy,
    compression_ratio,
    efficiency,
    smallest_support,
)
from analysis.measures.ranking import captured_energy
from dpcomp.core.public_context import PublicContext

LAYOUT = dp.Layout.of(5000)


def noisy_vectors(noise):
    rng = np.random.default_rng(0)
    clean = rng.standard_t(5, LAYOUT.size).astype(np.float32)
    return clean, (clean + noise * rng.standard_normal(LAYOUT.size)).astype(np.float32)


def test_efficiency_is_the_ratio_of_compression_ratios():
    noisy, still = [120, 140, 100], [60, 70, 50, 60]
    assert efficiency(noisy, still) == 0.5
    assert efficiency(noisy, still) == compression_ratio(1000, noisy) / compression_ratio(1000, still)
    assert compression_ratio(1000, [1000, 3000]) == 2


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 1.0])
def test_the_smallest_support_captures_the_share_and_one_coordinate_less_does_not(share):
    clean, other = noisy_vectors(2.0)
    support = smallest_support(clean, other, share)
    assert captured_energy(clean, support) >= share * (1 - 1e-9)
    if share:
        least = support.positions[np.argmin(np.abs(other[support.positions]))]
        fewer = dp.Listed(np.setdiff1d(support.positions, [least]))
        assert captured_energy(clean, fewer) < share


def test_bytes_for_energy_are_those_of_a_payload_that_is_sent():
    clean, other = noisy_vectors(1.0)
    codec = dp.Codec(quantize=dp.Uniform(4))
    pipeline = dp.Pipeline(mechanism=dp.unsafe("a measurement of the wire"), codec=codec, feedback=False)
    memory, sizes, expected = pipeline.init_client(LAYOUT, dp.PublicSeed(0), client=0), [], []
    for share in (0.5, 0.5, 0.8):
        support = smallest_support(clean, other, share)
        update = dp.Update(
            values=other[support.positions],
            layout=LAYOUT,
            address=memory.address,
            support=support,
            claim=pipeline.claim,
        )
        common = PublicContext(layout=LAYOUT, previous_support=memory.link.last_support)
        expected.append(bytes_for_energy(codec, common, clean, other, share))
        payload, memory = pipeline.send(update, memory)
        sizes.append(len(payload))
    assert sizes == expected
    assert sizes[1] < sizes[0] < sizes[2]  # the same support again costs next to nothing


def test_under_noise_the_same_energy_takes_more_bytes():
    codec, common, sizes = dp.Codec(quantize=dp.Uniform(4)), PublicContext(layout=LAYOUT), []
    for noise in (0.0, 1.0, 4.0):
        sizes.append(bytes_for_energy(codec, common, *noisy_vectors(noise), 0.7))
    assert 1 > efficiency(sizes[1:2], sizes[:1]) > 1.5 * efficiency(sizes[2:], sizes[:1])


def test_between_measured_payloads_the_logarithm_is_linear_in_the_energy():
    sizes, energies = [100, 400, 1600], [0.2, 0.4, 0.8]
    for size, energy in zip(sizes, energies, strict=True):
        assert bytes_at_energy(sizes, energies, energy) == pytest.approx(size)
    assert bytes_at_energy(sizes, energies, 0.3) == pytest.approx(200)
    assert bytes_at_energy(sizes[::-1], energies[::-1], 0.6) == pytest.approx(800)
    assert np.isnan(bytes_at_energy(sizes, energies, 0.1)) and np.isnan(bytes_at_energy(sizes, energies, 0.9))


def test_a_payload_that_a_smaller_one_outdoes_is_not_used():
    best = [100, 400], [0.2, 0.8]
    worse = [100, 800, 150, 400], [0.2, 0.5, 0.2, 0.8]
    for energy in (0.2, 0.3, 0.5, 0.8):
        assert bytes_at_energy(*worse, energy) == pytest.approx(bytes_at_energy(*best, energy))


def test_an_energy_without_a_payload_is_refused():
    with pytest.raises(ValueError, match="one of each a point"):
        bytes_at_energy([1, 2], [0.5], 0.5)
