"""Efficiency compares bytes that were sent."""

import numpy as np
import pytest

import dpcomp as dp
from analysis.measures.efficiency import bytes_at_energy, compression_ratio, encoded_bytes
from analysis.measures.supports import smallest_support
from dpcomp.core.public_context import PublicContext
from dpcomp.wire.update import with_claim

LAYOUT = dp.Layout.of(5000)
CODEC = dp.Codec(quantize=dp.Uniform(4))


def noisy_vectors(noise):
    rng = np.random.default_rng(0)
    clean = rng.standard_t(5, LAYOUT.size).astype(np.float32)
    return clean, (clean + noise * rng.standard_normal(LAYOUT.size)).astype(np.float32)


def test_float32_itself_has_a_ratio_of_one():
    assert compression_ratio(5000, len(np.zeros(5000, np.float32).tobytes())) == 1


def test_encoded_bytes_are_those_of_a_payload_that_is_sent():
    clean, noisy = noisy_vectors(1.0)
    pipeline = dp.Pipeline(mechanism=dp.unsafe("a measurement of the wire"), codec=CODEC, feedback=False)
    memory = pipeline.init_client(LAYOUT, dp.PublicSeed(0), client=0, run_id=b"this run")  # so headers are short
    sizes, expected = [], []
    for share in (0.5, 0.5, 0.8):
        support = smallest_support(clean, noisy, share)
        update = with_claim(
            dp.Update(values=noisy[support.positions], layout=LAYOUT, address=memory.address, support=support),
            pipeline.claim,
        )
        common = PublicContext(layout=LAYOUT, previous_support=memory.link.last_support)
        expected.append(encoded_bytes(CODEC, noisy, support, common))
        payload, memory = pipeline.send(update, memory)
        sizes.append(len(payload))
    assert sizes == expected
    assert sizes[1] < sizes[0] < sizes[2]  # the same support again costs next to nothing


def test_under_noise_the_same_energy_takes_more_bytes():
    sizes = []
    for noise in (0.0, 1.0, 4.0):
        clean, noisy = noisy_vectors(noise)
        support = smallest_support(clean, noisy, 0.7)
        sizes.append(encoded_bytes(CODEC, noisy, support, PublicContext(layout=LAYOUT)))
    assert sizes[0] < sizes[1] < sizes[2] / 1.5


def test_between_payloads_the_logarithm_is_linear_in_the_energy():
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


@pytest.mark.parametrize(("sizes", "energies"), [([1, 2], [0.5]), ([], [])])
def test_an_energy_without_a_payload_is_refused(sizes, energies):
    with pytest.raises(ValueError, match=f"{len(sizes)} payloads and {len(energies)} energies"):
        bytes_at_energy(sizes, energies, 0.5)
