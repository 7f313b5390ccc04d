"""Expected supports of noisy vectors that move, against the standing one's formulas, draws, and the real coder."""

import numpy as np
import pytest

from analysis.theory.index_bits import temporal_index_bits
from analysis.theory.moving_top_k import SelectionProbabilities
from analysis.theory.noisy_top_k import vector_retention
from dpcomp.codec.entropy.range_coder import RangeCoder
from dpcomp.sparsify.top_k_indices import top_k_indices

DRAWS = np.random.default_rng(0)
EDGES = np.array([0, 100, 3000, 3000, 20_000])
FIRST = (DRAWS.standard_t(2.5, 20_000) * np.where(np.arange(20_000) < 3000, 3, 1)).astype(np.float32)
SECOND = (FIRST + 0.5 * DRAWS.standard_t(2.5, 20_000)).astype(np.float32)


@pytest.mark.parametrize("k", [20, 200, 2000])
@pytest.mark.parametrize("noise_stddev", [0.0, 0.01, 0.3, 1.0, 100.0])
def test_of_a_vector_that_stands_still_it_is_the_retention_of_the_vector(noise_stddev, k):
    computed, known = (
        of(FIRST, k=k, noise_stddev=noise_stddev) for of in (SelectionProbabilities.of, vector_retention)
    )
    assert computed.recall == pytest.approx(known.recall, abs=1e-6)
    assert computed.overlap(computed) == pytest.approx(known.overlap, abs=1e-6)
    assert computed.captured_energy == pytest.approx(known.captured_energy, abs=1e-6)


@pytest.mark.parametrize("k", [200, 2000])
@pytest.mark.parametrize("noise_stddev", [0.0, 0.3, 1.0, 10.0])
def test_of_vectors_that_move_overlap_and_bits_are_those_of_draws(noise_stddev, k):
    one, other = (SelectionProbabilities.of(vector, k=k, noise_stddev=noise_stddev) for vector in (FIRST, SECOND))
    overlaps, bits = [], []
    for _ in range(8):
        before, after = (
            top_k_indices(vector + noise_stddev * DRAWS.standard_normal(len(vector)), k) for vector in (FIRST, SECOND)
        )
        writer = RangeCoder().writer()
        writer.positions(after, EDGES, before)
        overlaps.append(len(np.intersect1d(before, after)) / k)
        bits.append(8 * sum(map(len, writer.finish())) / k)
    assert one.overlap(other) == pytest.approx(np.mean(overlaps), abs=0.02)
    assert one.index_bits(other, EDGES) == pytest.approx(np.mean(bits), abs=0.25)


def test_of_one_layer_the_bits_are_the_closed_form_and_the_counts():
    one, other = (SelectionProbabilities.of(vector, k=2000, noise_stddev=0.3) for vector in (FIRST, SECOND))
    bits = temporal_index_bits(density=0.1, overlap=one.overlap(other))
    assert one.index_bits(other, np.array([0, 20_000])) == pytest.approx(bits + 8 * (1 + 2 + 4) / 2000, abs=1e-3)


@pytest.mark.parametrize("change", [{"k": 0}, {"k": 20_000}, {"noise_stddev": -1.0}])
def test_impossible_values_are_named(change):
    with pytest.raises(ValueError, match="give 0 < k < d"):
        SelectionProbabilities.of(FIRST, **({"k": 20, "noise_stddev": 1.0} | change))
    with pytest.raises(ValueError, match="one size"):
        SelectionProbabilities.of(FIRST, k=20, noise_stddev=1.0).overlap(
            SelectionProbabilities.of(FIRST, k=21, noise_stddev=1.0)
        )
